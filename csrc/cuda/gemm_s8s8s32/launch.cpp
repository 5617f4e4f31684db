#include "cuda/gemm_s8s8s32/launch.h"

namespace fastinfer::cuda {

cudaError_t launch_gemm_s8s8s32(const GemmS8S8S32& p, const GemmPlan& plan,
                                const GemmWorkspace& workspace, bool dependent,
                                cudaStream_t stream) {
  if (plan.gemv) return launch_gemv(p, plan, dependent, stream);
  return launch_tiles(p, plan, workspace, dependent, stream);
}

}  // namespace fastinfer::cuda
