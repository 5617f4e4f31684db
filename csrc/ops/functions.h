// The operators on the CPU as functions, for callers in C++.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/tensor.h"

namespace fastinfer::ops {

using NormOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // sum y q scale offset

Tensor linear_w8a8(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                   const std::optional<Tensor>& bias, const std::string& activation,
                   const std::optional<Tensor>& residual,
                   const std::optional<ScalarType>& out_dtype, const std::optional<Tensor>& x_scale,
                   const std::optional<Tensor>& x_offset);

Tensor linear_w8a8_cat(const Tensor& x, const std::vector<Tensor>& w_packed,
                       const std::vector<Tensor>& w_scale,
                       const std::vector<std::optional<Tensor>>& bias,
                       const std::string& activation, const std::optional<ScalarType>& out_dtype,
                       const std::optional<Tensor>& x_scale, const std::optional<Tensor>& x_offset);

Tensor linear_w8a8_gated(const Tensor& x, const Tensor& gate_packed, const Tensor& gate_scale,
                         const std::optional<Tensor>& gate_bias, const Tensor& up_packed,
                         const Tensor& up_scale, const std::optional<Tensor>& up_bias,
                         const std::string& activation, const std::optional<ScalarType>& out_dtype,
                         const std::optional<Tensor>& x_scale,
                         const std::optional<Tensor>& x_offset);

Tensor linear_w8a16(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                    const std::optional<Tensor>& bias, const std::string& activation,
                    const std::optional<Tensor>& residual,
                    const std::optional<ScalarType>& out_dtype);

NormOutputs layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& bias, double eps,
                       const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows);

NormOutputs rms_norm(const Tensor& x, const std::optional<Tensor>& weight, double eps,
                     const std::optional<Tensor>& residual, bool emit_fp, bool emit_rows);

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v,
                 const std::optional<Tensor>& mask, std::optional<double> scale, bool causal,
                 int64_t window);

std::tuple<Tensor, Tensor> quantize_rowwise(const Tensor& x);

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor& x);

std::tuple<Tensor, Tensor, Tensor, Tensor> act_mul(const Tensor& x,
                                                   const std::optional<Tensor>& other,
                                                   const std::string& activation, bool emit_fp,
                                                   bool emit_rows);

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved);

}  // namespace fastinfer::ops
