// Eight floats in a ymm register. Needs AVX2, FMA, F16C. See scalar.h for the interface.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"

namespace fastinfer::cpu {
namespace {

struct Avx2Vec {
  using F = __m256;
  static constexpr int width = 8;

  static F set1(float v) { return _mm256_set1_ps(v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F select_lt(F a, F b, F x, F y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F lookup16(const float* table, F index) {
    const __m256i i = _mm256_castps_si256(index);
    const F low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), i);
    const F high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  }
  static F keep(F v, int n, F fill) {
    return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(lanes(n)));
  }
  static float lane_sum(F v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static float lane_min(F v) {
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(four, _mm_movehdup_ps(four)));
  }
  static float lane_max(F v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static F swap_pairs(F a) { return _mm256_permute_ps(a, 0xb1); }
  static F pow2_shifted(F shifted) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                                _mm256_set1_epi32(0x3f800000)));
  }
  static F from_s32(const int32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  static F load(const float* p, int n = width) {
    return n == width ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n));
  }
  static F load(const void* p, DType dtype, int n = width) {
    if (dtype == DType::f32) return load(static_cast<const float*>(p), n);
    const __m128i half = load_halves(p, n);
    return dtype == DType::bf16 ? from_bf16(half) : _mm256_cvtph_ps(half);
  }
  static F store(void* p, DType dtype, F v, int n = width) {
    if (dtype == DType::f32) {
      float* out = static_cast<float*>(p);
      if (n == width) {
        _mm256_storeu_ps(out, v);
      } else {
        _mm256_maskstore_ps(out, lanes(n), v);
      }
      return v;
    }
    const Rounded r = to_half(v, dtype);
    if (n == width) {
      _mm_storeu_si128(static_cast<__m128i*>(p), r.half);
    } else {
      alignas(16) uint16_t tail[8];
      _mm_store_si128(reinterpret_cast<__m128i*>(tail), r.half);
      std::memcpy(p, tail, size_t(n) * 2);
    }
    return r.value;
  }
  static F round(F v, DType dtype) { return dtype == DType::f32 ? v : to_half(v, dtype).value; }
  static F stream(void* p, DType dtype, F v) {
    if (dtype == DType::f32) {
      _mm256_stream_ps(static_cast<float*>(p), v);
      return v;
    }
    const Rounded r = to_half(v, dtype);
    _mm_stream_si128(static_cast<__m128i*>(p), r.half);
    return r.value;
  }
  static void fence() { _mm_sfence(); }

  static void store_s8(int8_t* p, F a, F b, F c, F d, int n = 32) {
    const __m256i q = to_s8(a, b, c, d);
    if (n == 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), q);
    } else {
      alignas(32) int8_t tail[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(tail), q);
      std::memcpy(p, tail, size_t(n));
    }
  }
  static void stream_s8(int8_t* p, F a, F b, F c, F d) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_s8(a, b, c, d));
  }

  // The packs work within 128-bit lanes; the permutation undoes their interleaving.
  static __m256i to_s8(F a, F b, F c, F d) {
    const __m256i q =
        _mm256_packs_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)),
                           _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d)));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  static __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m128i load_halves(const void* p, int n) {
    if (n == width) return _mm_loadu_si128(static_cast<const __m128i*>(p));
    alignas(16) uint16_t tail[8] = {};
    std::memcpy(tail, p, size_t(n) * 2);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(tail));
  }
  static F from_bf16(__m128i half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }

  struct Rounded {
    __m128i half;
    F value;  // of half
  };
  static Rounded to_half(F v, DType dtype) {
    if (dtype == DType::f16) {
      const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      return {half, _mm256_cvtph_ps(half)};
    }
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i bits = _mm256_blendv_epi8(rounded, nan, is_nan);
    const __m256i high = _mm256_srli_epi32(bits, 16), packed = _mm256_packus_epi32(high, high);
    return {_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
  }
};

}  // namespace
}  // namespace fastinfer::cpu
