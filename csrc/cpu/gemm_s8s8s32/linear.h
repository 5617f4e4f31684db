// The int8 linears: rows quantised, multiplied with one weight or several, finished; the driver
// that ties the two families together and shares the work between threads. Knows no torch: the
// caller brings its parallel_for.
#pragma once

#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/parallel_for.h"

namespace fastinfer::cpu {

struct LinearWeight {
  PackedWeight packed;
  const float* scale;  // [n]
  const float* bias;   // [n] or null
};

struct LinearW8A8 {
  const void* x;  // m rows of k elements, unit stride along k
  DType x_dtype;  // f32, bf16, f16; s8: rows that are quantised already
  int64_t ldx_bytes;
  int64_t m;
  // x ~= x_scale * q + x_offset. s8: row i has those at i * x_scale_step, a step of 1, or 0 (one
  // for all). Floats: null (dynamic), or those at 0 for all rows (static, see quantize_rowwise.h).
  const float* x_scale;
  const float* x_offset;
  int64_t x_scale_step;
  // Weights of one K, at least one; their outputs stand side by side, n is the sum of their n.
  // Gated: two of one n, gate and up, and out = activation(gate) * up, n is that of either.
  const LinearWeight* weights;
  int64_t weight_count;
  bool gated;
  Activation activation;
  const void* residual;  // m x n, out_dtype, or null
  int64_t residual_ld_bytes;
  void* out;  // m x n
  int64_t out_ld_bytes;
  DType out_dtype;  // f32, bf16, f16
};

// Returns false if scratch memory could not be had; `out` is then not filled.
FASTINFER_API bool linear_w8a8(const LinearW8A8& p, int threads, ParallelFor parallel_for);

}  // namespace fastinfer::cpu
