// expand_s8_avx512vbmi2: method in vpexpandb.h; four vectors of 64 bytes at a time.
#include "cpu/expand_s8/expand_s8.h"
#include "cpu/expand_s8/vpexpandb.h"

namespace fastinfer::cpu {

void expand_s8_avx512vbmi2(const ExpandS8& p) {
  MaskedStream<false> stream{p.masked, p.last};
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    stream.slice();
    for (int64_t i = 0; i < kSliceBytes; i += 4 * 64) {
      __m512i bytes[4];
      stream.next(bytes);
      for (int j = 0; j < 4; ++j, out += 64) _mm512_store_si512(out, bytes[j]);
    }
  }
}

}  // namespace fastinfer::cpu
