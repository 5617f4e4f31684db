// attention on AVX-512 F/BW/VL/DQ. Formula: attention.h; layouts: layout.h; loops: rows.h.
//
// Tile: 6 rows by 4 zmm (64 keys, or 64 elements of d), 24 sums, 4 registers of k or v, 1 of q or
// p. A step is 4 loads, 6 broadcasts and 24 vfmadd231ps (768 operations): 12 cycles with two
// multiply-add ports, 5 of loads beside them. A softmax of 16 scores is about 25 instructions on
// the same ports, against 2 D multiply-adds. So the floor is 4 B H Tq Tk D operations over the peak
// of the multiply-adds, plus a fifth at D = 64; packing k and v costs about as much as 8 rows of q.
// Measured on a Cascade Lake core that was not idle, D = 64: 0.66 of the peak at 512 tokens of one
// head, 0.55 at 128; the tiles alone take the time of the multiply-adds at the peak.
// Slow: few rows, where packing and the tiles of less than 6 rows show.
#include "cpu/vec/avx512.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

namespace {

struct Tile : Avx512Vec {
  static constexpr int kUnits = 4;

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

void attention_avx512(const Attention& p, const AttentionTask& t) { attention_rows<Tile>(p, t); }

}  // namespace fastinfer::cpu
