#include "cpu/act_mul/act_mul.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa) void name(const ActMul&);
#include "cpu/act_mul/kernels.inc"
#undef KERNEL

namespace {
constexpr ActMulKernel kKernels[] = {
#define KERNEL(name, isa) {#name, Isa::isa, name},
#include "cpu/act_mul/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const ActMulKernel* act_mul_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const ActMulKernel& select_act_mul() {
  int i = kCount - 1;
  while (i > 0 && !isa_allowed(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
