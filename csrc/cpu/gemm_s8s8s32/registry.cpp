#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {

#define KERNEL(isa, mr, nr, kr, tile_rows, flip) \
  void gemm_s8s8s32_##mr##x##nr##x##kr##_##isa(const GemmS8S8S32&);
#define KERNEL_PREPARED(isa, mr, nr, kr, tile_rows, flip)                \
  KERNEL(isa, mr, nr, kr, tile_rows, flip)                               \
  int64_t gemm_s8s8s32_##isa##_prepared_bytes(int64_t m, int64_t k_pad); \
  void gemm_s8s8s32_##isa##_prepare(const int8_t* a, int64_t m, int64_t k_pad, void* prepared);
#include "cpu/gemm_s8s8s32/kernels.inc"
#undef KERNEL
#undef KERNEL_PREPARED

namespace {
constexpr GemmS8S8S32Kernel kKernels[] = {
#define ROW(isa, mr, nr, kr, tile_rows, flip, bytes, prepare)                                  \
  {"gemm_s8s8s32_" #mr "x" #nr "x" #kr "_" #isa, Isa::isa,        mr, nr, kr, tile_rows, flip, \
   gemm_s8s8s32_##mr##x##nr##x##kr##_##isa,      {bytes, prepare}},
#define KERNEL(isa, mr, nr, kr, tile_rows, flip) \
  ROW(isa, mr, nr, kr, tile_rows, flip, nullptr, nullptr)
#define KERNEL_PREPARED(isa, mr, nr, kr, tile_rows, flip)                    \
  ROW(isa, mr, nr, kr, tile_rows, flip, gemm_s8s8s32_##isa##_prepared_bytes, \
      gemm_s8s8s32_##isa##_prepare)
#include "cpu/gemm_s8s8s32/kernels.inc"
#undef KERNEL
#undef KERNEL_PREPARED
#undef ROW
};
}  // namespace

const GemmS8S8S32Kernel* gemm_s8s8s32_kernels(int* count) {
  *count = sizeof(kKernels) / sizeof(kKernels[0]);
  return kKernels;
}

}  // namespace fastinfer::cpu
