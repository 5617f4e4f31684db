#include "cpu/norm/norm.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa) void name(const Norm&);
#include "cpu/norm/kernels.inc"
#undef KERNEL

namespace {
constexpr NormKernel kKernels[] = {
#define KERNEL(name, isa) {#name, Isa::isa, name},
#include "cpu/norm/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const NormKernel* norm_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const NormKernel& select_norm() {
  int i = kCount - 1;
  while (i > 0 && !isa_allowed(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
