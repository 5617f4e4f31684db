// rope of bfloat16 on AVX512-BF16. Formula and layouts: rope.h; the walk: tokens.h.
//
// As x86_avx512.cpp, but out is rounded by vcvtneps2bf16 instead of 8 instructions.
#include "cpu/rope/tokens.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void rope_avx512(const Rope& p);

void rope_avx512bf16(const Rope& p) {
  if (p.x_dtype != DType::bf16) return rope_avx512(p);
  if (p.table_dtype == DType::f32) return rope_tokens<Avx512Vec, DType::bf16, DType::f32>(p);
  rope_tokens<Avx512Vec, DType::bf16, DType::bf16>(p);
}

}  // namespace fastinfer::cpu
