#include "ops/views.h"

#include <algorithm>
#include <utility>

namespace fastinfer::ops {
namespace {

using Sizes = std::vector<int64_t>;

Sizes sizes_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }
Sizes strides_of(const Tensor& x) { return {x.strides().begin(), x.strides().end()}; }

// The memory of x from the element at `offset` on, with these sizes and strides.
Tensor view_of(const Tensor& x, const Sizes& sizes, const Sizes& strides, int64_t offset = 0) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      x.get(), int64_t(sizes.size()), sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// A dimension from 0 on; `count`: how many there are.
int64_t dimension(const char* view, int64_t dim, int64_t count) {
  STD_TORCH_CHECK(dim >= -count && dim < count, view, ": dim is ", dim, ", want one of ", count);
  return dim < 0 ? dim + count : dim;
}

// -1, which no count of elements is, where the product does not fit.
int64_t product(const Sizes& sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) return -1;
  }
  return product;
}

// `shape` with its -1, if it has one, replaced by what is left of `elements`.
Sizes whole_shape(const char* view, Sizes shape, int64_t elements) {
  const auto open = std::find(shape.begin(), shape.end(), -1);
  if (open != shape.end()) {
    *open = 1;
    const int64_t others = product(shape);
    STD_TORCH_CHECK(others != 0, view, ": shape leaves its -1 open");
    *open = elements / others;
  }
  STD_TORCH_CHECK(std::all_of(shape.begin(), shape.end(), [](int64_t n) { return n >= 0; }) &&
                      product(shape) == elements,
                  view, ": shape does not hold the ", elements, " elements of x");
  return shape;
}

// The strides at which memory of `sizes` and `strides` has `shape`, of as many elements; none if
// there are no such strides. From the last dimension on, dimensions that lie one after another are
// one run of elements, and every dimension of `shape` has to fit into one run.
std::optional<Sizes> strides_for(const Sizes& sizes, const Sizes& strides, const Sizes& shape) {
  if (product(shape) == 0) return contiguous_strides(shape);
  struct Run {
    int64_t count, stride;
  };
  std::vector<Run> runs;
  for (size_t i = sizes.size(); i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (!runs.empty() && strides[i] == runs.back().count * runs.back().stride) {
      runs.back().count *= sizes[i];
    } else {
      runs.push_back({sizes[i], strides[i]});
    }
  }
  if (runs.empty()) runs.push_back({1, 1});
  Sizes found(shape.size());
  size_t run = 0;
  int64_t used = 1;  // elements of the run that later dimensions have
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] > 1 && used == runs[run].count) {
      ++run;
      used = 1;
    }
    found[i] = used * runs[run].stride;
    used *= shape[i];
    if (runs[run].count % used != 0) return std::nullopt;
  }
  return found;
}

}  // namespace

// As torch has it, a number has a dimension to squeeze and to transpose.
Tensor transpose(const Tensor& x, int64_t dim0, int64_t dim1) {
  if (x.dim() == 0) {
    dimension("transpose", dim0, 1);
    dimension("transpose", dim1, 1);
    return x;
  }
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t a = dimension("transpose", dim0, x.dim()),
                b = dimension("transpose", dim1, x.dim());
  std::swap(sizes[a], sizes[b]);
  std::swap(strides[a], strides[b]);
  return view_of(x, sizes, strides);
}

Tensor permute(const Tensor& x, const Sizes& dims) {
  const Sizes sizes = sizes_of(x), strides = strides_of(x);
  STD_TORCH_CHECK(dims.size() == sizes.size(), "permute: dims has ", dims.size(),
                  " entries, want one for each of ", sizes.size());
  Sizes new_sizes, new_strides;
  std::vector<bool> seen(dims.size());
  for (int64_t dim : dims) {
    const size_t from = size_t(dimension("permute", dim, x.dim()));
    STD_TORCH_CHECK(!seen[from], "permute: dims has ", from, " twice");
    seen[from] = true;
    new_sizes.push_back(sizes[from]);
    new_strides.push_back(strides[from]);
  }
  return view_of(x, new_sizes, new_strides);
}

Tensor unsqueeze(const Tensor& x, int64_t dim) {
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t at = dimension("unsqueeze", dim, x.dim() + 1);
  strides.insert(strides.begin() + at, at < x.dim() ? sizes[at] * strides[at] : 1);
  sizes.insert(sizes.begin() + at, 1);
  return view_of(x, sizes, strides);
}

Tensor squeeze(const Tensor& x, int64_t dim) {
  if (x.dim() == 0) {
    dimension("squeeze", dim, 1);
    return x;
  }
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t at = dimension("squeeze", dim, x.dim());
  if (sizes[at] == 1) {
    sizes.erase(sizes.begin() + at);
    strides.erase(strides.begin() + at);
  }
  return view_of(x, sizes, strides);
}

Tensor select(const Tensor& x, int64_t dim, int64_t index) {
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t at = dimension("select", dim, x.dim()), size = sizes[at];
  STD_TORCH_CHECK(index >= -size && index < size, "select: index is ", index, ", want one of ",
                  size);
  const int64_t offset = (index < 0 ? index + size : index) * strides[at];
  sizes.erase(sizes.begin() + at);
  strides.erase(strides.begin() + at);
  return view_of(x, sizes, strides, offset);
}

Tensor slice(const Tensor& x, int64_t dim, std::optional<int64_t> start, std::optional<int64_t> end,
             int64_t step) {
  STD_TORCH_CHECK(step > 0, "slice: step is ", step, ", want > 0");
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t at = dimension("slice", dim, x.dim()), size = sizes[at];
  const auto place = [size](int64_t i) {
    return std::clamp<int64_t>(i < 0 ? i + size : i, 0, size);
  };
  const int64_t first = place(start.value_or(0));
  const int64_t last = std::max(first, place(end.value_or(size)));
  sizes[at] = (last - first + step - 1) / step;
  const int64_t offset = first * strides[at];
  strides[at] *= step;
  return view_of(x, sizes, strides, offset);
}

Tensor expand(const Tensor& x, const Sizes& size) {
  const Sizes sizes = sizes_of(x), strides = strides_of(x);
  STD_TORCH_CHECK(size.size() >= sizes.size(), "expand: size has ", size.size(),
                  " entries, want at least the ", sizes.size(), " dimensions of x");
  const size_t added = size.size() - sizes.size();
  Sizes new_sizes = size, new_strides(size.size(), 0);
  for (size_t i = added; i < size.size(); ++i) {
    const int64_t old = sizes[i - added];
    if (size[i] == -1) new_sizes[i] = old;
    if (new_sizes[i] == old) new_strides[i] = strides[i - added];
    STD_TORCH_CHECK(new_sizes[i] == old || old == 1, "expand: size is ", size[i], " where x has ",
                    old);
  }
  for (int64_t n : new_sizes) STD_TORCH_CHECK(n >= 0, "expand: size is ", n, ", want >= 0");
  return view_of(x, new_sizes, new_strides);
}

Tensor unflatten(const Tensor& x, int64_t dim, const Sizes& parts) {
  Sizes sizes = sizes_of(x), strides = strides_of(x);
  const int64_t at = dimension("unflatten", dim, x.dim());
  const Sizes whole = whole_shape("unflatten", parts, sizes[at]);
  Sizes steps = contiguous_strides(whole);
  for (int64_t& step : steps) step *= strides[at];
  sizes.erase(sizes.begin() + at);
  strides.erase(strides.begin() + at);
  sizes.insert(sizes.begin() + at, whole.begin(), whole.end());
  strides.insert(strides.begin() + at, steps.begin(), steps.end());
  return view_of(x, sizes, strides);
}

std::vector<Tensor> split_with_sizes(const Tensor& x, const Sizes& parts, int64_t dim) {
  Sizes sizes = sizes_of(x);
  const Sizes strides = strides_of(x);
  const int64_t at = dimension("split_with_sizes", dim, x.dim()), size = sizes[at];
  std::vector<Tensor> views;
  views.reserve(parts.size());
  int64_t begin = 0;
  for (int64_t part : parts) {
    STD_TORCH_CHECK(part >= 0 && part <= size - begin, "split_with_sizes: sizes do not add up to ",
                    size);
    sizes[at] = part;
    views.push_back(view_of(x, sizes, strides, begin * strides[at]));
    begin += part;
  }
  STD_TORCH_CHECK(begin == size, "split_with_sizes: sizes do not add up to ", size);
  return views;
}

Tensor reshape(const Tensor& x, const Sizes& given) {
  const Sizes shape = whole_shape("reshape", given, x.numel());
  const std::optional<Sizes> strides = strides_for(sizes_of(x), strides_of(x), shape);
  if (strides) return view_of(x, shape, *strides);
  return view_of(torch::stable::contiguous(x), shape, contiguous_strides(shape));
}

Tensor flatten(const Tensor& x, int64_t start_dim, int64_t end_dim) {
  if (x.dim() == 0) {
    dimension("flatten", start_dim, 1);
    dimension("flatten", end_dim, 1);
    return reshape(x, Sizes{1});
  }
  Sizes shape = sizes_of(x);
  const int64_t first = dimension("flatten", start_dim, x.dim()),
                last = dimension("flatten", end_dim, x.dim());
  STD_TORCH_CHECK(first <= last, "flatten: end_dim comes before start_dim");
  int64_t together = 1;
  for (int64_t i = first; i <= last; ++i) together *= shape[i];
  shape[first] = together;
  shape.erase(shape.begin() + first + 1, shape.begin() + last + 1);
  return reshape(x, shape);
}

Tensor contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

}  // namespace fastinfer::ops
