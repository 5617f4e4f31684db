// fastinfer::act_mul on CUDA. Kernel: cuda/act_mul.
#include "cuda/act_mul/act_mul.h"

#include <tuple>

#include "ops/activation.h"
#include "ops/cuda.h"

namespace fastinfer::ops {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> act_mul(const Tensor& x,
                                                   const std::optional<Tensor>& other,
                                                   const std::string& activation, bool emit_fp,
                                                   bool emit_rows) {
  constexpr const char* kOp = "act_mul";
  const CudaCall call(kOp, x);
  cuda::ActMul p{};
  p.dtype = check_float(kOp, "x", x.scalar_type());
  p.activation = parse_activation(kOp, activation);
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": x has shape [], want [..., K]");
  STD_TORCH_CHECK(emit_fp || emit_rows, kOp, ": emit_fp and emit_rows are False, want one of them");
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  p.k = shape.back();
  STD_TORCH_CHECK(p.k <= cuda::kActMulMostK, kOp, ": x has K = ", p.k, ", want at most ",
                  cuda::kActMulMostK);
  const int64_t size = cpu::size_of(p.dtype);
  const Rows rows(x);
  p.x = rows.data;
  p.ldx = rows.ld_bytes / size;
  p.rows = call.check_rows("x", rows);
  std::optional<Rows> other_rows;
  if (other) {
    call.check_like("other", *other, x);
    other_rows.emplace(*other);
    p.other = other_rows->data;
    p.ld_other = other_rows->ld_bytes / size;
  }

  const std::vector<int64_t> none{0}, lead(shape.begin(), shape.end() - 1);
  Tensor y = call.empty(emit_fp ? shape : none, x.scalar_type());
  Tensor q = call.empty(emit_rows ? shape : none, ScalarType::Char);
  Tensor scale = call.empty(emit_rows ? lead : none, ScalarType::Float);
  Tensor offset = call.empty(emit_rows ? lead : none, ScalarType::Float);
  if (emit_fp) p.y = y.mutable_data_ptr();
  if (emit_rows) {
    p.q = static_cast<int8_t*>(q.mutable_data_ptr());
    p.scale = static_cast<float*>(scale.mutable_data_ptr());
    p.offset = static_cast<float*>(offset.mutable_data_ptr());
  }
  call.check(cuda::launch_act_mul(p, call.stream()));
  return {y, q, scale, offset};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) { m.impl("act_mul", TORCH_BOX(&act_mul)); }

}  // namespace fastinfer::ops
