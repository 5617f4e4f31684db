// Scalar reference of quantize_rowwise: the formula of quantize_rowwise.h, one element at a time.
// Bound by its branches and scalar loads; it exists to be right.
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void quantize_rowwise_generic(const QuantizeRowwise& p) {
  for (int64_t m = 0; m < p.rows; ++m) {
    const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
    uint32_t max_bits = 0;
    for (int64_t k = 0; k < p.k; ++k) {
      const float v = ScalarVec::load(x + k * size_of(p.x_dtype), p.x_dtype);
      const uint32_t bits = ScalarVec::to_bits(v) & 0x7fffffffu;
      if (bits > max_bits) max_bits = bits;
    }
    const RowScale s = row_scale(max_bits);
    p.scale[m] = s.scale;
    const RowDestination row = row_destination(p, m);
    for (int64_t k = 0; k < p.k_store; ++k) {
      int8_t q = 0;
      if (k < p.k && s.finite) {
        const float v = ScalarVec::load(x + k * size_of(p.x_dtype), p.x_dtype);
        // Adding 1.5 * 2^23 rounds |v| < 2^22 to an integer, ties to even.
        const float rounded = v * s.inverse + 12582912.0f;
        q = int8_t(int32_t(ScalarVec::to_bits(rounded) - 0x4b400000u));
      }
      row.q[k / 64 * row.k_block_stride + k % 64] = int8_t(uint8_t(q) ^ p.flip);
    }
  }
}

}  // namespace fastinfer::cpu
