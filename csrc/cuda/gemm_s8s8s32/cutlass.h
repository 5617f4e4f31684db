// The int8 matmul of gemm_s8s8s32.h by CUTLASS, for many rows on a GPU of compute capability 9.0:
// an accelerator beside the kernels that take any shape on any GPU. Without CUTLASS in the build it
// takes nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/gemm_s8s8s32/cutlass_heuristics.h"
#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cuda {

// Whether launch_cutlass may be called: cutlass_fits(p) and 10 major + minor of the GPU's compute
// capability is 90.
bool cutlass_takes(const GemmS8S8S32& p, int compute_capability);

// Bytes that the plan needs beside the operands, 128-byte aligned; 0 for most. Of p it reads m, n,
// k_pad and out_dtype.
int64_t cutlass_workspace_bytes(const GemmS8S8S32& p, const CutlassPlan& plan);

// cutlass_takes(p, of the current GPU) is true. workspace: may hold anything, null where it has 0
// bytes. No allocation, no synchronisation: it can be captured in a graph.
cudaError_t launch_cutlass(const GemmS8S8S32& p, const CutlassPlan& plan, void* workspace,
                           cudaStream_t stream);

}  // namespace fastinfer::cuda
