#include "cuda/gemm_s8s8s32/cutlass.h"

#include "cuda/gemm_s8s8s32/cutlass_kernels.h"
#include "cuda/gemm_s8s8s32/cutlass_sp24.h"

namespace fastinfer::cuda {

namespace {

const CutlassKernel& kernel_of(const GemmS8S8S32& p, CutlassTile tile) {
  const bool wide = p.out_dtype == DType::f32;
  switch (tile) {
    case CutlassTile::m128n256:
      return wide ? cutlass_sm90_128x256_32bit : cutlass_sm90_128x256_16bit;
    case CutlassTile::m128n128:
      return wide ? cutlass_sm90_128x128_32bit : cutlass_sm90_128x128_16bit;
    case CutlassTile::m128n128_stream_k: break;
  }
  return wide ? cutlass_sm90_128x128_stream_k_32bit : cutlass_sm90_128x128_stream_k_16bit;
}

}  // namespace

bool cutlass_takes(const GemmS8S8S32& p, int compute_capability) {
  return compute_capability == 90 && cutlass_fits(p);
}

int64_t cutlass_workspace_bytes(const GemmS8S8S32& p, const CutlassPlan& plan) {
  return kernel_of(p, plan.tile).workspace_bytes(p, plan);
}

cudaError_t launch_cutlass(const GemmS8S8S32& p, const CutlassPlan& plan, void* workspace,
                           cudaStream_t stream) {
  return kernel_of(p, plan.tile).launch(p, plan, workspace, stream);
}

bool cutlass_takes_sp24(const GemmS8S8S32& p, const uint8_t* metadata, int compute_capability) {
  return cutlass_takes(p, compute_capability) && reinterpret_cast<uintptr_t>(metadata) % 16 == 0;
}

cudaError_t launch_cutlass_sp24(const GemmS8S8S32& p, const uint8_t* metadata, int multiprocessors,
                                cudaStream_t stream) {
  const auto launch =
      p.out_dtype == DType::f32 ? launch_cutlass_sp24_32bit : launch_cutlass_sp24_16bit;
  return launch(p, metadata, multiprocessors, stream);
}

}  // namespace fastinfer::cuda
