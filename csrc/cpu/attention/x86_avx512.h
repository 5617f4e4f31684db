// What the AVX-512 rows of attention add to Avx512Vec. Needs AVX-512 F, BW, VL, DQ. See tile.h.
#pragma once

#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {
namespace {

struct Avx512Tile : Avx512Vec {
  static constexpr int kUnits = 4;
  static constexpr bool kPairs = false;

  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static F from_bool(const void* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes(n), p)));
  }
  // Pairs of rows, then of pairs, inside 128-bit lanes; then the lanes: 64 shuffles.
  static void transpose(F (&r)[16]) {
    F t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // r[4 i + c]: column c of each lane, rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      const auto pair = [&](int a) { return _mm512_castps_pd(t[i + a]); };
      r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(0), pair(2)));
      r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(0), pair(2)));
      r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pair(1), pair(3)));
      r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pair(1), pair(3)));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      const F high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      const F low_odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      const F high_odd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
      t[c] = _mm512_shuffle_f32x4(low, high, 0x88);
      t[8 + c] = _mm512_shuffle_f32x4(low, high, 0xdd);
      t[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
      t[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }
};

}  // namespace
}  // namespace fastinfer::cpu
