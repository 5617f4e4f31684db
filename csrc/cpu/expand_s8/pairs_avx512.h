// Slices of pairs (gemm_s8s8s32/pack.h) in registers, with AVX-512. Included by the files of
// avx512vbmi2.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/inline.h"

namespace fastinfer::cpu {
namespace {

constexpr int kPairsK = 8;  // of K that 16 bytes of index and 64 of values are

// 16 columns x 4 of K put together: the index shifted (vpsrlvd) so that the lowest 4 bits of a lane
// are the two places in it, which take its shuffle from a table (vpermd), which places the values
// (vpshufb). Two shuffles, 2 cycles; vpexpandb and its mask take 3 on Intel.
class PairsExpander {
 public:
  PairsExpander() {
    alignas(64) int32_t table[2][16], shift[2][16], first[16];
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 16; ++i) {
        uint32_t bytes = 0;
        for (int byte = 3; byte >= 0; --byte) {
          const int value = byte == (i & 3) ? 0 : byte == i >> 2 ? 1 : 0x80;
          bytes = bytes << 8 | uint32_t(value | 2 * half);
        }
        table[half][i] = int32_t(bytes);
        shift[half][i] = i / 4 * 8 + half * 4;
        first[i] = i % 4 * 0x04040404;
      }
    }
    for (int half = 0; half < 2; ++half) {
      table_[half] = _mm512_load_si512(table[half]);
      shift_[half] = _mm512_load_si512(shift[half]);
    }
    first_ = _mm512_load_si512(first);
  }

  // The first or the second 4 of K of a step of a slice.
  FASTINFER_INLINE __m512i four(const uint8_t* slice, int step, int half) const {
    const __m512i index = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(slice + step * 16)));
    const __m512i values = _mm512_loadu_si512(slice + kPairsIndexBytes + step * 64);
    const __m512i places = _mm512_srlv_epi32(index, shift_[half]);
    const __m512i shuffle = _mm512_permutexvar_epi32(places, table_[half]);
    return _mm512_shuffle_epi8(values, _mm512_or_si512(shuffle, first_));
  }

 private:
  __m512i table_[2], shift_[2], first_;
};

}  // namespace
}  // namespace fastinfer::cpu
