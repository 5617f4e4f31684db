#include "cpu/attention/attention.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa, pairs) void name(const Attention&, const AttentionTask&);
#include "cpu/attention/kernels.inc"
#undef KERNEL

namespace {
constexpr AttentionKernel kKernels[] = {
#define KERNEL(name, isa, pairs) {#name, Isa::isa, pairs, name},
#include "cpu/attention/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const AttentionKernel* attention_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const AttentionKernel& select_attention() {
  int i = kCount - 1;
  while (i > 0 && !isa_pays(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
