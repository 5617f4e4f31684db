// attention on AVX512-BF16: bfloat16 inputs by vdpbf16ps; others by x86_avx512.cpp, since float32
// and float16 do not fit bfloat16. Formula: attention.h, "In pairs of bfloat16".
//
// vdpbf16ps(c, a, b): a lane of a and of b is two bfloat16; fma(a[0], b[0], fma(a[1], b[1], c)) to
// float32, 64 operations. It takes subnormals for zero, whatever MXCSR says (Intel SDM vol. 2;
// checked on Zen 4).
//
// Tile: as in x86_avx512.cpp, 6 rows by 4 zmm; a step is 4 loads, 6 broadcasts and 24 vdpbf16ps,
// of twice the operations of a vfmadd231ps. On Zen 4 one of either is done a cycle, so the floor is
// half of the time of float32; a softmax of 16 scores is about 9 cycles on the same ports, beside D
// of the tiles. Measured there, AVX512-BF16, 8 x 12 heads of 512 tokens, D = 64: 0.65 of the peak
// of vdpbf16ps on one core, 0.63 on two. Of the time sampled, 73 % is in the tiles and 16 % in
// softmax. Slow: few rows, as in x86_avx512.cpp.
#include "cpu/attention/x86_avx512bf16.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

void attention_avx512(const Attention& p, const AttentionTask& t);

void attention_avx512bf16(const Attention& p, const AttentionTask& t) {
  if (p.dtype == DType::bf16) {
    attention_rows<PairTile>(p, t);
  } else {
    attention_avx512(p, t);
  }
}

}  // namespace fastinfer::cpu
