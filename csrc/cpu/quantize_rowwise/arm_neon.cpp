// quantize_rowwise on NEON. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 16 elements a step: 4 x (fmin, fmax), which hand a NaN on. Pass 2, 16 elements a step: 4
// x (fsub, fmul, fcvtns: nearest even), 2 x (xtn, xtn2) to int16, xtn, xtn2 to int8, eor, one
// 16-byte store. The narrowings lose nothing: |q| <= 127. Static: no pass 1; pass 2 clamps (fmax,
// fmin) and gathers x * 0, which is NaN for a NaN or an Inf (fmul, orr). Bound by reading x; not
// measured, these rows have run under emulation alone.
#include <cstring>

#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {

namespace {

using V = NeonVec;

// Elements [k, k + 4) of a row of `end`; `fill` past the end.
template <DType kType>
inline float32x4_t load4(const char* x, int64_t k, int64_t end, float32x4_t fill) {
  const char* p = x + k * size_of(kType);
  if (k + 4 <= end) return V::load(p, kType);
  if (k >= end) return fill;
  const int n = int(end - k);
  constexpr uint32_t kLanes[4] = {0, 1, 2, 3};
  return vbslq_f32(vcltq_u32(vld1q_u32(kLanes), vdupq_n_u32(uint32_t(n))), V::load(p, kType, n),
                   fill);
}

struct Range {
  float32x4_t low, high;

  void add(float32x4_t v) {
    low = vminq_f32(low, v);
    high = vmaxq_f32(high, v);
  }
};

template <DType kType>
inline RowRange row_range(const char* x, int64_t k) {
  if (k == 0) return {0.0f, 0.0f};
  const float32x4_t first = vdupq_laneq_f32(V::load(static_cast<const void*>(x), kType, 1), 0);
  Range r[4];
  for (Range& range : r) range = {first, first};
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    for (int j = 0; j < 4; ++j) r[j].add(load4<kType>(x, i + 4 * j, k, first));
  }
  for (; i < k; i += 4) r[0].add(load4<kType>(x, i, k, first));
  return {vminvq_f32(vminq_f32(vminq_f32(r[0].low, r[1].low), vminq_f32(r[2].low, r[3].low))),
          vmaxvq_f32(vmaxq_f32(vmaxq_f32(r[0].high, r[1].high), vmaxq_f32(r[2].high, r[3].high)))};
}

template <DType kType, bool kStatic>
void quantize_row(const QuantizeRowwise& p, int64_t m) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowScale s = kStatic ? static_row_scale(p, m) : row_scale(p, m, row_range<kType>(x, p.k));
  const RowDestination row = row_destination(p, m);
  const int8x16_t flip = vdupq_n_s8(int8_t(p.flip));
  const float32x4_t inverse = vdupq_n_f32(s.inverse), offset = vdupq_n_f32(s.offset);
  const int64_t end = s.finite ? p.k : 0;
  uint32x4_t poison = vdupq_n_u32(0);
  for (int64_t k = 0; k < p.k_store; k += 16) {
    const auto q32 = [&](int64_t i) {
      const float32x4_t v = load4<kType>(x, k + i, end, offset);
      float32x4_t scaled = vmulq_f32(vsubq_f32(v, offset), inverse);
      if constexpr (kStatic) {
        const float32x4_t zero_or_nan = vmulq_f32(v, vdupq_n_f32(0.0f));
        poison = vorrq_u32(poison, vreinterpretq_u32_f32(zero_or_nan));
        scaled = vmaxq_f32(scaled, vdupq_n_f32(-127.0f));
        scaled = vminq_f32(scaled, vdupq_n_f32(127.0f));
      }
      return vcvtnq_s32_f32(scaled);
    };
    const auto q16 = [&](int64_t i) { return vmovn_high_s32(vmovn_s32(q32(i)), q32(i + 4)); };
    const int8x16_t q = veorq_s8(vmovn_high_s16(vmovn_s16(q16(0)), q16(8)), flip);
    int8_t* out = row.q + k / 64 * row.k_block_stride + k % 64;
    if (k + 16 <= p.k_store) {
      vst1q_s8(out, q);
    } else {
      int8_t tail[16];
      vst1q_s8(tail, q);
      std::memcpy(out, tail, size_t(p.k_store - k));
    }
  }
  // Zeros of either sign, or a NaN in some lane.
  if (kStatic && vmaxvq_u32(vshlq_n_u32(poison, 1)) != 0) poison_row(p, m, row);
}

template <DType kType>
void quantize_rows(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    p.static_scale != 0.0f ? quantize_row<kType, true>(p, m) : quantize_row<kType, false>(p, m);
  }
}

}  // namespace

void quantize_rowwise_neon(const QuantizeRowwise& p) {
  switch (p.x_dtype) {
    case DType::bf16: return quantize_rows<DType::bf16>(p);
    case DType::f16: return quantize_rows<DType::f16>(p);
    default: return quantize_rows<DType::f32>(p);
  }
}

}  // namespace fastinfer::cpu
