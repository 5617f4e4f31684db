// What every operator on CUDA needs: its device and stream, memory there, launches that succeeded.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/architectures.h"
#include "ops/tensor.h"

namespace fastinfer::ops {

inline void check_cuda_error(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA: ", cudaGetErrorString(error));
}

inline int device_attribute(const char* op, cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda_error(op, cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// One call on the device of `x`, which is the current device meanwhile, and on its current stream.
class CudaCall {
  static int device_of(const char* op, const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), op, ": x is not on CUDA, want every tensor there");
    return x.get_device_index();
  }

 public:
  CudaCall(const char* op, const Tensor& x) : op_(op), device_(device_of(op, x)), guard_(device_) {
    const int major = device_attribute(op, cudaDevAttrComputeCapabilityMajor, device_);
    const int minor = device_attribute(op, cudaDevAttrComputeCapabilityMinor, device_);
    STD_TORCH_CHECK(cuda::runs_on(major, minor), op, ": the GPU has compute capability ", major,
                    ".", minor,
                    ", want one that the kernels are built for: ", cuda::kArchitectures);
    compute_capability_ = major * 10 + minor;
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }
  int compute_capability() const { return compute_capability_; }  // 10 major + minor
  int multiprocessors() const {
    return device_attribute(op_, cudaDevAttrMultiProcessorCount, device_);
  }

  void check_device(const char* name, const Tensor& t) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == device_, op_, ": ", name,
                    " is not on cuda:", device_, ", want every tensor there, where x is");
  }
  void check_vector(const char* name, const Tensor& t, ScalarType dtype, int64_t n) const {
    check_device(name, t);
    check_vector_form(op_, name, t, dtype, n);
  }
  // A tensor of the dtype and shape of x.
  void check_like(const char* name, const Tensor& t, const Tensor& x) const {
    check_device(name, t);
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op_, ": ", name, " has dtype ",
                    dtype_text(t.scalar_type()), ", want that of x, ", dtype_text(x.scalar_type()));
    bool same = t.dim() == x.dim();
    for (int64_t i = 0; same && i < x.dim(); ++i) same = t.size(i) == x.size(i);
    STD_TORCH_CHECK(same, op_, ": ", name, " has shape ", shape_text(t), ", want that of x, ",
                    shape_text(x));
  }
  // The number of rows, a block each.
  int64_t check_rows(const char* name, const Rows& rows) const {
    STD_TORCH_CHECK(rows.m <= INT32_MAX, op_, ": ", name, " has ", rows.m, " rows, want at most ",
                    INT32_MAX);
    return rows.m;
  }
  void check(cudaError_t error) const { check_cuda_error(op_, error); }

  // An uninitialised tensor without gaps.
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return empty(sizes, contiguous_strides(sizes), dtype);
  }
  Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
               ScalarType dtype) const {
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        int64_t(sizes.size()), sizes.data(), strides.data(),
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
        aoti_torch_device_type_cuda(), device_, &handle));
    return Tensor(handle);
  }

 private:
  const char* op_;
  int device_, compute_capability_ = 0;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// What norms and activations give: y like x, and int8 rows with their scales and offsets; of what
// is not asked for, an empty tensor.
struct RowOutputs {
  Tensor y, q, scale, offset;

  // p: the kernel's parameters, which have these by the same names.
  template <class Parameters>
  RowOutputs(const CudaCall& call, const Tensor& x, bool emit_fp, bool emit_rows, Parameters* p)
      : y(call.empty(shape(x, 0, emit_fp), x.scalar_type())),
        q(call.empty(shape(x, 0, emit_rows), ScalarType::Char)),
        scale(call.empty(shape(x, 1, emit_rows), ScalarType::Float)),
        offset(call.empty(shape(x, 1, emit_rows), ScalarType::Float)) {
    if (emit_fp) p->y = y.mutable_data_ptr();
    if (!emit_rows) return;
    p->q = static_cast<int8_t*>(q.mutable_data_ptr());
    p->scale = static_cast<float*>(scale.mutable_data_ptr());
    p->offset = static_cast<float*>(offset.mutable_data_ptr());
  }

 private:
  // That of x without its last `dropped` sizes.
  static std::vector<int64_t> shape(const Tensor& x, int64_t dropped, bool emit) {
    if (!emit) return {0};
    const auto sizes = x.sizes();
    return {sizes.begin(), sizes.end() - dropped};
  }
};

// Parts of one allocation, 256-byte aligned: asked for first, then allocated, then found.
class Workspace {
 public:
  int64_t reserve(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += (bytes + 255) / 256 * 256;
    return at;
  }
  void allocate(const CudaCall& call) { memory_.emplace(call.empty({bytes_}, ScalarType::Byte)); }
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_->mutable_data_ptr()) + offset);
  }

 private:
  int64_t bytes_ = 0;
  std::optional<Tensor> memory_;
};

}  // namespace fastinfer::ops
