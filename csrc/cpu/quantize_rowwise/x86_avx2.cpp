// quantize_rowwise on AVX2. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 8 elements a step: vminps, vmaxps. Pass 2, 32 elements a step: 4 x (vsubps, vmulps,
// vcvtps2dq: nearest even), 2 x vpackssdw, vpacksswb, vpermd, vpminsb, vpxor, one 32-byte store.
// The packs never saturate, |q| <= 127, but for a NaN: it converts to -2^31, packs to -128 and is
// found by the minimum of the bytes. Static: no pass 1; pass 2 clamps (vmaxps, vminps) and gathers
// x * 0, which is NaN for a NaN or an Inf (vmulps, vorps). Bound by reading x.
#include <cstring>

#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

namespace {

using V = Avx2Vec;

// Elements [k, k + 8) of a row of `end`; `fill` past the end.
template <DType kType>
inline __m256 load8(const char* x, int64_t k, int64_t end, __m256 fill) {
  const char* p = x + k * size_of(kType);
  if (k + 8 <= end) return V::load(p, kType);
  if (k >= end) return fill;
  const int n = int(end - k);
  return _mm256_blendv_ps(fill, V::load(p, kType, n), _mm256_castsi256_ps(V::lanes(n)));
}

struct Range {
  __m256 low, high;

  void add(__m256 v) {  // in this order a NaN is passed over
    low = _mm256_min_ps(v, low);
    high = _mm256_max_ps(v, high);
  }
};

template <DType kType>
inline RowRange row_range(const char* x, int64_t k) {
  if (k == 0) return {0.0f, 0.0f};
  const __m256 first =
      _mm256_broadcastss_ps(_mm256_castps256_ps128(V::load(static_cast<const void*>(x), kType, 1)));
  Range r0{first, first}, r1 = r0;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    r0.add(load8<kType>(x, i, k, first));
    r1.add(load8<kType>(x, i + 8, k, first));
  }
  for (; i < k; i += 8) r0.add(load8<kType>(x, i, k, first));
  alignas(32) float low[8], high[8];
  _mm256_store_ps(low, _mm256_min_ps(r0.low, r1.low));
  _mm256_store_ps(high, _mm256_max_ps(r0.high, r1.high));
  RowRange range{low[0], high[0]};
  for (int lane = 1; lane < 8; ++lane) {
    if (low[lane] < range.low) range.low = low[lane];
    if (high[lane] > range.high) range.high = high[lane];
  }
  return range;
}

template <DType kType, bool kStatic>
void quantize_row(const QuantizeRowwise& p, int64_t m) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowScale s = kStatic ? static_row_scale(p, m) : row_scale(p, m, row_range<kType>(x, p.k));
  const RowDestination row = row_destination(p, m);
  const __m256i flip = _mm256_set1_epi8(char(p.flip));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256 inverse = _mm256_set1_ps(s.inverse), offset = _mm256_set1_ps(s.offset);
  const int64_t end = s.finite ? p.k : 0;
  __m256i least = _mm256_setzero_si256();
  __m256 poison = _mm256_setzero_ps();
  for (int64_t k = 0; k < p.k_store; k += 32) {
    const auto q32 = [&](int64_t i) {
      const __m256 v = load8<kType>(x, k + i, end, offset);
      __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(v, offset), inverse);
      if constexpr (kStatic) {
        poison = _mm256_or_ps(poison, _mm256_mul_ps(v, _mm256_setzero_ps()));
        scaled = _mm256_max_ps(scaled, _mm256_set1_ps(-127.0f));
        scaled = _mm256_min_ps(scaled, _mm256_set1_ps(127.0f));
      }
      return _mm256_cvtps_epi32(scaled);
    };
    __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(q32(0), q32(8)),
                                   _mm256_packs_epi32(q32(16), q32(24)));
    least = _mm256_min_epi8(least, q);
    q = _mm256_xor_si256(_mm256_permutevar8x32_epi32(q, order), flip);
    int8_t* out = row.q + k / 64 * row.k_block_stride + k % 64;
    if (k + 32 <= p.k_store) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), q);
    } else {
      alignas(32) int8_t tail[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(tail), q);
      std::memcpy(out, tail, size_t(p.k_store - k));
    }
  }
  const int poisoned = kStatic
                           ? _mm256_movemask_ps(_mm256_cmp_ps(poison, poison, _CMP_UNORD_Q))
                           : _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, _mm256_set1_epi8(-128)));
  if (poisoned != 0) poison_row(p, m, row);
}

template <DType kType>
void quantize_rows(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    p.static_scale != 0.0f ? quantize_row<kType, true>(p, m) : quantize_row<kType, false>(p, m);
  }
}

}  // namespace

void quantize_rowwise_avx2(const QuantizeRowwise& p) {
  switch (p.x_dtype) {
    case DType::bf16: return quantize_rows<DType::bf16>(p);
    case DType::f16: return quantize_rows<DType::f16>(p);
    default: return quantize_rows<DType::f32>(p);
  }
}

}  // namespace fastinfer::cpu
