// What the 512-bit kernels share: the register of x86_vnni.h, unrolled loops and vpdpbusd.
#pragma once

#include <immintrin.h>

#include <cstring>
#include <utility>

#include "cpu/inline.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {
namespace {

// body(0) ... body(N - 1), each a constant: GCC 12 unrolls outer loops too late for the arrays in
// them to become registers.
template <class Body, int... I>
FASTINFER_INLINE inline void each(std::integer_sequence<int, I...>, Body&& body) {
  (body(std::integral_constant<int, I>()), ...);
}
template <int N, class Body>
FASTINFER_INLINE inline void each(Body&& body) {
  each(std::make_integer_sequence<int, N>(), body);
}

// In assembly: GCC 12 copies each sum around the intrinsic. By value: a reference would keep the
// sums in memory.
inline __m512i dpbusd(__m512i acc_s32, __m512i a_u8, __m512i b_s8) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc_s32) : "v"(a_u8), "v"(b_s8));
  return acc_s32;
}

// 4 bytes of a row in every lane.
FASTINFER_INLINE inline __m512i broadcast_four(const int8_t* row) {
  int32_t four;
  std::memcpy(&four, row, 4);
  return _mm512_set1_epi32(four);
}

// The `R` of x86_vnni.h.
struct Zmm {
  using reg = __m512i;
  using Vec = Avx512Vec;
  static constexpr int kMaxRows = 8;
  static constexpr int panels(int mr) { return mr <= 2 ? 8 : mr <= 6 ? 4 : 3; }

  static reg load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, reg v) { _mm512_storeu_si512(p, v); }
  static __m512 to_float(reg v) { return _mm512_cvtepi32_ps(v); }
  static reg broadcast(int32_t four) { return _mm512_set1_epi32(four); }
  // In assembly: GCC 12 copies each sum around the intrinsic.
  static void dpbusd(reg& acc, reg a_u8, reg b_s8) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a_u8), "v"(b_s8));
  }
};

}  // namespace
}  // namespace fastinfer::cpu
