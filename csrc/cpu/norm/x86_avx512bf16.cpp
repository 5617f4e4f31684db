// norm of bfloat16 rows on AVX512-BF16. Formula: norm.h; passes: norm_rows.h.
//
// What is stored is rounded by vcvtneps2bf16, where AVX-512 alone takes 8 instructions: sum and y,
// or int8 rows of y, are up to two of them an element. Subnormals are rounded as there
// (vec/avx512.h).
#include "cpu/norm/norm_rows.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void norm_avx512(const Norm& p);

void norm_avx512bf16(const Norm& p) {
  if (p.dtype != DType::bf16) return norm_avx512(p);
  if (p.kind == NormKind::layer) return norm_rows<Avx512Vec, DType::bf16, NormKind::layer>(p);
  norm_rows<Avx512Vec, DType::bf16, NormKind::rms>(p);
}

}  // namespace fastinfer::cpu
