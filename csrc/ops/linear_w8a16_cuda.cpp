// fastinfer::linear_w8a16 on CUDA. Kernels: cuda/gemm_w8a16.
#include "cuda/gemm_w8a16/gemm_w8a16.h"

#include "ops/linear_cuda.h"

namespace fastinfer::ops {
namespace {

// Whether the kernels take rows of 16 bits as they are.
bool fits(const cuda::GemmW8A16& p) {
  return p.k % 8 == 0 && (p.m == 1 || p.ldx % 8 == 0) && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
}

Tensor linear_w8a16(const Tensor& x, const Tensor& w_packed, const Tensor& w_scale,
                    const std::optional<Tensor>& bias, const std::string& activation,
                    const std::optional<Tensor>& residual,
                    const std::optional<ScalarType>& out_dtype) {
  constexpr const char* kOp = "linear_w8a16";
  const CudaCall call(kOp, x);
  STD_TORCH_CHECK(x.dim() >= 1, kOp, ": x has shape [], want [..., K]");
  const Rows rows(x);
  cuda::GemmW8A16 p{};
  p.x_dtype = check_float(kOp, "x", x.scalar_type());
  p.k = x.size(x.dim() - 1);
  const CudaWeight weight =
      check_cuda_weight(kOp, call, {"w_packed", "w_scale", "bias"}, w_packed, w_scale, bias, p.k);
  p.m = rows.m;
  p.n = weight.n;
  p.k_pad = cuda::packed_offsets(0, p.k).k_pad;
  p.x = rows.data;
  p.ldx = rows.ld_bytes / cpu::size_of(p.x_dtype);
  p.w = weight.rows;
  p.w_scale = weight.scale;
  p.bias = weight.bias;
  p.activation = parse_activation(kOp, activation);
  const ScalarType out_type = out_dtype.value_or(x.scalar_type());
  p.out_dtype = check_float(kOp, "out_dtype", out_type);
  const std::vector<int64_t> shape = output_shape(x, p.n);
  const std::optional<Rows> residual_at = check_cuda_residual(kOp, call, residual, shape, out_type);
  if (residual_at) {
    p.residual = residual_at->data;
    p.ld_residual = residual_at->ld_bytes / cpu::size_of(p.out_dtype);
  }
  Tensor out = call.empty(shape, out_type);
  p.out = out.mutable_data_ptr();
  p.ld_out = p.n;
  if (p.m == 0 || p.n == 0) return out;
  Workspace workspace;
  const bool pads = p.x_dtype != cuda::DType::f32 && !fits(p);
  const int64_t padded_k = (p.k + 7) / 8 * 8;
  const int64_t padded = workspace.reserve(pads ? p.m * padded_k * 2 : 0);
  const int64_t rows_bytes = (p.n + 15) / 16 * 16 * p.k_pad;
  const int64_t expanded = workspace.reserve(weight.sparse ? rows_bytes : 0);
  if (pads || weight.sparse) workspace.allocate(call);
  if (pads) {
    void* to = workspace.at<void>(padded);
    call.check(cuda::launch_pad_rows(p.x, p.ldx, p.m, p.k, to, call.stream()));
    p.x = to;
    p.ldx = p.k = padded_k;
  }
  if (weight.sparse) {
    int8_t* to = workspace.at<int8_t>(expanded);
    call.check(cuda::launch_expand_sp24(weight.pieces, p.n, p.k_pad, to, false, call.stream()));
    p.w = to;
  }
  call.check(cuda::launch_gemm_w8a16(p, call.stream()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) { m.impl("linear_w8a16", TORCH_BOX(&linear_w8a16)); }

}  // namespace fastinfer::ops
