// act_mul on NEON. Formula: act_mul.h; the walk: rows.h.
//
// 4 elements a step: 2 loads, the activation, fmul, 1 store; tails by a copy on the stack. Bound by
// the division of SiLU and the GELUs, else by memory; not measured, this row has run under
// emulation alone.
#include "cpu/act_mul/rows.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {

void act_mul_neon(const ActMul& p) { run_act_mul<NeonVec>(p); }

}  // namespace fastinfer::cpu
