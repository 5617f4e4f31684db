// The scale of a row and the bytes that follow from it: the formula of quantize_rowwise.h, for
// kernels of CPUs and GPUs alike.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/host_device.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {
namespace {

// Pass 1: the least and greatest element of a row (0, 0 for an empty one), in any order of
// comparison. One of them is not finite if an element is Inf; a NaN may go unnoticed.
struct RowRange {
  float low, high;
};

struct RowScale {
  float scale;    // NaN if the row is not finite
  float offset;   // 0 if the row is symmetric or not finite
  float inverse;  // 127 / a, or 1 / scale
  bool finite;
};

FASTINFER_HOST_DEVICE inline RowScale measured_row_scale(const RowRange& range, bool symmetric) {
  // A difference that is not 0 is NaN: from Inf or NaN.
  const bool finite = range.low - range.low == 0.0f && range.high - range.high == 0.0f;
  if (!finite) return {std::numeric_limits<float>::quiet_NaN(), 0.0f, 0.0f, false};
  // + 0: the offset of a row of zeros is +0 whichever zeros were its least and greatest.
  const float offset = symmetric ? 0.0f : (range.high * 0.5f + range.low * 0.5f) + 0.0f;
  const float up = range.high - offset, down = offset - range.low;
  float a = up > down ? up : down;
  if (!(a > 0x1p-118f)) a = 0x1p-118f;
  return {a / 127.0f, offset, 127.0f / a, true};
}

FASTINFER_HOST_DEVICE inline RowScale fixed_row_scale(float scale, float offset) {
  return {scale, offset, 1.0f / scale, true};
}

// Of a row that is finite.
FASTINFER_HOST_DEVICE inline int8_t quantize_element(float v, const RowScale& s) {
  v = (v - s.offset) * s.inverse;
  if (v > 127.0f) v = 127.0f;  // 127 is an integer: rounding first would change nothing
  if (v < -127.0f) v = -127.0f;
  // Adding 1.5 * 2^23 rounds |v| < 2^22 to an integer, ties to even.
  return int8_t(int32_t(ScalarVec::to_bits(v + 12582912.0f) - 0x4b400000u));
}

}  // namespace
}  // namespace fastinfer::cpu
