// Scalar reference of norm: the formula of norm.h one element at a time, by the same template as
// every other row. Bound by its scalar loads and conversions; it exists to be right.
#include "cpu/norm/norm_rows.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void norm_generic(const Norm& p) { norm_rows<ScalarVec>(p); }

}  // namespace fastinfer::cpu
