// Masked slices in registers, with AVX-512 VBMI2. Included by the files of avx512vbmi2.
//
// vpexpandb is microcoded on Zen 4: each time that it comes up the front end stops, for 5 to 6
// cycles a vector, but several one after another take 1.3 cycles each (measured: 6.1 cycles a step
// of load, vpexpandb and vpdpbusd by ones, 3.5 by twos, 3.4 by fours). So N of them stand together,
// in assembly for the compiler to put nothing between them. On Intel each is 2 shuffles wherever it
// stands.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/vec/avx512_stream.h"

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
inline int64_t count_bits(const uint8_t* p) {
  int64_t count;
  __asm__("popcntq %1, %0" : "=r"(count) : "m"(memory64(p)));
  return count;
}

// N vectors of up to 64 values, each by its own mask: byte i becomes the next value where bit i is
// set, 0 elsewhere.
template <int N>
void vpexpandb(__m512i (&v)[N], const __mmask64 (&mask)[N]) {
  static_assert(N == 1 || N == 3 || N == 4);
  if constexpr (N == 1) {
    __asm__("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(v[0]) : "Yk"(mask[0]));
  } else if constexpr (N == 3) {
    __asm__(
        "vpexpandb %0, %0%{%3%}%{z%}\n\t"
        "vpexpandb %1, %1%{%4%}%{z%}\n\t"
        "vpexpandb %2, %2%{%5%}%{z%}"
        : "+v"(v[0]), "+v"(v[1]), "+v"(v[2])
        : "Yk"(mask[0]), "Yk"(mask[1]), "Yk"(mask[2]));
  } else {
    __asm__(
        "vpexpandb %0, %0%{%4%}%{z%}\n\t"
        "vpexpandb %1, %1%{%5%}%{z%}\n\t"
        "vpexpandb %2, %2%{%6%}%{z%}\n\t"
        "vpexpandb %3, %3%{%7%}%{z%}"
        : "+v"(v[0]), "+v"(v[1]), "+v"(v[2]), "+v"(v[3])
        : "Yk"(mask[0]), "Yk"(mask[1]), "Yk"(mask[2]), "Yk"(mask[3]));
  }
}

// The next 64 bits of a mask and the values that they place; both pointers go on.
inline void take_masked(const uint8_t*& mask, const uint8_t*& value, __mmask64& bits,
                        __m512i& values) {
  bits = load_mask(mask);
  values = load_in_order(value);
  value += count_bits(mask);
  mask += 8;
}

// The next 64 bytes of N panels: mask[i] and value[i] say where panel i goes on.
template <int N>
void expand_panels(const uint8_t* (&mask)[N], const uint8_t* (&value)[N], __m512i (&out)[N]) {
  __mmask64 bits[N];
  for (int i = 0; i < N; ++i) take_masked(mask[i], value[i], bits[i], out[i]);
  vpexpandb<N>(out, bits);
}

// Masked slices one after another, from the one at `value` on; none begins after `last`.
//
// They ask for what comes kAheadBytes later. On Zen 4, from memory, one row, 3072 x 768 with 30 %
// of single weights: 43 us, 48 with 8192, 46 with 1024.
struct MaskedStream {
  static constexpr int64_t kAheadBytes = 3072;
  const uint8_t* value;
  const uint8_t* last;
  const uint8_t* mask = nullptr;

  // Comes to the next slice.
  void slice() {
    mask = std::min(value, last);
    value = mask + kMaskBytes;
  }
  // The next N times 64 bytes of it.
  template <int N>
  void next(__m512i (&out)[N]) {
    __builtin_prefetch(value + kAheadBytes);
    __builtin_prefetch(value + kAheadBytes + 64);
    __mmask64 bits[N];
    for (int i = 0; i < N; ++i) take_masked(mask, value, bits[i], out[i]);
    vpexpandb<N>(out, bits);
  }
};

}  // namespace
}  // namespace fastinfer::cpu
