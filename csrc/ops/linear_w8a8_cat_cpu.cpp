// fastinfer::linear_w8a8_cat: linear_w8a8 with several weights of one input, which is quantised
// once; their outputs stand side by side.
#include "ops/functions.h"
#include "ops/linear.h"

namespace fastinfer::ops {

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
  std::vector<cpu::LinearWeight> weights;
  weights.reserve(count);
  int64_t n = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const std::string packed = "w_packed" + at, scale = "w_scale" + at, one_bias = "bias" + at;
    weights.push_back(check_weight(kOp, {packed.c_str(), scale.c_str(), one_bias.c_str()},
                                   w_packed[i], w_scale[i], bias[i]));
    STD_TORCH_CHECK(weights[i].packed.k == weights[0].packed.k, kOp, ": ", packed,
                    " has K = ", weights[i].packed.k, ", want that of w_packed[0], ",
                    weights[0].packed.k);
    n += weights[i].packed.n;
  }
  cpu::LinearW8A8 p{};
  p.weights = weights.data();
  p.weight_count = int64_t(count);
  p.activation = parse_activation(kOp, activation);
  const LinearInput input(kOp, x, x_scale, x_offset, weights[0].packed.k, &p);
  return run_linear(kOp, x, n, input.out_dtype(kOp, out_dtype), &p);
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("linear_w8a8_cat", TORCH_BOX(&linear_w8a8_cat));
}

}  // namespace fastinfer::ops
