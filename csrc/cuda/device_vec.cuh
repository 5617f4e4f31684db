// cpu/vec/scalar.h on a GPU.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "cpu/vec/scalar.h"

namespace fastinfer::cuda {

using cpu::DType;

namespace {

// One float at a time, as cpu/vec/scalar.h: the same bits, by the GPU's own conversions.
struct DeviceVec : cpu::ScalarVec {
#ifdef __CUDA_ARCH__
  __device__ static F load(const void* p, DType dtype) {
    if (dtype == DType::f32) return *static_cast<const float*>(p);
    const uint16_t half = *static_cast<const uint16_t*>(p);
    if (dtype == DType::bf16) return __uint_as_float(uint32_t(half) << 16);
    return __half2float(__ushort_as_half(half));
  }
  __device__ static void store(void* p, DType dtype, F v) {
    if (dtype == DType::f32) {
      *static_cast<float*>(p) = v;
    } else if (dtype == DType::bf16) {
      *static_cast<uint16_t*>(p) = __bfloat16_as_ushort(__float2bfloat16_rn(v));
    } else {
      *static_cast<uint16_t*>(p) = __half_as_ushort(__float2half_rn(v));
    }
  }
#endif
  // Two elements of a 16-bit type as `store` leaves them, the first in the lower half.
  __device__ static uint32_t pack(F a, F b, DType dtype) {
#ifdef __CUDA_ARCH__
    uint32_t word;
    if (dtype == DType::bf16) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
    }
    return word;
#else
    const auto half = [dtype](F v) { return dtype == DType::bf16 ? to_bf16(v) : to_f16(v); };
    return uint32_t(half(b)) << 16 | half(a);
#endif
  }
};

}  // namespace
}  // namespace fastinfer::cuda
