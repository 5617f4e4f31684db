// cpu/vec/scalar.h, the reference of every vector type, against conversions done in double; and
// cpu/vec/math.h against the library functions in double.
#include <cmath>
#include <vector>

#include "check.h"
#include "cpu/vec/math.h"
#include "cpu/vec/scalar.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::ScalarVec;

namespace {

// The element of a 16-bit format nearest to v, ties to the even one, by search over all of the
// finite ones (they are ordered like their bits).
uint16_t nearest_half(float v, int exponent, int mantissa) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const uint16_t inf = uint16_t(((1 << exponent) - 1) << mantissa);
  const double magnitude = std::fabs(double(v));
  uint32_t low = 0, high = inf;
  while (high - low > 1) {  // value(low) <= magnitude, or low = 0
    const uint32_t middle = (low + high) / 2;
    (half_value(uint16_t(middle), exponent, mantissa) <= magnitude ? low : high) = middle;
  }
  const double below = half_value(uint16_t(low), exponent, mantissa);
  // Past the largest finite value the format would go on with the same step.
  const double above = high == inf ? 2 * below - half_value(uint16_t(low - 1), exponent, mantissa)
                                   : half_value(uint16_t(high), exponent, mantissa);
  const double half_way = below + (above - below) / 2;
  const bool up = magnitude > half_way || (magnitude == half_way && low % 2 == 1);
  return uint16_t(sign | (up ? high : low));
}

void check_conversions() {
  bool from_f16 = true, from_bf16 = true;
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = uint16_t(i);
    const auto same = [](float got, double want) {
      return std::isnan(want) ? std::isnan(got)
                              : got == want && std::signbit(got) == std::signbit(want);
    };
    from_f16 = from_f16 && same(ScalarVec::load(&bits, DType::f16), half_value(bits, 5, 10));
    from_bf16 = from_bf16 && same(ScalarVec::load(&bits, DType::bf16), half_value(bits, 8, 7));
  }
  CHECK(from_f16);
  CHECK(from_bf16);

  Random random(5);
  bool to_f16 = true, to_bf16 = true, nan = true;
  for (uint32_t i = 0; i < 40000; ++i) {
    // Every exponent, with mantissas near the ties of both formats among random ones.
    uint32_t bits = (i % 512) << 23 | uint32_t(random.bits() & 0x7fffff);
    if (i % 3 == 1) bits = (bits & 0xffff0000u) | (0x8000u + uint32_t(random.below(3)) - 1);
    if (i % 3 == 2) bits = (bits & 0xffffe000u) | (0x1000u + uint32_t(random.below(3)) - 1);
    const float v = float_of_bits(bits);
    uint16_t f16, bf16;
    ScalarVec::store(&f16, DType::f16, v);
    ScalarVec::store(&bf16, DType::bf16, v);
    if (std::isnan(v)) {
      nan = nan && is_nan_bits(f16, DType::f16) && is_nan_bits(bf16, DType::bf16);
    } else {
      to_f16 =
          to_f16 && f16 == (std::isinf(v) ? (v > 0 ? 0x7c00 : 0xfc00) : nearest_half(v, 5, 10));
      to_bf16 =
          to_bf16 && bf16 == (std::isinf(v) ? (v > 0 ? 0x7f80 : 0xff80) : nearest_half(v, 8, 7));
    }
  }
  CHECK(to_f16);
  CHECK(to_bf16);
  CHECK(nan);
}

void check_math() {
  double exp_error = 0, gelu_error = 0, silu_error = 0, tanh_error = 0, quick_error = 0;
  for (int i = -90000; i <= 90000; ++i) {
    const float x = float(i) * 1.003e-4f;  // |x| <= 9.03
    const double d = x, inner = std::sqrt(2 / M_PI) * (d + 0.044715 * d * d * d);
    const double magnitude = std::fabs(d) + 1e-30;
    exp_error = std::fmax(exp_error, std::fabs(cpu::exp<ScalarVec>(x) / std::exp(d) - 1));
    const double phi = 0.5 * std::erfc(-d / std::sqrt(2.0));
    gelu_error =
        std::fmax(gelu_error, std::fabs(cpu::gelu_erf<ScalarVec>(x) - d * phi) / magnitude);
    silu_error = std::fmax(silu_error,
                           std::fabs(cpu::silu<ScalarVec>(x) - d / (1 + std::exp(-d))) / magnitude);
    tanh_error = std::fmax(
        tanh_error,
        std::fabs(cpu::gelu_tanh<ScalarVec>(x) - 0.5 * d * (1 + std::tanh(inner))) / magnitude);
    quick_error = std::fmax(
        quick_error,
        std::fabs(cpu::quick_gelu<ScalarVec>(x) - d / (1 + std::exp(-1.702 * d))) / magnitude);
  }
  CHECK(exp_error <= 1.3 * 0x1p-24);
  // |x| (Phi - 1/2) with the error of the table's header, and one rounding of the sum.
  CHECK(gelu_error <= (0.52 + 1) * 0x1p-24);
  // x / (1 + e): e carries the error of exp and of its argument u, |u| 2^-24 more, and moves the
  // quotient by at most e / (1 + e)^2 <= 1/4 of that; then an addition and a division.
  CHECK(silu_error <= (1.3 / 4 + 2) * 0x1p-24);
  // The same, with u = 2 sqrt(2/pi) (x + 0.044715 x^3) rounded three times: |u| e / (1 + e)^2
  // <= 0.45 of each.
  CHECK(tanh_error <= (1.3 / 4 + 3 * 0.45 + 2) * 0x1p-24);
  // The same, with u = 1.702 x: one rounding, and the constant off by 0.22 * 2^-24 of itself;
  // |u| e / (1 + e)^2 <= 0.224.
  CHECK(quick_error <= (1.3 / 4 + 1.22 * 0.224 + 2) * 0x1p-24);
  const float nan = float_of_bits(0x7fc00000u);
  CHECK(std::isnan(cpu::exp<ScalarVec>(nan)));
  CHECK(std::isnan(cpu::gelu_erf<ScalarVec>(nan)));
  CHECK(std::isnan(cpu::gelu_tanh<ScalarVec>(nan)));
  CHECK(std::isnan(cpu::silu<ScalarVec>(nan)));
  CHECK(std::isnan(cpu::quick_gelu<ScalarVec>(nan)));
  CHECK(std::isnan(cpu::relu<ScalarVec>(nan)));
  for (float x : {5.5f, 6.0f, 1e10f, 3e38f}) {
    CHECK(cpu::gelu_erf<ScalarVec>(x) == x && cpu::gelu_erf<ScalarVec>(-x) == 0.0f);
  }
  CHECK(cpu::gelu_erf<ScalarVec>(0.0f) == 0.0f && cpu::gelu_erf<ScalarVec>(0x1p-126f) == 0x1p-127f);
  CHECK(cpu::relu<ScalarVec>(-3.0f) == 0.0f && cpu::relu<ScalarVec>(3.0f) == 3.0f);
}

// What the norms add to a Vec, at width 1.
void check_lanes() {
  const float nan = float_of_bits(0x7fc00000u);
  CHECK(ScalarVec::min(1.0f, 2.0f) == 1.0f && ScalarVec::max(1.0f, 2.0f) == 2.0f);
  CHECK(ScalarVec::min(nan, 2.0f) == 2.0f && std::isnan(ScalarVec::min(2.0f, nan)));
  CHECK(ScalarVec::max(nan, 2.0f) == 2.0f && std::isnan(ScalarVec::max(2.0f, nan)));
  CHECK(ScalarVec::keep(1.0f, 1, 2.0f) == 1.0f && ScalarVec::keep(1.0f, 0, 2.0f) == 2.0f);
  CHECK(ScalarVec::round(1.0f + 0x1p-9f, DType::bf16) == 1.0f);
  CHECK(ScalarVec::round(1.0f + 3 * 0x1p-8f, DType::bf16) == 1.0f + 0x1p-6f);
  CHECK(ScalarVec::round(1.0f + 0x1p-11f, DType::f16) == 1.0f);
  CHECK(ScalarVec::round(0.1f, DType::f32) == 0.1f);
  bool stored = true;
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (float v : {0.1f, -3.3f, 70000.0f, 0x1p-20f, 0.0f}) {
      uint32_t bits = 0;
      const float returned = ScalarVec::store(&bits, dtype, v);
      stored = stored && returned == ScalarVec::load(static_cast<const void*>(&bits), dtype) &&
               returned == ScalarVec::round(v, dtype);
    }
  }
  CHECK(stored);
  bool nearest = true;
  for (int i = -254; i <= 254; ++i) {
    const float v = float(i) * 0.5f;
    int8_t q[4] = {99, 99, 99, 99};
    ScalarVec::store_s8(q, v, v + 0.25f > 127 ? v : v + 0.25f, 0.0f, 0.0f, 2);
    nearest = nearest && q[0] == int(std::nearbyint(v)) && q[2] == 99 && q[3] == 99 &&
              q[1] == int(std::nearbyint(v + 0.25f > 127 ? v : v + 0.25f));
  }
  CHECK(nearest);
}

}  // namespace

void test_vec() {
  group("vec: scalar conversions", check_conversions);
  group("vec: lanes, rounding, int8", check_lanes);
  group("vec: exp, silu, gelu, relu", check_math);
}

}  // namespace fastinfer::test
