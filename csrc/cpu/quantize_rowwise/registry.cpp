#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::cpu {

#define KERNEL(name, isa) void name(const QuantizeRowwise&);
#include "cpu/quantize_rowwise/kernels.inc"
#undef KERNEL

namespace {
constexpr QuantizeRowwiseKernel kKernels[] = {
#define KERNEL(name, isa) {#name, Isa::isa, name},
#include "cpu/quantize_rowwise/kernels.inc"
#undef KERNEL
};
constexpr int kCount = sizeof(kKernels) / sizeof(kKernels[0]);
}  // namespace

const QuantizeRowwiseKernel* quantize_rowwise_kernels(int* count) {
  *count = kCount;
  return kKernels;
}

const QuantizeRowwiseKernel& select_quantize_rowwise() {
  int i = kCount - 1;
  while (i > 0 && !isa_allowed(kKernels[i].isa)) --i;
  return kKernels[i];
}

}  // namespace fastinfer::cpu
