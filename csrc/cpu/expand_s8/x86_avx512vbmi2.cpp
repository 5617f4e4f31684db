// expand_s8_avx512vbmi2: method in vpexpandb.h; four vectors of 64 bytes at a time.
#include <algorithm>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/expand_s8/vpexpandb.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kAheadBytes = 8192;  // of the weight: the prefetchers stop at the end of a page

}  // namespace

void expand_s8_avx512vbmi2(const ExpandS8& p) {
  const uint8_t* masked = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    masked = std::min(masked, p.last);
    const uint8_t* value = masked + kMaskBytes;
    for (const uint8_t* mask = masked; mask < masked + kMaskBytes;) {
      __builtin_prefetch(value + kAheadBytes);
      __builtin_prefetch(value + kAheadBytes + 64);
      __m512i bytes[4];
      expand_steps(mask, value, bytes);
      for (int i = 0; i < 4; ++i, out += 64) _mm512_store_si512(out, bytes[i]);
    }
    masked = value;
  }
}

}  // namespace fastinfer::cpu
