// fastinfer::linear_w8a8_gated: activation(x Wg^T + bg) * (x Wu^T + bu) with int8 operands; the
// product is formed in the epilogue of the second matmul.
#include "ops/functions.h"
#include "ops/linear.h"

namespace fastinfer::ops {

Tensor linear_w8a8_gated(const Tensor& x, const Tensor& gate_packed, const Tensor& gate_scale,
                         const std::optional<Tensor>& gate_bias, const Tensor& up_packed,
                         const Tensor& up_scale, const std::optional<Tensor>& up_bias,
                         const std::string& activation, const std::optional<ScalarType>& out_dtype,
                         const std::optional<Tensor>& x_scale,
                         const std::optional<Tensor>& x_offset) {
  constexpr const char* kOp = "linear_w8a8_gated";
  const cpu::LinearWeight weights[2] = {
      check_weight(kOp, {"gate_packed", "gate_scale", "gate_bias"}, gate_packed, gate_scale,
                   gate_bias),
      check_weight(kOp, {"up_packed", "up_scale", "up_bias"}, up_packed, up_scale, up_bias)};
  const cpu::PackedWeight &gate = weights[0].packed, &up = weights[1].packed;
  STD_TORCH_CHECK(up.n == gate.n && up.k == gate.k, kOp, ": up_packed holds [", up.n, ", ", up.k,
                  "], want the shape of gate_packed, [", gate.n, ", ", gate.k, "]");
  cpu::LinearW8A8 p{};
  p.weights = weights;
  p.weight_count = 2;
  p.gated = true;
  p.activation = parse_activation(kOp, activation);
  const LinearInput input(kOp, x, x_scale, x_offset, gate.k, &p);
  return run_linear(kOp, x, gate.n, input.out_dtype(kOp, out_dtype), &p);
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("linear_w8a8_gated", TORCH_BOX(&linear_w8a8_gated));
}

}  // namespace fastinfer::ops
