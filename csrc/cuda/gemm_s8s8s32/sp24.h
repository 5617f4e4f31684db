// The int8 matmul of gemm_s8s8s32.h by a weight in the layout "cuda_sp24" (pack.h): the bits are
// those of the same weight in the layout "cuda".
//
//   M <= 4       gemv_sp24.cu
//   M <= 16      few_sp24.cu
//   above        expand_sp24.cu writes the weight as rows, and the dense kernels follow; a kernel
//                over the sparse instructions of the tensor cores may take this place later
#pragma once

#include "cuda/gemm_s8s8s32/launch.h"

namespace fastinfer::cuda {

// Both 16-byte aligned; rows up to N_pad are there.
struct Sp24Weight {
  const uint8_t* masks;  // row n at masks + n * k_pad / 8
  const int8_t* values;  // row n at values + n * k_pad / 2
};

// As launch_gemm_s8s8s32; p.w is not read. dense: plan.dense_bytes, 16-byte aligned.
cudaError_t launch_gemm_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                             int8_t* dense, const GemmWorkspace& workspace, bool dependent,
                             cudaStream_t stream);

// What it calls: one file each.
cudaError_t launch_gemv_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                             bool dependent, cudaStream_t stream);
cudaError_t launch_few_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                            bool dependent, cudaStream_t stream);
// dense: int8[n rounded up to 16][k_pad].
cudaError_t launch_expand_sp24(const Sp24Weight& weight, int64_t n, int64_t k_pad, int8_t* dense,
                               bool dependent, cudaStream_t stream);

}  // namespace fastinfer::cuda
