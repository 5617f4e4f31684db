// Family gemm_s8s8s32: int8 activations x int8 weights, exact int32 sums, float epilogue.
//
//   acc[m,n] = sum_k a[m,k] * b[n,k]                       int32, exact: K <= 131071 so that
//                                                          |acc| <= 128 * 128 * K < 2^31
//   sum[n]   = float(compensation[n]) * -2^-7 * b_scale[n]   that is b_scale[n] * sum_k b[n,k]
//   z[m,n]   = fma(float(acc) * b_scale[n], a_scale[m], fma(a_offset[m], sum[n], bias[n]))
//   out[m,n] = to_out_dtype(activation(z) * multiplier[m,n] + residual[m,n])
//
// in exactly this order of roundings on every ISA: the activation, the product and the sum are each
// rounded to float; a multiplier or residual that is not there leaves its step out. out_dtype s32
// stores acc itself.
//
// A: quantised rows in the layout of quantize_rowwise.h, k_store = k_pad, with the kernel's
//    tile_rows and flip.
// B: packed weights (pack.h), panels of 16 columns: byte(n, k) =
//    panels[(n / 16) * 16 * k_pad + (k / 4) * 64 + (n % 16) * 4 + k % 4], k_pad = K rounded up to
//    64 and zero-filled, N likewise to 16. One 64-row x 16-column slice is an AMX B tile (1 KiB);
//    one group of 4 rows is a vpdpbusd operand, two AVX2 ones, four NEON sdot ones.
#pragma once

#include <cstdint>

#include "cpu/activation.h"
#include "cpu/arch.h"
#include "cpu/ceil_div.h"
#include "cpu/dtype.h"
#include "cpu/export.h"

namespace fastinfer::cpu {

constexpr int64_t kMaxK = 131071;
constexpr int64_t kPanelColumns = 16;
constexpr int64_t kBlockK = 64;

// A block of m rows and n columns; a part of a weight begins at a multiple of 16 columns, and ends
// at one or with the weight.
struct GemmS8S8S32 {
  int64_t m;
  int64_t n;
  int64_t k_pad;
  const int8_t* a;
  void* prepared;         // by the kernel's `prepare` from a chunk of rows, these among them: those
  int64_t prepared_rows;  // from prepared_row on, of so many in all; null where it has none
  int64_t prepared_row;
  const float* a_scale;   // [m]
  const float* a_offset;  // [m]
  const int8_t* panels;
  const int32_t* compensation;  // [n padded to 16]: -128 * sum_k b[n,k]
  const float* b_scale;         // [n]
  const float* bias;            // [n] or null
  Activation activation;
  const float* multiplier;  // or null
  int64_t multiplier_ld_bytes;
  const void* residual;  // out_dtype, or null
  int64_t residual_ld_bytes;
  void* out;
  int64_t out_ld_bytes;
  DType out_dtype;
  // Hints, which change no result: is_zen4 of arch.h; how many columns of the weight come after
  // these, and so are likely to be next; bytes of all outputs that a core writes of the operator
  // that these are a part of, 0 where they are read at once.
  bool zen4;
  int64_t n_after;
  int64_t out_bytes;
};

using GemmS8S8S32Fn = void (*)(const GemmS8S8S32&);

// What a kernel makes of rows of A, once, before it multiplies them with any columns.
struct PrepareRows {
  int64_t (*bytes)(int64_t m, int64_t k_pad);
  // prepared: `bytes` bytes, 64-byte aligned.
  void (*run)(const int8_t* a, int64_t m, int64_t k_pad, void* prepared);
};

struct GemmS8S8S32Kernel {
  const char* name;
  Isa isa;
  int mr, nr, kr;     // micro-tile
  int64_t tile_rows;  // layout of A
  uint8_t flip;
  GemmS8S8S32Fn run;
  PrepareRows prepare;  // null, both, where the kernel takes A as it is
};

// Every kernel of this architecture, in the order of kernels.inc.
FASTINFER_API const GemmS8S8S32Kernel* gemm_s8s8s32_kernels(int* count);

}  // namespace fastinfer::cpu
