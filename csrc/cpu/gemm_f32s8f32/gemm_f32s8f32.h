// Family gemm_f32s8f32: float activations x int8 weights, float32 sums, float epilogue.
//
//   c[m,n,j] = one chain of fused multiply-adds x[m,k] w[n,k] from 0 over the block
//              kSumK j <= k < kSumK (j + 1), in the order k + 1, k for k = 0, 2, 4, ...
//   s[m,n]   = c[m,n,0] + c[m,n,1] + ...                      one addition a block, ascending
//   z[m,n]   = fma(s[m,n], b_scale[n], bias[n])               bias 0 where there is none
//   out[m,n] = to_out_dtype(activation(z) + residual[m,n])    without a residual no addition
//
// x is widened to float32 and counts as zero from K to the next multiple of 4, as w does. Every
// step rounds to float32 once, in this order, and no row depends on another: the bits are the same
// for every kernel, task size and thread count. With u = 2^-24, |s - sum_k x w| is at most
// (min(K, kSumK) + blocks) u sum_k |x w|. NaN, Inf and overflow go as IEEE 754 has it, in their
// row.
//
// In pairs of bfloat16: vdpbf16ps does fma(a[0], b[0], fma(a[1], b[1], c)), which is the order
// above, and int8 is exact in bfloat16. It differs in one thing: it takes subnormal numbers, inputs
// and results, for zero. If every x that is not zero is at least 2^-119, its last bit is at least
// 2^-126, all products and sums are multiples of that, and none is subnormal: the bits are the
// same. Rows with smaller numbers go the other way.
//
// w: packed weights (gemm_s8s8s32/pack.h), panels of 16 columns: byte(n, k) =
//    panels[(n / 16) * 16 * k_pad + (k / 4) * 64 + (n % 16) * 4 + k % 4], k_pad = K rounded up
//    to 64.
//
// Floors. Few rows: reading the weights, 64 bytes of which are 4 of K x 16 columns: some 8 cycles
// from the memory of a Zen 4 core, beside 4 m multiply-adds of 512 bits, one a cycle there, so from
// 3 rows on those are the floor (from 5 by vdpbf16ps, which does two). Many rows: the
// multiply-adds; weights are expanded once for a block of rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/activation.h"
#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {

constexpr int64_t kSumK = 256;
constexpr int64_t kRowsAtOnce = 64;     // rows that a kernel widens and multiplies at a time
constexpr int64_t kExpandedPanels = 4;  // panels of weights that it expands at a time, at most

// A block of m rows and n columns; a part of a weight begins at a multiple of 16 columns, and ends
// at one or with the weight.
struct GemmF32S8F32 {
  int64_t m, n, k;
  const void* x;  // m rows of k elements, unit stride along k
  DType x_dtype;  // f32, bf16, f16
  int64_t ldx_bytes;
  const int8_t* panels;
  const float* b_scale;  // [n]
  const float* bias;     // [n] or null
  Activation activation;
  const void* residual;  // out_dtype, or null
  int64_t residual_ld_bytes;
  void* out;
  int64_t out_ld_bytes;
  DType out_dtype;  // f32, bf16, f16
  void* scratch;    // gemm_f32s8f32_scratch_bytes(m, k) bytes, 64-byte aligned
};

inline int64_t gemm_f32s8f32_scratch_bytes(int64_t m, int64_t k) {
  const int64_t rows = std::min(m, kRowsAtOnce) * round_up(k, kSumK);
  const int64_t weights = kExpandedPanels * kPanelColumns * kSumK;
  return (rows + weights) * int64_t(sizeof(float));
}

using GemmF32S8F32Fn = void (*)(const GemmF32S8F32&);

struct GemmF32S8F32Kernel {
  const char* name;
  Isa isa;     // the least ISA that may run it
  int mr, nr;  // micro-tile
  GemmF32S8F32Fn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const GemmF32S8F32Kernel* gemm_f32s8f32_kernels(int* count);

// The best kernel that the ISA in use allows and that pays on this CPU.
FASTINFER_API const GemmF32S8F32Kernel& select_gemm_f32s8f32();

}  // namespace fastinfer::cpu
