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
  p.k = x.size(x.dim() - 1);
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

  const RowOutputs out(call, x, emit_fp, emit_rows, &p);
  call.check(cuda::launch_act_mul(p, call.stream()));
  return {out.y, out.q, out.scale, out.offset};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) { m.impl("act_mul", TORCH_BOX(&act_mul)); }

}  // namespace fastinfer::ops
