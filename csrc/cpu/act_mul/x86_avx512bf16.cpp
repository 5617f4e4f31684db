// act_mul of bfloat16 rows on AVX512-BF16. Formula: act_mul.h; the walk: rows.h.
//
// As x86_avx512.cpp, but y is rounded by vcvtneps2bf16 instead of 8 instructions.
#include "cpu/act_mul/rows.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void act_mul_avx512(const ActMul& p);

void act_mul_avx512bf16(const ActMul& p) {
  if (p.dtype != DType::bf16) return act_mul_avx512(p);
  act_mul_dtype<Avx512Vec, DType::bf16>(p);
}

}  // namespace fastinfer::cpu
