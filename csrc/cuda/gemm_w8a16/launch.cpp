#include "cuda/gemm_w8a16/gemm_w8a16.h"

namespace fastinfer::cuda {

cudaError_t launch_gemm_w8a16(const GemmW8A16& p, cudaStream_t stream) {
  if (p.x_dtype == DType::f32) return launch_w8a32(p, stream);
  return p.m <= kFewMostM ? launch_w8a16_few(p, stream) : launch_w8a16_tiles(p, stream);
}

}  // namespace fastinfer::cuda
