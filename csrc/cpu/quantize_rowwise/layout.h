// What every quantize_rowwise kernel shares: the scale of a row and where its bytes go.
#pragma once

#include <limits>

#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::cpu {
namespace {

// Pass 1: the least and greatest element of a row (0, 0 for an empty one), in any order of
// comparison. One of them is not finite if an element is Inf; a NaN may go unnoticed.
struct RowRange {
  float low, high;
};

struct RowScale {
  float offset;
  float inverse;  // 127 / a, or 1 / scale
  bool finite;
};

// Writes scale[m] and offset[m].
inline RowScale row_scale(const QuantizeRowwise& p, int64_t m, const RowRange& range) {
  const auto finite = [](float v) { return v - v == 0.0f; };
  RowScale s{0.0f, 0.0f, finite(range.low) && finite(range.high)};
  float scale = std::numeric_limits<float>::quiet_NaN();
  if (s.finite) {
    // + 0: the offset of a row of zeros is +0 whichever zeros were its least and greatest.
    if (p.offset != nullptr) s.offset = (range.high * 0.5f + range.low * 0.5f) + 0.0f;
    const float up = range.high - s.offset, down = s.offset - range.low;
    float a = up > down ? up : down;
    if (!(a > 0x1p-118f)) a = 0x1p-118f;
    scale = a / 127.0f;
    s.inverse = 127.0f / a;
  }
  p.scale[m] = scale;
  if (p.offset != nullptr) p.offset[m] = s.offset;
  return s;
}

// The same for a static scale, of which the row tells nothing.
inline RowScale static_row_scale(const QuantizeRowwise& p, int64_t m) {
  const RowScale s{p.offset != nullptr ? p.static_offset : 0.0f, 1.0f / p.static_scale, true};
  p.scale[m] = p.static_scale;
  if (p.offset != nullptr) p.offset[m] = s.offset;
  return s;
}

struct RowDestination {
  int8_t* q;  // byte k is at q[k / 64 * k_block_stride + k % 64]
  int64_t k_block_stride;
};

inline RowDestination row_destination(const QuantizeRowwise& p, int64_t m) {
  const int64_t first = m / p.tile_rows * p.tile_rows;
  const int64_t left = p.rows - first;
  const int64_t block_rows = left < p.tile_rows ? left : p.tile_rows;
  return {p.q + first * p.k_store + (m - first) * 64, block_rows * 64};
}

// A row of zeros with the scale of a row that is not finite, for kernels that meet a NaN only in
// pass 2.
inline void poison_row(const QuantizeRowwise& p, int64_t m, const RowDestination& row) {
  row_scale(p, m, {std::numeric_limits<float>::quiet_NaN(), 0.0f});
  for (int64_t k = 0; k < p.k_store; ++k) {
    row.q[k / 64 * row.k_block_stride + k % 64] = int8_t(p.flip);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
