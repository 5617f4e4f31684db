// fastinfer::rope: rotary position embedding of the heads of queries or keys. Kernels: cpu/rope.
#include "cpu/rope/rope.h"

#include <algorithm>

#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "rope";

// `t` itself if its last dimension has unit stride, else a contiguous copy.
Tensor unit_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

// cos or sin: checked, and where each token's row lies. A table without a batch serves every batch.
struct Table {
  Tensor tensor;
  const char* data;
  int64_t batch_bytes, token_bytes;

  Table(const char* name, const Tensor& t, const Tensor& x) : tensor(t) {
    check_cpu(kOp, name, t);
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() || t.scalar_type() == ScalarType::Float, kOp,
                    ": ", name, " has dtype ", dtype_text(t.scalar_type()), ", want that of x, ",
                    dtype_text(x.scalar_type()), ", or Float");
    const int64_t dims = t.dim(), r = dims > 0 ? t.size(dims - 1) : 0;
    STD_TORCH_CHECK((dims == 2 || (dims == 3 && (t.size(0) == 1 || t.size(0) == x.size(0)))) &&
                        t.size(dims - 2) == x.size(2) && r % 2 == 0 && r <= x.size(3),
                    kOp, ": ", name, " has shape ", shape_text(t),
                    ", want [T, R], [1, T, R] or [B, T, R] with ",
                    "an even R <= D, where x is [B, H, T, D] = ", shape_text(x));
    tensor = unit_stride(t);
    const int64_t size = int64_t(tensor.element_size());
    data = static_cast<const char*>(tensor.const_data_ptr());
    batch_bytes = dims == 3 && tensor.size(0) > 1 ? tensor.stride(0) * size : 0;
    token_bytes = tensor.stride(dims - 2) * size;
  }
};

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  check_cpu(kOp, "x", x);
  cpu::Rope all{};
  all.x_dtype = check_float(kOp, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 4, kOp, ": x has shape ", shape_text(x), ", want [B, H, T, D]");
  const Table cos_table("cos", cos, x), sin_table("sin", sin, x);
  STD_TORCH_CHECK(sin.size(sin.dim() - 1) == cos.size(cos.dim() - 1), kOp, ": sin has shape ",
                  shape_text(sin), ", want R = ", cos.size(cos.dim() - 1), ", as cos has");
  STD_TORCH_CHECK(sin.scalar_type() == cos.scalar_type(), kOp, ": sin has dtype ",
                  dtype_text(sin.scalar_type()), ", want that of cos, ",
                  dtype_text(cos.scalar_type()));

  const Tensor heads = unit_stride(x);
  const int64_t size = cpu::size_of(all.x_dtype);
  const int64_t batches = x.size(0), tokens = x.size(2);
  const int64_t x_batch_bytes = heads.stride(0) * size;
  all.x_head_bytes = heads.stride(1) * size;
  all.x_token_bytes = heads.stride(2) * size;
  all.table_dtype = *float_dtype(cos.scalar_type());
  all.cos_token_bytes = cos_table.token_bytes;
  all.sin_token_bytes = sin_table.token_bytes;
  all.heads = x.size(1);
  all.head_size = x.size(3);
  all.r = cos.size(cos.dim() - 1);
  all.interleaved = interleaved;
  Tensor out = empty_heads_output(batches, all.heads, tokens, all.head_size, x.scalar_type());
  if (out.numel() == 0) return out;

  const char* x_data = static_cast<const char*>(heads.const_data_ptr());
  char* out_data = static_cast<char*>(out.mutable_data_ptr());
  const auto& kernel = cpu::select_rope();
  const int64_t token_elements = all.heads * all.head_size;
  constexpr int64_t kGrainElements = 1 << 15;  // about as long as it takes to start a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / token_elements);
  torch::stable::parallel_for(0, batches * tokens, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // tokens of one batch at a time
      const int64_t batch = begin / tokens, t = begin % tokens;
      cpu::Rope part = all;
      part.tokens = std::min(tokens - t, end - begin);
      part.x = x_data + batch * x_batch_bytes + t * all.x_token_bytes;
      part.cos = cos_table.data + batch * cos_table.batch_bytes + t * cos_table.token_bytes;
      part.sin = sin_table.data + batch * sin_table.batch_bytes + t * sin_table.token_bytes;
      part.out = out_data + begin * token_elements * size;
      kernel.run(part);
      begin += part.tokens;
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("rope", TORCH_BOX(&rope)); }

}  // namespace fastinfer::ops
