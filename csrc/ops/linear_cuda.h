// What the int8 linears share on CUDA: checked weights, x as int8 rows, the matmuls that follow.
#pragma once

#include <algorithm>

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cuda/gemm_s8s8s32/cutlass.h"
#include "cuda/gemm_s8s8s32/cutlass_sp24.h"
#include "cuda/gemm_s8s8s32/launch.h"
#include "cuda/gemm_s8s8s32/pack.h"
#include "cuda/gemm_s8s8s32/sp24.h"
#include "cuda/quantize_rowwise/quantize_rowwise.h"
#include "ops/activation.h"
#include "ops/cuda.h"

namespace fastinfer::ops {

// One weight [N, K] in the layout "cuda", or "cuda_sp24".
struct CudaWeight {
  int64_t n;
  bool sparse;
  const int8_t* rows;       // where it is not sparse
  cuda::Sp24Weight pieces;  // where it is
  const int32_t* compensation;
  const float *scale, *bias;
};

inline CudaWeight check_cuda_weight(const char* op, const CudaCall& call, const WeightNames& names,
                                    const Tensor& packed, const Tensor& scale,
                                    const std::optional<Tensor>& bias, int64_t k) {
  call.check_vector(names.packed, packed, ScalarType::Byte, -1);
  call.check_vector(names.scale, scale, ScalarType::Float, -1);
  CudaWeight weight{};
  weight.n = scale.size(0);
  if (bias) {
    call.check_vector(names.bias, *bias, ScalarType::Float, weight.n);
    weight.bias = static_cast<const float*>(bias->const_data_ptr());
  }
  const cuda::PackedOffsets at = cuda::packed_offsets(weight.n, k);
  const cuda::Sp24Offsets sp24 = cuda::sp24_offsets(weight.n, k);
  // The size tells which layout it is: they differ (pack.h) unless there is nothing to multiply.
  weight.sparse = packed.numel() == sp24.bytes && sp24.bytes != at.bytes;
  STD_TORCH_CHECK(weight.sparse || packed.numel() == at.bytes, op, ": ", names.packed, " has ",
                  packed.numel(), " bytes, want the ", at.bytes,
                  " of an int8 weight packed for CUDA (layout \"cuda\"; ", sp24.bytes,
                  " of \"cuda_sp24\") with N = ", weight.n, " and K = ", k, ", as x has");
  const auto* bytes = static_cast<const char*>(packed.const_data_ptr());
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(bytes) % 16 == 0, op, ": ", names.packed,
                  " begins at an odd address, want one that is a multiple of 16");
  if (weight.sparse) {
    weight.pieces = {reinterpret_cast<const uint8_t*>(bytes + sp24.masks),
                     reinterpret_cast<const int8_t*>(bytes + sp24.values)};
  } else {
    weight.rows = reinterpret_cast<const int8_t*>(bytes + at.rows);
  }
  weight.compensation = reinterpret_cast<const int32_t*>(bytes + at.compensation);
  weight.scale = static_cast<const float*>(scale.const_data_ptr());
  return weight;
}

// [1], or beside an int8 x the shape of x without K; contiguous.
struct CudaScale {
  std::optional<Tensor> tensor;
  const float* data = nullptr;
  int64_t step = 0;

  CudaScale(const char* op, const CudaCall& call, const char* name, const Tensor& x,
            const std::optional<Tensor>& given) {
    if (!given) return;
    call.check_device(name, *given);
    STD_TORCH_CHECK(given->scalar_type() == ScalarType::Float, op, ": ", name, " has dtype ",
                    dtype_text(given->scalar_type()), ", want Float");
    if (given->dim() != 1 || given->size(0) != 1) {
      bool same = x.scalar_type() == ScalarType::Char && given->dim() == x.dim() - 1;
      for (int64_t i = 0; same && i < given->dim(); ++i) same = given->size(i) == x.size(i);
      STD_TORCH_CHECK(same, op, ": ", name, " has shape ", shape_text(*given),
                      ", want [1], or beside an int8 x the shape of x without K");
      step = 1;
    }
    tensor = given->is_contiguous() ? *given : torch::stable::contiguous(*given);
    data = static_cast<const float*>(tensor->const_data_ptr());
  }
};

inline std::optional<Rows> check_cuda_residual(const char* op, const CudaCall& call,
                                               const std::optional<Tensor>& residual,
                                               const std::vector<int64_t>& shape,
                                               ScalarType out_dtype) {
  if (!residual) return std::nullopt;
  call.check_device("residual", *residual);
  return residual_rows(op, *residual, shape, out_dtype);
}

// x of an int8 linear, and the products of its rows with any number of weights.
class CudaLinear {
 public:
  CudaLinear(const char* op, const CudaCall& call, const Tensor& x,
             const std::optional<Tensor>& x_scale, const std::optional<Tensor>& x_offset)
      : call_(call),
        k_(columns(op, x)),
        rows_(x),
        dtype_(x.scalar_type()),
        scale_(op, call, "x_scale", x, x_scale),
        offset_(op, call, "x_offset", x, x_offset) {
    STD_TORCH_CHECK(x_scale.has_value() == x_offset.has_value(), op, ": ",
                    x_scale ? "x_offset" : "x_scale", " is None, want it beside the other");
    STD_TORCH_CHECK(x_scale || dtype_ != ScalarType::Char, op,
                    ": x_scale and x_offset are None, want them: x is int8");
    STD_TORCH_CHECK(scale_.step == offset_.step, op, ": x_scale and x_offset differ in shape");
    if (dtype_ != ScalarType::Char) check_float(op, "x", dtype_);
    call.check_rows("x", rows_);
  }

  int64_t m() const { return rows_.m; }
  int64_t k() const { return k_; }

  ScalarType out_dtype(const char* op, const std::optional<ScalarType>& asked) const {
    STD_TORCH_CHECK(asked || dtype_ != ScalarType::Char, op,
                    ": out_dtype is None, want a dtype: x is int8");
    const ScalarType dtype = asked.value_or(dtype_);
    check_float(op, "out_dtype", dtype);
    return dtype;
  }

  // Plans the product with `weight`; `run` has the same number.
  void add(const CudaWeight& weight, ScalarType out_dtype) {
    Product product{};
    product.weight = weight;
    if (weight.n > 0 && m() > 0) plan(out_dtype, &product);
    dense_bytes_ = std::max(dense_bytes_, product.sparse.dense_bytes);
    product.first_counter = counters_;
    counters_ += product.plan.tiles;
    partial_bytes_ = std::max(partial_bytes_, product.plan.partial_bytes);
    products_.push_back(product);
  }

  // x as int8 rows; `extra_bytes` of memory at extra().
  void prepare(int64_t extra_bytes = 0) {
    if (m() == 0) return;
    const int64_t q = workspace_.reserve(in_place() ? 0 : m() * k_pad());
    const int64_t scale = workspace_.reserve(m() * 4), offset = workspace_.reserve(m() * 4);
    const int64_t counters = workspace_.reserve(counters_ * 4);
    const int64_t partials = workspace_.reserve(partial_bytes_);
    const int64_t dense = workspace_.reserve(dense_bytes_);
    const int64_t metadata = workspace_.reserve(metadata_bytes_);
    extra_ = workspace_.reserve(extra_bytes);
    workspace_.allocate(call_);
    counters_at_ = workspace_.at<int32_t>(counters);
    partials_at_ = workspace_.at<int32_t>(partials);
    dense_at_ = workspace_.at<int8_t>(dense);
    metadata_at_ = workspace_.at<uint8_t>(metadata);
    if (in_place()) {
      a_ = static_cast<const int8_t*>(rows_.data);
      a_scale_ = scale_.data;
      a_offset_ = offset_.data;
      if (counters_ == 0) return;
      call_.check(cudaMemsetAsync(counters_at_, 0, size_t(counters_ * 4), call_.stream()));
      return;
    }
    cuda::QuantizeRowwise p{};
    p.x = rows_.data;
    p.x_dtype = dtype_ == ScalarType::Char ? cuda::DType::s8 : *float_dtype(dtype_);
    p.ldx = rows_.ld_bytes / cpu::size_of(p.x_dtype);
    p.rows = m();
    p.k = k_;
    p.k_pad = k_pad();
    p.q = workspace_.at<int8_t>(q);
    p.scale = workspace_.at<float>(scale);
    p.offset = workspace_.at<float>(offset);
    p.given_scale = scale_.data;
    p.given_offset = offset_.data;
    p.given_step = scale_.step;
    p.counters = counters_at_;
    p.counter_count = counters_;
    call_.check(cuda::launch_quantize_rowwise(p, call_.stream()));
    a_ = p.q;
    a_scale_ = p.scale;
    a_offset_ = p.offset;
    dependent_ = true;
  }

  template <class T>
  T* extra() const {
    return workspace_.at<T>(extra_);
  }

  // Product i; `p` says what becomes of it: activation, multiplier, residual, out.
  void run(size_t i, cuda::GemmS8S8S32 p) {
    const Product& product = products_[i];
    if (m() == 0 || product.weight.n == 0) return;
    p.m = m();
    p.n = product.weight.n;
    p.k_pad = k_pad();
    p.a = a_;
    p.a_scale = a_scale_;
    p.a_offset = a_offset_;
    p.w = product.weight.rows;
    p.compensation = product.weight.compensation;
    p.w_scale = product.weight.scale;
    p.bias = product.weight.bias;
    call_.check(launch(product, p));
    dependent_ = true;
  }

 private:
  struct Product {
    CudaWeight weight;
    cuda::GemmPlan plan;        // of rows: the weight's own, or those that it is expanded to
    cuda::Sp24Plan sparse;      // of a sparse one
    cuda::CutlassPlan cutlass;  // of rows, where CUTLASS takes them
    int64_t first_counter;
  };

  bool many_rows() const { return m() >= cuda::kCutlassLeastM && k_pad() > 0; }

  void plan(ScalarType out_dtype, Product* product) {
    const int64_t n = product->weight.n;
    const int multiprocessors = call_.multiprocessors();
    if (product->weight.sparse) {
      product->sparse = cuda::plan_gemm_sp24(m(), n, k_pad(), multiprocessors);
      product->plan = product->sparse.dense;
      if (many_rows()) {
        metadata_bytes_ = std::max(metadata_bytes_, cuda::sp24_metadata_bytes(n, k_pad()));
      }
      return;
    }
    product->plan = cuda::plan_gemm(m(), n, k_pad(), multiprocessors);
    if (!many_rows()) return;
    product->cutlass = cuda::plan_cutlass(m(), n, k_pad(), multiprocessors);
    cuda::GemmS8S8S32 p{};
    p.m = m();
    p.n = n;
    p.k_pad = k_pad();
    p.out_dtype = *float_dtype(out_dtype);
    partial_bytes_ = std::max(partial_bytes_, cuda::cutlass_workspace_bytes(p, product->cutlass));
  }

  cudaError_t launch(const Product& product, cuda::GemmS8S8S32 p) const {
    const int compute_capability = call_.compute_capability();
    const cuda::GemmWorkspace workspace{counters_at_ + product.first_counter, partials_at_};
    if (!product.weight.sparse) {
      if (many_rows() && cuda::cutlass_takes(p, compute_capability)) {
        return cuda::launch_cutlass(p, product.cutlass, partials_at_, call_.stream());
      }
      return cuda::launch_gemm_s8s8s32(p, product.plan, workspace, dependent_, call_.stream());
    }
    const cuda::Sp24Weight& pieces = product.weight.pieces;
    p.w = pieces.values;
    if (many_rows() && cuda::cutlass_takes_sp24(p, metadata_at_, compute_capability)) {
      const cudaError_t error = cuda::launch_sp24_metadata(pieces, p.n, p.k_pad, metadata_at_,
                                                           dependent_, call_.stream());
      if (error != cudaSuccess) return error;
      return cuda::launch_cutlass_sp24(p, metadata_at_, call_.multiprocessors(), call_.stream());
    }
    return cuda::launch_gemm_sp24(p, pieces, product.sparse, dense_at_, workspace, dependent_,
                                  call_.stream());
  }

  static int64_t columns(const char* op, const Tensor& x) {
    STD_TORCH_CHECK(x.dim() >= 1, op, ": x has shape [], want [..., K]");
    const int64_t k = x.size(x.dim() - 1);
    STD_TORCH_CHECK(k <= cpu::kMaxK, op, ": x has K = ", k, ", want at most ", cpu::kMaxK,
                    " (int32 sums stay exact up to there)");
    return k;
  }
  int64_t k_pad() const { return cuda::packed_offsets(0, k_).k_pad; }
  // Int8 rows that the matmul can read where they are.
  bool in_place() const {
    return dtype_ == ScalarType::Char && scale_.step == 1 && k_ == k_pad() &&
           (m() == 1 || rows_.ld_bytes == k_) && reinterpret_cast<uintptr_t>(rows_.data) % 16 == 0;
  }

  const CudaCall& call_;
  int64_t k_;
  Rows rows_;
  ScalarType dtype_;
  CudaScale scale_, offset_;
  std::vector<Product> products_;
  int64_t counters_ = 0, partial_bytes_ = 0, dense_bytes_ = 0, metadata_bytes_ = 0, extra_ = 0;
  Workspace workspace_;
  int32_t *counters_at_ = nullptr, *partials_at_ = nullptr;
  int8_t* dense_at_ = nullptr;
  uint8_t* metadata_at_ = nullptr;  // of 2:4 weights, for CUTLASS
  const int8_t* a_ = nullptr;
  const float *a_scale_ = nullptr, *a_offset_ = nullptr;
  bool dependent_ = false;
};

}  // namespace fastinfer::ops
