// What the int8 linears share: checked weights, the input with its scales, the call of the driver.
#pragma once

#include "cpu/gemm_s8s8s32/linear.h"

#include <cmath>

#include "ops/activation.h"
#include "ops/tensor.h"

namespace fastinfer::ops {

inline cpu::LinearWeight check_weight(const char* op, const WeightNames& names,
                                      const Tensor& packed, const Tensor& scale,
                                      const std::optional<Tensor>& bias) {
  cpu::LinearWeight weight{};
  check_vector(op, names.packed, packed, ScalarType::Byte, -1);
  const char* wrong = cpu::open_packed(packed.const_data_ptr(), packed.numel(), &weight.packed);
  STD_TORCH_CHECK(wrong == nullptr, op, ": ", names.packed, ": ", wrong);
  check_vector(op, names.scale, scale, ScalarType::Float, weight.packed.n);
  weight.scale = static_cast<const float*>(scale.const_data_ptr());
  if (bias) {
    check_vector(op, names.bias, *bias, ScalarType::Float, weight.packed.n);
    weight.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  return weight;
}

inline const Tensor& check_x(const char* op, const Tensor& x, int64_t k) {
  check_cpu(op, "x", x);
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == k, op, ": x has shape ", shape_text(x),
                  ", want [..., K] with K = ", k, ", as the packed weight has");
  return x;
}

// Fills in p's x and its scales; keeps alive what had to be copied. The dtype is read once: a
// question to a tensor costs some 20 ns through the stable ABI.
class LinearInput {
 public:
  LinearInput(const char* op, const Tensor& x, const std::optional<Tensor>& x_scale,
              const std::optional<Tensor>& x_offset, int64_t k, cpu::LinearW8A8* p)
      : rows_(check_x(op, x, k)), dtype_(x.scalar_type()) {
    const bool rows_of_int8 = dtype_ == ScalarType::Char;
    p->x = rows_.data;
    p->x_dtype = rows_of_int8 ? cpu::DType::s8 : check_float(op, "x", dtype_);
    p->ldx_bytes = rows_.ld_bytes;
    p->m = rows_.m;
    STD_TORCH_CHECK(x_scale.has_value() == x_offset.has_value(), op, ": ",
                    x_scale ? "x_offset" : "x_scale", " is None, want it beside the other");
    STD_TORCH_CHECK(x_scale || !rows_of_int8, op,
                    ": x_scale and x_offset are None, want them: x is int8");
    if (!x_scale) return;
    bool one = false;
    p->x_scale = check_scale(op, "x_scale", x, *x_scale, &scale_, &one);
    p->x_scale_step = one ? 0 : 1;
    bool one_offset = false;
    p->x_offset = check_scale(op, "x_offset", x, *x_offset, &offset_, &one_offset);
    STD_TORCH_CHECK(one == one_offset, op, ": x_offset has shape ", shape_text(*x_offset),
                    ", want that of x_scale, ", shape_text(*x_scale));
    if (rows_of_int8) return;
    STD_TORCH_CHECK(*p->x_scale >= 0x1p-126f && std::isfinite(*p->x_scale), op, ": x_scale is ",
                    *p->x_scale, ", want a finite number >= 2^-126");
    STD_TORCH_CHECK(std::isfinite(*p->x_offset), op, ": x_offset is ", *p->x_offset,
                    ", want a finite number");
  }

  ScalarType out_dtype(const char* op, const std::optional<ScalarType>& asked) const {
    STD_TORCH_CHECK(asked || dtype_ != ScalarType::Char, op,
                    ": out_dtype is None, want a dtype: x is int8");
    const ScalarType dtype = asked.value_or(dtype_);
    check_float(op, "out_dtype", dtype);
    return dtype;
  }

 private:
  // [1], or for int8 the shape of x without K; `one` says which.
  const float* check_scale(const char* op, const char* name, const Tensor& x, const Tensor& t,
                           std::optional<Tensor>* copy, bool* one) const {
    check_cpu(op, name, t);
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", name, " has dtype ",
                    dtype_text(t.scalar_type()), ", want Float");
    *one = t.dim() == 1 && t.size(0) == 1;
    if (!*one) {
      STD_TORCH_CHECK(dtype_ == ScalarType::Char, op, ": ", name, " has shape ", shape_text(t),
                      ", want [1] beside a float x");
      bool same = t.dim() == x.dim() - 1;
      for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == x.size(i);
      STD_TORCH_CHECK(same, op, ": ", name, " has shape ", shape_text(t),
                      ", want that of x without K, or [1]");
    }
    if (t.is_contiguous()) return static_cast<const float*>(t.const_data_ptr());
    copy->emplace(torch::stable::contiguous(t));
    return static_cast<const float*>((*copy)->const_data_ptr());
  }

  Rows rows_;
  ScalarType dtype_;
  std::optional<Tensor> scale_, offset_;
};

// The rows of a residual of the output's dtype and shape [..., n], if there is one.
inline std::optional<Rows> check_residual(const char* op, const std::optional<Tensor>& residual,
                                          const Tensor& x, int64_t n, ScalarType out_type) {
  if (!residual) return std::nullopt;
  check_cpu(op, "residual", *residual);
  return residual_rows(op, *residual, output_shape(x, n), out_type);
}

// Runs the driver on `p`, complete but for its output [..., n].
inline Tensor run_linear(const char* op, const Tensor& x, int64_t n, ScalarType out_dtype,
                         cpu::LinearW8A8* p) {
  Tensor out = empty_output(output_shape(x, n), out_dtype);
  p->out = out.mutable_data_ptr();
  p->out_dtype = *float_dtype(out_dtype);
  p->out_ld_bytes = n * cpu::size_of(p->out_dtype);
  STD_TORCH_CHECK(cpu::linear_w8a8(*p, int(torch::stable::get_num_threads()), parallel_for), op,
                  ": out of memory for the quantised rows of x, shape ", shape_text(x));
  return out;
}

}  // namespace fastinfer::ops
