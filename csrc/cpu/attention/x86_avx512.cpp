// attention on AVX-512 F/BW/VL/DQ. Formula: attention.h; layouts: layout.h; loops: rows.h.
//
// Tile: 6 rows by 4 zmm (64 keys, or 64 elements of d), 24 sums, 4 registers of k or v, 1 of q or
// p. A step is 4 loads, 6 broadcasts and 24 vfmadd231ps (768 operations): 12 cycles with two
// multiply-add ports, 5 of loads beside them. A softmax of 16 scores is about 25 instructions on
// the same ports, against 2 D multiply-adds. So the floor is 4 B H Tq Tk D operations over the peak
// of the multiply-adds, plus a fifth at D = 64; packing k and v costs about as much as 8 rows of q.
// Measured on a Cascade Lake core that was not idle, D = 64: 0.66 of the peak at 512 tokens of one
// head, 0.55 at 128; the tiles alone take the time of the multiply-adds at the peak. On Zen 4,
// which does one vfmadd231ps of 512 bits a cycle, AVX-512, 8 x 12 heads of 512 tokens, D = 64: 0.77
// of the peak on one core, 0.76 on two. Of the time sampled, 80 %
// is in the tiles and a tenth in softmax.
// Slow: few rows, where packing and the tiles of less than 6 rows show.
#include "cpu/attention/x86_avx512.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

void attention_avx512(const Attention& p, const AttentionTask& t) {
  attention_rows<Avx512Tile>(p, t);
}

}  // namespace fastinfer::cpu
