// quantize_rowwise on AVX2. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 8 elements a step: vpand, vpmaxud on the magnitude bits. Pass 2, 32 elements a step:
// 4 x (vmulps, vcvtps2dq: nearest even), 2 x vpackssdw, vpacksswb, vpermd, vpxor, one 32-byte
// store. The packs never saturate: |q| <= 127. Bound by reading x.
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

namespace {

using V = Avx2Vec;

inline __m256i magnitude(__m256 v) {
  return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}

// Elements [k, k + 8) of the row, zero past the end.
template <DType kType>
inline __m256 load8(const char* x, int64_t k, int64_t end) {
  const char* p = x + k * size_of(kType);
  if (k + 8 <= end) return V::load(p, kType);
  if (k >= end) return _mm256_setzero_ps();
  return V::load(p, kType, int(end - k));
}

template <DType kType>
inline uint32_t max_magnitude(const char* x, int64_t k) {
  __m256i m0 = _mm256_setzero_si256(), m1 = m0;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    m0 = _mm256_max_epu32(m0, magnitude(load8<kType>(x, i, k)));
    m1 = _mm256_max_epu32(m1, magnitude(load8<kType>(x, i + 8, k)));
  }
  for (; i < k; i += 8) m0 = _mm256_max_epu32(m0, magnitude(load8<kType>(x, i, k)));
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epu32(m0, m1));
  uint32_t most = 0;
  for (uint32_t lane : lanes) most = lane > most ? lane : most;
  return most;
}

template <DType kType>
void quantize_row(const QuantizeRowwise& p, int64_t m) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowScale s = row_scale(max_magnitude<kType>(x, p.k));
  p.scale[m] = s.scale;
  const RowDestination row = row_destination(p, m);
  const __m256i flip = _mm256_set1_epi8(char(p.flip));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256 inverse = _mm256_set1_ps(s.inverse);
  for (int64_t k = 0; k < p.k_store; k += 32) {
    __m256i q = _mm256_setzero_si256();
    if (s.finite && k < p.k) {
      const auto q32 = [&](int64_t i) {
        return _mm256_cvtps_epi32(_mm256_mul_ps(load8<kType>(x, k + i, p.k), inverse));
      };
      q = _mm256_packs_epi16(_mm256_packs_epi32(q32(0), q32(8)),
                             _mm256_packs_epi32(q32(16), q32(24)));
      q = _mm256_permutevar8x32_epi32(q, order);
    }
    q = _mm256_xor_si256(q, flip);
    int8_t* out = row.q + k / 64 * row.k_block_stride + k % 64;
    if (k + 32 <= p.k_store) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
    } else {
      alignas(32) int8_t tail[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(tail), q);
      std::memcpy(out, tail, size_t(p.k_store - k));
    }
  }
}

}  // namespace

void quantize_rowwise_avx2(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    switch (p.x_dtype) {
      case DType::bf16: quantize_row<DType::bf16>(p, m); break;
      case DType::f16: quantize_row<DType::f16>(p, m); break;
      default: quantize_row<DType::f32>(p, m);
    }
  }
}

}  // namespace fastinfer::cpu
