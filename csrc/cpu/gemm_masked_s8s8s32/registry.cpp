#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa, companion, row_step) void name(const GemmMaskedS8S8S32&);
#include "cpu/gemm_masked_s8s8s32/kernels.inc"
#undef KERNEL

namespace {
// The last row, which is no kernel, keeps the table from being empty.
constexpr GemmMaskedS8S8S32Kernel kKernels[] = {
#define KERNEL(name, isa, companion, row_step) {#name, Isa::isa, Isa::companion, row_step, name},
#include "cpu/gemm_masked_s8s8s32/kernels.inc"
#undef KERNEL
    {nullptr, Isa::generic, Isa::generic, 1, nullptr}};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]) - 1;
}  // namespace

const GemmMaskedS8S8S32Kernel* gemm_masked_s8s8s32_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const GemmMaskedS8S8S32Kernel* select_gemm_masked_s8s8s32(Isa companion) {
  for (int i = kCount - 1; i >= 0; --i) {
    if (kKernels[i].companion == companion && isa_allowed(kKernels[i].isa)) return kKernels + i;
  }
  return nullptr;
}

}  // namespace fastinfer::cpu
