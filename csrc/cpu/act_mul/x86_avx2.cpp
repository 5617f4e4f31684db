// act_mul on AVX2. Formula: act_mul.h; the walk: rows.h.
//
// 8 elements a step: 2 loads, the activation, vmulps, 1 store; tails by masks, or by a copy on the
// stack where elements are 16 bits wide. Multiply-adds and divisions of the activation: SiLU 9 and
// 1, quick GELU too, GELU tanh 10 and 1, GELU 11 and 1, none of either for ReLU. The division
// bounds SiLU and the GELUs while the rows are in cache; reading x and other and writing y bounds
// the rest.
#include "cpu/act_mul/rows.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

void act_mul_avx2(const ActMul& p) { run_act_mul<Avx2Vec>(p); }

}  // namespace fastinfer::cpu
