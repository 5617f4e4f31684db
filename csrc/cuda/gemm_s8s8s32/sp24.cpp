#include "cuda/gemm_s8s8s32/sp24.h"

namespace fastinfer::cuda {

cudaError_t launch_gemm_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                             int8_t* dense, const GemmWorkspace& workspace, bool dependent,
                             cudaStream_t stream) {
  if (plan.gemv) return launch_gemv_sp24(p, weight, plan, dependent, stream);
  if (plan.warps > 0) return launch_few_sp24(p, weight, plan, dependent, stream);
  const cudaError_t error = launch_expand_sp24(weight, p.n, p.k_pad, dense, dependent, stream);
  if (error != cudaSuccess) return error;
  GemmS8S8S32 rows = p;
  rows.w = dense;
  // A dependent kernel may read its weight at once, and this one is still being written.
  return launch_gemm_s8s8s32(rows, plan.dense, workspace, false, stream);
}

}  // namespace fastinfer::cuda
