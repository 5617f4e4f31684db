// Family expand_s8: slices that leave zeros out (gemm_s8s8s32/pack.h) back to dense ones, for the
// matmuls that read dense panels.
//
// Masked slices:
//   out[64 j + i] = mask[j] bit i ? the next value : 0      0 <= j < 16, 0 <= i < 64, a slice
// Each begins where the values of the one before end, or at `last` where that is further.
//
// Slices of pairs, which are equally long and whose two places differ:
//   out[4 j + i] = i == the first place ? the first value : i == the second ? the second : 0
#pragma once

#include <cstdint>

#include "cpu/arch.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

struct ExpandS8 {
  const uint8_t* masked;  // the first slice
  const uint8_t* last;    // of masked slices: kReadAhead bytes from here on may be read
  int64_t slices;
  bool pairs;
  int8_t* out;  // 1024 bytes a slice, 64-byte aligned
};

// Returns where the next slice begins.
using ExpandS8Fn = const uint8_t* (*)(const ExpandS8&);

struct ExpandS8Kernel {
  const char* name;
  Isa isa;  // the least ISA that may run it
  ExpandS8Fn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const ExpandS8Kernel* expand_s8_kernels(int* count);

// The best kernel that the ISA in use allows.
FASTINFER_API const ExpandS8Kernel& select_expand_s8();

}  // namespace fastinfer::cpu
