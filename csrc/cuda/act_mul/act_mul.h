// CUDA family act_mul: activation(x) * other to float rows, to int8 rows, or to both, by the
// formula of cpu/act_mul/act_mul.h and to the same bits.
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

constexpr int64_t kActMulMostK = int64_t(1) << 30;

struct ActMul {
  const void* x;  // rows x k elements of dtype, ldx elements from one row to the next
  int64_t ldx;
  const void* other;  // the same, or null: no product
  int64_t ld_other;
  DType dtype;      // f32, bf16, f16
  int64_t rows, k;  // k <= kActMulMostK
  Activation activation;
  void* y;        // rows x k contiguous, or null beside rows
  int8_t* q;      // rows x k contiguous
  float* scale;   // [rows], or null: no q, scale, offset
  float* offset;  // [rows]
};

// Floor: the bytes of x, other, y and q, once each, over the memory's rate.
cudaError_t launch_act_mul(const ActMul& p, cudaStream_t stream);

}  // namespace fastinfer::cuda
