// CUDA family gemm_s8s8s32: int8 activations x int8 weights, exact int32 sums, float epilogue.
//
//   acc[m,n] = sum_k a[m,k] * w[n,k]                          int32, exact
//   sum[n]   = float(compensation[n]) * -2^-7 * w_scale[n]    that is w_scale[n] * sum_k w[n,k]
//   z[m,n]   = fma(float(acc) * w_scale[n], a_scale[m], fma(a_offset[m], sum[n], bias[n]))
//   out[m,n] = to_out_dtype(activation(z) * multiplier[m,n] + residual[m,n])
//
// in exactly the order of roundings of cpu/gemm_s8s8s32/gemm_s8s8s32.h, so the bits are the CPU's.
// A missing bias is 0; a multiplier or a residual that is not there leaves its step out.
//
// Every pointer is to device memory. a: row m at a + m * k_pad; w: row n at w + n * k_pad (pack.h),
// both 16-byte aligned, k_pad a multiple of 64, bytes K <= k < k_pad zero.
#pragma once

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/dtype.h"

namespace fastinfer::cuda {

using cpu::Activation;
using cpu::DType;

struct GemmS8S8S32 {
  int64_t m, n, k_pad;
  const int8_t* a;
  const float* a_scale;   // [m]
  const float* a_offset;  // [m]
  const int8_t* w;
  const int32_t* compensation;  // [n]: -128 * sum_k w[n,k]
  const float* w_scale;         // [n]
  const float* bias;            // [n] or null
  Activation activation;
  const float* multiplier;  // [m, n] with ld_multiplier elements a row, or null
  int64_t ld_multiplier;
  const void* residual;  // of out_dtype, ld_residual elements a row, or null
  int64_t ld_residual;
  void* out;  // ld_out elements a row
  int64_t ld_out;
  DType out_dtype;  // f32, bf16, f16
};

}  // namespace fastinfer::cuda
