// What the rows of attention in pairs of bfloat16 add to Avx512Tile. Needs AVX-512 F, BW, VL, DQ
// and AVX512-BF16. See tile.h.
#pragma once

#include "cpu/attention/softmax.h"
#include "cpu/attention/x86_avx512.h"

namespace fastinfer::cpu {
namespace {

struct PairTile : Avx512Tile {
  static constexpr bool kPairs = true;
  static constexpr int64_t kUnitsAtOnce = 1;

  static F load_pairs(const void* p, int n) {
    return _mm512_castsi512_ps(n == 32 ? _mm512_loadu_si512(p)
                                       : _mm512_maskz_loadu_epi16((1u << n) - 1, p));
  }
  static F interleave(const void* a, int n_a, const void* b, int n_b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n_a), a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n_b), b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static F dot(F a, F b, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static F greatest(F v, F most) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi16(0x7fff));
    return _mm512_castsi512_ps(_mm512_max_epu16(magnitude, _mm512_castps_si512(most)));
  }
  static F keep_nonzero(F v, F a) {
    const __m512i bits = _mm512_castps_si512(a);
    return _mm512_castsi512_ps(
        _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(bits, bits), _mm512_castps_si512(v)));
  }

  // y = max((s - u) f, -125), n = round(y), p = 2^n c(y - n): c is the minimax polynomial of
  // degree 4 on |y - n| <= 1/2, relative error 2.6e-6, beside 2^-8 of the rounding that follows. p
  // is never subnormal, which the instructions would take for zero.
  static F probabilities(const float* s, F minus_u, F f, uint16_t* p, F sum) {
    const F x = load(s);
    const __mmask16 seen = _mm512_cmp_ps_mask(x, set1(kLeast), _CMP_NLT_UQ);  // NaN, too
    const F y = max(set1(-125.0f), mul(add(x, minus_u), f));
    const F shifted = add(y, set1(12582912.0f));
    const F r = _mm512_sub_ps(y, _mm512_sub_ps(shifted, set1(12582912.0f)));
    F c = set1(0.009570103138685226f);
    c = fma(c, r, set1(0.05591786280274391f));
    c = fma(c, r, set1(0.240247443318367f));
    c = fma(c, r, set1(0.6931217908859253f));
    c = fma(c, r, set1(0.9999992847442627f));
    const __m256bh e = _mm512_maskz_cvtneps_pbh(seen, mul(c, pow2_shifted(shifted)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)e);
    // In 512 bits, half of them zero: in 256 the sum would have to be put together again.
    const __m512i wide = _mm512_zextsi256_si512((__m256i)e);
    return _mm512_dpbf16_ps(sum, (__m512bh)wide, (__m512bh)_mm512_set1_epi16(0x3f80));
  }
};

}  // namespace
}  // namespace fastinfer::cpu
