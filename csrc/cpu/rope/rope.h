// Family rope: rotary position embedding (Su et al., 2021, "RoFormer") of the heads of a run of
// tokens. For each token t and head h, with `partner` the other element of the pair of d:
//
//   out[t,h,d] = x[t,h,d] * cos[t,d] - x[t,h,partner] * sin[t,d]    d is the first of its pair
//   out[t,h,d] = x[t,h,d] * cos[t,d] + x[t,h,partner] * sin[t,d]    d is the second
//   out[t,h,d] = x[t,h,d], bit for bit                              r <= d < head_size
//
//   split halves (interleaved = false): pairs (i, i + r/2), 0 <= i < r/2
//   interleaved:                        pairs (2i, 2i + 1)
//
// Each product is rounded to float, then their sum or difference, then that to the dtype of x.
// cos and sin have a value for every d: the two of a pair need not be equal.
//
//   x:        token t, head h at x + t * x_token_bytes + h * x_head_bytes, unit stride along d
//   cos, sin: token t at cos + t * cos_token_bytes, sin + t * sin_token_bytes, unit stride along d
//   out:      contiguous, [tokens][heads][head_size]
#pragma once

#include <cstdint>

#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

struct Rope {
  const void* x;
  DType x_dtype;  // of out too: f32, bf16, f16
  int64_t x_token_bytes, x_head_bytes;
  const void* cos;
  const void* sin;
  DType table_dtype;  // of cos and sin: x_dtype or f32
  int64_t cos_token_bytes, sin_token_bytes;
  int64_t tokens, heads, head_size;
  int64_t r;  // even, 0 <= r <= head_size
  bool interleaved;
  void* out;
};

using RopeFn = void (*)(const Rope&);

struct RopeKernel {
  const char* name;
  Isa isa;  // the least ISA that may run it
  RopeFn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const RopeKernel* rope_kernels(int* count);

// The best kernel that the ISA in use allows.
FASTINFER_API const RopeKernel& select_rope();

}  // namespace fastinfer::cpu
