#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa, tile_rows, flip) void name(const GemmBsrS8S8S32&);
#include "cpu/gemm_bsr_s8s8s32/kernels.inc"
#undef KERNEL

namespace {
// The last row, which is no kernel, keeps the table from being empty.
constexpr GemmBsrS8S8S32Kernel kKernels[] = {
#define KERNEL(name, isa, tile_rows, flip) {#name, Isa::isa, tile_rows, flip, name},
#include "cpu/gemm_bsr_s8s8s32/kernels.inc"
#undef KERNEL
    {nullptr, Isa::generic, 1, 0, nullptr}};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]) - 1;
}  // namespace

const GemmBsrS8S8S32Kernel* gemm_bsr_s8s8s32_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const GemmBsrS8S8S32Kernel* select_gemm_bsr_s8s8s32(Isa isa) {
  for (int i = 0; i < kCount; ++i) {
    if (kKernels[i].isa == isa && isa_allowed(isa)) return kKernels + i;
  }
  return nullptr;
}

}  // namespace fastinfer::cpu
