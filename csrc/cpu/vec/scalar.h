// One float at a time: the reference that every vector type must match bit for bit.
// A `Vec` type offers the static functions below; cpu/vec/math.h and the epilogue are written once
// over them. Each ISA file includes one of these headers; the anonymous namespace keeps the code
// inside that file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"
#include "cpu/host_device.h"

namespace fastinfer::cpu {
namespace {

struct ScalarVec {
  using F = float;
  static constexpr int width = 1;

  FASTINFER_HOST_DEVICE static F set1(float v) { return v; }
  FASTINFER_HOST_DEVICE static F add(F a, F b) { return a + b; }
  FASTINFER_HOST_DEVICE static F mul(F a, F b) { return a * b; }
  FASTINFER_HOST_DEVICE static F div(F a, F b) { return a / b; }
  FASTINFER_HOST_DEVICE static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  // a < b ? x : y, lane by lane; false where a or b is NaN.
  FASTINFER_HOST_DEVICE static F select_lt(F a, F b, F x, F y) { return a < b ? x : y; }
  // a < b ? a : b and a > b ? a : b: b where either is NaN.
  FASTINFER_HOST_DEVICE static F min(F a, F b) { return a < b ? a : b; }
  FASTINFER_HOST_DEVICE static F max(F a, F b) { return a > b ? a : b; }
  FASTINFER_HOST_DEVICE static F abs(F a) { return std::fabs(a); }
  // table[i], i the low four bits of index. The table is aligned to 64 bytes.
  FASTINFER_HOST_DEVICE static F lookup16(const float* table, F index) {
    return table[to_bits(index) & 15];
  }
  // The first n lanes of v, then those of fill.
  FASTINFER_HOST_DEVICE static F keep(F v, int n, F fill) { return n > 0 ? v : fill; }
  // Over the lanes: the sum by halves (lane i + lane i + width / 2, and so on down to one); the
  // least and the greatest where no lane is NaN.
  FASTINFER_HOST_DEVICE static float lane_sum(F v) { return v; }
  FASTINFER_HOST_DEVICE static float lane_min(F v) { return v; }
  FASTINFER_HOST_DEVICE static float lane_max(F v) { return v; }
  // The vector types, of an even width, also have swap_pairs(a): lanes 2i and 2i + 1 exchanged.
  // 2^n for shifted = n + 1.5 * 2^23, n in [-126, 127].
  FASTINFER_HOST_DEVICE static F pow2_shifted(F shifted) {
    return from_bits((to_bits(shifted) << 23) + 0x3f800000u);
  }
  FASTINFER_HOST_DEVICE static F from_s32(
      const int32_t* p) {  // at any byte, as the sums in a packed weight may be
    int32_t v;
    std::memcpy(&v, p, sizeof v);
    return float(v);
  }

  // The first n (<= width) elements at p; lanes past n are unspecified.
  FASTINFER_HOST_DEVICE static F load(const float* p, int = 1) { return *p; }
  FASTINFER_HOST_DEVICE static F load(const void* p, DType dtype, int = 1) {
    if (dtype == DType::f32) return *static_cast<const float*>(p);
    uint16_t half;
    std::memcpy(&half, p, 2);
    return dtype == DType::bf16 ? from_bits(uint32_t(half) << 16) : from_f16(half);
  }
  // Rounds to nearest even; a NaN stays a NaN. Returns what was stored.
  FASTINFER_HOST_DEVICE static F store(void* p, DType dtype, F v, int = 1) {
    if (dtype == DType::f32) {
      std::memcpy(p, &v, 4);
      return v;
    }
    const uint16_t half = dtype == DType::bf16 ? to_bf16(v) : to_f16(v);
    std::memcpy(p, &half, 2);
    return dtype == DType::bf16 ? from_bits(uint32_t(half) << 16) : from_f16(half);
  }

  // What store returns, without storing.
  FASTINFER_HOST_DEVICE static F round(F v, DType dtype) {
    if (dtype == DType::f32) return v;
    return dtype == DType::bf16 ? from_bits(uint32_t(to_bf16(v)) << 16) : from_f16(to_f16(v));
  }
  // `store` of all lanes past the caches where the CPU can, to memory aligned to their size.
  // fence() comes before anybody else reads it.
  FASTINFER_HOST_DEVICE static F stream(void* p, DType dtype, F v) { return store(p, dtype, v); }
  FASTINFER_HOST_DEVICE static void fence() {}

  // The first n of 4 width integers nearest to a, b, c, d, halves to even; each at most 127 in
  // magnitude (lanes that are not stored hold anything).
  FASTINFER_HOST_DEVICE static void store_s8(int8_t* p, F a, F b, F c, F d, int n = 4) {
    const float v[4] = {a, b, c, d};
    // Adding 1.5 * 2^23 rounds |v| < 2^22 to an integer, ties to even.
    for (int i = 0; i < n; ++i) p[i] = int8_t(int32_t(to_bits(v[i] + 12582912.0f) - 0x4b400000u));
  }
  FASTINFER_HOST_DEVICE static void stream_s8(int8_t* p, F a, F b, F c, F d) {
    store_s8(p, a, b, c, d);
  }

  FASTINFER_HOST_DEVICE static uint32_t to_bits(float v) {
    uint32_t u;
    std::memcpy(&u, &v, 4);
    return u;
  }
  FASTINFER_HOST_DEVICE static float from_bits(uint32_t u) {
    float v;
    std::memcpy(&v, &u, 4);
    return v;
  }
  FASTINFER_HOST_DEVICE static uint16_t to_bf16(float v) {
    const uint32_t u = to_bits(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 0x40);
    return uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  FASTINFER_HOST_DEVICE static float from_f16(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00) {  // Inf, NaN (made quiet, as the conversion instructions do)
      return from_bits(sign | 0x7f800000u | magnitude << 13 | (magnitude > 0x7c00 ? 0x400000u : 0));
    }
    if (magnitude >= 0x400) return from_bits(sign | ((magnitude << 13) + 0x38000000u));
    return from_bits(sign | to_bits(float(magnitude) * 0x1p-24f));  // zero, subnormal: exact
  }
  FASTINFER_HOST_DEVICE static uint16_t to_f16(float v) {
    const uint32_t u = to_bits(v), magnitude = u & 0x7fffffffu;
    const uint16_t sign = uint16_t(u >> 16 & 0x8000);
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);  // rounds past 65504
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds at 2^-24, ties to even
      return uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13));
  }
};

}  // namespace
}  // namespace fastinfer::cpu
