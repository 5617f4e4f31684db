// Scalar reference of act_mul: the walk of rows.h, one element at a time.
#include "cpu/act_mul/rows.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void act_mul_generic(const ActMul& p) { run_act_mul<ScalarVec>(p); }

}  // namespace fastinfer::cpu
