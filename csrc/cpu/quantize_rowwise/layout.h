// What every quantize_rowwise kernel shares: the scale of a row and where its bytes go.
#pragma once

#include <cstring>

#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::cpu {
namespace {

struct RowScale {
  float scale;    // NaN if the row is not finite
  float inverse;  // 127 / a
  bool finite;
};

inline RowScale row_scale(uint32_t max_magnitude_bits) {
  constexpr uint32_t kInf = 0x7f800000u, kQuietNan = 0x7fc00000u, kFloor = 0x04800000u;  // 2^-118
  const bool finite = max_magnitude_bits < kInf;
  const uint32_t bits = max_magnitude_bits < kFloor ? kFloor : max_magnitude_bits;
  float a, nan;
  std::memcpy(&a, &bits, 4);
  std::memcpy(&nan, &kQuietNan, 4);
  return {finite ? a / 127.0f : nan, finite ? 127.0f / a : 0.0f, finite};
}

struct RowDestination {
  int8_t* q;               // byte k is at q[k / 64 * k_block_stride + k % 64]
  int64_t k_block_stride;
};

inline RowDestination row_destination(const QuantizeRowwise& p, int64_t m) {
  const int64_t first = m / p.tile_rows * p.tile_rows;
  const int64_t left = p.rows - first;
  const int64_t block_rows = left < p.tile_rows ? left : p.tile_rows;
  return {p.q + first * p.k_store + (m - first) * 64, block_rows * 64};
}

}  // namespace
}  // namespace fastinfer::cpu
