// norm on NEON. Formula: norm.h; passes: norm_rows.h.
//
// 4 elements a step. The 32 partial sums are 8 registers. Bound by memory where the rows come from
// it; not measured, these rows have run under emulation alone.
#include "cpu/norm/norm_rows.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {

void norm_neon(const Norm& p) { norm_rows<NeonVec>(p); }

}  // namespace fastinfer::cpu
