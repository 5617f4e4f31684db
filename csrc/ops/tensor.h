// What every operator needs of its tensor arguments: checks, rows, allocation, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/buffer_pool.h"
#include "cpu/ceil_div.h"
#include "cpu/dtype.h"
#include "cpu/pieces.h"

namespace fastinfer::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

inline const char* dtype_text(ScalarType dtype) { return torch::headeronly::toString(dtype); }

inline std::optional<cpu::DType> float_dtype(ScalarType dtype) {
  if (dtype == ScalarType::Float) return cpu::DType::f32;
  if (dtype == ScalarType::BFloat16) return cpu::DType::bf16;
  if (dtype == ScalarType::Half) return cpu::DType::f16;
  return std::nullopt;
}

inline cpu::DType check_float(const char* op, const char* name, ScalarType dtype) {
  const auto found = float_dtype(dtype);
  STD_TORCH_CHECK(found, op, ": ", name, " has dtype ", dtype_text(dtype),
                  ", want float32, bfloat16 or float16");
  return *found;
}

inline void check_cpu(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name, " is not on the CPU, want every tensor there");
}

// A contiguous vector of `n` elements of `dtype` (n < 0: any length), wherever it lies.
inline void check_vector_form(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                              int64_t n) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " has dtype ",
                  dtype_text(t.scalar_type()), ", want ", dtype_text(dtype));
  STD_TORCH_CHECK(t.dim() == 1 && (n < 0 || t.size(0) == n), op, ": ", name, " has shape ",
                  shape_text(t), ", want ",
                  n < 0 ? std::string("one dimension") : "[" + std::to_string(n) + "]");
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " has stride ", t.stride(0),
                  ", want a contiguous vector");
}

// The same on the CPU.
inline void check_vector(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                         int64_t n) {
  check_cpu(op, name, t);
  check_vector_form(op, name, t, dtype, n);
}

// A tensor [..., K] seen as M rows of unit stride with one step between rows; copied only if its
// strides allow no such view.
struct Rows {
  Tensor tensor;
  const void* data;
  int64_t m, ld_bytes;

  explicit Rows(const Tensor& t) : tensor(t) {
    if (!has_row_step(t, &ld_bytes)) {
      tensor = torch::stable::contiguous(t);
      has_row_step(tensor, &ld_bytes);
    }
    m = 1;
    for (int64_t i = 0; i + 1 < tensor.dim(); ++i) m *= tensor.size(i);
    data = tensor.const_data_ptr();
  }

 private:
  static bool has_row_step(const Tensor& t, int64_t* step_bytes) {
    const int64_t dims = t.dim();
    const auto sizes = t.sizes(), strides = t.strides();
    if (sizes[dims - 1] > 1 && strides[dims - 1] != 1) return false;
    int64_t step = 0, rows = 1;  // the step between the `rows` inner rows seen so far
    for (int64_t i = dims - 2; i >= 0; --i) {
      if (sizes[i] == 1) continue;
      if (rows == 1) {
        step = strides[i];
      } else if (strides[i] != step * rows) {
        return false;
      }
      rows *= sizes[i];
    }
    *step_bytes = step * int64_t(t.element_size());
    return true;
  }
};

// The arguments of one weight, by the names that they go by in messages.
struct WeightNames {
  const char *packed, *scale, *bias;
};

// The shape of x with n in place of its last size.
inline std::vector<int64_t> output_shape(const Tensor& x, int64_t n) {
  const auto sizes = x.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape.back() = n;
  return shape;
}

// The rows of a residual, which has the output's shape and dtype.
inline Rows residual_rows(const char* op, const Tensor& residual, const std::vector<int64_t>& shape,
                          ScalarType out_dtype) {
  STD_TORCH_CHECK(residual.scalar_type() == out_dtype, op, ": residual has dtype ",
                  dtype_text(residual.scalar_type()), ", want that of the output, ",
                  dtype_text(out_dtype));
  STD_TORCH_CHECK(shape == std::vector<int64_t>(residual.sizes().begin(), residual.sizes().end()),
                  op, ": residual has shape ", shape_text(residual), ", want that of the output");
  return Rows(residual);
}

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes[i] > 0 ? sizes[i] : 1) strides[i] = step;
  return strides;
}

// An uninitialised CPU tensor without gaps.
inline Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                    ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return empty(sizes, contiguous_strides(sizes), dtype);
}

// The same for what an operator returns, of float or int8: a large one comes from the pool of warm
// buffers and goes back to it with the last reference.
inline Tensor empty_output(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                           ScalarType dtype) {
  int64_t bytes = dtype == ScalarType::Char ? 1 : cpu::size_of(*float_dtype(dtype));
  for (int64_t size : sizes) bytes *= size;
  if (bytes < cpu::kPoolLeastBytes) return empty(sizes, strides, dtype);
  void* data = cpu::pool_acquire(bytes);
  STD_TORCH_CHECK(data != nullptr, "out of memory for an output of ", bytes, " bytes");
  AtenTensorHandle handle;
  const AOTITorchError failed = torch_from_blob(
      data, int64_t(sizes.size()), sizes.data(), strides.data(), 0,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
      [](void* buffer, void* size) {
        cpu::pool_release(buffer, int64_t(reinterpret_cast<intptr_t>(size)));
      },
      reinterpret_cast<void*>(intptr_t(bytes)));
  if (failed) cpu::pool_release(data, bytes);
  STD_TORCH_CHECK(!failed, "torch refused an output of ", bytes, " bytes");
  return Tensor(handle);
}

inline Tensor empty_output(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return empty_output(sizes, contiguous_strides(sizes), dtype);
}

// [B, H, T, D] whose memory is contiguous as [B, T, H, D]: what splitting the heads of [B, T, H D]
// gives, so that joining them again copies nothing.
inline Tensor empty_heads_output(int64_t b, int64_t h, int64_t t, int64_t d, ScalarType dtype) {
  std::vector<int64_t> strides = contiguous_strides({b, t, h, d});
  std::swap(strides[1], strides[2]);
  return empty_output({b, h, t, d}, strides, dtype);
}

// cpu::ParallelFor on torch's own pool.
inline void parallel_for(int64_t count, void (*task)(void*, int64_t), void* context) {
  torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(context, i);
  });
}

// body(begin, end) for parts of [0, count), at least `grain` long but for the last of a thread's.
template <class Body>
void parallel_rows(int64_t count, int64_t grain, Body&& body) {
  constexpr int64_t kPieces = 4;
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), ceil_div(count, grain));
  if (threads <= 1) {
    if (count > 0) body(int64_t(0), count);
    return;
  }
  const int64_t share = ceil_div(count, threads);
  const int64_t piece = std::max(grain, ceil_div(share, kPieces));
  cpu::Pieces pieces(threads, ceil_div(share, piece));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t task, int64_t tasks_end) {
    for (; task < tasks_end; ++task) {
      pieces.run(task, 0, threads, [&](int64_t from, int64_t i) {
        const int64_t begin = from * share + i * piece;
        const int64_t end = std::min({begin + piece, (from + 1) * share, count});
        if (begin < end) body(begin, end);
      });
    }
  });
}

}  // namespace fastinfer::ops
