// What every quantize_rowwise kernel shares: the scale of a row and where its bytes go.
#pragma once

#include <limits>

#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cpu/quantize_rowwise/row_scale.h"

namespace fastinfer::cpu {
namespace {

// Writes scale[m] and offset[m].
inline RowScale put_row_scale(const QuantizeRowwise& p, int64_t m, const RowScale& s) {
  p.scale[m] = s.scale;
  if (p.offset != nullptr) p.offset[m] = s.offset;
  return s;
}

inline RowScale row_scale(const QuantizeRowwise& p, int64_t m, const RowRange& range) {
  return put_row_scale(p, m, measured_row_scale(range, p.offset == nullptr));
}

// The same for a static scale, of which the row tells nothing.
inline RowScale static_row_scale(const QuantizeRowwise& p, int64_t m) {
  return put_row_scale(
      p, m, fixed_row_scale(p.static_scale, p.offset != nullptr ? p.static_offset : 0.0f));
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
