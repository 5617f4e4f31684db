// Masked slices in registers, with AVX-512 VBMI2. Included by the files of avx512vbmi2.
//
// vpexpandb is microcoded on Zen 4: each time that it comes up the front end stops, for 5 to 6
// cycles a vector, but several one after another take 1.3 cycles each (measured: 6.1 cycles a step
// of load, vpexpandb and vpdpbusd by ones, 3.5 by twos, 3.4 by fours). So N of them stand together,
// in assembly for the compiler to put nothing between them. On Intel each is 2 shuffles wherever it
// stands.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/vec/avx512.h"

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

// The next 64 bytes of N panels: mask[i] and value[i] say where panel i goes on, and move.
template <int N>
void expand_panels(const uint8_t* (&mask)[N], const uint8_t* (&value)[N], __m512i (&out)[N]) {
  __mmask64 bits[N];
  for (int i = 0; i < N; ++i) {
    bits[i] = load_mask(mask[i]);
    out[i] = _mm512_loadu_si512(value[i]);
    value[i] += count_bits(mask[i]);
    mask[i] += 8;
  }
  vpexpandb<N>(out, bits);
}

// The next N times 64 bytes of one panel. kPairs: each is of 32 values, as in sp24, so that none
// has to be counted and less to be read.
template <int N, bool kPairs = false>
void expand_steps(const uint8_t*& mask, const uint8_t*& value, __m512i (&out)[N]) {
  __mmask64 bits[N];
  for (int i = 0; i < N; ++i) {
    bits[i] = load_mask(mask);
    out[i] = kPairs ? load_half_in_order(value) : load_in_order(value);
    value += kPairs ? 32 : count_bits(mask);
    mask += 8;
  }
  vpexpandb<N>(out, bits);
}

}  // namespace
}  // namespace fastinfer::cpu
