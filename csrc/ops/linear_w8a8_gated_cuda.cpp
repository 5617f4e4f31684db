// fastinfer::linear_w8a8_gated on CUDA: the gate, activated, waits as float32 for the matmul whose
// epilogue multiplies by it.
#include "ops/linear_cuda.h"

namespace fastinfer::ops {
namespace {

Tensor linear_w8a8_gated(const Tensor& x, const Tensor& gate_packed, const Tensor& gate_scale,
                         const std::optional<Tensor>& gate_bias, const Tensor& up_packed,
                         const Tensor& up_scale, const std::optional<Tensor>& up_bias,
                         const std::string& activation, const std::optional<ScalarType>& out_dtype,
                         const std::optional<Tensor>& x_scale,
                         const std::optional<Tensor>& x_offset) {
  constexpr const char* kOp = "linear_w8a8_gated";
  const CudaCall call(kOp, x);
  CudaLinear linear(kOp, call, x, x_scale, x_offset);
  const CudaWeight gate = check_cuda_weight(kOp, call, {"gate_packed", "gate_scale", "gate_bias"},
                                            gate_packed, gate_scale, gate_bias, linear.k());
  const CudaWeight up = check_cuda_weight(kOp, call, {"up_packed", "up_scale", "up_bias"},
                                          up_packed, up_scale, up_bias, linear.k());
  STD_TORCH_CHECK(up.n == gate.n, kOp, ": up_scale has ", up.n,
                  " channels, want those of "
                  "gate_scale, ",
                  gate.n);
  const ScalarType out_type = linear.out_dtype(kOp, out_dtype);
  linear.add(gate, ScalarType::Float);
  linear.add(up, out_type);
  cuda::GemmS8S8S32 first{};
  first.activation = parse_activation(kOp, activation);
  linear.prepare(linear.m() * gate.n * 4);
  Tensor out = call.empty(output_shape(x, gate.n), out_type);
  if (linear.m() == 0) return out;
  first.out = linear.extra<float>();
  first.ld_out = gate.n;
  first.out_dtype = cuda::DType::f32;
  linear.run(0, first);
  cuda::GemmS8S8S32 second{};
  second.multiplier = linear.extra<float>();
  second.ld_multiplier = gate.n;
  second.out = out.mutable_data_ptr();
  second.ld_out = gate.n;
  second.out_dtype = *float_dtype(out_type);
  linear.run(1, second);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) {
  m.impl("linear_w8a8_gated", TORCH_BOX(&linear_w8a8_gated));
}

}  // namespace fastinfer::ops
