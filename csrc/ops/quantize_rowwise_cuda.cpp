// fastinfer::quantize_rowwise and fastinfer::quantize_rows on CUDA. Kernel: cuda/quantize_rowwise.
#include "cuda/quantize_rowwise/quantize_rowwise.h"

#include <tuple>

#include "ops/cuda.h"

namespace fastinfer::ops {
namespace {

// Rows of q have no padding, and the kernel stores 8 bytes at a time: rows of another length are
// quantised with padding and then copied.
Tensor quantize(const char* op, const CudaCall& call, const Tensor& x, Tensor* scale,
                Tensor* offset) {
  const Rows rows(x);
  cuda::QuantizeRowwise p{};
  p.x_dtype = check_float(op, "x", x.scalar_type());
  p.x = rows.data;
  p.ldx = rows.ld_bytes / cpu::size_of(p.x_dtype);
  p.rows = rows.m;
  p.k = x.size(x.dim() - 1);
  p.k_pad = (p.k + 7) / 8 * 8;
  std::vector<int64_t> shape = output_shape(x, p.k_pad);
  Tensor q = call.empty(shape, ScalarType::Char);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.scale = static_cast<float*>(scale->mutable_data_ptr());
  if (offset != nullptr) p.offset = static_cast<float*>(offset->mutable_data_ptr());
  call.check(cuda::launch_quantize_rowwise(p, call.stream()));
  if (p.k == p.k_pad) return q;
  return torch::stable::contiguous(torch::stable::narrow(q, x.dim() - 1, 0, p.k));
}

std::vector<int64_t> leading_shape(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has shape [], want [..., K]");
  const auto sizes = x.sizes();
  return {sizes.begin(), sizes.end() - 1};
}

std::tuple<Tensor, Tensor> quantize_rowwise(const Tensor& x) {
  constexpr const char* kOp = "quantize_rowwise";
  const CudaCall call(kOp, x);
  Tensor scale = call.empty(leading_shape(kOp, x), ScalarType::Float);
  return {quantize(kOp, call, x, &scale, nullptr), scale};
}

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor& x) {
  constexpr const char* kOp = "quantize_rows";
  const CudaCall call(kOp, x);
  const auto shape = leading_shape(kOp, x);
  Tensor scale = call.empty(shape, ScalarType::Float);
  Tensor offset = call.empty(shape, ScalarType::Float);
  return {quantize(kOp, call, x, &scale, &offset), scale, offset};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) {
  m.impl("quantize_rowwise", TORCH_BOX(&quantize_rowwise));
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
}

}  // namespace fastinfer::ops
