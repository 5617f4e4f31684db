// Views of a tensor: other sizes and strides on the same memory, as torch's functions of the same
// names give them. Torch's own take some 2 us through its dispatcher, these a tenth of that.
#pragma once

#include <optional>
#include <vector>

#include "ops/tensor.h"

namespace fastinfer::ops {

Tensor transpose(const Tensor& x, int64_t dim0, int64_t dim1);
Tensor permute(const Tensor& x, const std::vector<int64_t>& dims);
Tensor unsqueeze(const Tensor& x, int64_t dim);
Tensor squeeze(const Tensor& x, int64_t dim);
Tensor select(const Tensor& x, int64_t dim, int64_t index);
Tensor slice(const Tensor& x, int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end,
             int64_t step);
Tensor expand(const Tensor& x, const std::vector<int64_t>& size);
Tensor unflatten(const Tensor& x, int64_t dim, const std::vector<int64_t>& sizes);
std::vector<Tensor> split_with_sizes(const Tensor& x, const std::vector<int64_t>& sizes,
                                     int64_t dim);

// These copy where the strides of x allow no view.
Tensor reshape(const Tensor& x, const std::vector<int64_t>& shape);
Tensor flatten(const Tensor& x, int64_t start_dim, int64_t end_dim);
Tensor contiguous(const Tensor& x);

}  // namespace fastinfer::ops
