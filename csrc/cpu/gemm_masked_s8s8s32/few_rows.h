// gemm_masked_s8s8s32 for few rows, with AVX-512: the weight is read once, NP panels side by side,
// each a stream that asks for what comes kSlicesAhead later. One stream has not enough lines on
// their way on Intel, and one chain from mask to mask is longer than the work beside it (one row,
// 4096 x 4096 from memory, Emerald Rapids: sp24 13 GB/s by one stream of masks, 16 by four of
// pairs; 30 % of single weights 11 and 16). Registers: MR x NP x kSplit sums, at most 16, NP
// operands, NP shuffles. Included by x86_avx512vbmi2.cpp.
#pragma once

#include <algorithm>

#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/panels.h"
#include "cpu/gemm_s8s8s32/epilogue.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kFewRowsGroup = 8;  // panels that go through the epilogue together
// One stream alone has to be further ahead.
template <int NP>
constexpr int64_t kSlicesAhead = NP > 1 ? 3 : 6;

// sums[i * ld + j * 16 + c] = start[j * 16 + c] + the products of MR rows with the NP panels from
// `panel` on. rows: kStepK of K of each row in turn.
template <int MR, int NP, class Panels>
void few_rows_panels(Panels panels, const PackedWeight& w, int64_t panel, int64_t slice_bytes,
                     const int8_t* rows, const int32_t* start, int32_t* sums, int64_t ld) {
  constexpr int kSplit = MR * NP >= 8 ? 1 : MR * NP >= 4 ? 2 : 4;  // of the sums, along K
  constexpr int kStepK = Panels::kStepK, kParts = kPairsK / kStepK;
  constexpr int kSteps = std::max(1, kSplit / kParts);  // in which every sum has its turn
  const int64_t last = panels_of(w) - 1;
  const uint8_t* next[NP];
  each<NP>([&](auto j) FASTINFER_INLINE {
    panels.at[j] = masked_panel(w, panel + j);
    next[j] = masked_panel(w, std::min<int64_t>(panel + NP + j, last));
  });
  __m512i acc_s32[MR][NP][kSplit];
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<NP>([&](auto j) FASTINFER_INLINE {
      acc_s32[i][j][0] = _mm512_loadu_si512(start + j * kPanelColumns);
      each<kSplit - 1>([&](auto s)
                           FASTINFER_INLINE { acc_s32[i][j][s + 1] = _mm512_setzero_si512(); });
    });
  });
  for (int64_t slices = w.k_pad / kBlockK; slices > 0; --slices) {
    panels.begin_slice();
    // The slice so far ahead is of this panel, or of the one that follows.
    const int64_t left = slices - kSlicesAhead<NP>;
    each<NP>([&](auto j) FASTINFER_INLINE {
      const uint8_t* ahead =
          left > 0 ? panels.at[j] + kSlicesAhead<NP> * slice_bytes : next[j] - left * slice_bytes;
      const int64_t bytes = Panels::kStoredSliceBytes > 0 ? Panels::kStoredSliceBytes : slice_bytes;
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
    });
    for (int step = 0; step < kBlockK / kPairsK; step += kSteps) {
      each<kSteps * kParts>([&](auto part) FASTINFER_INLINE {
        __m512i b_s8[NP];
        panels.next(step + part / kParts, part % kParts, b_s8);
        each<MR>([&](auto i) FASTINFER_INLINE {
          each<NP>([&](auto j) FASTINFER_INLINE {
            __m512i& sum = acc_s32[i][j][part % kSplit];
            sum = dpbusd(sum, panels.meet(rows + i * kStepK, j), b_s8[j]);
          });
        });
        rows += MR * kStepK;
      });
    }
    panels.end_slice();
  }
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<NP>([&](auto j) FASTINFER_INLINE {
      __m512i sum = acc_s32[i][j][0];
      each<kSplit - 1>([&](auto s)
                           FASTINFER_INLINE { sum = _mm512_add_epi32(sum, acc_s32[i][j][s + 1]); });
      _mm512_store_si512(sums + i * ld + j * kPanelColumns, sum);
    });
  });
}

// Panels by groups, NP at a time, those at the end one by one. rows: as in few_rows_panels.
template <int MR, template <int> class Panels, int NP>
void few_rows_columns(const GemmMaskedS8S8S32& g, const int8_t* rows) {
  const GemmS8S8S32& p = g.gemm;
  const PackedWeight& w = *g.weight;
  constexpr int64_t kColumns = kFewRowsGroup * kPanelColumns;
  static_assert(kFewRowsGroup % NP == 0);
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(p);
  const Panels<NP> side_by_side(w);
  const Panels<1> single(w);
  const int64_t slices = std::max<int64_t>(1, panels_of(w) * (w.k_pad / kBlockK));
  const int64_t slice_bytes = (w.masked_end - w.masked) / slices;  // on average
  alignas(64) int32_t sums[MR * kColumns];
  int64_t panel = g.panel;
  for (int64_t n = 0; n < p.n; n += kColumns) {
    const int64_t columns = std::min(kColumns, p.n - n);
    prefetch_terms(p, n, columns);
    int64_t c = 0;
    for (; columns - c > (NP - 1) * kPanelColumns; c += NP * kPanelColumns, panel += NP) {
      few_rows_panels<MR, NP>(side_by_side, w, panel, slice_bytes, rows, p.compensation + n + c,
                              sums + c, kColumns);
    }
    for (; c < columns; c += kPanelColumns, ++panel) {
      few_rows_panels<MR, 1>(single, w, panel, slice_bytes, rows, p.compensation + n + c, sums + c,
                             kColumns);
    }
    epilogue(p, sums, kColumns, 0, MR, n, columns);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
