// norm on AVX2 with FMA and F16C. Formula: norm.h; passes: norm_rows.h.
//
// 8 elements a step. The 32 partial sums are 4 registers. Bound by memory where the rows come from
// it, else by the loads and stores of the passes over the scratch, 3 loads and 2 stores a step for
// an RMS norm and one load more for a layer norm.
#include "cpu/norm/norm_rows.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

void norm_avx2(const Norm& p) { norm_rows<Avx2Vec>(p); }

}  // namespace fastinfer::cpu
