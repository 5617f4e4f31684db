// gemm_masked_s8s8s32_8x48x4_avx512vbmi2. Contract: gemm_masked_s8s8s32.h; A as x86_vnni.h has it,
// q + 128, tile_rows 1. Many rows: many_rows.h. Few rows: gemm_s8s8s32/x86_one_stream.h.
//
// The vpdpbusd operand of 4 of K of one panel is put together from 8 bytes of mask and up to 64 of
// values, four steps at once (expand_s8/vpexpandb.h). Overflow: none, as in gemm_s8s8s32.h. One row
// on Zen 4: 3.6 cycles a step from L1 (vpexpandb 1.5, kmovq 0.8 and vpdpbusd 1 add up), 5 from
// memory, where a dense weight takes 7.4.
#include <immintrin.h>

#include <cstring>

#include "cpu/expand_s8/vpexpandb.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/many_rows.h"
#include "cpu/gemm_s8s8s32/x86_one_stream.h"

namespace fastinfer::cpu {

namespace {

constexpr int kMaxRows = int(kFewMaskedRows);

// The rows of A side by side, 4 bytes of each in turn: a step reads one place, and rows that are a
// multiple of 4 KiB apart do not push each other out of L1.
void interleave_rows(const GemmS8S8S32& p, int8_t* to) {
  for (int64_t k = 0; k < p.k_pad; k += 4) {
    for (int64_t i = 0; i < p.m; ++i, to += 4) std::memcpy(to, p.a + i * p.k_pad + k, 4);
  }
}

// kPairs: the weight is sp24.
template <int MR, bool kPairs>
void masked_rows(const GemmMaskedS8S8S32& g) {
  if constexpr (MR > 1) {
    if (g.gemm.m < MR) return masked_rows<MR - 1, kPairs>(g);
  }
  const int8_t* a = g.gemm.a;
  if constexpr (MR > 1) {
    interleave_rows(g.gemm, g.scratch);
    a = g.scratch;
  }
  stream_columns<MR>(g.gemm,
                     MaskedStream<kPairs>{masked_panel(*g.weight, g.panel), g.weight->masked_end},
                     [&](int64_t k, int64_t i) { return a + k * MR + 4 * i; });
}

}  // namespace

void gemm_masked_s8s8s32_8x48x4_avx512vbmi2(const GemmMaskedS8S8S32& g) {
  const bool few = g.gemm.m > 0 && g.gemm.m <= kFewMaskedRows;
  if (!few) return many_masked_rows(g);
  const bool pairs = g.weight->layout == WeightLayout::sp24;
  pairs ? masked_rows<kMaxRows, true>(g) : masked_rows<kMaxRows, false>(g);
}

}  // namespace fastinfer::cpu
