#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa, companion) void name(const GemmMaskedS8S8S32&);
#include "cpu/gemm_masked_s8s8s32/kernels.inc"
#undef KERNEL

namespace {
// The last row, which is no kernel, keeps the table from being empty.
constexpr GemmMaskedS8S8S32Kernel kKernels[] = {
#define KERNEL(name, isa, companion) {#name, Isa::isa, Isa::companion, name},
#include "cpu/gemm_masked_s8s8s32/kernels.inc"
#undef KERNEL
    {nullptr, Isa::generic, Isa::generic, nullptr}};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]) - 1;
}  // namespace

const GemmMaskedS8S8S32Kernel* gemm_masked_s8s8s32_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const GemmMaskedS8S8S32Kernel* select_gemm_masked_s8s8s32() {
  for (int i = kCount - 1; i >= 0; --i) {
    if (isa_allowed(kKernels[i].isa)) return kKernels + i;
  }
  return nullptr;
}

}  // namespace fastinfer::cpu
