// Family quantize_rowwise: float rows to int8 rows with one scale a row (per-token), around zero or
// around an offset of the row; measured (dynamic) or given (static).
//
//   low[m], high[m] = min_k x[m,k], max_k x[m,k]
//   offset[m] = high[m] / 2 + low[m] / 2, or 0 where no offset is asked for (symmetric)
//   a[m]      = max(high[m] - offset[m], offset[m] - low[m], 2^-118)
//   scale[m]  = a[m] / 127
//   q[m,k]    = round_half_even((x[m,k] - offset[m]) * (127 / a[m])),  |q| <= 127
//   x[m,k]   ~= scale[m] * q[m,k] + offset[m]
//
// every operation rounded to float once, in this order. A row that holds NaN or Inf: scale = NaN,
// offset = 0, q = 0. The floor on a[m] keeps the scale a normal number (>= 2^-125), so a constant
// row needs no branch; rows narrower than that lose relative precision, with an absolute error of
// at most 2^-126.
//
// Static: with a scale (a normal number) and an offset given for all rows, nothing is measured.
//
//   q[m,k] = clamp(round_half_even((x[m,k] - offset) * (1 / scale)), -127, 127)
//
// the difference, the inverse and the product each rounded to float once. A row that holds NaN or
// Inf is as above.
//
// Destination layout ("A layout" of the matmul that follows): blocks of `tile_rows` rows; the
// last block holds R = min(tile_rows, rows - first row) rows.
//
//   address(m, k) = q + block(m) * tile_rows * k_store + (k / 64) * R * 64
//                     + (m % tile_rows) * 64 + k % 64
//
// tile_rows = 1 is plain row-major with k_store bytes a row. Bytes K <= k < k_store are written as
// q = 0. Every byte is XORed with `flip`: 0 for int8, 0x80 for the same value + 128 as uint8.
#pragma once

#include <cstdint>

#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

struct QuantizeRowwise {
  const void* x;      // rows x k elements of x_dtype, unit stride along k
  DType x_dtype;      // f32, bf16, f16
  int64_t ldx_bytes;  // from one row of x to the next
  int64_t rows;
  int64_t k;
  int64_t k_store;    // >= k; a multiple of 64 unless tile_rows == 1
  int64_t tile_rows;  // 1 or 16
  uint8_t flip;       // 0x00 or 0x80
  int8_t* q;
  float* scale;         // [rows]
  float* offset;        // [rows], or null: symmetric
  float static_scale;   // >= 2^-126 and finite, or 0: dynamic
  float static_offset;  // finite; not read if symmetric
};

using QuantizeRowwiseFn = void (*)(const QuantizeRowwise&);

struct QuantizeRowwiseKernel {
  const char* name;
  Isa isa;  // the least ISA that may run it
  QuantizeRowwiseFn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const QuantizeRowwiseKernel* quantize_rowwise_kernels(int* count);

// The best kernel that the ISA in use allows.
FASTINFER_API const QuantizeRowwiseKernel& select_quantize_rowwise();

}  // namespace fastinfer::cpu
