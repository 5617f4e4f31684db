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
// The tiles of a slice ask for the next one, a little at each step (Ahead). On a Zen 4, of the peak
// of vpdpbusd: 768 x 768 from its L3, 8 rows 0.90, 16 and 32 rows 0.92, 0.84 with all that a tile
// asks for in one place ahead of it; where each step asked for what was 2 KiB further in its
// panels, 8 rows 0.64, 16 rows 0.67.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/gemm_s8s8s32/epilogue.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kBlockRows = 128;
constexpr int64_t kSliceK = 384, kSliceKZen4 = 1024;
constexpr int kUnaskedRows = 2;  // the prefetchers do well with the many panels that these take

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

// What a tile asks for while it multiplies: at each step of 4 along K, the line at `at` of every
// panel, then `step` bytes further. A little at each step: asked for all at once, ahead of a tile,
// they keep its own loads waiting.
struct Ahead {
  const int8_t* at;
  int64_t panel_bytes, step;
};

// The share of tile `tile` of `tiles`, each `k` long, of so many bytes of every panel.
inline Ahead share_of(const int8_t* panel, int64_t panel_bytes, int64_t bytes, int64_t k,
                      int64_t tile, int64_t tiles) {
  const int64_t steps = std::max<int64_t>(1, k / 4);
  return {panel + bytes * tile / tiles, panel_bytes, ceil_div(bytes, tiles * steps)};
}

// Multiply-adds of K in [k_begin, k_end) for MR rows and NP panels, `panel_bytes` apart and given
// from k_begin on. sums[MR][NP * 16] hold those of smaller k and take the result, but for the last
// slice, whose result goes through the epilogue. kAsk: for what `ahead` says. Not inlined: where
// GCC 12 does, it may leave the sums in memory, which takes twice as long.
template <class R, int MR, int NP, bool kAsk>
__attribute__((noinline)) void vnni_tile(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row,
                                         int64_t column, const int8_t* b, int64_t panel_bytes,
                                         int64_t k_begin, int64_t k_end, int32_t* sums,
                                         Ahead ahead) {
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
  for (int64_t k = k_begin; k < k_end; k += 4, a += 4, b += 64, ahead.at += ahead.step) {
    typename R::reg b_s8[NP * kRegs];
#pragma GCC unroll 32
    for (int j = 0; j < NP * kRegs; ++j) {
      if (kAsk && j % kRegs == 0) {
        __builtin_prefetch(ahead.at + j / kRegs * ahead.panel_bytes, 0, 2);
      }
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

// What tile `tile` of `tiles` asks for while it multiplies [k_begin, k_end): its share of the slice
// that these NP panels have from k_end on, or of the first slice of the next NP panels. Weights
// from beyond L2 would keep the first tile of a slice waiting.
template <int NP>
Ahead next_slice(const GemmS8S8S32& p, int64_t column, int64_t k_begin, int64_t k_end,
                 int64_t slice, int64_t tile, int64_t tiles) {
  const int64_t k = k_end - k_begin;
  if (k_end == p.k_pad) {
    column += NP * kPanelColumns;
    k_end = 0;
    // A smaller group, or none.
    if (p.n + p.n_after - column <= (NP - 1) * kPanelColumns) return {p.panels, 0, 0};
  }
  const int64_t bytes = std::min(slice, p.k_pad - k_end) * kPanelColumns;
  const int8_t* panel = p.panels + column * p.k_pad + k_end * kPanelColumns;
  return share_of(panel, kPanelColumns * p.k_pad, bytes, k, tile, tiles);
}

// All columns from `column` on in groups of NP panels, for rows in tiles of MR; then the remaining
// panels in smaller groups.
template <class R, int MR, int NP>
void vnni_columns(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                  int64_t column) {
  // Where there are two tiles or more, they are at least half as tall as the tallest.
  constexpr int64_t kTiles = MR >= R::kMaxRows / 2 ? kBlockRows / MR : 1;
  alignas(64) int32_t sums[kTiles * MR * NP * kPanelColumns];
  const int64_t slice = rows > MR ? slice_k(p) : std::max(p.k_pad, kBlockK);
  for (; p.n - column > (NP - 1) * kPanelColumns; column += NP * kPanelColumns) {
    int64_t k = 0;
    do {  // once at least: K = 0 has an epilogue, too
      const int64_t k_end = std::min(p.k_pad, k + slice);
      const int8_t* b = p.panels + column * p.k_pad + k * kPanelColumns;
      const int64_t panel_bytes = kPanelColumns * p.k_pad;
      for (int64_t i = 0; i < rows; i += MR) {
        if (rows >= kLeastRowsOutputs && k_end == p.k_pad) {
          prefetch_outputs(p, row + i, MR, column, NP * kPanelColumns);
        }
        const Ahead ahead = next_slice<NP>(p, column, k, k_end, slice, i / MR, rows / MR);
        vnni_tile<R, MR, NP, (MR > kUnaskedRows)>(p, epilogue, row + i, column, b, panel_bytes, k,
                                                  k_end, sums + i * NP * kPanelColumns, ahead);
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
