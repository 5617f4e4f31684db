// Family norm: layer norm (Ba, Kiros, Hinton, 2016) and RMS norm (Zhang, Sennrich, 2019) of rows,
// after a residual addition, to float rows, to int8 rows, or to both.
//
//   s[m,k]  = round(x[m,k] + residual[m,k]), or x[m,k]         round: to the dtype of x and back
//
//   rms:    rstd[m] = 1 / sqrt(Sum_k(s[m,k]^2) / K + eps)
//           z[m,k]  = s[m,k] * rstd[m]
//   layer:  c[m]    = Sum_k(s[m,k]) / K
//           rstd[m] = 1 / sqrt(Sum_k((s[m,k] - c[m])^2) / K + eps)
//           mean[m] = c[m] + Sum_k(s[m,k] - c[m]) / K
//           z[m,k]  = (s[m,k] - mean[m]) * rstd[m]
//
//   y[m,k]  = round(z[m,k] * weight[k] + bias[k])              one fused multiply-add
//   q[m,k], scale[m], offset[m] = quantize_rowwise(y[m,:])     with an offset, tile_rows 1, flip 0
//
// every operation rounded to float once, in this order; an absent weight is 1, an absent bias 0.
// The second sum of a layer norm takes the rounding of the first out of the mean, so that a
// constant row gives z = 0 exactly; left in the variance it adds (c - mean)^2, of second order.
//
// Sum_k(v) is P = 32 partial sums, then a tree by halves, the same on every instruction set:
//
//   part[i] = v[i] + v[i + P] + v[i + 2 P] + ...    from 0, in this order; squares by fused
//                                                   multiply-adds
//   for h = P/2, P/4, ..., 1:  part[i] = part[i] + part[i + h] for i < h;   Sum = part[0]
//
// A row whose z is not finite is so by itself alone: a NaN, or an Inf (all NaN after a layer norm;
// after an RMS norm NaN at the Inf and 0 elsewhere), or finite numbers whose sum leaves float. Rows
// of squares that leave float have rstd = 0. A row of y that holds NaN or Inf has q = 0,
// scale = NaN, offset = 0. K = 0 writes nothing but the scale and offset of an empty row.
#pragma once

#include <cstdint>

#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

enum class NormKind : int32_t { layer, rms };

struct Norm {
  NormKind kind;
  DType dtype;           // of x, residual, sum, y: f32, bf16, f16
  const void* x;         // rows x k, unit stride along k
  int64_t ldx_bytes;     // from one row of x to the next
  const void* residual;  // rows x k, unit stride along k, or null
  int64_t residual_ld_bytes;
  int64_t rows;
  int64_t k;
  const void* weight;  // [k] of weight_dtype, or null
  DType weight_dtype;
  const void* bias;  // [k] of bias_dtype, or null
  DType bias_dtype;
  float eps;
  void* sum;       // s: rows x k contiguous, or null
  void* y;         // rows x k contiguous, or null
  int8_t* q;       // rows x k contiguous
  float* scale;    // [rows], or null: no q, scale, offset
  float* offset;   // [rows]
  bool stream;     // write sum, y and q past the caches
  float* scratch;  // norm_scratch_floats(k) floats, 64-byte aligned
};

// Rows of the scratch: one for each pass where they stay in half of an L1 of 48 KiB together, else
// one for all. A row and what keeps the next from being a multiple of 4 KiB away, in floats.
constexpr int64_t kNormPasses = 4;
constexpr int64_t norm_row_stride(int64_t k) { return (k + 63) / 64 * 64 + 16; }
constexpr int64_t norm_scratch_rows(int64_t k) {
  return kNormPasses * norm_row_stride(k) * 4 <= 24 << 10 ? kNormPasses : 1;
}
// Two more for weight and bias as floats.
constexpr int64_t norm_scratch_floats(int64_t k) {
  return (norm_scratch_rows(k) + 2) * norm_row_stride(k);
}

using NormFn = void (*)(const Norm&);

struct NormKernel {
  const char* name;
  Isa isa;  // the least ISA that may run it
  NormFn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const NormKernel* norm_kernels(int* count);

// The best kernel that the ISA in use allows.
FASTINFER_API const NormKernel& select_norm();

// Whether outputs of this many bytes should be written past the caches.
FASTINFER_API bool norm_streams(int64_t output_bytes);

}  // namespace fastinfer::cpu
