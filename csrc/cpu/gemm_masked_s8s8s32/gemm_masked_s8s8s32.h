// Family gemm_masked_s8s8s32: the product of gemm_s8s8s32.h, m and n > 0, with a weight whose
// slices leave zeros out (sp24, bitmask; gemm_s8s8s32/pack.h). With few rows the time is that of
// reading the weight, which is 0.63 (sp24) or 0.13 + density (bitmask) of the bytes: masked slices
// are put together in registers, pairs are multiplied as they are. With many rows slices are put
// together in a cache. Where no kernel of this family runs, expand_s8 and gemm_s8s8s32 do the same.
//
// A: as the gemm_s8s8s32 kernel of `companion` wants it.
#pragma once

#include <algorithm>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

constexpr int64_t kFewMaskedRows = 8;  // up to here the weight is read once and never stored
constexpr int64_t kExpandedSliceBytes = 3 * 1024 * kPanelColumns;

// For m rows or fewer: few side by side; with more, slices of panels, and the sums of two.
constexpr int64_t masked_scratch_bytes(int64_t m, int64_t k_pad) {
  const int64_t few = std::min(m, kFewMaskedRows) * k_pad;
  if (m <= kFewMaskedRows) return few;
  return std::max(few, kExpandedSliceBytes + m * 2 * kPanelColumns * int64_t(sizeof(int32_t)));
}

struct GemmMaskedS8S8S32 {
  GemmS8S8S32 gemm;  // `panels` is not read
  const PackedWeight* weight;
  int64_t panel;      // the first
  int8_t* scratch;    // masked_scratch_bytes, 64-byte aligned
  ExpandS8Fn expand;  // what puts slices together where the kernel does not
};

using GemmMaskedS8S8S32Fn = void (*)(const GemmMaskedS8S8S32&);

struct GemmMaskedS8S8S32Kernel {
  const char* name;
  Isa isa;
  Isa companion;
  int64_t row_step;  // m is a multiple of it
  GemmMaskedS8S8S32Fn run;
};

// Every kernel of this architecture; there may be none.
FASTINFER_API const GemmMaskedS8S8S32Kernel* gemm_masked_s8s8s32_kernels(int* count);

// The best kernel that the ISA in use allows with this companion, or null.
FASTINFER_API const GemmMaskedS8S8S32Kernel* select_gemm_masked_s8s8s32(Isa companion);

}  // namespace fastinfer::cpu
