// fastinfer::act_mul: activation(x) * other to float [..., K], to int8 rows with a scale and an
// offset each, or to both. Kernels: cpu/act_mul, cpu/quantize_rowwise.
#include "cpu/act_mul/act_mul.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "ops/activation.h"
#include "ops/functions.h"
#include "ops/tensor.h"

namespace fastinfer::ops {

std::tuple<Tensor, Tensor, Tensor, Tensor> act_mul(const Tensor& x,
                                                   const std::optional<Tensor>& other,
                                                   const std::string& activation, bool emit_fp,
                                                   bool emit_rows) {
  constexpr const char* kOp = "act_mul";
  check_cpu(kOp, "x", x);
  cpu::ActMul all{};
  all.dtype = check_float(kOp, "x", x.scalar_type());
  all.activation = parse_activation(kOp, activation);
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": x has shape [], want [..., K]");
  STD_TORCH_CHECK(emit_fp || emit_rows, kOp, ": emit_fp and emit_rows are False, want one of them");
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  all.k = shape.back();
  const Rows rows(x);
  all.x = rows.data;
  all.ldx_bytes = rows.ld_bytes;
  std::optional<Rows> other_rows;
  if (other) {
    check_cpu(kOp, "other", *other);
    STD_TORCH_CHECK(other->scalar_type() == x.scalar_type(), kOp, ": other has dtype ",
                    dtype_text(other->scalar_type()), ", want that of x, ",
                    dtype_text(x.scalar_type()));
    STD_TORCH_CHECK(shape == std::vector<int64_t>(other->sizes().begin(), other->sizes().end()),
                    kOp, ": other has shape ", shape_text(*other), ", want that of x, ",
                    shape_text(x));
    other_rows.emplace(*other);
    all.other = other_rows->data;
    all.other_ld_bytes = other_rows->ld_bytes;
  }

  const std::vector<int64_t> none{0}, lead(shape.begin(), shape.end() - 1);
  Tensor y = empty_output(emit_fp ? shape : none, x.scalar_type());
  Tensor q = empty_output(emit_rows ? shape : none, ScalarType::Char);
  Tensor scale = empty(emit_rows ? lead : none, ScalarType::Float);
  Tensor offset = empty(emit_rows ? lead : none, ScalarType::Float);
  const int64_t row_bytes = all.k * cpu::size_of(all.dtype);
  const auto all_rows = cpu::ActMulRows{static_cast<int8_t*>(q.mutable_data_ptr()),
                                        static_cast<float*>(scale.mutable_data_ptr()),
                                        static_cast<float*>(offset.mutable_data_ptr())};
  char* y_data = static_cast<char*>(y.mutable_data_ptr());
  std::atomic<bool> ok{true};
  constexpr int64_t kGrainElements = 1 << 14;  // about as long as it takes to start a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, all.k));
  parallel_rows(rows.m, grain, [&](int64_t begin, int64_t end) {
    cpu::ActMul part = all;
    part.rows = end - begin;
    part.x = static_cast<const char*>(all.x) + begin * all.ldx_bytes;
    if (other) part.other = static_cast<const char*>(all.other) + begin * all.other_ld_bytes;
    if (emit_fp) part.y = y_data + begin * row_bytes;
    cpu::ActMulRows part_rows{};
    if (emit_rows) {
      part_rows = {all_rows.q + begin * all.k, all_rows.scale + begin, all_rows.offset + begin};
    }
    if (!cpu::act_mul(part, emit_rows ? &part_rows : nullptr)) ok = false;
  });
  STD_TORCH_CHECK(ok, kOp, ": out of memory for a row of y, shape ", shape_text(x));
  return {y, q, scale, offset};
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("act_mul", TORCH_BOX(&act_mul)); }

}  // namespace fastinfer::ops
