// rope on AVX2. Formula and layouts: rope.h; the walk: tokens.h.
//
// Split halves, 16 elements a step: 2 loads of x, 4 of cos and sin, 4 x vmulps, 2 x vfmadd, 2
// stores. Interleaved, 8 elements a step: 3 loads, vpermilps to swap the pair, 2 x vmulps, vfmadd,
// 1 store. Tails: masked loads and stores, or a copy on the stack where elements are 16 bits wide.
// Bound by the two loads a cycle of L1 while x is there (cos and sin are, from one head to the
// next), else by reading x and writing out. Slow: r / 2 below 8, where every step is a tail.
#include "cpu/rope/tokens.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

void rope_avx2(const Rope& p) { rope<Avx2Vec>(p); }

}  // namespace fastinfer::cpu
