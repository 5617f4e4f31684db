// quantize_rowwise on NEON. Formula and layouts: quantize_rowwise.h.
//
// Pass 1, 16 elements a step: and, umax on the magnitude bits. Pass 2, 16 elements a step:
// 4 x (fmul, fcvtns: nearest even), 2 x (xtn, xtn2) to int16, xtn, xtn2 to int8, eor, one 16-byte
// store. The narrowings lose nothing: |q| <= 127. Bound by reading x; not measured, these rows
// have run under emulation alone.
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {

namespace {

using V = NeonVec;

inline uint32x4_t magnitude(float32x4_t v) {
  return vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7fffffffu));
}

// Elements [k, k + 4) of the row, zero past the end.
template <DType kType>
inline float32x4_t load4(const char* x, int64_t k, int64_t end) {
  const char* p = x + k * size_of(kType);
  if (k + 4 <= end) return V::load(p, kType);
  if (k >= end) return vdupq_n_f32(0.0f);
  return V::load(p, kType, int(end - k));
}

template <DType kType>
inline uint32_t max_magnitude(const char* x, int64_t k) {
  uint32x4_t m[4] = {};
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    for (int j = 0; j < 4; ++j) m[j] = vmaxq_u32(m[j], magnitude(load4<kType>(x, i + 4 * j, k)));
  }
  for (; i < k; i += 4) m[0] = vmaxq_u32(m[0], magnitude(load4<kType>(x, i, k)));
  return vmaxvq_u32(vmaxq_u32(vmaxq_u32(m[0], m[1]), vmaxq_u32(m[2], m[3])));
}

template <DType kType>
void quantize_row(const QuantizeRowwise& p, int64_t m) {
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const RowScale s = row_scale(max_magnitude<kType>(x, p.k));
  p.scale[m] = s.scale;
  const RowDestination row = row_destination(p, m);
  const int8x16_t flip = vdupq_n_s8(int8_t(p.flip));
  const float32x4_t inverse = vdupq_n_f32(s.inverse);
  for (int64_t k = 0; k < p.k_store; k += 16) {
    int8x16_t q = vdupq_n_s8(0);
    if (s.finite && k < p.k) {
      const auto q16 = [&](int64_t i) {
        const int32x4_t low = vcvtnq_s32_f32(vmulq_f32(load4<kType>(x, k + i, p.k), inverse));
        const int32x4_t high = vcvtnq_s32_f32(vmulq_f32(load4<kType>(x, k + i + 4, p.k), inverse));
        return vmovn_high_s32(vmovn_s32(low), high);
      };
      q = vmovn_high_s16(vmovn_s16(q16(0)), q16(8));
    }
    q = veorq_s8(q, flip);
    int8_t* out = row.q + k / 64 * row.k_block_stride + k % 64;
    if (k + 16 <= p.k_store) {
      vst1q_s8(out, q);
    } else {
      int8_t tail[16];
      vst1q_s8(tail, q);
      std::memcpy(out, tail, size_t(p.k_store - k));
    }
  }
}

}  // namespace

void quantize_rowwise_neon(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    switch (p.x_dtype) {
      case DType::bf16: quantize_row<DType::bf16>(p, m); break;
      case DType::f16: quantize_row<DType::f16>(p, m); break;
      default: quantize_row<DType::f32>(p, m);
    }
  }
}

}  // namespace fastinfer::cpu
