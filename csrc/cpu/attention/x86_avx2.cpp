// attention on AVX2. Formula: attention.h; layouts: layout.h; loops: rows.h.
//
// Tile: 6 rows by 2 ymm (16 keys, or 16 elements of d), 12 sums, 2 registers of k or v, 1 of q or
// p. A step is 2 loads, 6 broadcasts and 12 vfmadd231ps: 6 cycles with two multiply-add ports, 4 of
// loads beside them. Floor and slow cases: x86_avx512.cpp, at half the width.
#include "cpu/vec/avx2.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

namespace {

struct Tile : Avx2Vec {
  static constexpr int kUnits = 1;
  static constexpr bool kPairs = false;

  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float reduce_max(F a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
  }
  static F from_bool(const void* p, int n) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, p, size_t(n));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes))));
  }
  // Pairs of rows, then of pairs, inside 128-bit lanes; then the lanes: 24 shuffles.
  static void transpose(F (&r)[8]) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F low = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
      r[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
      r[c] = low;
    }
  }
};

}  // namespace

void attention_avx2(const Attention& p, const AttentionTask& t) { attention_rows<Tile>(p, t); }

}  // namespace fastinfer::cpu
