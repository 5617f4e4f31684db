// The CUTLASS kernels of a build with CUTLASS; each in a file of its own, since it takes minutes
// to compile.
#pragma once

#include "cuda/gemm_s8s8s32/cutlass.h"

namespace fastinfer::cuda {

struct CutlassKernel {
  int64_t (*workspace_bytes)(const GemmS8S8S32& p, const CutlassPlan& plan);
  cudaError_t (*launch)(const GemmS8S8S32& p, const CutlassPlan& plan, void* workspace,
                        cudaStream_t stream);
};

// By tile, and by the width of an output: bf16 and fp16 share a kernel, which rounds to either.
extern const CutlassKernel cutlass_sm90_128x256_16bit;
extern const CutlassKernel cutlass_sm90_128x256_32bit;
extern const CutlassKernel cutlass_sm90_128x128_16bit;
extern const CutlassKernel cutlass_sm90_128x128_32bit;
extern const CutlassKernel cutlass_sm90_128x128_stream_k_16bit;
extern const CutlassKernel cutlass_sm90_128x128_stream_k_32bit;

}  // namespace fastinfer::cuda
