// What the 512-bit kernels of sparse weights share: unrolled loops and vpdpbusd.
#pragma once

#include <immintrin.h>

#include <utility>

#define FASTINFER_INLINE __attribute__((always_inline))

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

}  // namespace
}  // namespace fastinfer::cpu
