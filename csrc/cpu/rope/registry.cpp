#include "cpu/rope/rope.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa) void name(const Rope&);
#include "cpu/rope/kernels.inc"
#undef KERNEL

namespace {
constexpr RopeKernel kKernels[] = {
#define KERNEL(name, isa) {#name, Isa::isa, name},
#include "cpu/rope/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const RopeKernel* rope_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const RopeKernel& select_rope() {
  int i = kCount - 1;
  while (i > 0 && !isa_allowed(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
