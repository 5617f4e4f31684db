// fastinfer::linear_w8a8_cat on CUDA: x is quantised once, the outputs stand side by side.
#include "ops/linear_cuda.h"

namespace fastinfer::ops {
namespace {

Tensor linear_w8a8_cat(const Tensor& x, const std::vector<Tensor>& w_packed,
                       const std::vector<Tensor>& w_scale,
                       const std::vector<std::optional<Tensor>>& bias,
                       const std::string& activation, const std::optional<ScalarType>& out_dtype,
                       const std::optional<Tensor>& x_scale,
                       const std::optional<Tensor>& x_offset) {
  constexpr const char* kOp = "linear_w8a8_cat";
  const size_t count = w_packed.size();
  STD_TORCH_CHECK(count > 0, kOp, ": w_packed is empty, want at least one weight");
  STD_TORCH_CHECK(w_scale.size() == count && bias.size() == count, kOp,
                  ": w_packed, w_scale and bias have lengths ", count, ", ", w_scale.size(), ", ",
                  bias.size(), ", want equal ones");
  const CudaCall call(kOp, x);
  CudaLinear linear(kOp, call, x, x_scale, x_offset);
  const ScalarType out_type = linear.out_dtype(kOp, out_dtype);
  std::vector<int64_t> columns;
  int64_t n = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const std::string packed = "w_packed" + at, scale = "w_scale" + at, one_bias = "bias" + at;
    const CudaWeight weight =
        check_cuda_weight(kOp, call, {packed.c_str(), scale.c_str(), one_bias.c_str()}, w_packed[i],
                          w_scale[i], bias[i], linear.k());
    linear.add(weight, out_type);
    columns.push_back(n);
    n += weight.n;
  }
  cuda::GemmS8S8S32 p{};
  p.activation = parse_activation(kOp, activation);
  p.out_dtype = *float_dtype(out_type);
  p.ld_out = n;
  linear.prepare();
  Tensor out = call.empty(output_shape(x, n), out_type);
  for (size_t i = 0; i < count; ++i) {
    p.out = static_cast<char*>(out.mutable_data_ptr()) + columns[i] * cpu::size_of(p.out_dtype);
    linear.run(i, p);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) {
  m.impl("linear_w8a8_cat", TORCH_BOX(&linear_w8a8_cat));
}

}  // namespace fastinfer::ops
