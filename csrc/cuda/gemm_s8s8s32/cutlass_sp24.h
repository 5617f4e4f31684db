// The int8 matmul of gemm_s8s8s32.h with 2:4 weights, by CUTLASS, for many rows on a GPU of compute
// capability 9.0. p.w are the values and `metadata` the metadata of sp24.h; all else is as for
// dense weights, and so are the bits. Without CUTLASS in the build it takes nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cuda {

// Whether launch_cutlass_sp24 may be called: as cutlass_takes, and metadata is 16-byte aligned.
bool cutlass_takes_sp24(const GemmS8S8S32& p, const uint8_t* metadata, int compute_capability);

// cutlass_takes_sp24(p, metadata, of the current GPU) is true. No workspace, no allocation, no
// synchronisation: it can be captured in a graph.
cudaError_t launch_cutlass_sp24(const GemmS8S8S32& p, const uint8_t* metadata, int multiprocessors,
                                cudaStream_t stream);

// What it calls, by the width of an output: one file each.
cudaError_t launch_cutlass_sp24_16bit(const GemmS8S8S32& p, const uint8_t* metadata,
                                      int multiprocessors, cudaStream_t stream);
cudaError_t launch_cutlass_sp24_32bit(const GemmS8S8S32& p, const uint8_t* metadata,
                                      int multiprocessors, cudaStream_t stream);

}  // namespace fastinfer::cuda
