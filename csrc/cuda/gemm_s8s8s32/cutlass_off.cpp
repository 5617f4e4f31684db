// cutlass.h and cutlass_sp24.h in a build without CUTLASS.
#include "cuda/gemm_s8s8s32/cutlass.h"
#include "cuda/gemm_s8s8s32/cutlass_sp24.h"

namespace fastinfer::cuda {

bool cutlass_takes(const GemmS8S8S32&, int) { return false; }

int64_t cutlass_workspace_bytes(const GemmS8S8S32&, const CutlassPlan&) { return 0; }

cudaError_t launch_cutlass(const GemmS8S8S32&, const CutlassPlan&, void*, cudaStream_t) {
  return cudaErrorNotSupported;
}

bool cutlass_takes_sp24(const GemmS8S8S32&, const uint8_t*, int) { return false; }

cudaError_t launch_cutlass_sp24(const GemmS8S8S32&, const uint8_t*, int, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace fastinfer::cuda
