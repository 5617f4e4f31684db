#include "cpu/expand_s8/expand_s8.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa) const uint8_t* name(const ExpandS8&);
#include "cpu/expand_s8/kernels.inc"
#undef KERNEL

namespace {
constexpr ExpandS8Kernel kKernels[] = {
#define KERNEL(name, isa) {#name, Isa::isa, name},
#include "cpu/expand_s8/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const ExpandS8Kernel* expand_s8_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const ExpandS8Kernel& select_expand_s8() {
  int i = kCount - 1;
  while (i > 0 && !isa_allowed(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
