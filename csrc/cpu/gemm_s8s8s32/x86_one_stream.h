// Few rows with AVX-512, one panel after another, so that a weight is one stream from memory; with
// few of them, neighbouring steps of 4 along K add to sums of their own, so that there are always 4
// or more on their way. Registers: 4 to 8 sums, kSteps operands, 1 broadcast.
//
//   slice()       comes to the next 64 of K of a panel, or to the next panel: they lie side by side
//   next(b_s8)    the vpdpbusd operands of the next kSteps steps
//   rows(k, i)    the 4 bytes of row i from k on, q + 128
#pragma once

#include <algorithm>

#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"

namespace fastinfer::cpu {
namespace {

constexpr int kSteps = 4;  // that are read together
// That go through the epilogue together.
constexpr int64_t kGroupPanels = 4;

// sums[i * ld + c] = start[c] + the products of MR rows with one panel. Returns where the next
// begins; by value, since a reference would keep the pointers in memory.
template <int MR, class Stream, class Rows>
Stream stream_panel(Stream stream, const Rows& rows, int64_t k_pad, const int32_t* start,
                    int32_t* sums, int64_t ld) {
  constexpr int kSplit = MR == 1 ? 4 : MR <= 4 ? 2 : 1;  // of the sums of a row, along K
  __m512i acc_s32[MR][kSplit];
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<kSplit>([&](auto j) FASTINFER_INLINE { acc_s32[i][j] = _mm512_setzero_si512(); });
  });
  for (int64_t slice = 0; slice < k_pad; slice += kBlockK) {
    stream.slice();
    for (int64_t k = slice; k < slice + kBlockK; k += 4 * kSteps) {
      __m512i b_s8[kSteps];
      stream.next(b_s8);
      each<kSteps>([&](auto j) FASTINFER_INLINE {
        each<MR>([&](auto i) FASTINFER_INLINE {
          __m512i& sum = acc_s32[i][j % kSplit];
          sum = dpbusd(sum, broadcast_four(rows(k + 4 * j, i)), b_s8[j]);
        });
      });
    }
  }
  each<MR>([&](auto i) FASTINFER_INLINE {
    __m512i sum = _mm512_loadu_si512(start);
    each<kSplit>([&](auto j) FASTINFER_INLINE { sum = _mm512_add_epi32(sum, acc_s32[i][j]); });
    _mm512_store_si512(sums + i * ld, sum);
  });
  return stream;
}

template <int MR, class Stream, class Rows>
void stream_columns(const GemmS8S8S32& p, Stream stream, const Rows& rows) {
  constexpr int64_t kColumns = kGroupPanels * kPanelColumns;
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(p);
  alignas(64) int32_t sums[MR * kColumns];
  for (int64_t n = 0; n < p.n; n += kColumns) {
    const int64_t columns = std::min(kColumns, p.n - n);
    prefetch_terms(p, n, columns);
    for (int64_t c = 0; c < columns; c += kPanelColumns) {
      stream = stream_panel<MR>(stream, rows, p.k_pad, p.compensation + n + c, sums + c, kColumns);
    }
    epilogue(p, sums, kColumns, 0, MR, n, columns);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
