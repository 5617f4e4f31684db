// The register tiles of gemm_f32s8f32 and the loops around them, written once over an `Isa`: a Vec
// (vec/scalar.h) with
//   kMaxRows, panels(rows)       the tallest tile; how many panels of 16 columns one of `rows`
//   takes kPairs                       whether an element of x is two bfloat16, of k and k + 1 W
//   load_weights(const int8_t*)  4 bytes of each of `width` columns W upper(W w) the upper two of
//   them in place of the lower two expand(W w, i)               of the lower two, i = 0: the
//   second, i = 1: the first, as floats
//                                (pairs: both, as bfloat16, i = 0)
//   multiply_add(x, w, sum)      sum + x w, or of pairs x[0] w[0] + (x[1] w[1] + sum)
//
// Layout of x in the scratch: 32-bit elements (a float, or a pair), rows of kRowElements of them,
// the rows of a block of kSumK one after another: the tile reaches its rows by constant offsets,
// and they spread over the sets of L1 whatever K is.
//
// Few rows, one tile: weights are expanded in registers, read once. More: the panels of a tile are
// expanded for kSumK of K at a time, into scratch, and serve all tiles of a block of rows.
#pragma once

#include <cstring>

#include "cpu/gemm_f32s8f32/epilogue.h"

namespace fastinfer::cpu {
namespace {

// Steps of a group of 4 along K, elements of x in it, and those of a block of kSumK.
template <class T>
constexpr int kSteps = T::kPairs ? 2 : 4;
template <class T>
constexpr int64_t kRowElements = kSumK / 4 * kSteps<T>;
template <class T>
constexpr int kVectors = int(kPanelColumns) / T::width;  // of a panel
// Where the element of step i stands: pairs hold k + 1 and k in the order of the chain.
template <class T>
constexpr int element_of_step(int i) {
  return T::kPairs ? i : i ^ 1;
}

// Rows [row, row + rows) of x into `to`.
template <class T>
void lay_out_rows(const GemmF32S8F32& p, int64_t row, int64_t rows, float* to) {
  const int64_t size = size_of(p.x_dtype);
  for (int64_t k = 0; k < p.k; k += kSumK) {
    const int64_t length = std::min(kSumK, p.k - k);
    for (int64_t r = 0; r < rows; ++r, to += kRowElements<T>) {
      const char* from = static_cast<const char*>(p.x) + (row + r) * p.ldx_bytes + k * size;
      if constexpr (T::kPairs) {
        std::memcpy(to, from, size_t(length) * 2);
        std::memset(reinterpret_cast<char*>(to) + length * 2, 0, size_t(-length & 3) * 2);
      } else {
        for (int64_t i = 0; i < length; i += T::width) {
          const int n = int(std::min<int64_t>(T::width, length - i));
          const auto x = T::load(from + i * size, p.x_dtype, n);
          T::store(to + i, DType::f32, n < T::width ? T::keep(x, n, T::set1(0.0f)) : x);
        }
      }
    }
  }
}

// Vector v of neighbouring panels from `w` on. What comes 512 bytes later is asked for: the
// multiply-adds in between fill the reorder buffer, so that few loads are under way by themselves.
template <class T>
inline typename T::W load_weights(const int8_t* w, int64_t panel_bytes, int v) {
  const int8_t* from = w + v / kVectors<T> * panel_bytes + v % kVectors<T> * T::width * 4;
  if (v % kVectors<T> == 0) __builtin_prefetch(from + 512);
  return T::load_weights(from);
}

// P panels from `w` on, `groups` groups of 4 along K: a vector a step and 1 / kVectors of a panel.
template <class T, int P>
void expand_panels(const int8_t* w, int64_t panel_bytes, int64_t groups, float* to) {
  constexpr int kV = P * kVectors<T>;
  for (int64_t g = 0; g < groups; ++g, w += 64, to += kSteps<T> * kV * T::width) {
#pragma GCC unroll 16
    for (int v = 0; v < kV; ++v) {
      auto four = load_weights<T>(w, panel_bytes, v);
#pragma GCC unroll 4
      for (int i = 0; i < kSteps<T>; ++i) {
        if (i == kSteps<T> / 2) four = T::upper(four);
        T::store(to + (i * kV + v) * T::width, DType::f32, T::expand(four, i % (kSteps<T> / 2)));
      }
    }
  }
}

// sums[R][P * 16], set (first) or added to: `groups` groups of 4 along K. kExpanded: w is what
// expand_panels made.
template <class T, int R, int P, bool kExpanded>
inline void tile(const float* x, const void* w, int64_t panel_bytes, int64_t groups, bool first,
                 float* sums) {
  constexpr int kV = P * kVectors<T>;
  typename T::F sum[R][kV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kV; ++v) sum[r][v] = T::set1(0.0f);
  }
  const int8_t* packed = static_cast<const int8_t*>(w);
  const float* expanded = static_cast<const float*>(w);
  for (int64_t g = 0; g < groups; ++g, packed += 64, x += kSteps<T>) {
    typename T::W four[kV];
    if constexpr (!kExpanded) {
#pragma GCC unroll 16
      for (int v = 0; v < kV; ++v) four[v] = load_weights<T>(packed, panel_bytes, v);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSteps<T>; ++i, expanded += kV * T::width) {
      typename T::F b[kV];
#pragma GCC unroll 16
      for (int v = 0; v < kV; ++v) {
        if constexpr (kExpanded) {
          b[v] = T::load(expanded + v * T::width);
        } else {
          if (i == kSteps<T> / 2) four[v] = T::upper(four[v]);
          b[v] = T::expand(four[v], i % (kSteps<T> / 2));
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto a = T::set1(x[r * kRowElements<T> + element_of_step<T>(i)]);
#pragma GCC unroll 16
        for (int v = 0; v < kV; ++v) sum[r][v] = T::multiply_add(a, b[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kV; ++v) {
      float* at = sums + (r * kV + v) * T::width;
      T::store(at, DType::f32, first ? sum[r][v] : T::add(T::load(at), sum[r][v]));
    }
  }
}

// All columns from `column` on in groups of P panels, for `rows` rows in tiles of R; then the
// remaining panels in smaller groups. x: what lay_out_rows made of them.
template <class T, int R, int P>
void multiply_columns(const GemmF32S8F32& p, EpilogueFn epilogue, const float* x, float* expanded,
                      int64_t row, int64_t rows, int64_t column) {
  constexpr int64_t kColumns = P * kPanelColumns;
  // Where there are two tiles or more, they are at least half as tall as the tallest.
  constexpr int64_t kTiles = R >= T::kMaxRows / 2 ? kRowsAtOnce / R : 1;
  static_assert(kTiles == 1 || P <= kExpandedPanels, "the scratch holds no more");
  alignas(64) float sums[kTiles * R * kColumns];
  const int64_t panel_bytes = kPanelColumns * round_up(p.k, kBlockK);
  for (; p.n - column > kColumns - kPanelColumns; column += kColumns) {
    int64_t k = 0;
    do {  // once at least: K = 0 has an epilogue, too
      const int8_t* w = p.panels + column / kPanelColumns * panel_bytes + k * kPanelColumns;
      const float* x_block = x + k / kSumK * rows * kRowElements<T>;
      const int64_t groups = (std::min(kSumK, p.k - k) + 3) / 4;
      if (rows == R) {
        tile<T, R, P, false>(x_block, w, panel_bytes, groups, k == 0, sums);
      } else {
        expand_panels<T, P>(w, panel_bytes, groups, expanded);
        for (int64_t r = 0; r < rows; r += R) {
          tile<T, R, P, true>(x_block + r * kRowElements<T>, expanded, 0, groups, k == 0,
                              sums + r * kColumns);
        }
      }
      k += kSumK;
    } while (k < p.k);
    epilogue(p, sums, kColumns, row, rows, column, std::min(kColumns, p.n - column));
  }
  if constexpr (P > 1) {
    if (column < p.n) multiply_columns<T, R, P / 2>(p, epilogue, x, expanded, row, rows, column);
  }
}

template <class T, int R>
void multiply_rows(const GemmF32S8F32& p, EpilogueFn epilogue, int height, int64_t row,
                   int64_t rows) {
  if constexpr (R > 1) {
    if (height < R) return multiply_rows<T, R - 1>(p, epilogue, height, row, rows);
  }
  float* expanded = static_cast<float*>(p.scratch);
  float* x = expanded + kExpandedPanels * kPanelColumns * kSumK;
  lay_out_rows<T>(p, row, rows, x);
  multiply_columns<T, R, T::panels(R)>(p, epilogue, x, expanded, row, rows, 0);
}

// Tiles of rows as equal as they can be: at most one row more in one than in another.
template <class T>
void gemm_tiles(const GemmF32S8F32& p) {
  if (p.m == 0) return;
  const EpilogueFn epilogue = select_epilogue<T>(p);
  const int64_t tiles = (p.m + T::kMaxRows - 1) / T::kMaxRows;
  const int height = int((p.m + tiles - 1) / tiles);  // of the taller tiles
  const int64_t taller = p.m - tiles * (height - 1);  // how many of them
  const auto run = [&](int rows, int64_t row, int64_t end) {
    const int64_t step = rows > 0 ? kRowsAtOnce / rows * rows : 1;
    for (; row < end; row += step) {
      multiply_rows<T, T::kMaxRows>(p, epilogue, rows, row, std::min(step, end - row));
    }
  };
  run(height, 0, taller * height);
  run(height - 1, taller * height, p.m);
}

}  // namespace
}  // namespace fastinfer::cpu
