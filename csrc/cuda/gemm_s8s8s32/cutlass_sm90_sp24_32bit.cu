#include "cuda/gemm_s8s8s32/cutlass_sm90_sp24.cuh"

namespace fastinfer::cuda {

cudaError_t launch_cutlass_sp24_32bit(const GemmS8S8S32& p, const uint8_t* metadata,
                                      int multiprocessors, cudaStream_t stream) {
  return Sp24Gemm<float>::launch(p, metadata, multiprocessors, stream);
}

}  // namespace fastinfer::cuda
