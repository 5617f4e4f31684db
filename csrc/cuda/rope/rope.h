// CUDA family rope: rotary position embedding by the formula of cpu/rope/rope.h and to the same
// bits, for all batches at once.
#pragma once

#ifndef FASTINFER_EMULATE
#include <cuda_runtime_api.h>
#else
#include "emulator.h"
#endif

#include <cstdint>

#include "cpu/dtype.h"

namespace fastinfer::cuda {

using cpu::DType;

// Steps are in elements of the tensor they belong to; along d it is 1.
struct Rope {
  const void* x;  // batch b, token t, head h at b * x_batch + t * x_token + h * x_head
  DType x_dtype;  // of out too: f32, bf16, f16
  int64_t x_batch, x_token, x_head;
  const void* cos;  // batch b, token t at b * cos_batch + t * cos_token
  const void* sin;
  DType table_dtype;  // of cos and sin: x_dtype or f32
  int64_t cos_batch, cos_token, sin_batch, sin_token;
  int64_t batches, tokens;   // batches * tokens < 2^31
  int64_t heads, head_size;  // heads * head_size < 2^31
  int64_t r;                 // even, 0 <= r <= head_size
  bool interleaved;
  void* out;  // contiguous, [batches][tokens][heads][head_size]
};

// Floor: the bytes of x and out, once each, and those of cos and sin, over the memory's rate.
cudaError_t launch_rope(const Rope& p, cudaStream_t stream);

}  // namespace fastinfer::cuda
