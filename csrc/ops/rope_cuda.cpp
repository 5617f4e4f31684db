// fastinfer::rope on CUDA. Kernel: cuda/rope.
#include "cuda/rope/rope.h"

#include "ops/cuda.h"
#include "ops/rope.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "rope";

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const CudaCall call(kOp, x);
  call.check_device("cos", cos);
  call.check_device("sin", sin);
  const RopeTables tables(x, cos, sin);
  cuda::Rope p{};
  p.x_dtype = *float_dtype(x.scalar_type());
  p.table_dtype = *float_dtype(cos.scalar_type());
  p.batches = x.size(0);
  p.heads = x.size(1);
  p.tokens = x.size(2);
  p.head_size = x.size(3);
  p.r = tables.r;
  p.interleaved = interleaved;
  STD_TORCH_CHECK(p.batches * p.tokens <= INT32_MAX && p.heads * p.head_size <= INT32_MAX, kOp,
                  ": x has shape ", shape_text(x), ", want B T and H D of at most ", INT32_MAX);

  const Tensor heads = unit_stride(x);
  p.x = heads.const_data_ptr();
  const auto step = [&](int64_t i) { return heads.size(i) > 1 ? heads.stride(i) : 0; };
  p.x_batch = step(0);
  p.x_head = step(1);
  p.x_token = step(2);
  p.cos = tables.cos.tensor.const_data_ptr();
  p.cos_batch = tables.cos.batch_step;
  p.cos_token = tables.cos.token_step;
  p.sin = tables.sin.tensor.const_data_ptr();
  p.sin_batch = tables.sin.batch_step;
  p.sin_token = tables.sin.token_step;
  std::vector<int64_t> strides = contiguous_strides({p.batches, p.tokens, p.heads, p.head_size});
  std::swap(strides[1], strides[2]);
  Tensor out = call.empty({p.batches, p.heads, p.tokens, p.head_size}, strides, x.scalar_type());
  p.out = out.mutable_data_ptr();
  call.check(cuda::launch_rope(p, call.stream()));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CUDA, m) { m.impl("rope", TORCH_BOX(&rope)); }

}  // namespace fastinfer::ops
