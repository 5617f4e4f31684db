// fastinfer::linear_w8a8: activation(x W^T + bias) + residual with int8 operands; x is quantised
// per row on the way in, or comes as int8 rows. Kernels: cpu/gemm_s8s8s32, cpu/quantize_rowwise.
#include "ops/functions.h"
#include "ops/linear.h"

namespace fastinfer::ops {

Tensor linear_w8a8(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                   const std::optional<Tensor>& bias, const std::string& activation,
                   const std::optional<Tensor>& residual,
                   const std::optional<ScalarType>& out_dtype, const std::optional<Tensor>& x_scale,
                   const std::optional<Tensor>& x_offset) {
  constexpr const char* kOp = "linear_w8a8";
  const cpu::LinearWeight weight =
      check_weight(kOp, {"w_packed", "w_scale", "bias"}, w_packed, w_scale, bias);
  const int64_t n = weight.packed.n;
  cpu::LinearW8A8 p{};
  p.weights = &weight;
  p.weight_count = 1;
  p.activation = parse_activation(kOp, activation);
  const LinearInput input(kOp, x, x_scale, x_offset, weight.packed.k, &p);
  const ScalarType out_type = input.out_dtype(kOp, out_dtype);
  const std::optional<Rows> residual_rows = check_residual(kOp, residual, x, n, out_type);
  if (residual_rows) {
    p.residual = residual_rows->data;
    p.residual_ld_bytes = residual_rows->ld_bytes;
  }
  return run_linear(kOp, x, n, out_type, &p);
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8)); }

}  // namespace fastinfer::ops
