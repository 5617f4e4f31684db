// Every tuning number of gemm_s8s8s32 and the choices made from them: which kernel, which cache
// block, how threads share the work.
#pragma once

#include <cstdint>

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::cpu {

struct LinearPlan {
  const GemmS8S8S32Kernel* gemm;
  const QuantizeRowwiseKernel* quantize;
  int64_t mc;                // rows quantised and multiplied at a time
  int64_t tasks_m, tasks_n;  // the grid of tasks, tasks_m * tasks_n <= threads
};

// The kernel that selection takes for m rows and a weight of so many bytes.
FASTINFER_API const GemmS8S8S32Kernel& select_gemm_s8s8s32(int64_t m, int64_t weight_bytes);

// n: the columns of all weights together, each padded to 16.
FASTINFER_API LinearPlan plan_linear(int64_t m, int64_t n, int64_t k_pad, int threads);

// The part of a gate that is computed before its factor: rows of `ld` floats.
struct GateTile {
  int64_t rows, columns, ld;
};
GateTile gate_tile(int64_t rows);

}  // namespace fastinfer::cpu
