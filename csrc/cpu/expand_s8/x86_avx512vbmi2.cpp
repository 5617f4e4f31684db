// expand_s8_avx512vbmi2: vpexpandb puts the next bytes of a vector where the bits of its mask are
// set. A vector of 64 bytes: two loads (mask, values), the expansion, a store, a count of bits.
#include <immintrin.h>

#include <algorithm>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

void expand_s8_avx512vbmi2(const ExpandS8& p) {
  const uint8_t* masked = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    masked = std::min(masked, p.last);
    const uint8_t* value = masked + kMaskBytes;
#pragma GCC unroll 4
    for (int64_t j = 0; j < kSliceBytes / 64; ++j, out += 64) {
      uint64_t mask;
      std::memcpy(&mask, masked + j * 8, 8);
      _mm512_store_si512(out, _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(value)));
      value += __builtin_popcountll(mask);
    }
    masked = value;
  }
}

}  // namespace fastinfer::cpu
