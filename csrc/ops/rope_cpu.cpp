// fastinfer::rope: rotary position embedding of the heads of queries or keys. Kernels: cpu/rope.
#include "cpu/rope/rope.h"

#include <algorithm>

#include "ops/functions.h"
#include "ops/rope.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "rope";

}  // namespace

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  check_cpu(kOp, "x", x);
  check_cpu(kOp, "cos", cos);
  check_cpu(kOp, "sin", sin);
  const RopeTables tables(x, cos, sin);
  cpu::Rope all{};
  all.x_dtype = *float_dtype(x.scalar_type());

  const Tensor heads = unit_stride(x);
  const int64_t size = cpu::size_of(all.x_dtype);
  const int64_t batches = x.size(0), tokens = x.size(2);
  const int64_t x_batch_bytes = heads.stride(0) * size;
  all.x_head_bytes = heads.stride(1) * size;
  all.x_token_bytes = heads.stride(2) * size;
  all.table_dtype = *float_dtype(cos.scalar_type());
  const int64_t table_size = cpu::size_of(all.table_dtype);
  all.cos_token_bytes = tables.cos.token_step * table_size;
  all.sin_token_bytes = tables.sin.token_step * table_size;
  all.heads = x.size(1);
  all.head_size = x.size(3);
  all.r = tables.r;
  all.interleaved = interleaved;
  Tensor out = empty_heads_output(batches, all.heads, tokens, all.head_size, x.scalar_type());
  if (out.numel() == 0) return out;

  const char* x_data = static_cast<const char*>(heads.const_data_ptr());
  const char* cos_data = static_cast<const char*>(tables.cos.tensor.const_data_ptr());
  const char* sin_data = static_cast<const char*>(tables.sin.tensor.const_data_ptr());
  const int64_t cos_batch_bytes = tables.cos.batch_step * table_size;
  const int64_t sin_batch_bytes = tables.sin.batch_step * table_size;
  char* out_data = static_cast<char*>(out.mutable_data_ptr());
  const auto& kernel = cpu::select_rope();
  const int64_t token_elements = all.heads * all.head_size;
  constexpr int64_t kGrainElements = 1 << 15;  // about as long as it takes to start a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / token_elements);
  parallel_rows(batches * tokens, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // tokens of one batch at a time
      const int64_t batch = begin / tokens, t = begin % tokens;
      cpu::Rope part = all;
      part.tokens = std::min(tokens - t, end - begin);
      part.x = x_data + batch * x_batch_bytes + t * all.x_token_bytes;
      part.cos = cos_data + batch * cos_batch_bytes + t * all.cos_token_bytes;
      part.sin = sin_data + batch * sin_batch_bytes + t * all.sin_token_bytes;
      part.out = out_data + begin * token_elements * size;
      kernel.run(part);
      begin += part.tokens;
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("rope", TORCH_BOX(&rope)); }

}  // namespace fastinfer::ops
