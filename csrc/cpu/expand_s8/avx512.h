// 64 bytes of a masked slice in a register, with AVX-512 VBMI, BITALG and VPOPCNTDQ. Included by
// the files of avx512bitalg.
//
// vpexpandb does this in one instruction, but it is microcoded on Zen 4: 5 cycles, in which nothing
// else goes on. What follows takes 3.3 (pairs) and 5.3 cycles there, vpdpbusd included; with
// vpexpandb it was 6.2. On Intel it takes as many shuffles more, which memory hides where few rows
// are multiplied.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fastinfer::cpu {
namespace {

// In assembly: GCC loads a mask once for all uses and moves it from one register file to the other,
// which takes longer than to load it again.
struct __attribute__((packed, may_alias)) Memory64 {
  uint64_t bits;
};
inline const Memory64& memory64(const uint8_t* p) { return *reinterpret_cast<const Memory64*>(p); }
inline __mmask64 load_mask(const uint8_t* p) {
  __mmask64 mask;
  __asm__("kmovq %1, %0" : "=k"(mask) : "m"(memory64(p)));
  return mask;
}
inline __m512i broadcast_mask(const uint8_t* p) {
  __m512i mask;
  __asm__("vpbroadcastq %1, %0" : "=v"(mask) : "m"(memory64(p)));
  return mask;
}
inline int64_t count_bits(const uint8_t* p) {
  int64_t count;
  __asm__("popcntq %1, %0" : "=r"(count) : "m"(memory64(p)));
  return count;
}

// Any mask. Byte i takes the value that as many precede as there are bits set below i: the bits
// below it in its own byte of the mask, and those of all the bytes before.
struct ExpandAny {
  // Byte q of the mask in each byte of lane q of 64 bits.
  const __m512i own = _mm512_set_epi64(0x0707070707070707, 0x0606060606060606, 0x0505050505050505,
                                       0x0404040404040404, 0x0303030303030303, 0x0202020202020202,
                                       0x0101010101010101, 0);
  const __m512i below = _mm512_set1_epi64(0x7f3f1f0f07030100);
  const __m512i before =
      _mm512_set_epi64((int64_t(1) << 56) - 1, (int64_t(1) << 48) - 1, (int64_t(1) << 40) - 1,
                       0xffffffff, 0xffffff, 0xffff, 0xff, 0);
  // The lowest byte of each lane in all of its bytes.
  const __m512i lowest = _mm512_set_epi64(0x0808080808080808, 0, 0x0808080808080808, 0,
                                          0x0808080808080808, 0, 0x0808080808080808, 0);

  __attribute__((always_inline)) __m512i operator()(const uint8_t* mask,
                                                    const uint8_t* values) const {
    const __m512i bits = broadcast_mask(mask);
    const __m512i in_byte =
        _mm512_popcnt_epi8(_mm512_and_si512(_mm512_shuffle_epi8(bits, own), below));
    const __m512i bytes_before = _mm512_popcnt_epi64(_mm512_and_si512(bits, before));
    const __m512i index = _mm512_add_epi8(in_byte, _mm512_shuffle_epi8(bytes_before, lowest));
    return _mm512_maskz_permutexvar_epi8(load_mask(mask), index, _mm512_loadu_si512(values));
  }
  static int64_t count(const uint8_t* mask) { return count_bits(mask); }
};

// Masks with 2 of every 4 bits set: lane i of 32 bits takes values 2 i and 2 i + 1; a table of its
// 4 bits says where. Zeros come from beyond the 32 values.
struct ExpandPairs {
  // The 4 bits of lane i in its lowest bits.
  const __m512i lanes =
      _mm512_set_epi32(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512i table =
      _mm512_set_epi32(0x20202020, 0x20202020, 0x20202020, 0x01002020, 0x20202020, 0x01200020,
                       0x01202000, 0x20202020, 0x20202020, 0x20010020, 0x20012000, 0x20202020,
                       0x20200100, 0x20202020, 0x20202020, 0x20202020);
  const __m512i first =
      _mm512_set_epi32(0x1e1e1e1e, 0x1c1c1c1c, 0x1a1a1a1a, 0x18181818, 0x16161616, 0x14141414,
                       0x12121212, 0x10101010, 0x0e0e0e0e, 0x0c0c0c0c, 0x0a0a0a0a, 0x08080808,
                       0x06060606, 0x04040404, 0x02020202, 0);

  __attribute__((always_inline)) __m512i operator()(const uint8_t* mask,
                                                    const uint8_t* values) const {
    const __m512i bits = _mm512_multishift_epi64_epi8(lanes, broadcast_mask(mask));
    const __m512i index = _mm512_or_si512(_mm512_permutexvar_epi32(bits, table), first);
    const __m256i kept = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    return _mm512_permutexvar_epi8(index, _mm512_zextsi256_si512(kept));
  }
  static int64_t count(const uint8_t*) { return 32; }
};

}  // namespace
}  // namespace fastinfer::cpu
