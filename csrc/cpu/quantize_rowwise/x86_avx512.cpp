// quantize_rowwise on AVX-512 F/BW/VL/DQ. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 16 elements a step: vminps, vmaxps. Pass 2, 64 elements a step: 4 x (vsubps, vmulps,
// vcvtps2dq: nearest even), 2 x vpackssdw, 1 x vpacksswb, 1 x vpermd to undo the interleaving of
// the 128-bit lanes, vpminsb, vpxord, one 64-byte store. The packs never saturate, |q| <= 127, but
// for a NaN: it converts to -2^31, packs to -128 and is found by the minimum of the bytes.
// Static: no pass 1; pass 2 clamps (vmaxps, vminps) and gathers x * 0, which is NaN for a NaN or an
// Inf (vmulps, vorps).
// Bound by reading x: pass 1 from memory, pass 2 from L1 or L2.
#include <algorithm>

#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

using V = Avx512Vec;

template <DType kType>
inline __m512 load16(const char* x, int64_t k) {
  return V::load(x + k * size_of(kType), kType);
}

// Elements [k, k + 16) of a row of `end`; `fill` past the end.
template <DType kType>
inline __m512 load16(const char* x, int64_t k, int64_t end, __m512 fill) {
  if (k + 16 <= end) return load16<kType>(x, k);
  if (k >= end) return fill;
  const int n = int(end - k);
  return _mm512_mask_blend_ps(V::lanes(n), fill, V::load(x + k * size_of(kType), kType, n));
}

struct Range {
  __m512 low, high;

  void add(__m512 v) {  // in this order a NaN is passed over
    low = _mm512_min_ps(v, low);
    high = _mm512_max_ps(v, high);
  }
};

template <DType kType>
inline RowRange row_range(const char* x, int64_t k) {
  if (k == 0) return {0.0f, 0.0f};
  const __m512 first =
      _mm512_broadcastss_ps(_mm512_castps512_ps128(V::load(static_cast<const void*>(x), kType, 1)));
  Range r0{first, first}, r1 = r0;
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    r0.add(load16<kType>(x, i));
    r1.add(load16<kType>(x, i + 16));
  }
  for (; i < k; i += 16) r0.add(load16<kType>(x, i, k, first));
  return {_mm512_reduce_min_ps(_mm512_min_ps(r0.low, r1.low)),
          _mm512_reduce_max_ps(_mm512_max_ps(r0.high, r1.high))};
}

template <DType kType, bool kStatic>
inline void quantize_row(const QuantizeRowwise& p, int64_t m, const RowScale& s) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowDestination row = row_destination(p, m);
  const __m512i flip = _mm512_set1_epi8(char(p.flip));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512 inverse = _mm512_set1_ps(s.inverse), offset = _mm512_set1_ps(s.offset);
  __m512 poison = _mm512_setzero_ps();
  __m512i least = _mm512_setzero_si512();
  const auto to_int = [&](__m512 v) {
    __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(v, offset), inverse);
    if constexpr (kStatic) {
      poison = _mm512_or_ps(poison, _mm512_mul_ps(v, _mm512_setzero_ps()));
      scaled = _mm512_max_ps(scaled, _mm512_set1_ps(-127.0f));
      scaled = _mm512_min_ps(scaled, _mm512_set1_ps(127.0f));
    }
    return _mm512_cvtps_epi32(scaled);
  };
  const auto pack = [&](__m512 v0, __m512 v1, __m512 v2, __m512 v3) {
    const __m512i q = _mm512_packs_epi16(_mm512_packs_epi32(to_int(v0), to_int(v1)),
                                         _mm512_packs_epi32(to_int(v2), to_int(v3)));
    least = _mm512_min_epi8(least, q);
    return _mm512_xor_si512(_mm512_permutexvar_epi32(order, q), flip);
  };
  int64_t k = 0;
  if (s.finite) {
    for (; k + 64 <= p.k; k += 64) {
      _mm512_storeu_si512(row.q + k / 64 * row.k_block_stride,
                          pack(load16<kType>(x, k), load16<kType>(x, k + 16),
                               load16<kType>(x, k + 32), load16<kType>(x, k + 48)));
    }
  }
  const int64_t end = s.finite ? p.k : 0;
  for (; k < p.k_store; k += 64) {
    const __m512i q =
        pack(load16<kType>(x, k, end, offset), load16<kType>(x, k + 16, end, offset),
             load16<kType>(x, k + 32, end, offset), load16<kType>(x, k + 48, end, offset));
    int8_t* out = row.q + k / 64 * row.k_block_stride;
    if (k + 64 <= p.k_store) {
      _mm512_storeu_si512(out, q);
    } else {
      _mm512_mask_storeu_epi8(out, (uint64_t(1) << (p.k_store - k)) - 1, q);
    }
  }
  const bool poisoned = kStatic ? _mm512_cmp_ps_mask(poison, poison, _CMP_UNORD_Q) != 0
                                : _mm512_cmpeq_epi8_mask(least, _mm512_set1_epi8(-128)) != 0;
  if (poisoned) poison_row(p, m, row);
}

// Pass 1 over a few rows, then pass 2 over them: the reductions and divisions of one row overlap
// with the loads of the next, and the rows are still in L1.
template <DType kType>
void quantize_dynamic(const QuantizeRowwise& p) {
  constexpr int64_t kMostRows = 16, kBytes = 24 << 10;
  const int64_t row_bytes = p.k * size_of(kType) + 1;
  const int64_t group = std::min(kMostRows, std::max<int64_t>(1, kBytes / row_bytes));
  RowScale scales[kMostRows];
  for (int64_t m = 0; m < p.rows; m += group) {
    const int64_t rows = std::min(group, p.rows - m);
    for (int64_t r = 0; r < rows; ++r) {
      const char* x = static_cast<const char*>(p.x) + (m + r) * p.ldx_bytes;
      scales[r] = row_scale(p, m + r, row_range<kType>(x, p.k));
    }
    for (int64_t r = 0; r < rows; ++r) quantize_row<kType, false>(p, m + r, scales[r]);
  }
}

template <DType kType>
void quantize_rows(const QuantizeRowwise& p) {
  if (p.static_scale == 0.0f) return quantize_dynamic<kType>(p);
  for (int64_t m = 0; m < p.rows; ++m) quantize_row<kType, true>(p, m, static_row_scale(p, m));
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
