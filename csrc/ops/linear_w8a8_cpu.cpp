// fastinfer::linear_w8a8: activation(x W^T + bias) + residual with int8 operands; x is quantised
// per row on the way in. Kernels: cpu/gemm_s8s8s32, cpu/quantize_rowwise.
#include "cpu/gemm_s8s8s32/linear.h"
#include "ops/activation.h"
#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

Tensor linear_w8a8(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                   const std::optional<Tensor>& bias, const std::string& activation,
                   const std::optional<Tensor>& residual,
                   const std::optional<ScalarType>& out_dtype) {
  constexpr const char* kOp = "linear_w8a8";
  cpu::LinearW8A8 p{};
  check_cpu(kOp, "x", x);
  p.x_dtype = check_float(kOp, "x", x.scalar_type());
  const ScalarType out_type = out_dtype.value_or(x.scalar_type());
  p.out_dtype = check_float(kOp, "out_dtype", out_type);
  p.activation = parse_activation(kOp, activation);

  check_vector(kOp, "w_packed", w_packed, ScalarType::Byte, -1);
  const char* wrong = cpu::open_packed(w_packed.const_data_ptr(), w_packed.numel(), &p.weight);
  STD_TORCH_CHECK(wrong == nullptr, kOp, ": w_packed: ", wrong);
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == p.weight.k, kOp, ": x has shape ",
                  shape_text(x), ", want [..., K] with K = ", p.weight.k, ", as w_packed has");
  check_vector(kOp, "w_scale", w_scale, ScalarType::Float, p.weight.n);
  p.w_scale = static_cast<const float*>(w_scale.const_data_ptr());
  if (bias) {
    check_vector(kOp, "bias", *bias, ScalarType::Float, p.weight.n);
    p.bias = static_cast<const float*>(bias->const_data_ptr());
  }

  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = p.weight.n;
  std::optional<Rows> residual_rows;
  if (residual) {
    check_cpu(kOp, "residual", *residual);
    STD_TORCH_CHECK(residual->scalar_type() == out_type, kOp, ": residual has dtype ",
                    dtype_text(residual->scalar_type()), ", want that of the output, ",
                    dtype_text(out_type));
    STD_TORCH_CHECK(
        shape == std::vector<int64_t>(residual->sizes().begin(), residual->sizes().end()), kOp,
        ": residual has shape ", shape_text(*residual), ", want that of the output");
    residual_rows.emplace(*residual);
    p.residual = residual_rows->data;
    p.residual_ld_bytes = residual_rows->ld_bytes;
  }

  const Rows rows(x);
  Tensor out = empty_output(shape, out_type);
  p.x = rows.data;
  p.ldx_bytes = rows.ld_bytes;
  p.m = rows.m;
  p.out = out.mutable_data_ptr();
  p.out_ld_bytes = p.weight.n * cpu::size_of(p.out_dtype);
  STD_TORCH_CHECK(cpu::linear_w8a8(p, int(torch::stable::get_num_threads()), parallel_for), kOp,
                  ": out of memory for the quantised rows of x, shape ", shape_text(x));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("linear_w8a8", TORCH_BOX(&linear_w8a8)); }

}  // namespace fastinfer::ops
