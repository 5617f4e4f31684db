// linear_w8a8: quantise rows, multiply, finish; the driver that ties the two families together
// and shares the work between threads. Knows no torch: the caller brings its parallel_for.
#pragma once

#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/parallel_for.h"

namespace fastinfer::cpu {

struct LinearW8A8 {
  const void* x;  // m rows of k elements, unit stride along k
  DType x_dtype;
  int64_t ldx_bytes;
  int64_t m;
  PackedWeight weight;
  const float* w_scale;  // [n]
  const float* bias;     // [n] or null
  Activation activation;
  const void* residual;  // m x n, out_dtype, or null
  int64_t residual_ld_bytes;
  void* out;  // m x n
  int64_t out_ld_bytes;
  DType out_dtype;  // f32, bf16, f16
};

// Returns false if scratch memory could not be had; `out` is then untouched.
FASTINFER_API bool linear_w8a8(const LinearW8A8& p, int threads, ParallelFor parallel_for);

}  // namespace fastinfer::cpu
