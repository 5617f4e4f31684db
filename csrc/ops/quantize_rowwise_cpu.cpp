// fastinfer::quantize_rowwise: float [..., K] -> int8 [..., K] and one float32 scale a row [...].
// fastinfer::quantize_rows: the same around an offset a row, as the int8 linears quantise x.
#include "cpu/quantize_rowwise/quantize_rowwise.h"

#include <algorithm>
#include <tuple>

#include "ops/functions.h"
#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

// offset: null for symmetric rows.
void quantize(const Tensor& x, cpu::DType dtype, Tensor* q, Tensor* scale, Tensor* offset) {
  const Rows rows(x);
  cpu::QuantizeRowwise all{};
  all.x = rows.data;
  all.x_dtype = dtype;
  all.ldx_bytes = rows.ld_bytes;
  all.k = all.k_store = x.size(x.dim() - 1);
  all.tile_rows = 1;
  all.q = static_cast<int8_t*>(q->mutable_data_ptr());
  all.scale = static_cast<float*>(scale->mutable_data_ptr());
  if (offset != nullptr) all.offset = static_cast<float*>(offset->mutable_data_ptr());
  const auto& kernel = cpu::select_quantize_rowwise();
  constexpr int64_t kGrainElements = 1 << 15;  // about 5 us of work, as much as starting a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, all.k));
  parallel_rows(rows.m, grain, [&](int64_t begin, int64_t end) {
    cpu::QuantizeRowwise part = all;
    part.x = static_cast<const char*>(all.x) + begin * all.ldx_bytes;
    part.q = all.q + begin * all.k;
    part.scale = all.scale + begin;
    if (all.offset != nullptr) part.offset = all.offset + begin;
    part.rows = end - begin;
    kernel.run(part);
  });
}

cpu::DType check_x(const char* op, const Tensor& x) {
  check_cpu(op, "x", x);
  const cpu::DType dtype = check_float(op, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has shape [], want [..., K]");
  return dtype;
}

}  // namespace

std::tuple<Tensor, Tensor> quantize_rowwise(const Tensor& x) {
  const cpu::DType dtype = check_x("quantize_rowwise", x);
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  Tensor q = empty(shape, ScalarType::Char);
  Tensor scale = empty({shape.begin(), shape.end() - 1}, ScalarType::Float);
  quantize(x, dtype, &q, &scale, nullptr);
  return {q, scale};
}

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor& x) {
  const cpu::DType dtype = check_x("quantize_rows", x);
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  const std::vector<int64_t> lead(shape.begin(), shape.end() - 1);
  Tensor q = empty_output(shape, ScalarType::Char);
  Tensor scale = empty(lead, ScalarType::Float), offset = empty(lead, ScalarType::Float);
  quantize(x, dtype, &q, &scale, &offset);
  return {q, scale, offset};
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("quantize_rowwise", TORCH_BOX(&quantize_rowwise));
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
}

}  // namespace fastinfer::ops
