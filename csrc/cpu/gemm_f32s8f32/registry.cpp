#include "cpu/gemm_f32s8f32/gemm_f32s8f32.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa, mr, nr) void name(const GemmF32S8F32&);
#include "cpu/gemm_f32s8f32/kernels.inc"
#undef KERNEL

namespace {
constexpr GemmF32S8F32Kernel kKernels[] = {
#define KERNEL(name, isa, mr, nr) {#name, Isa::isa, mr, nr, name},
#include "cpu/gemm_f32s8f32/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const GemmF32S8F32Kernel* gemm_f32s8f32_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const GemmF32S8F32Kernel& select_gemm_f32s8f32() {
  int i = kCount - 1;
  while (i > 0 && !isa_pays(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
