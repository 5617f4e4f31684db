// Family gemm_bsr_s8s8s32: the product of gemm_s8s8s32.h with a weight of tiles (bsr;
// gemm_s8s8s32/pack.h); what is not stored is not multiplied. Where no kernel of this family runs,
// the driver gathers A and calls gemm_s8s8s32 (gemm_s8s8s32/columns.cpp).
#pragma once

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

struct GemmBsrS8S8S32 {
  GemmS8S8S32 gemm;  // `panels` is not read
  const PackedWeight* weight;
  int64_t panel;  // the first
};

using GemmBsrS8S8S32Fn = void (*)(const GemmBsrS8S8S32&);

struct GemmBsrS8S8S32Kernel {
  const char* name;
  Isa isa;
  int64_t tile_rows;  // layout of A
  uint8_t flip;
  GemmBsrS8S8S32Fn run;
};

// Every kernel of this architecture; there may be none.
FASTINFER_API const GemmBsrS8S8S32Kernel* gemm_bsr_s8s8s32_kernels(int* count);

// The kernel of `isa`, or null.
FASTINFER_API const GemmBsrS8S8S32Kernel* select_gemm_bsr_s8s8s32(Isa isa);

}  // namespace fastinfer::cpu
