// The register tiles of attention, written once over an `Isa`: a Vec (vec/scalar.h) with
//   kUnits                            units of 16 lanes that a tile is wide, at most
//   max(a, b)                         a > b ? a : b, so b where either is NaN
//   reduce_max(a)                     greatest lane; no lane is NaN
//   from_bool(const void* p, int n)   n bytes as floats, zero where the byte is
//   transpose(F (&rows)[width])       a square of lanes
//   kPairs                            whether a lane of q, k, p or v is two bfloat16, of d and
//                                     d + 1 or of keys j and j + 1, and not one float; if so, also
//   load_pairs(const void* p, int n)  n elements in pairs, zeros after them
//   interleave(a, n_a, b, n_b)        pairs of an element of a and one of b, zeros after n_a, n_b
//   dot(a, b, sum)                    sum + a[0] b[0] + a[1] b[1] of each lane
//   greatest(v, most)                 of either element: the greater magnitude, as bits
//   keep_nonzero(v, a)                elements of v, zero where that of a is
//   probabilities(s, minus_u, f, p, sum) 2^((s - u) f) of kUnitsAtOnce units of scores to bfloat16
//                                     p, zero for -Inf; returns sum + p, lane by lane, each lane
//                                     that of two keys
//
// A tile is R rows by N units: R * N * (16 / width) sums in registers. A step takes N units of k or
// v from memory, broadcasts R elements of q or p and does R * N fused multiply-adds of 16 lanes.
#pragma once

#include "cpu/attention/layout.h"

namespace fastinfer::cpu {
namespace {

// sum + a b, or of pairs sum + a[0] b[0] + a[1] b[1].
template <class T>
inline typename T::F multiply_add(typename T::F a, typename T::F b, typename T::F sum) {
  if constexpr (T::kPairs) {
    return T::dot(a, b, sum);
  } else {
    return T::fma(a, b, sum);
  }
}

// s[r][lane] = sum_d q[r][d] k[d][lane], lane < 16 N; k has rows of 64, s of kScoreStride. Of
// pairs, whose q is not scaled, times the scale.
template <class T, int R, int N>
void score_tile(const float* q, int64_t ldq, const float* k, int64_t d_end, float scale, float* s) {
  using F = typename T::F;
  constexpr int kVectors = N * 16 / T::width;
  F sum[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = T::set1(0.0f);
  }
  for (int64_t d = 0; d < d_end; ++d, ++q, k += kPanel) {
    F b[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) b[v] = T::load(k + v * T::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F a = T::set1(q[r * ldq]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add<T>(a, b[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (T::kPairs) sum[r][v] = T::mul(sum[r][v], T::set1(scale));
      T::store(s + r * kScoreStride + v * T::width, DType::f32, sum[r][v]);
    }
  }
}

// o[r][lane] += sum_j p[r][j] v[j][lane], lane < 16 N, over `keys` lanes of p; v has rows of ldv.
// kSkip passes over p = 0, which matters where v is not finite.
template <class T, int R, int N, bool kSkip>
void value_tile(const float* p, const float* v, int64_t ldv, int64_t keys, float* o, int64_t ldo) {
  using F = typename T::F;
  constexpr int kVectors = N * 16 / T::width;
  F sum[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int x = 0; x < kVectors; ++x) sum[r][x] = T::load(o + r * ldo + x * T::width);
  }
  for (int64_t j = 0; j < keys; ++j, ++p, v += ldv) {
    F b[kVectors];
#pragma GCC unroll 8
    for (int x = 0; x < kVectors; ++x) b[x] = T::load(v + x * T::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (kSkip && !T::kPairs && p[r * kScoreStride] == 0.0f) continue;
      const F a = T::set1(p[r * kScoreStride]);
#pragma GCC unroll 8
      for (int x = 0; x < kVectors; ++x) {
        F v_seen = b[x];
        if constexpr (kSkip && T::kPairs) v_seen = T::keep_nonzero(b[x], a);
        sum[r][x] = multiply_add<T>(a, v_seen, sum[r][x]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int x = 0; x < kVectors; ++x) {
      T::store(o + r * ldo + x * T::width, DType::f32, sum[r][x]);
    }
  }
}

// Calls body(std::integral_constant<int, n>) for n in [1, kMost].
template <int kMost, class Body>
inline void with_constant(int64_t n, Body&& body) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, body);
  }
  body(std::integral_constant<int, kMost>());
}

// Scores of `rows` rows and the first `units` units of a panel.
template <class T>
void score_panel(const float* q, int64_t ldq, const float* k, int64_t d, int64_t rows,
                 int64_t units, float scale, float* s) {
  with_constant<kTileRows>(rows, [&](auto r) {
    for (int64_t u = 0; u < units; u += T::kUnits) {
      with_constant<T::kUnits>(std::min<int64_t>(units - u, T::kUnits), [&](auto n) {
        score_tile<T, decltype(r)::value, decltype(n)::value>(q, ldq, k + u * kUnit, d, scale,
                                                              s + u * kUnit);
      });
    }
  });
}

// Adds `keys` keys to the sums of `rows` rows, in one chunk of `units` units of d.
template <class T>
void value_panel(const float* p, const float* v, int64_t keys, int64_t rows, int64_t units,
                 bool finite, float* o, int64_t ldo) {
  const int64_t ldv = units * kUnit;
  with_constant<kTileRows>(rows, [&](auto r) {
    for (int64_t u = 0; u < units; u += T::kUnits) {
      with_constant<T::kUnits>(std::min<int64_t>(units - u, T::kUnits), [&](auto n) {
        if (finite) {
          value_tile<T, decltype(r)::value, decltype(n)::value, false>(p, v + u * kUnit, ldv, keys,
                                                                       o + u * kUnit, ldo);
        } else {
          value_tile<T, decltype(r)::value, decltype(n)::value, true>(p, v + u * kUnit, ldv, keys,
                                                                      o + u * kUnit, ldo);
        }
      });
    }
  });
}

}  // namespace
}  // namespace fastinfer::cpu
