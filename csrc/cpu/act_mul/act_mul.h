// Family act_mul: an activation and a gate, elementwise over rows.
//
//   y[m,k] = to_dtype(activation(x[m,k]) * other[m,k])     or to_dtype(activation(x[m,k]))
//
// The activation is that of cpu/vec/math.h in float; it and the product are rounded to float once
// each, then the result to the dtype of x.
//
// Kernels write y. The int8 rows of y come from quantize_rowwise over the rows of y while they are
// in cache: computing y twice instead would pay for its exp or division twice, and pass through a
// second quantiser. `act_mul` below does that, with a scratch for y where y itself is not wanted.
#pragma once

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

struct ActMul {
  const void* x;      // rows x k elements of dtype, unit stride along k
  int64_t ldx_bytes;  // from one row of x to the next
  const void* other;  // the same, or null: no product
  int64_t other_ld_bytes;
  DType dtype;  // f32, bf16, f16
  int64_t rows, k;
  Activation activation;
  void* y;  // rows x k elements of dtype, contiguous
};

using ActMulFn = void (*)(const ActMul&);

struct ActMulKernel {
  const char* name;
  Isa isa;  // the least ISA that may run it
  ActMulFn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const ActMulKernel* act_mul_kernels(int* count);

// The best kernel that the ISA in use allows.
FASTINFER_API const ActMulKernel& select_act_mul();

// The rows of y in the form of quantize_rowwise.h with offset, tile_rows = 1, flip = 0.
struct ActMulRows {
  int8_t* q;      // rows x k
  float* scale;   // [rows]
  float* offset;  // [rows]
};

// Runs the best kernels: y, its int8 rows, or both; p.y may be null where `rows` is not. False,
// with nothing to be relied upon, if there is no memory for a row of y.
FASTINFER_API bool act_mul(const ActMul& p, const ActMulRows* rows);

}  // namespace fastinfer::cpu
