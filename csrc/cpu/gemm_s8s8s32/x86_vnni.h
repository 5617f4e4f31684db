// gemm_s8s8s32 with vpdpbusd, over the register width. Included by x86_avxvnni.cpp (ymm) and
// x86_avx512vnni.cpp (zmm), which say what `R` is. Contract and layouts: gemm_s8s8s32.h.
//
// vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32 lane without
// saturating. A arrives as q + 128 (flip = 0x80), so the sums start from the compensation
// -128 * sum_k b: int32 arithmetic modulo 2^32, exact because the true sum fits.
//
// One step takes 4 of K: NP panels of 16 columns (a panel is 64 bytes: 64 / sizeof(reg)
// registers), MR rows, each row's 4 bytes broadcast from memory (a load, no shuffle).
//
// Blocks, where there is more than one tile of rows: kBlockRows rows of A stay in L2 while all
// columns pass; NP panels are taken a slice of K at a time, so that they stay in L1 (18 KiB of 48
// columns and 384 of K) for all tiles of the block. Sums wait in memory between slices: per slice
// and tile as many loads and stores as accumulators, 3 % of the slice's multiply-adds. A Zen 4,
// which does one vpdpbusd a cycle where others do two, reads panels fast enough from L2: with
// slices of 1024 128 rows run at 0.95 of its peak, K = 768 or 3072, with slices of 384 at 0.93.
//
// Where three tiles or more share a slice, they ask for the next one: with 128 rows and weights
// from memory, 0.95 of the peak of vpdpbusd on one core of a Zen 5, 0.85 without it. With fewer
// tiles each step asks for what is 2 KiB further in every panel: 8 rows, weights from memory, 90 us
// instead of 160 there. On a Zen 4 up to 6 rows do better without: 4 rows of 4096 x 4096 600 us
// instead of 820.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/gemm_s8s8s32/epilogue.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kBlockRows = 128;
constexpr int64_t kSliceK = 384, kSliceKZen4 = 1024;
constexpr int64_t kAheadBytes = 2048;  // of a panel
constexpr int64_t kUnaskedRowsZen4 = 6;

// K of a slice, all slices as equal as they can be.
inline int64_t slice_k(const GemmS8S8S32& p) {
  const int64_t slices = ceil_div(p.k_pad, p.zen4 ? kSliceKZen4 : kSliceK);
  return slices < 2 ? std::max(p.k_pad, kBlockK) : round_up(ceil_div(p.k_pad, slices), kBlockK);
}

// The results of a tile from its sums in registers, if they are no more than dequantised and there
// are all columns; returns whether. Through memory, as all others go, a tile of K = 384 takes 120
// cycles more of 2300 on a Zen 4.
template <class R, int MR, int kVectors>
FASTINFER_INLINE inline bool dequantize_tile(const GemmS8S8S32& p, int64_t row, int64_t column,
                                             const typename R::reg (&acc_s32)[MR][kVectors]) {
  using V = typename R::Vec;
  if (!only_dequantized(p) || p.n - column < kVectors * V::width) return false;
  const int64_t column_bytes = column * int64_t(sizeof(float));
  char* out = static_cast<char*>(p.out) + row * p.out_ld_bytes + column_bytes;
  const char* residual = static_cast<const char*>(p.residual);
  if (residual) residual += row * p.residual_ld_bytes + column_bytes;
  ColumnTerms<V> terms[kVectors];
#pragma GCC unroll 32
  for (int j = 0; j < kVectors; ++j) terms[j] = column_terms<V>(p, column + j * V::width);
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
    const auto a_scale = V::set1(p.a_scale[row + i]), a_offset = V::set1(p.a_offset[row + i]);
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; ++j) {
      auto y = terms[j].dequantize(R::to_float(acc_s32[i][j]), a_scale, a_offset);
      const int64_t at = j * int64_t(sizeof y);
      if (residual) y = V::add(y, V::load(residual + i * p.residual_ld_bytes + at, DType::f32));
      V::store(out + i * p.out_ld_bytes + at, DType::f32, y);
    }
  }
  return true;
}

// Multiply-adds of K in [k_begin, k_end) for MR rows and NP panels, `panel_bytes` apart and given
// from k_begin on. sums[MR][NP * 16] hold those of smaller k and take the result, but for the last
// slice, whose result goes through the epilogue. kAhead: asks for each panel's next bytes. Not
// inlined: where GCC 12 does, it may leave the sums in memory, which takes twice as long.
template <class R, int MR, int NP, bool kAhead>
__attribute__((noinline)) void vnni_tile(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row,
                                         int64_t column, const int8_t* b, int64_t panel_bytes,
                                         int64_t k_begin, int64_t k_end, int32_t* sums) {
  constexpr int kRegs = 64 / int(sizeof(typename R::reg));  // registers a panel
  constexpr int kLanes = 16 / kRegs;
  constexpr int kColumns = NP * kPanelColumns;
  const int8_t* a = p.a + row * p.k_pad + k_begin;
  typename R::reg acc_s32[MR][NP * kRegs];
#pragma GCC unroll 32
  for (int j = 0; j < NP * kRegs; ++j) {
    const auto start = R::load(p.compensation + column + j * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      acc_s32[i][j] = k_begin == 0 ? start : R::load(sums + i * kColumns + j * kLanes);
    }
  }
  for (int64_t k = k_begin; k < k_end; k += 4, a += 4, b += 64) {
    typename R::reg b_s8[NP * kRegs];
#pragma GCC unroll 32
    for (int j = 0; j < NP * kRegs; ++j) {
      if (kAhead && j % kRegs == 0) __builtin_prefetch(b + j / kRegs * panel_bytes + kAheadBytes);
      b_s8[j] = R::load(b + j / kRegs * panel_bytes + j % kRegs * int(sizeof(typename R::reg)));
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      int32_t four;
      std::memcpy(&four, a + i * p.k_pad, 4);
      const auto a_u8 = R::broadcast(four);
#pragma GCC unroll 32
      for (int j = 0; j < NP * kRegs; ++j) {
        R::dpbusd(acc_s32[i][j], a_u8, b_s8[j]);
      }
    }
  }
  if (k_end == p.k_pad && dequantize_tile<R>(p, row, column, acc_s32)) return;
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < NP * kRegs; ++j) R::store(sums + i * kColumns + j * kLanes, acc_s32[i][j]);
  }
  if (k_end == p.k_pad) {
    epilogue(p, sums, kColumns, row, MR, column, std::min<int64_t>(kColumns, p.n - column));
  }
}

// Asks for a part, [begin, end) of `parts`, of the slice that these NP panels have from k_end on,
// or of the first slice of the next NP panels, while the tiles of this slice multiply: weights from
// beyond L2 would keep the first tile of a slice waiting. Inlined by force: GCC 12 drops calls of a
// function that does nothing but prefetch.
template <int NP>
FASTINFER_INLINE inline void prefetch_next(const GemmS8S8S32& p, int64_t column, int64_t k_end,
                                           int64_t slice, int64_t begin, int64_t end,
                                           int64_t parts) {
  if (k_end == p.k_pad) {
    column += NP * kPanelColumns;
    k_end = 0;
    // A smaller group, or none.
    if (p.n + p.n_after - column <= (NP - 1) * kPanelColumns) return;
  }
  const int8_t* b = p.panels + column * p.k_pad + k_end * kPanelColumns;
  const int64_t lines = std::min(slice, p.k_pad - k_end) * kPanelColumns / 64;
  for (int64_t line = lines * begin / parts; line < lines * end / parts; ++line) {
#pragma GCC unroll 8
    for (int j = 0; j < NP; ++j) {
      __builtin_prefetch(b + j * kPanelColumns * p.k_pad + line * 64, 0, 2);
    }
  }
}

// All columns from `column` on in groups of NP panels, for rows in tiles of MR; then the remaining
// panels in smaller groups.
template <class R, int MR, int NP>
void vnni_columns(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                  int64_t column) {
  // Where there are two tiles or more, they are at least half as tall as the tallest.
  constexpr int64_t kTiles = MR >= R::kMaxRows / 2 ? kBlockRows / MR : 1;
  // The prefetchers do well with the many panels that one or two rows take; some with fewer, too.
  constexpr bool kFewStreams = MR > 2;
  const bool ahead = kFewStreams && rows <= 2 * MR && (rows > kUnaskedRowsZen4 || !p.zen4);
  alignas(64) int32_t sums[kTiles * MR * NP * kPanelColumns];
  const int64_t slice = rows > MR ? slice_k(p) : std::max(p.k_pad, kBlockK);
  for (; p.n - column > (NP - 1) * kPanelColumns; column += NP * kPanelColumns) {
    int64_t k = 0;
    do {  // once at least: K = 0 has an epilogue, too
      const int64_t k_end = std::min(p.k_pad, k + slice);
      const int8_t* b = p.panels + column * p.k_pad + k * kPanelColumns;
      const int64_t panel_bytes = kPanelColumns * p.k_pad;
      for (int64_t i = 0; i < rows; i += MR) {
        int32_t* tile_sums = sums + i * NP * kPanelColumns;
        if (ahead) {
          vnni_tile<R, MR, NP, kFewStreams>(p, epilogue, row + i, column, b, panel_bytes, k, k_end,
                                            tile_sums);
          continue;
        }
        if (rows > 2 * MR) prefetch_next<NP>(p, column, k_end, slice, i, i + MR, rows);
        if (rows >= kLeastRowsOutputs && k_end == p.k_pad) {
          prefetch_outputs(p, row + i, MR, column, NP * kPanelColumns);
        }
        vnni_tile<R, MR, NP, false>(p, epilogue, row + i, column, b, panel_bytes, k, k_end,
                                    tile_sums);
      }
      k = k_end;
    } while (k < p.k_pad);
  }
  if constexpr (NP > 1) {
    if (column < p.n) vnni_columns<R, MR, NP / 2>(p, epilogue, row, rows, column);
  }
}

template <class R, int MR>
void vnni_rows(const GemmS8S8S32& p, int64_t row, int64_t rows) {
  vnni_columns<R, MR, R::panels(MR)>(p, select_epilogue<typename R::Vec>(p), row, rows, 0);
}

template <class R, int MR>
void vnni_dispatch(const GemmS8S8S32& p, int mr, int64_t row, int64_t rows) {
  if (mr == MR) {
    vnni_rows<R, MR>(p, row, rows);
  } else if constexpr (MR > 1) {
    vnni_dispatch<R, MR - 1>(p, mr, row, rows);
  }
}

// block(MR, row, rows) for all rows of a product in blocks of tiles as equal as they can be: at
// most one row more in one than in another.
template <class Block>
void for_row_blocks(int64_t m, int most_rows, const Block& block) {
  if (m == 0) return;
  const int64_t tiles = (m + most_rows - 1) / most_rows;
  const int mr = int((m + tiles - 1) / tiles);  // rows of the taller tiles
  const int64_t taller = m - tiles * (mr - 1);  // how many of them
  const auto run = [&](int height, int64_t row, int64_t end) {
    const int64_t step = height > 0 ? kBlockRows / height * height : 1;
    for (; row < end; row += step) block(height, row, std::min(step, end - row));
  };
  run(mr, 0, taller * mr);
  run(mr - 1, taller * mr, m);
}

template <class R>
void vnni_gemm(const GemmS8S8S32& p) {
  for_row_blocks(p.m, R::kMaxRows, [&](int mr, int64_t row, int64_t rows) {
    vnni_dispatch<R, R::kMaxRows>(p, mr, row, rows);
  });
}

}  // namespace
}  // namespace fastinfer::cpu
