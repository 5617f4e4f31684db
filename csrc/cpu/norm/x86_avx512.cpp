// norm on AVX-512 F/BW/VL/DQ. Formula: norm.h; passes: norm_rows.h.
//
// 16 elements, a cache line of floats, a step. The 32 partial sums are 2 registers, so the summing
// passes take 2 cycles a step (an add or a multiply-add of 4 cycles behind the one before). Bound
// by memory where the rows come from it; see bench/norm.py.
#include "cpu/norm/norm_rows.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void norm_avx512(const Norm& p) { norm_rows<Avx512Vec>(p); }

}  // namespace fastinfer::cpu
