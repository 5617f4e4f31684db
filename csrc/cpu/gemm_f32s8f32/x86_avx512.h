// What the AVX-512 rows of gemm_f32s8f32 add to Avx512Vec. Needs AVX-512 F, BW, VL, DQ. See
// tiles.h.
#pragma once

#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {
namespace {

struct Avx512Tile : Avx512Vec {
  static constexpr int kMaxRows = 8;
  static constexpr int panels(int rows) {
    return rows == 1 ? 8 : rows == 2 ? 6 : rows <= 4 ? 4 : 3;
  }
  static constexpr bool kPairs = false;

  static F multiply_add(F x, F w, F sum) { return fma(x, w, sum); }
  using W = __m512i;
  static W load_weights(const int8_t* w) { return _mm512_loadu_si512(w); }
  static W upper(W w) { return _mm512_srli_epi32(w, 16); }
  static F expand(W two, int i) { return i == 0 ? second_of(two) : first_of(two); }

  // Bytes into the mantissa of 2^23, or of 2^15 where they stand 8 bits higher, the sign bit
  // flipped: 2^23 + 128 + w. The difference is exact.
  static F first_of(W two) { return difference(two, 0xff, 0x4b000080, 0x1p23f + 128); }
  static F second_of(W two) { return difference(two, 0xff00, 0x47008000, 0x1p15f + 128); }
  static F difference(W two, int mask, int magic, float base) {
    constexpr int kAndXor = 0x6a;  // (a & b) ^ c
    const __m512i bits =
        _mm512_ternarylogic_epi32(two, _mm512_set1_epi32(mask), _mm512_set1_epi32(magic), kAndXor);
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(base));
  }
};

}  // namespace
}  // namespace fastinfer::cpu
