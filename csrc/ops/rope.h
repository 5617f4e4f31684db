// The arguments of fastinfer::rope, checked, for every device.
#pragma once

#include "ops/tensor.h"

namespace fastinfer::ops {

// `t` itself if its last dimension has unit stride, else a contiguous copy.
inline Tensor unit_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.size(last) <= 1 || t.stride(last) == 1 ? t : torch::stable::contiguous(t);
}

// cos or sin: checked, and the elements from one batch and token to the next. A table without a
// batch serves every batch.
struct RopeTable {
  Tensor tensor;
  int64_t batch_step, token_step;

  RopeTable(const char* name, const Tensor& t, const Tensor& x) : tensor(t) {
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() || t.scalar_type() == ScalarType::Float,
                    "rope: ", name, " has dtype ", dtype_text(t.scalar_type()),
                    ", want that of x, ", dtype_text(x.scalar_type()), ", or Float");
    const int64_t dims = t.dim(), r = dims > 0 ? t.size(dims - 1) : 0;
    STD_TORCH_CHECK((dims == 2 || (dims == 3 && (t.size(0) == 1 || t.size(0) == x.size(0)))) &&
                        t.size(dims - 2) == x.size(2) && r % 2 == 0 && r <= x.size(3),
                    "rope: ", name, " has shape ", shape_text(t),
                    ", want [T, R], [1, T, R] or [B, T, R] with ",
                    "an even R <= D, where x is [B, H, T, D] = ", shape_text(x));
    tensor = unit_stride(t);
    batch_step = dims == 3 && tensor.size(0) > 1 ? tensor.stride(0) : 0;
    token_step = tensor.stride(dims - 2);
  }
};

struct RopeTables {
  RopeTable cos, sin;
  int64_t r;

  RopeTables(const Tensor& x, const Tensor& cos_, const Tensor& sin_)
      : cos("cos", cos_, checked(x)), sin("sin", sin_, x), r(cos_.size(cos_.dim() - 1)) {
    STD_TORCH_CHECK(sin_.size(sin_.dim() - 1) == r, "rope: sin has shape ", shape_text(sin_),
                    ", want R = ", r, ", as cos has");
    STD_TORCH_CHECK(sin_.scalar_type() == cos_.scalar_type(), "rope: sin has dtype ",
                    dtype_text(sin_.scalar_type()), ", want that of cos, ",
                    dtype_text(cos_.scalar_type()));
  }

 private:
  static const Tensor& checked(const Tensor& x) {
    check_float("rope", "x", x.scalar_type());
    STD_TORCH_CHECK(x.dim() == 4, "rope: x has shape ", shape_text(x), ", want [B, H, T, D]");
    return x;
  }
};

}  // namespace fastinfer::ops
