// CUDA family norm: layer norm and RMS norm of rows after a residual addition, to float rows, to
// int8 rows, or to both, by the formula of cpu/norm/norm.h and to the same bits: the sums are its
// 32 partial sums and their tree.
#pragma once

#ifndef FASTINFER_EMULATE
#include <cuda_runtime_api.h>
#else
#include "emulator.h"
#endif

#include <cstdint>

#include "cpu/norm/norm.h"

namespace fastinfer::cuda {

using cpu::DType;
using cpu::NormKind;

constexpr int64_t kNormMostK = int64_t(1) << 30;

struct Norm {
  NormKind kind;
  DType dtype;    // of x, residual, sum, y: f32, bf16, f16
  const void* x;  // rows x k, ldx elements from one row to the next
  int64_t ldx;
  const void* residual;  // rows x k, or null
  int64_t ld_residual;
  int64_t rows, k;     // k <= kNormMostK
  const void* weight;  // [k] of weight_dtype, or null
  DType weight_dtype;
  const void* bias;  // [k] of bias_dtype, or null
  DType bias_dtype;
  float eps;
  void* sum;      // rows x k contiguous, beside a residual
  void* y;        // rows x k contiguous, or null
  int8_t* q;      // rows x k contiguous
  float* scale;   // [rows], or null: no q, scale, offset
  float* offset;  // [rows]
};

// Floor: the bytes of x, residual, sum, y and q, once each, over the memory's rate.
cudaError_t launch_norm(const Norm& p, cudaStream_t stream);

}  // namespace fastinfer::cuda
