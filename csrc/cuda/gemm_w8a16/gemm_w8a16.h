// CUDA family gemm_w8a16: 16-bit activations x int8 weights (weight-only quantisation), float sums.
//
//   acc[m,n] = sum_k x[m,k] * w[n,k]       in float32, the products exact, in an order of its own
//   z[m,n]   = fma(acc, w_scale[n], bias[n])
//   out[m,n] = to_out_dtype(activation(z) + residual[m,n])
//
// int8 is exact in bf16 and f16, so the tensor cores multiply what is there. A missing bias is 0.
// Against float64, |acc - exact| <= K 2^-23 sum_k |x w| bounds any order of float32 sums, and the
// tensor cores' truncated ones too.
//
// x: row m at x + m * ldx elements, 16-byte aligned, ldx a multiple of 8, k a multiple of 8 (the
// launcher's caller pads). w: row n at w + n * k_pad as in cuda/gemm_s8s8s32/pack.h.
#pragma once

#ifndef FASTINFER_EMULATE
#include <cuda_runtime_api.h>
#else
#include "emulator.h"
#endif

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/dtype.h"

namespace fastinfer::cuda {

using cpu::Activation;
using cpu::DType;

struct GemmW8A16 {
  int64_t m, n, k, k_pad;
  const void* x;
  DType x_dtype;  // bf16, f16; f32: a plain kernel, for models that are not in 16 bits
  int64_t ldx;
  const int8_t* w;
  const float* w_scale;  // [n]
  const float* bias;     // [n] or null
  Activation activation;
  const void* residual;  // of out_dtype, ld_residual elements a row, or null
  int64_t ld_residual;
  void* out;  // ld_out elements a row
  int64_t ld_out;
  DType out_dtype;  // f32, bf16, f16
};

// m, n >= 1. No allocation, no synchronisation.
cudaError_t launch_gemm_w8a16(const GemmW8A16& p, cudaStream_t stream);

// What it calls: one file each. Few rows: m <= kFewMostM.
constexpr int kFewMostM = 16;
cudaError_t launch_w8a16_few(const GemmW8A16& p, cudaStream_t stream);
cudaError_t launch_w8a16_tiles(const GemmW8A16& p, cudaStream_t stream);
cudaError_t launch_w8a32(const GemmW8A16& p, cudaStream_t stream);

// Rows of 16-bit x, of any alignment and k, as rows of k rounded up to 8, zero-filled.
cudaError_t launch_pad_rows(const void* x, int64_t ldx, int64_t rows, int64_t k, void* padded,
                            cudaStream_t stream);

}  // namespace fastinfer::cuda
