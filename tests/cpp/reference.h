// Formulas written a second time, in double and without cleverness, to check the library against.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/dtype.h"

namespace fastinfer::test {

using cpu::DType;

inline float float_of_bits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t bits_of_float(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// The value of an element of a 16-bit format with `exponent` and `mantissa` bits (IEEE 754).
inline double half_value(uint16_t bits, int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1, e = bits >> mantissa & ((1 << exponent) - 1);
  const double m = bits & ((1 << mantissa) - 1), sign = bits & 0x8000 ? -1.0 : 1.0;
  if (e == (1 << exponent) - 1) return m != 0 ? NAN : sign * INFINITY;
  return sign * (e == 0 ? std::ldexp(m, 1 - bias - mantissa)
                        : std::ldexp(m + (1 << mantissa), e - bias - mantissa));
}

inline double element(const void* p, DType dtype) {
  if (dtype == DType::f32) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return dtype == DType::bf16 ? half_value(bits, 8, 7) : half_value(bits, 5, 10);
}

inline bool is_nan_bits(uint32_t bits, DType dtype) {
  if (dtype == DType::f32) return (bits & 0x7fffffffu) > 0x7f800000u;
  return (bits & 0x7fffu) > (dtype == DType::bf16 ? 0x7f80u : 0x7c00u);
}

// Same bits, or a NaN in both: which NaN comes of two is up to the CPU.
inline bool same_elements(const void* a, const void* b, int64_t n, DType dtype) {
  const int64_t size = cpu::size_of(dtype);
  if (n == 0 || std::memcmp(a, b, size_t(n * size)) == 0) return true;
  if (dtype == DType::s32) return false;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u = 0, v = 0;
    std::memcpy(&u, static_cast<const char*>(a) + i * size, size_t(size));
    std::memcpy(&v, static_cast<const char*>(b) + i * size, size_t(size));
    if (u != v && !(is_nan_bits(u, dtype) && is_nan_bits(v, dtype))) return false;
  }
  return true;
}

// `n` random elements of `dtype`, a few binades around 1; finite.
inline std::vector<uint8_t> random_elements(Random& random, int64_t n, DType dtype) {
  std::vector<uint8_t> bytes(size_t(n * cpu::size_of(dtype)));
  for (int64_t i = 0; i < n; ++i) {
    const float v = random.unit() * float(1 << random.below(4));
    const uint32_t bits = bits_of_float(v);
    const uint16_t half =
        dtype == DType::bf16 ? uint16_t(bits >> 16) : uint16_t(random.bits() & 0xbbff);  // |v| < 2
    if (dtype == DType::f32) {
      std::memcpy(&bytes[size_t(i) * 4], &bits, 4);
    } else {
      std::memcpy(&bytes[size_t(i) * 2], &half, 2);
    }
  }
  return bytes;
}

}  // namespace fastinfer::test
