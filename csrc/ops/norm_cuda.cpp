// fastinfer::layer_norm and fastinfer::rms_norm on CUDA. Kernel: cuda/norm.
#include "cuda/norm/norm.h"

#include <tuple>

#include "ops/cuda.h"

namespace fastinfer::ops {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Checks a weight or a bias; its data, or null.
const void* open_parameter(const char* op, const CudaCall& call, const char* name,
                           const std::optional<Tensor>& t, int64_t k, cuda::DType* dtype) {
  if (!t) return nullptr;
  *dtype = check_float(op, name, t->scalar_type());
  call.check_vector(name, *t, t->scalar_type(), k);
  return t->const_data_ptr();
}

Outputs norm(const char* op, cuda::NormKind kind, const Tensor& x,
             const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps,
             const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  const CudaCall call(op, x);
  cuda::Norm p{};
  p.kind = kind;
  p.dtype = check_float(op, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has shape [], want [..., K]");
  STD_TORCH_CHECK(emit_fp || emit_rows, op, ": emit_fp and emit_rows are False, want one of them");
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  p.k = shape.back();
  STD_TORCH_CHECK(p.k <= cuda::kNormMostK, op, ": x has K = ", p.k, ", want at most ",
                  cuda::kNormMostK);
  p.weight = open_parameter(op, call, "weight", weight, p.k, &p.weight_dtype);
  p.bias = open_parameter(op, call, "bias", bias, p.k, &p.bias_dtype);
  p.eps = float(eps);

  const int64_t size = cpu::size_of(p.dtype);
  const Rows rows(x);
  p.x = rows.data;
  p.ldx = rows.ld_bytes / size;
  p.rows = call.check_rows("x", rows);
  std::optional<Rows> residual_rows;
  if (residual) {
    call.check_like("residual", *residual, x);
    residual_rows.emplace(*residual);
    p.residual = residual_rows->data;
    p.ld_residual = residual_rows->ld_bytes / size;
  }

  Tensor sum = call.empty(residual ? shape : std::vector<int64_t>{0}, x.scalar_type());
  if (residual) p.sum = sum.mutable_data_ptr();
  const RowOutputs out(call, x, emit_fp, emit_rows, &p);
  call.check(cuda::launch_norm(p, call.stream()));
  return {sum, out.y, out.q, out.scale, out.offset};
}

Outputs layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                   const std::optional<Tensor>& bias, double eps,
                   const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  return norm("layer_norm", cuda::NormKind::layer, x, weight, bias, eps, residual, emit_fp,
              emit_rows);
}

Outputs rms_norm(const Tensor& x, const std::optional<Tensor>& weight, double eps,
                 const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  return norm("rms_norm", cuda::NormKind::rms, x, weight, std::nullopt, eps, residual, emit_fp,
              emit_rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
}

}  // namespace fastinfer::ops
