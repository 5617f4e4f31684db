// A linear layer with int8 weights and float activations: the driver that shares the work of the
// kernels between threads. Knows no torch: the caller brings its parallel_for.
#pragma once

#include "cpu/gemm_f32s8f32/gemm_f32s8f32.h"
#include "cpu/gemm_s8s8s32/linear.h"
#include "cpu/parallel_for.h"

namespace fastinfer::cpu {

struct LinearW8A16 {
  const void* x;  // m rows of k elements, unit stride along k
  DType x_dtype;  // f32, bf16, f16
  int64_t ldx_bytes;
  int64_t m;
  LinearWeight weight;  // dense
  Activation activation;
  const void* residual;  // m x n, out_dtype, or null
  int64_t residual_ld_bytes;
  void* out;  // m x n
  int64_t out_ld_bytes;
  DType out_dtype;  // f32, bf16, f16
};

// Returns false if scratch memory could not be had; `out` is then not filled.
FASTINFER_API bool linear_w8a16(const LinearW8A16& p, int threads, ParallelFor parallel_for);

}  // namespace fastinfer::cpu
