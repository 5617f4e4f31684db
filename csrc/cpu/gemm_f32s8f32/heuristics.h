// Every tuning number of gemm_f32s8f32: how threads share the work.
#pragma once

#include "cpu/gemm_f32s8f32/gemm_f32s8f32.h"

namespace fastinfer::cpu {

struct WeightOnlyPlan {
  const GemmF32S8F32Kernel* kernel;
  int64_t tasks_m, tasks_n;  // the grid of tasks, tasks_m * tasks_n <= threads
};

FASTINFER_API WeightOnlyPlan plan_weight_only(int64_t m, int64_t n, int64_t k, int threads);

}  // namespace fastinfer::cpu
