// Reading a stream from memory with AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fastinfer::cpu {
namespace {

// Loads that stay in their place among others of these: GCC reorders loads, and prefetchers follow
// a stream best when its lines come in order (a dense weight with one row on Zen 4: 33 GB/s instead
// of 28).
struct __attribute__((packed, may_alias)) Bytes64 {
  uint8_t bytes[64];
};
inline __m512i load_in_order(const void* p) {
  __m512i v;
  __asm__ volatile("vmovdqu64 %1, %0" : "=v"(v) : "m"(*static_cast<const Bytes64*>(p)));
  return v;
}

}  // namespace
}  // namespace fastinfer::cpu
