// fastinfer::linear_w8a16: activation(x W^T + bias) + residual with int8 weights and x as it is.
// Kernels: cpu/gemm_f32s8f32.
#include "cpu/gemm_f32s8f32/linear.h"

#include "ops/functions.h"
#include "ops/linear.h"

namespace fastinfer::ops {

Tensor linear_w8a16(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                    const std::optional<Tensor>& bias, const std::string& activation,
                    const std::optional<Tensor>& residual,
                    const std::optional<ScalarType>& out_dtype) {
  constexpr const char* kOp = "linear_w8a16";
  cpu::LinearW8A16 p{};
  p.weight = check_weight(kOp, {"w_packed", "w_scale", "bias"}, w_packed, w_scale, bias);
  const cpu::PackedWeight& w = p.weight.packed;
  STD_TORCH_CHECK(w.layout == cpu::WeightLayout::dense, kOp, ": w_packed has the layout ",
                  cpu::weight_layout_name(w.layout), ", want dense");
  p.activation = parse_activation(kOp, activation);
  const Rows rows(check_x(kOp, x, w.k));
  p.x = rows.data;
  p.x_dtype = check_float(kOp, "x", x.scalar_type());
  p.ldx_bytes = rows.ld_bytes;
  p.m = rows.m;
  const ScalarType out_type = out_dtype.value_or(x.scalar_type());
  p.out_dtype = check_float(kOp, "out_dtype", out_type);
  const std::optional<Rows> residual_rows = check_residual(kOp, residual, x, w.n, out_type);
  if (residual_rows) {
    p.residual = residual_rows->data;
    p.residual_ld_bytes = residual_rows->ld_bytes;
  }
  Tensor out = empty_output(output_shape(x, w.n), out_type);
  p.out = out.mutable_data_ptr();
  p.out_ld_bytes = w.n * cpu::size_of(p.out_dtype);
  STD_TORCH_CHECK(cpu::linear_w8a16(p, int(torch::stable::get_num_threads()), parallel_for), kOp,
                  ": out of memory for the rows of x, shape ", shape_text(x));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("linear_w8a16", TORCH_BOX(&linear_w8a16)); }

}  // namespace fastinfer::ops
