// rope on AVX-512 F/BW/VL/DQ. Formula and layouts: rope.h; the walk: tokens.h.
//
// Split halves, 32 elements a step: 2 loads of x, 4 of cos and sin, 4 x vmulps, 2 x vfmadd, 2
// stores. Interleaved, 16 elements a step: 3 loads, vpermilps to swap the pair, 2 x vmulps, vfmadd,
// 1 store. Tails: masked loads and stores.
// Bound by the two loads a cycle of L1 while x is there (cos and sin are, from one head to the
// next), else by reading x and writing out. Slow: r / 2 below 16, where every step is a tail.
#include "cpu/rope/tokens.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void rope_avx512(const Rope& p) { rope<Avx512Vec>(p); }

}  // namespace fastinfer::cpu
