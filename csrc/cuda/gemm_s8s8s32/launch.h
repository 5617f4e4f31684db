// Launches the int8 matmul of gemm_s8s8s32.h by a plan of heuristics.h.
#pragma once

#ifndef FASTINFER_EMULATE
#include <cuda_runtime_api.h>
#else
#include "emulator.h"
#endif

#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cuda/gemm_s8s8s32/heuristics.h"

namespace fastinfer::cuda {

struct GemmWorkspace {
  int32_t* counters;  // plan.tiles of them, all zero when the kernel begins
  int32_t* partials;  // plan.partial_bytes
};

// m, n >= 1. No allocation, no synchronisation. `dependent`: the kernel before it on the stream is
// one of ours, whose end it may wait for by itself (wait_for_previous_kernel).
cudaError_t launch_gemm_s8s8s32(const GemmS8S8S32& p, const GemmPlan& plan,
                                const GemmWorkspace& workspace, bool dependent,
                                cudaStream_t stream);

// What it calls: one file each.
cudaError_t launch_gemv(const GemmS8S8S32& p, const GemmPlan& plan, bool dependent,
                        cudaStream_t stream);
cudaError_t launch_tiles(const GemmS8S8S32& p, const GemmPlan& plan, const GemmWorkspace& workspace,
                         bool dependent, cudaStream_t stream);

}  // namespace fastinfer::cuda
