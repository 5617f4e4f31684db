// expand_s8_avx2: method in bytes.h, with pshufb.
#include <immintrin.h>

#include "cpu/expand_s8/bytes.h"

namespace fastinfer::cpu {

void expand_s8_avx2(const ExpandS8& p) {
  expand_by_bytes(p, [](const uint8_t* values, const uint8_t* shuffle, int8_t* out) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    const __m128i s = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(shuffle));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(v, s));
  });
}

}  // namespace fastinfer::cpu
