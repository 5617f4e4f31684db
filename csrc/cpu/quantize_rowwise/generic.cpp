// Scalar reference of quantize_rowwise: the formula of quantize_rowwise.h, one element at a time.
// Bound by its branches and scalar loads; it exists to be right.
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

namespace {

float element(const QuantizeRowwise& p, int64_t m, int64_t k) {
  return ScalarVec::load(static_cast<const char*>(p.x) + m * p.ldx_bytes + k * size_of(p.x_dtype),
                         p.x_dtype);
}

RowRange row_range(const QuantizeRowwise& p, int64_t m) {
  if (p.k == 0) return {0.0f, 0.0f};
  RowRange range{element(p, m, 0), element(p, m, 0)};
  for (int64_t k = 0; k < p.k; ++k) {
    const float v = element(p, m, k);
    if (v < range.low) range.low = v;
    if (v > range.high) range.high = v;
    if (v != v) return {v, v};
  }
  return range;
}

}  // namespace

void quantize_rowwise_generic(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    RowScale s = row_scale(p, m, row_range(p, m));
    if (s.finite && p.static_scale != 0.0f) s = static_row_scale(p, m);
    const RowDestination row = row_destination(p, m);
    for (int64_t k = 0; k < p.k_store; ++k) {
      int8_t q = 0;
      if (k < p.k && s.finite) {
        q = quantize_element(element(p, m, k), s);
      }
      row.q[k / 64 * row.k_block_stride + k % 64] = int8_t(uint8_t(q) ^ p.flip);
    }
  }
}

}  // namespace fastinfer::cpu
