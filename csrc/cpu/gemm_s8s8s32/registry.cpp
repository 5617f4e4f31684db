#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {

#define KERNEL(isa, mr, nr, kr, tile_rows, flip) \
  void gemm_s8s8s32_##mr##x##nr##x##kr##_##isa(const GemmS8S8S32&);
#include "cpu/gemm_s8s8s32/kernels.inc"
#undef KERNEL

namespace {
constexpr GemmS8S8S32Kernel kKernels[] = {
#define KERNEL(isa, mr, nr, kr, tile_rows, flip)                                        \
  {"gemm_s8s8s32_" #mr "x" #nr "x" #kr "_" #isa, Isa::isa, mr, nr, kr, tile_rows, flip, \
   gemm_s8s8s32_##mr##x##nr##x##kr##_##isa},
#include "cpu/gemm_s8s8s32/kernels.inc"
#undef KERNEL
};
}  // namespace

const GemmS8S8S32Kernel* gemm_s8s8s32_kernels(int* count) {
  *count = sizeof(kKernels) / sizeof(kKernels[0]);
  return kKernels;
}

}  // namespace fastinfer::cpu
