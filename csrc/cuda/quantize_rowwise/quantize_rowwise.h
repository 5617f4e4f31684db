// CUDA family quantize_rowwise: float rows to int8 rows, a scale and an offset a row, by the
// formula of cpu/quantize_rowwise/quantize_rowwise.h and to the same bits.
//
// q: row m at q + m * k_pad, bytes K <= k < k_pad zero; k_pad a multiple of 8, q 8-byte aligned.
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

struct QuantizeRowwise {
  const void* x;  // rows x k elements of x_dtype, ldx elements from one row to the next
  DType x_dtype;  // f32, bf16, f16; s8: rows that are copied, their scales with them
  int64_t ldx;
  int64_t rows, k, k_pad;
  int8_t* q;
  float* scale;               // [rows]
  float* offset;              // [rows], or null: symmetric
  const float* given_scale;   // null: measured; else one for all rows, or of s8 one a row
  const float* given_offset;  // beside it
  int64_t given_step;         // 0 or 1
  int32_t* counters;          // zeroed for the kernel that follows, or null
  int64_t counter_count;
};

// Floor: the bytes of x and q over the memory's rate.
cudaError_t launch_quantize_rowwise(const QuantizeRowwise& p, cudaStream_t stream);

}  // namespace fastinfer::cuda
