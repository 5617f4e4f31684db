// rope on NEON. Formula and layouts: rope.h; the walk: tokens.h.
//
// Split halves, 8 elements a step: 2 loads of x, 4 of cos and sin, 4 x fmul, 2 x fmla, 2 stores.
// Interleaved, 4 elements a step: 3 loads, rev64 to swap the pair, 2 x fmul, fmla, 1 store. Tails:
// a copy on the stack. Bound by loads; not measured, this row has run under emulation alone.
#include "cpu/rope/tokens.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {

void rope_neon(const Rope& p) { rope<NeonVec>(p); }

}  // namespace fastinfer::cpu
