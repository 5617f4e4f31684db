// expand_s8_avx512vbmi2. Masked slices: vpexpandb.h, four vectors of 64 bytes at a time. Pairs:
// pairs_avx512.h.
#include "cpu/expand_s8/expand_s8.h"
#include "cpu/expand_s8/pairs_avx512.h"
#include "cpu/expand_s8/vpexpandb.h"

namespace fastinfer::cpu {

namespace {

const uint8_t* expand_masked(const ExpandS8& p) {
  MaskedStream stream{p.masked, p.last};
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    stream.slice();
    for (int64_t i = 0; i < kSliceBytes; i += 4 * 64) {
      __m512i bytes[4];
      stream.next(bytes);
      for (int j = 0; j < 4; ++j, out += 64) _mm512_store_si512(out, bytes[j]);
    }
  }
  return stream.value;
}

const uint8_t* expand_pairs(const ExpandS8& p) {
  constexpr int64_t kSlicesAhead = 6;  // 16 are no better
  const PairsExpander expander;
  const uint8_t* pairs = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s, pairs += kPairsSliceBytes) {
    for (int64_t i = 0; i < kPairsSliceBytes; i += 64) {
      __builtin_prefetch(pairs + kSlicesAhead * kPairsSliceBytes + i);
    }
    for (int step = 0; step < kBlockK / kPairsK; ++step) {
      for (int half = 0; half < 2; ++half, out += 64) {
        _mm512_store_si512(out, expander.four(pairs, step, half));
      }
    }
  }
  return pairs;
}

}  // namespace

const uint8_t* expand_s8_avx512vbmi2(const ExpandS8& p) {
  return p.pairs ? expand_pairs(p) : expand_masked(p);
}

}  // namespace fastinfer::cpu
