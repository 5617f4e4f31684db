// Four floats in a NEON register. Needs Armv8-A alone. See scalar.h for the interface.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"

namespace fastinfer::cpu {
namespace {

struct NeonVec {
  using F = float32x4_t;
  static constexpr int width = 4;

  static F set1(float v) { return vdupq_n_f32(v); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F select_lt(F a, F b, F x, F y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
  static F min(F a, F b) { return select_lt(a, b, a, b); }
  static F max(F a, F b) { return select_lt(b, a, a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F lookup16(const float* table, F index) {
    const uint32x4_t i = vandq_u32(vreinterpretq_u32_f32(index), vdupq_n_u32(15));
    // The four bytes of element i begin at byte 4 i.
    const uint32x4_t bytes = vaddq_u32(vmulq_n_u32(i, 0x04040404u), vdupq_n_u32(0x03020100u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(vld1q_u8_x4(reinterpret_cast<const uint8_t*>(table)),
                                           vreinterpretq_u8_u32(bytes)));
  }
  static F keep(F v, int n, F fill) {
    constexpr uint32_t kLanes[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_u32(vld1q_u32(kLanes), vdupq_n_u32(uint32_t(n))), v, fill);
  }
  static float lane_sum(F v) {
    const float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float lane_min(F v) { return vminvq_f32(v); }
  static float lane_max(F v) { return vmaxvq_f32(v); }
  static F swap_pairs(F a) { return vrev64q_f32(a); }
  static F pow2_shifted(F shifted) {
    return vreinterpretq_f32_u32(
        vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23), vdupq_n_u32(0x3f800000u)));
  }
  static F from_s32(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }

  static F load(const float* p, int n = width) {
    if (n == width) return vld1q_f32(p);
    float tail[4] = {};
    std::memcpy(tail, p, size_t(n) * 4);
    return vld1q_f32(tail);
  }
  static F load(const void* p, DType dtype, int n = width) {
    if (dtype == DType::f32) return load(static_cast<const float*>(p), n);
    uint16_t bits[4] = {};
    std::memcpy(bits, p, size_t(n) * 2);
    const uint16x4_t half = vld1_u16(bits);
    return dtype == DType::bf16 ? vreinterpretq_f32_u32(vshll_n_u16(half, 16))
                                : vcvt_f32_f16(vreinterpret_f16_u16(half));
  }
  static F store(void* p, DType dtype, F v, int n = width) {
    if (dtype == DType::f32) {
      float tail[4];
      vst1q_f32(tail, v);
      std::memcpy(p, tail, size_t(n) * 4);
      return v;
    }
    const uint16x4_t half =
        dtype == DType::bf16 ? to_bf16(v) : vreinterpret_u16_f16(vcvt_f16_f32(v));
    uint16_t tail[4];
    vst1_u16(tail, half);
    std::memcpy(p, tail, size_t(n) * 2);
    return dtype == DType::bf16 ? vreinterpretq_f32_u32(vshll_n_u16(half, 16))
                                : vcvt_f32_f16(vreinterpret_f16_u16(half));
  }

  static F round(F v, DType dtype) {
    if (dtype == DType::f32) return v;
    return dtype == DType::bf16 ? vreinterpretq_f32_u32(vshll_n_u16(to_bf16(v), 16))
                                : vcvt_f32_f16(vcvt_f16_f32(v));
  }
  // No intrinsic of GCC gives stnp; writing allocates no line where whole lines are written.
  static F stream(void* p, DType dtype, F v) { return store(p, dtype, v); }
  static void fence() {}

  static void store_s8(int8_t* p, F a, F b, F c, F d, int n = 16) {
    const auto q16 = [](F low, F high) {
      return vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(low)), vcvtnq_s32_f32(high));
    };
    const int8x16_t q = vmovn_high_s16(vmovn_s16(q16(a, b)), q16(c, d));
    if (n == 16) {
      vst1q_s8(p, q);
    } else {
      int8_t tail[16];
      vst1q_s8(tail, q);
      std::memcpy(p, tail, size_t(n));
    }
  }
  static void stream_s8(int8_t* p, F a, F b, F c, F d) { store_s8(p, a, b, c, d); }

  // Not bfcvt: it is Armv8.6, and these bits must match a CPU without it.
  static uint16x4_t to_bf16(F v) {
    const uint32x4_t u = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t nan = vorrq_u32(u, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, nan), 16);
  }
};

}  // namespace
}  // namespace fastinfer::cpu
