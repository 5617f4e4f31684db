// fastinfer::layer_norm, fastinfer::rms_norm: over the last dimension, after a residual addition,
// to float [..., K], to int8 rows with a scale and an offset each, or to both. Kernels: cpu/norm.
#include "cpu/norm/norm.h"

#include <algorithm>
#include <atomic>
#include <tuple>

#include "cpu/scratch.h"
#include "ops/functions.h"
#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

struct Parameter {
  const void* data = nullptr;
  cpu::DType dtype = cpu::DType::f32;

  Parameter(const char* op, const char* name, const std::optional<Tensor>& t, int64_t k) {
    if (!t) return;
    dtype = check_float(op, name, t->scalar_type());
    check_vector(op, name, *t, t->scalar_type(), k);
    data = t->const_data_ptr();
  }
};

NormOutputs norm(const char* op, cpu::NormKind kind, const Tensor& x,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double eps,
                 const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  check_cpu(op, "x", x);
  cpu::Norm all{};
  all.kind = kind;
  all.dtype = check_float(op, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x has shape [], want [..., K]");
  STD_TORCH_CHECK(emit_fp || emit_rows, op, ": emit_fp and emit_rows are False, want one of them");
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  all.k = shape.back();
  const Parameter w(op, "weight", weight, all.k), b(op, "bias", bias, all.k);
  all.weight = w.data;
  all.weight_dtype = w.dtype;
  all.bias = b.data;
  all.bias_dtype = b.dtype;
  all.eps = float(eps);

  const Rows rows(x);
  all.x = rows.data;
  all.ldx_bytes = rows.ld_bytes;
  std::optional<Rows> residual_rows;
  if (residual) {
    check_cpu(op, "residual", *residual);
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(), op, ": residual has dtype ",
                    dtype_text(residual->scalar_type()), ", want that of x, ",
                    dtype_text(x.scalar_type()));
    STD_TORCH_CHECK(
        shape == std::vector<int64_t>(residual->sizes().begin(), residual->sizes().end()), op,
        ": residual has shape ", shape_text(*residual), ", want that of x, ", shape_text(x));
    residual_rows.emplace(*residual);
    all.residual = residual_rows->data;
    all.residual_ld_bytes = residual_rows->ld_bytes;
  }

  const std::vector<int64_t> none{0}, lead(shape.begin(), shape.end() - 1);
  Tensor sum = empty_output(residual ? shape : none, x.scalar_type());
  Tensor y = empty_output(emit_fp ? shape : none, x.scalar_type());
  Tensor q = empty_output(emit_rows ? shape : none, ScalarType::Char);
  Tensor scale = empty(emit_rows ? lead : none, ScalarType::Float);
  Tensor offset = empty(emit_rows ? lead : none, ScalarType::Float);
  const int64_t row_bytes = all.k * cpu::size_of(all.dtype);
  all.stream = cpu::norm_streams(
      rows.m * ((residual ? row_bytes : 0) + (emit_fp ? row_bytes : 0) + (emit_rows ? all.k : 0)));

  const auto& kernel = cpu::select_norm();
  std::atomic<bool> ok{true};
  constexpr int64_t kGrainElements = 1 << 14;  // about 5 us of work, as much as starting a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, all.k));
  parallel_rows(rows.m, grain, [&](int64_t begin, int64_t end) {
    const size_t bytes = size_t(cpu::norm_scratch_floats(all.k)) * sizeof(float);
    static thread_local cpu::Scratch scratch;
    float* memory = static_cast<float*>(scratch.at_least(bytes));
    if (memory == nullptr) {
      ok = false;
      return;
    }
    const auto at = [begin](const auto* base, int64_t row_step) {
      return base == nullptr ? base : base + begin * row_step;
    };
    cpu::Norm part = all;
    part.rows = end - begin;
    part.scratch = memory;
    part.x = at(static_cast<const char*>(all.x), all.ldx_bytes);
    part.residual = at(static_cast<const char*>(all.residual), all.residual_ld_bytes);
    if (residual) part.sum = static_cast<char*>(sum.mutable_data_ptr()) + begin * row_bytes;
    if (emit_fp) part.y = static_cast<char*>(y.mutable_data_ptr()) + begin * row_bytes;
    if (emit_rows) {
      part.q = static_cast<int8_t*>(q.mutable_data_ptr()) + begin * all.k;
      part.scale = static_cast<float*>(scale.mutable_data_ptr()) + begin;
      part.offset = static_cast<float*>(offset.mutable_data_ptr()) + begin;
    }
    kernel.run(part);
  });
  STD_TORCH_CHECK(ok, op, ": out of memory for a row of x, shape ", shape_text(x));
  return {sum, y, q, scale, offset};
}

}  // namespace

NormOutputs layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& bias, double eps,
                       const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  return norm("layer_norm", cpu::NormKind::layer, x, weight, bias, eps, residual, emit_fp,
              emit_rows);
}

NormOutputs rms_norm(const Tensor& x, const std::optional<Tensor>& weight, double eps,
                     const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows) {
  return norm("rms_norm", cpu::NormKind::rms, x, weight, std::nullopt, eps, residual, emit_fp,
              emit_rows);
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
}

}  // namespace fastinfer::ops
