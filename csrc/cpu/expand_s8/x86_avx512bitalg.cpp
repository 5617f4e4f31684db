// expand_s8_avx512bitalg: method in avx512.h; a vector of 64 bytes at a time.
#include <algorithm>

#include "cpu/expand_s8/avx512.h"
#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kAheadBytes = 8192;  // of the weight: the prefetchers stop at the end of a page

template <class Expand>
void expand_slices(const ExpandS8& p) {
  const Expand expand;
  const uint8_t* masked = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    masked = std::min(masked, p.last);
    const uint8_t* value = masked + kMaskBytes;
#pragma GCC unroll 4
    for (const uint8_t* mask = masked; mask < masked + kMaskBytes; mask += 8, out += 64) {
      __builtin_prefetch(value + kAheadBytes);
      _mm512_store_si512(out, expand(mask, value));
      value += expand.count(mask);
    }
    masked = value;
  }
}

}  // namespace

void expand_s8_avx512bitalg(const ExpandS8& p) {
  p.pairs ? expand_slices<ExpandPairs>(p) : expand_slices<ExpandAny>(p);
}

}  // namespace fastinfer::cpu
