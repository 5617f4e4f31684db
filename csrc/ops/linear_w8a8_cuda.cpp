// fastinfer::linear_w8a8 on CUDA. Kernels: cuda/gemm_s8s8s32, cuda/quantize_rowwise.
#include "ops/linear_cuda.h"

namespace fastinfer::ops {
namespace {

Tensor linear_w8a8(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                   const std::optional<Tensor>& bias, const std::string& activation,
                   const std::optional<Tensor>& residual,
                   const std::optional<ScalarType>& out_dtype, const std::optional<Tensor>& x_scale,
                   const std::optional<Tensor>& x_offset) {
  constexpr const char* kOp = "linear_w8a8";
  const CudaCall call(kOp, x);
  CudaLinear linear(kOp, call, x, x_scale, x_offset);
  const CudaWeight weight = check_cuda_weight(kOp, call, {"w_packed", "w_scale", "bias"}, w_packed,
                                              w_scale, bias, linear.k());
  cuda::GemmS8S8S32 p{};
  p.activation = parse_activation(kOp, activation);
  const ScalarType out_type = linear.out_dtype(kOp, out_dtype);
  p.out_dtype = *float_dtype(out_type);
  const std::vector<int64_t> shape = output_shape(x, weight.n);
  const std::optional<Rows> residual_at = check_cuda_residual(kOp, call, residual, shape, out_type);
  if (residual_at) {
    p.residual = residual_at->data;
    p.ld_residual = residual_at->ld_bytes / cpu::size_of(p.out_dtype);
  }
  linear.add(weight, out_type);
  linear.prepare();
  Tensor out = call.empty(shape, out_type);
  p.out = out.mutable_data_ptr();
  p.ld_out = weight.n;
  linear.run(0, p);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) { m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8)); }

}  // namespace fastinfer::ops
