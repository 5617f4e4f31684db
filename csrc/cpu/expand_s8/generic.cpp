// Scalar reference of expand_s8: the formulas of expand_s8.h and nothing else.
#include <algorithm>
#include <cstring>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

namespace {

const uint8_t* expand_masked(const ExpandS8& p) {
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
  return masked;
}

const uint8_t* expand_pairs(const ExpandS8& p) {
  const uint8_t* pairs = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s, pairs += kPairsSliceBytes) {
    for (int64_t k = 0; k < kBlockK; k += 4) {
      for (int64_t column = 0; column < kPanelColumns; ++column, out += 4) {
        const int places = pairs[k / 8 * 16 + column % 4 * 4 + column / 4] >> k % 8;
        const uint8_t* value = pairs + kPairsIndexBytes + k / 8 * 64 + column * 4 + k % 8 / 2;
        for (int i = 0; i < 4; ++i) {
          out[i] = int8_t(i == (places & 3) ? value[0] : i == (places >> 2 & 3) ? value[1] : 0);
        }
      }
    }
  }
  return pairs;
}

}  // namespace

const uint8_t* expand_s8_generic(const ExpandS8& p) {
  return p.pairs ? expand_pairs(p) : expand_masked(p);
}

}  // namespace fastinfer::cpu
