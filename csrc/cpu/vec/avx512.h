// Sixteen floats in a zmm register. Needs AVX-512 F, BW, VL, DQ. See scalar.h for the interface.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/dtype.h"

namespace fastinfer::cpu {
namespace {

struct Avx512Vec {
  using F = __m512;
  static constexpr int width = 16;

  static F set1(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F select_lt(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static F pow2_shifted(F shifted) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23),
                                                _mm512_set1_epi32(0x3f800000)));
  }
  static F from_s32(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }

  static F load(const float* p, int n = width) {
    return n == width ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(lanes(n), p);
  }
  static F load(const void* p, DType dtype, int n = width) {
    if (dtype == DType::f32) return load(static_cast<const float*>(p), n);
    const __m256i half = n == width ? _mm256_loadu_si256(static_cast<const __m256i*>(p))
                                    : _mm256_maskz_loadu_epi16(lanes(n), p);
    return dtype == DType::bf16
               ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))
               : _mm512_cvtph_ps(half);
  }
  static void store(void* p, DType dtype, F v, int n = width) {
    if (dtype == DType::f32) {
      if (n == width) {
        _mm512_storeu_ps(p, v);
      } else {
        _mm512_mask_storeu_ps(p, lanes(n), v);
      }
      return;
    }
    const __m256i half = dtype == DType::bf16
                             ? to_bf16(v)
                             : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (n == width) {
      _mm256_storeu_si256(static_cast<__m256i*>(p), half);
    } else {
      _mm256_mask_storeu_epi16(p, lanes(n), half);
    }
  }

  static __mmask16 lanes(int n) { return __mmask16((1u << n) - 1); }
  // Not vcvtneps2bf16: that instruction flushes subnormals.
  static __m256i to_bf16(F v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i bits = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), u,
                                              _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
  }
};

}  // namespace
}  // namespace fastinfer::cpu
