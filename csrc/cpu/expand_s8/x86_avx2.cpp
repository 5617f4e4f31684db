// expand_s8_avx2. Masked slices: bytes.h, with pshufb.
//
// Pairs, 32 bytes at a time, those of 4 of K of 8 columns: the 16 bytes of index in either half of
// a register, shifted by what the half's columns ask for (vpsrlvd); a place and its value copied to
// the 4 bytes of their lane (pshufb), the value kept where the place is the byte's own (pcmpeqb).
// Some 12 instructions, no table and no chain.
#include <immintrin.h>

#include "cpu/expand_s8/bytes.h"

namespace fastinfer::cpu {

namespace {

const uint8_t* expand_masked(const ExpandS8& p) {
  return expand_by_bytes(p, [](const uint8_t* values, const uint8_t* shuffle, int8_t* out) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    const __m128i s = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(shuffle));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(v, s));
  });
}

const uint8_t* expand_pairs(const ExpandS8& p) {
  const __m256i one = _mm256_set1_epi8(1), three = _mm256_set1_epi32(3);
  const __m256i lane_byte = _mm256_set1_epi32(0x03020100);
  const __m256i lane_first =
      _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  const uint8_t* pairs = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s, pairs += kPairsSliceBytes) {
    for (int step = 0; step < 8; ++step) {
      const __m256i index = _mm256_broadcastsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs + step * 16)));
      const uint8_t* values = pairs + kPairsIndexBytes + step * 64;
      for (int half = 0; half < 2; ++half) {
        // In the bytes of a lane: where its first value of this half is.
        const __m256i first = _mm256_add_epi8(lane_first, _mm256_set1_epi8(char(2 * half)));
        for (int column = 0; column < 16; column += 8, out += 32) {
          const int low = column * 2 + half * 4, high = low + 8;
          const __m256i places = _mm256_srlv_epi32(
              index, _mm256_setr_epi32(low, low, low, low, high, high, high, high));
          const __m256i value =
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + column * 4));
          const auto kept = [&](__m256i place, __m256i value_at) {
            place = _mm256_shuffle_epi8(_mm256_and_si256(place, three), lane_first);
            return _mm256_and_si256(_mm256_cmpeq_epi8(place, lane_byte),
                                    _mm256_shuffle_epi8(value, value_at));
          };
          const __m256i four = _mm256_or_si256(
              kept(places, first), kept(_mm256_srli_epi32(places, 2), _mm256_add_epi8(first, one)));
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), four);
        }
      }
    }
  }
  return pairs;
}

}  // namespace

const uint8_t* expand_s8_avx2(const ExpandS8& p) {
  return p.pairs ? expand_pairs(p) : expand_masked(p);
}

}  // namespace fastinfer::cpu
