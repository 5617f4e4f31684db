// Scalar reference of expand_s8: the formula of expand_s8.h and nothing else.
#include <algorithm>
#include <cstring>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

void expand_s8_generic(const ExpandS8& p) {
  const uint8_t* masked = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    masked = std::min(masked, p.last);
    const uint8_t* value = masked + kMaskBytes;
    for (int64_t i = 0; i < kSliceBytes; ++i) {
      const bool kept = masked[i / 8] >> i % 8 & 1;
      *out++ = kept ? int8_t(*value++) : int8_t(0);
    }
    masked = value;
  }
}

}  // namespace fastinfer::cpu
