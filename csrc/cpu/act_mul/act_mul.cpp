#include "cpu/act_mul/act_mul.h"

#include <algorithm>

#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cpu/scratch.h"

namespace fastinfer::cpu {

bool act_mul(const ActMul& p, const ActMulRows* rows) {
  const ActMulKernel& kernel = select_act_mul();
  if (rows == nullptr) {
    kernel.run(p);
    return true;
  }
  // Rows of y that L1 holds until they are quantised; a row of more is a chunk of its own.
  constexpr int64_t kChunkBytes = 16 << 10;
  const int64_t row_bytes = p.k * size_of(p.dtype);
  const int64_t chunk = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, row_bytes));
  static thread_local Scratch scratch;
  char* y = static_cast<char*>(p.y);
  if (y == nullptr) {
    y = static_cast<char*>(scratch.at_least(size_t(std::max<int64_t>(1, chunk * row_bytes))));
    if (y == nullptr) return false;
  }
  const QuantizeRowwiseKernel& quantizer = select_quantize_rowwise();
  for (int64_t m = 0; m < p.rows; m += chunk) {
    ActMul part = p;
    part.rows = std::min(chunk, p.rows - m);
    part.x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
    if (p.other != nullptr) part.other = static_cast<const char*>(p.other) + m * p.other_ld_bytes;
    part.y = p.y == nullptr ? y : y + m * row_bytes;
    kernel.run(part);

    QuantizeRowwise quantize{};
    quantize.x = part.y;
    quantize.x_dtype = p.dtype;
    quantize.ldx_bytes = row_bytes;
    quantize.rows = part.rows;
    quantize.k = quantize.k_store = p.k;
    quantize.tile_rows = 1;
    quantize.q = rows->q + m * p.k;
    quantize.scale = rows->scale + m;
    quantize.offset = rows->offset + m;
    quantizer.run(quantize);
  }
  return true;
}

}  // namespace fastinfer::cpu
