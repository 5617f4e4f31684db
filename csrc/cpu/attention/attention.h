// Family attention: softmax(q k^T * scale + mask) v without the matrix of scores in memory. One
// pass over blocks of keys, with a running maximum and a running sum a query: the online softmax
// of Milakov and Gimelshein (2018), tiled as FlashAttention tiles it (Dao et al., 2022).
//
// Query head h reads key and value head h / (heads / kv_heads). Key j is visible to query i unless
// - causal and j > i, or window > 0 and i - j >= window,
// - or mask[i,j] is false (boolean) or -Inf (additive).
// For one head, with q, k, v widened to float on the way in:
//
//   qs[i,d] = q[i,d] * scale
//   s[i,j]  = sum_d qs[i,d] k[j,d]          one chain of fused multiply-adds from 0, d ascending;
//             + mask[i,j] if additive;      -Inf where j is not visible to i
//   for every block of kKeyBlock keys, ascending:
//     m'      = max(m, max_j s[i,j])        passing over NaN; m = -Inf before the first block
//     u       = m', or 0 where m' = -Inf
//     a       = exp(m - u)
//     p[i,j]  = exp(s[i,j] - u), or 0 where s[i,j] = -Inf
//     l[i,x]  = fma(l[i,x], a, sum over j = x (mod 16) of p[i,j], j ascending)     x < 16
//     o[i,d]  = o[i,d] * a, then one chain of fused multiply-adds p[i,j] v[j,d], j ascending, over
//               the keys with s[i,j] != -Inf
//   out[i,d] = fma(o[i,d], 1 / sum_x l[i,x], 0)    x by halves: x + 8, x + 4, x + 2, x + 1
//
// exp is exp_nonpositive of vec/math.h (never below exp(-87), so p = 0 means a hidden key). Every
// step rounds to float once, in this order, and no row depends on another: the bits are the same
// for every kernel, task size and thread count.
//
// In pairs of bfloat16: a kernel that multiplies bfloat16 two at a time (AttentionKernel::pairs)
// takes bfloat16 inputs another way. Written as above, with the differences alone:
//
//   dot2(c, a, b) = fma(a[0], b[0], fma(a[1], b[1], c))     subnormal numbers count as zero
//   s[i,j]  = scale * sum_d q[i,d] k[j,d]        by dot2 over d, d + 1, from 0, d ascending; + mask
//   p[i,j]  = bf16(2^max((s[i,j] - u) log2 e, -125)), or 0 where s[i,j] = -Inf
//   l[i,x]  = fma(l[i,x], a, sum of p[i,j] over j / 2 = x (mod 8), j ascending)     x < 8
//   o[i,d]  = o[i,d] * a, then dot2 of p[i,j], p[i,j+1] and v[j,d], v[j+1,d], j ascending
//
// Probabilities are rounded to bfloat16, as those of torch's bfloat16 attention are, but divided by
// the sum of what they were rounded to. With w = 2^-24, m the greatest and s the least visible
// score, e = (D + 2) w |scale| sum_d |q k| the error of a score, n visible keys, b blocks of them,
// and half a unit in the last place of the output apart, a result is off by at most r times
// sum_j p[i,j] |v[j,d]| / sum_j p[i,j], where
//
//   r = 2.01 * 2^-8 + 4 max_j e + w (6 (m - s) + 2 n + 10 b + 104)
//
// The bits are the same for every task size, batch split and thread count; kernels that do not work
// in pairs give other bits.
//
// In tiles of bfloat16: a kernel of pairs that multiplies whole tiles has the sums of s and o in
// another order, and so bits of its own, within the same bound. dot32 over 32 elements of d, or 32
// keys, takes the place of dot2, with zeros after the last:
//
//   dot32(c, a, b) = c + (e + f)    e, f: chains of fused multiply-adds from 0 over the even and
//                                   the odd elements, ascending; subnormal numbers count as zero
//   p[i,j]  = bf16(2^max(y, -126)), or 0 where s[i,j] = -Inf. With an additive mask, or a scale
//             that is not greater than 0, y = (s[i,j] - u) log2 e; else y = (t[i,j] - u') (scale
//             log2 e), t and u' being s and u before they are multiplied by the scale
//   l[i,x]  = as above, over j / 2 = x (mod 16)     x < 16
//
// In every way: a row that sees no key is 0. What a hidden key holds in k and v does not matter,
// NaN included. A NaN or Inf in q, k or v that is visible spreads as the formula says: a NaN score
// makes its row NaN, a NaN in v[j,d] makes column d of the rows that see j NaN. Adding 0 hides the
// sign of an o of zero, which depends on what was skipped.
//
// The scale is folded into q when q is widened, and into the scores where q is taken as it is.
#pragma once

#include <cstdint>

#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/export.h"
#include "cpu/parallel_for.h"

namespace fastinfer::cpu {

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kKeyBlock = 256;  // keys between two updates of the running maximum

enum class MaskKind : int32_t { none, boolean, additive };

// Bytes from one batch, head and row to the next.
struct HeadStrides {
  int64_t batch, head, row;
};

struct Attention {
  DType dtype;                                       // of q, k, v and out: f32, bf16, f16
  int64_t batch, heads, kv_heads, tq, tk, head_dim;  // heads a multiple of kv_heads
  const void *q, *k, *v;                             // unit stride along head_dim
  HeadStrides q_stride, k_stride, v_stride;
  MaskKind mask_kind;
  DType mask_dtype;  // of an additive mask
  const void* mask;  // [batch, heads, tq, tk]; boolean: a byte each
  HeadStrides mask_stride;
  bool mask_per_key;  // whether the stride along tk is 1 element or 0
  float scale;
  bool causal;
  int64_t window;  // 0: none; otherwise causal
  void* out;
  HeadStrides out_stride;
};

// Rows [row_begin, row_end) of one key and value head. With G = heads / kv_heads, row r is query
// r / G of head kv_head * G + r % G: all queries that share keys, earliest first.
struct AttentionTask {
  int64_t batch, kv_head, row_begin, row_end;
  void* scratch;  // attention_scratch_bytes(p, row_end - row_begin) bytes, 64-byte aligned
};

using AttentionFn = void (*)(const Attention&, const AttentionTask&);

struct AttentionKernel {
  const char* name;
  Isa isa;     // the least ISA that may run it
  bool pairs;  // whether bfloat16 inputs go by the formula in pairs or in tiles
  AttentionFn run;
};

// Every kernel of this architecture, generic first, best last.
FASTINFER_API const AttentionKernel* attention_kernels(int* count);

// The best kernel that the ISA in use allows and that pays on this CPU.
FASTINFER_API const AttentionKernel& select_attention();

FASTINFER_API int64_t attention_scratch_bytes(const Attention& p, int64_t rows);

// All of it, shared between at most `threads` threads. Returns false if scratch memory could not be
// had; `out` is then incomplete.
FASTINFER_API bool attention(const Attention& p, int threads, ParallelFor parallel_for);

}  // namespace fastinfer::cpu
