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
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F lookup16(const float* table, F index) {
    return _mm512_permutexvar_ps(_mm512_castps_si512(index), _mm512_load_ps(table));
  }
  static F keep(F v, int n, F fill) { return _mm512_mask_blend_ps(lanes(n), fill, v); }
  static float lane_sum(F v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float lane_min(F v) { return _mm512_reduce_min_ps(v); }
  static float lane_max(F v) { return _mm512_reduce_max_ps(v); }
  static F swap_pairs(F a) { return _mm512_permute_ps(a, 0xb1); }
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
    return dtype == DType::bf16 ? from_bf16(half) : _mm512_cvtph_ps(half);
  }
  static F store(void* p, DType dtype, F v, int n = width) {
    if (dtype == DType::f32) {
      if (n == width) {
        _mm512_storeu_ps(p, v);
      } else {
        _mm512_mask_storeu_ps(p, lanes(n), v);
      }
      return v;
    }
    const Rounded r = to_half(v, dtype);
    if (n == width) {
      _mm256_storeu_si256(static_cast<__m256i*>(p), r.half);
    } else {
      _mm256_mask_storeu_epi16(p, lanes(n), r.half);
    }
    return r.value;
  }
  static F round(F v, DType dtype) { return dtype == DType::f32 ? v : to_half(v, dtype).value; }
  static F stream(void* p, DType dtype, F v) {
    if (dtype == DType::f32) {
      _mm512_stream_ps(static_cast<float*>(p), v);
      return v;
    }
    const Rounded r = to_half(v, dtype);
    _mm256_stream_si256(static_cast<__m256i*>(p), r.half);
    return r.value;
  }
  static void fence() { _mm_sfence(); }

  static void store_s8(int8_t* p, F a, F b, F c, F d, int n = 64) {
    const __m512i q = to_s8(a, b, c, d);
    if (n == 64) {
      _mm512_storeu_si512(p, q);
    } else {
      _mm512_mask_storeu_epi8(p, (uint64_t(1) << n) - 1, q);
    }
  }
  static void stream_s8(int8_t* p, F a, F b, F c, F d) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), to_s8(a, b, c, d));
  }

  // The packs work within 128-bit lanes; the permutation undoes their interleaving.
  static __m512i to_s8(F a, F b, F c, F d) {
    const __m512i q =
        _mm512_packs_epi16(_mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)),
                           _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d)));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), q);
  }
  static __mmask16 lanes(int n) { return __mmask16((1u << n) - 1); }
  static F from_bf16(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }

  struct Rounded {
    __m256i half;
    F value;  // of half
  };
  static Rounded to_half(F v, DType dtype) {
    if (dtype == DType::f16) {
      const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      return {half, _mm512_cvtph_ps(half)};
    }
#ifdef __AVX512BF16__
    // The instruction flushes subnormals; without any it rounds as below.
    constexpr int kSubnormal = 0x20;
    if (_mm512_fpclass_ps_mask(v, kSubnormal) == 0) {
      const __m256i half = (__m256i)_mm512_cvtneps_pbh(v);
      return {half, from_bf16(half)};
    }
#endif
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i bits = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), u,
                                              _mm512_set1_epi32(0x400000));
    return {_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000u))))};
  }
};

}  // namespace
}  // namespace fastinfer::cpu
