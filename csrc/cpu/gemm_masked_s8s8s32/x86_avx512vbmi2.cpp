// gemm_masked_s8s8s32_8x48x4_avx512vbmi2. Contract: gemm_masked_s8s8s32.h; A as x86_vnni.h has it,
// q + 128, tile_rows 1.
//
// Few rows: few_rows.h; for masked slices, with more than 4 rows and on a Zen 4,
// gemm_s8s8s32/x86_one_stream.h: a stream from memory, four steps at once, 3.6 cycles a step with
// one row from L1 (vpexpandb 1.5, kmovq 0.8 and vpdpbusd 1 add up), 5 from memory, where a dense
// weight takes 7.4. Many rows: many_rows.h. Overflow: none, as in gemm_s8s8s32.h.
#include <cstring>

#include "cpu/expand_s8/vpexpandb.h"
#include "cpu/gemm_masked_s8s8s32/few_rows.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/many_rows.h"
#include "cpu/gemm_s8s8s32/x86_one_stream.h"

namespace fastinfer::cpu {

namespace {

constexpr int kMaxRows = int(kFewMaskedRows);

// The rows of A side by side, kBytes of each in turn: a step reads one place, and rows that are a
// multiple of 4 KiB apart do not push each other out of L1.
template <int kBytes>
const int8_t* interleave_rows(const GemmMaskedS8S8S32& g) {
  const GemmS8S8S32& p = g.gemm;
  if (p.m == 1) return p.a;
  int8_t* to = g.scratch;
  for (int64_t k = 0; k < p.k_pad; k += kBytes) {
    for (int64_t i = 0; i < p.m; ++i, to += kBytes) {
      std::memcpy(to, p.a + i * p.k_pad + k, kBytes);
    }
  }
  return g.scratch;
}

template <int MR>
void few_rows(const GemmMaskedS8S8S32& g) {
  if constexpr (MR > 1) {
    if (g.gemm.m < MR) return few_rows<MR - 1>(g);
  }
  if (g.weight->layout == WeightLayout::sp24) {
    const int8_t* a = interleave_rows<kPairsK>(g);
    return g.gemm.zen4 ? few_rows_columns<MR, PickingPanels, 1>(g, a)
                       : few_rows_columns<MR, PickingPanels, MR <= 4 ? 4 : 2>(g, a);
  }
  const int8_t* a = interleave_rows<4>(g);
  if constexpr (MR <= 4) {
    if (!g.gemm.zen4) return few_rows_columns<MR, MaskedPanels, 4>(g, a);
  }
  stream_columns<MR>(g.gemm, MaskedStream{masked_panel(*g.weight, g.panel), g.weight->masked_end},
                     [&](int64_t k, int64_t i) { return a + k * MR + 4 * i; });
}

}  // namespace

void gemm_masked_s8s8s32_8x48x4_avx512vbmi2(const GemmMaskedS8S8S32& g) {
  g.gemm.m > 0 && g.gemm.m <= kFewMaskedRows ? few_rows<kMaxRows>(g) : many_masked_rows(g);
}

}  // namespace fastinfer::cpu
