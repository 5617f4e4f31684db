// Family gemm_masked_s8s8s32: the product of gemm_s8s8s32.h with a weight of masked slices (sp24,
// bitmask; gemm_s8s8s32/pack.h), which is expanded in registers: with few rows the time is that of
// reading the weight, and a masked one is 0.63 (sp24) or 0.13 + density (bitmask) of the bytes.
// For many rows, and where no kernel of this family runs, expand_s8 and gemm_s8s8s32 do the same.
//
// A: as the gemm_s8s8s32 kernel of `companion` wants it.
#pragma once

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

constexpr int64_t kMostMaskedRows = 8;

struct GemmMaskedS8S8S32 {
  GemmS8S8S32 gemm;  // m <= kMostMaskedRows; `panels` is not read
  const PackedWeight* weight;
  int64_t panel;  // the first
};

using GemmMaskedS8S8S32Fn = void (*)(const GemmMaskedS8S8S32&);

struct GemmMaskedS8S8S32Kernel {
  const char* name;
  Isa isa;
  Isa companion;
  GemmMaskedS8S8S32Fn run;
};

// Every kernel of this architecture; there may be none.
FASTINFER_API const GemmMaskedS8S8S32Kernel* gemm_masked_s8s8s32_kernels(int* count);

// The best kernel that the ISA in use allows, or null.
FASTINFER_API const GemmMaskedS8S8S32Kernel* select_gemm_masked_s8s8s32();

}  // namespace fastinfer::cpu
