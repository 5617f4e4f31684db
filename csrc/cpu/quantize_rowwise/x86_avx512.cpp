// quantize_rowwise on AVX-512 F/BW/VL/DQ. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 16 elements a step: vpandd, vpmaxud (the magnitude bits order like unsigned integers;
// NaN and Inf stand above every finite value). Pass 2, 64 elements a step: 4 x (vmulps,
// vcvtps2dq: nearest even), 2 x vpackssdw, 1 x vpacksswb, 1 x vpermd to undo the interleaving of
// the 128-bit lanes, vpxord, one 64-byte store. The packs never saturate: |q| <= 127.
// Bound by reading x: pass 1 from memory, pass 2 from L1 or L2.
#include <algorithm>

#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

using V = Avx512Vec;

inline __m512i magnitude(__m512 v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

// Elements [k, k + 16) of the row, zero past the end.
template <DType kType>
inline __m512 load16(const char* x, int64_t k, int64_t end) {
  const char* p = x + k * size_of(kType);
  if (k + 16 <= end) return V::load(p, kType);
  if (k >= end) return _mm512_setzero_ps();
  return V::load(p, kType, int(end - k));
}

template <DType kType>
inline uint32_t max_magnitude(const char* x, int64_t k) {
  __m512i m0 = _mm512_setzero_si512(), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    m0 = _mm512_max_epu32(m0, magnitude(load16<kType>(x, i, k)));
    m1 = _mm512_max_epu32(m1, magnitude(load16<kType>(x, i + 16, k)));
    m2 = _mm512_max_epu32(m2, magnitude(load16<kType>(x, i + 32, k)));
    m3 = _mm512_max_epu32(m3, magnitude(load16<kType>(x, i + 48, k)));
  }
  for (; i < k; i += 16) m0 = _mm512_max_epu32(m0, magnitude(load16<kType>(x, i, k)));
  return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_max_epu32(m0, m1),
                                                  _mm512_max_epu32(m2, m3)));
}

template <DType kType>
void quantize_row(const QuantizeRowwise& p, int64_t m, const RowScale& s) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowDestination row = row_destination(p, m);
  const __m512i flip = _mm512_set1_epi8(char(p.flip));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  int64_t k = 0;
  if (s.finite) {
    for (; k + 64 <= p.k; k += 64) {
      const char* from = x + k * size_of(kType);
      const auto q32 = [&](int64_t i) {
        return _mm512_cvtps_epi32(_mm512_mul_ps(V::load(from + i * size_of(kType), kType), inverse));
      };
      const __m512i q = _mm512_packs_epi16(_mm512_packs_epi32(q32(0), q32(16)),
                                           _mm512_packs_epi32(q32(32), q32(48)));
      _mm512_storeu_si512(row.q + k / 64 * row.k_block_stride,
                          _mm512_xor_si512(_mm512_permutexvar_epi32(order, q), flip));
    }
  }
  for (; k < p.k_store; k += 64) {
    __m512i q = _mm512_setzero_si512();
    if (s.finite && k < p.k) {
      const auto q32 = [&](int64_t i) {
        return _mm512_cvtps_epi32(_mm512_mul_ps(load16<kType>(x, k + i, p.k), inverse));
      };
      q = _mm512_packs_epi16(_mm512_packs_epi32(q32(0), q32(16)),
                             _mm512_packs_epi32(q32(32), q32(48)));
      q = _mm512_permutexvar_epi32(order, q);
    }
    q = _mm512_xor_si512(q, flip);
    int8_t* out = row.q + k / 64 * row.k_block_stride;
    if (k + 64 <= p.k_store) {
      _mm512_storeu_si512(out, q);
    } else {
      _mm512_mask_storeu_epi8(out, (uint64_t(1) << (p.k_store - k)) - 1, q);
    }
  }
}

// Pass 1 over a few rows, then pass 2 over them: the maxima and divisions of one row overlap with
// the loads of the next, and the rows are still in L1.
template <DType kType>
void quantize_rows(const QuantizeRowwise& p) {
  constexpr int64_t kMostRows = 16, kBytes = 24 << 10;
  const int64_t row_bytes = p.k * size_of(kType) + 1;
  const int64_t group = std::min(kMostRows, std::max<int64_t>(1, kBytes / row_bytes));
  RowScale scales[kMostRows];
  for (int64_t m = 0; m < p.rows; m += group) {
    const int64_t rows = std::min(group, p.rows - m);
    for (int64_t r = 0; r < rows; ++r) {
      const char* x = static_cast<const char*>(p.x) + (m + r) * p.ldx_bytes;
      scales[r] = row_scale(max_magnitude<kType>(x, p.k));
      p.scale[m + r] = scales[r].scale;
    }
    for (int64_t r = 0; r < rows; ++r) quantize_row<kType>(p, m + r, scales[r]);
  }
}

}  // namespace

void quantize_rowwise_avx512(const QuantizeRowwise& p) {
  switch (p.x_dtype) {
    case DType::bf16: return quantize_rows<DType::bf16>(p);
    case DType::f16: return quantize_rows<DType::f16>(p);
    default: return quantize_rows<DType::f32>(p);
  }
}

}  // namespace fastinfer::cpu
