// gemm_masked_s8s8s32_8x48x4_avx512bitalg. Contract: gemm_masked_s8s8s32.h; A as x86_vnni.h has it,
// q + 128, tile_rows 1. Many rows: many_rows.h. Few rows:
//
// A step takes 4 of K of one panel: the vpdpbusd operand is put together from 8 bytes of mask and
// up to 64 of values (expand_s8/avx512.h), and each row's 4 bytes are broadcast from memory. The
// next values begin where these end: 32 bytes on with sp24, a count of bits on with a bitmask. One
// panel after another, so that the weight is one stream from memory; with fewer than 4 rows,
// neighbouring steps add to sums of their own, so that there are always 4 or more on their way.
// Registers: max(MR, 4) sums, the operand, 1 broadcast, 3 or 4 constants. Overflow: none, as in
// gemm_s8s8s32.h. Bound by memory with one row: see expand_s8/avx512.h for the cycles a step.
#include <immintrin.h>

#include <algorithm>

#include "cpu/expand_s8/avx512.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/many_rows.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

constexpr int kMaxRows = int(kFewMaskedRows);
// Of the weight: the prefetchers stop at the end of a page.
constexpr int64_t kMaskedAheadBytes = 8192;
constexpr int64_t kGroupPanels = 4;  // that go through the epilogue together

// The rows of A side by side, 4 bytes of each in turn: a step reads one place, and rows that are a
// multiple of 4 KiB apart do not push each other out of L1.
void interleave_rows(const GemmS8S8S32& p, int8_t* to) {
  for (int64_t k = 0; k < p.k_pad; k += 4) {
    for (int64_t i = 0; i < p.m; ++i, to += 4) std::memcpy(to, p.a + i * p.k_pad + k, 4);
  }
}

// sums[i * ld + c] = start[c] + the products of MR interleaved rows with one panel.
template <int MR, class Expand>
void masked_panel_sums(const uint8_t* masked, const uint8_t* last, const int8_t* a, int64_t k_pad,
                       const int32_t* start, int32_t* sums, int64_t ld) {
  constexpr int kSplit = MR == 1 ? 4 : MR <= 3 ? 2 : 1;  // of the sums of a row, along K
  const Expand expand;
  __m512i acc_s32[MR][kSplit];
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<kSplit>([&](auto j) FASTINFER_INLINE { acc_s32[i][j] = _mm512_setzero_si512(); });
  });
  const uint8_t* value = masked;
  for (int64_t k = 0; k < k_pad; k += kBlockK) {
    const uint8_t* mask = std::min(value, last);
    value = mask + kMaskBytes;
    for (int step = 0; step < kBlockK / 4; step += kSplit, a += 4 * MR * kSplit) {
      each<kSplit>([&](auto j) FASTINFER_INLINE {
        const __m512i b_s8 = expand(mask, value);
        __builtin_prefetch(value + kMaskedAheadBytes);
        value += expand.count(mask);
        mask += 8;
        each<MR>([&](auto i) FASTINFER_INLINE {
          int32_t four;
          std::memcpy(&four, a + (j * MR + i) * 4, 4);
          acc_s32[i][j] = dpbusd(acc_s32[i][j], _mm512_set1_epi32(four), b_s8);
        });
      });
    }
  }
  each<MR>([&](auto i) FASTINFER_INLINE {
    __m512i sum = _mm512_loadu_si512(start);
    each<kSplit>([&](auto j) FASTINFER_INLINE { sum = _mm512_add_epi32(sum, acc_s32[i][j]); });
    _mm512_store_si512(sums + i * ld, sum);
  });
}

template <int MR, class Expand>
void masked_panels(const GemmMaskedS8S8S32& g) {
  constexpr int64_t kColumns = kGroupPanels * kPanelColumns;
  const GemmS8S8S32& p = g.gemm;
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(p);
  interleave_rows(p, g.scratch);
  alignas(64) int32_t sums[MR * kColumns];
  for (int64_t n = 0; n < p.n; n += kColumns) {
    const int64_t columns = std::min(kColumns, p.n - n);
    for (int64_t c = 0; c < columns; c += kPanelColumns) {
      masked_panel_sums<MR, Expand>(masked_panel(*g.weight, g.panel + (n + c) / kPanelColumns),
                                    g.weight->masked_end, g.scratch, p.k_pad,
                                    p.compensation + n + c, sums + c, kColumns);
    }
    epilogue(p, sums, kColumns, 0, MR, n, columns);
  }
}

template <int MR>
void masked_rows(const GemmMaskedS8S8S32& g) {
  if (g.gemm.m == MR) {
    const bool pairs = g.weight->layout == WeightLayout::sp24;
    pairs ? masked_panels<MR, ExpandPairs>(g) : masked_panels<MR, ExpandAny>(g);
  } else if constexpr (MR > 1) {
    masked_rows<MR - 1>(g);
  }
}

}  // namespace

void gemm_masked_s8s8s32_8x48x4_avx512bitalg(const GemmMaskedS8S8S32& g) {
  g.gemm.m <= kFewMaskedRows ? masked_rows<kMaxRows>(g) : many_masked_rows(g);
}

}  // namespace fastinfer::cpu
