// The int8 matmul of gemm_s8s8s32.h by a weight in the layout "cuda_sp24" (pack.h): the bits are
// those of the same weight in the layout "cuda".
//
//   M <= 4       gemv_sp24.cu
//   M <= 16      few_sp24.cu
//   above        expand_sp24.cu writes the weight as rows, and the dense kernels follow; where
//                CUTLASS takes the product (cutlass_sp24.h), sp24_metadata.cu writes what it reads
//
// Metadata: 4 bits a group of 4 along K, the places, 0 to 3, of the two that are kept, first |
// second << 2, first < second; in byte (k / 128 * N_pad + n) * 16 + k % 128 / 8, the low half for
// even k / 4. N_pad is N rounded up to 64, K is whole in 128s; what is beyond N or K has places 0
// and 1. The values stay as they are.
#pragma once

#include "cpu/host_device.h"
#include "cuda/gemm_s8s8s32/launch.h"

namespace fastinfer::cuda {

// Both 16-byte aligned; rows up to N_pad are there.
struct Sp24Weight {
  const uint8_t* masks;  // row n at masks + n * k_pad / 8
  const int8_t* values;  // row n at values + n * k_pad / 2
};

constexpr int64_t kSp24MetadataRows = 64, kSp24MetadataK = 128;

FASTINFER_HOST_DEVICE inline int64_t sp24_metadata_bytes(int64_t n, int64_t k_pad) {
  return (n + kSp24MetadataRows - 1) / kSp24MetadataRows * kSp24MetadataRows *
         ((k_pad + kSp24MetadataK - 1) / kSp24MetadataK) * (kSp24MetadataK / 8);
}

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

// metadata: sp24_metadata_bytes(n, k_pad), 16-byte aligned.
cudaError_t launch_sp24_metadata(const Sp24Weight& weight, int64_t n, int64_t k_pad,
                                 uint8_t* metadata, bool dependent, cudaStream_t stream);

}  // namespace fastinfer::cuda
