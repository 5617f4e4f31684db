// What the kernels of gemm_w8a16 share: int8 to 16 bits in registers, fragments, the epilogue.
//
// A lane of a warp, 4 g + t, takes 16 neighbouring bytes of K at a time, those from 16 t on of a
// chunk of 64, of a row of the weight, and the same 16 elements of a row of x. They are the
// fragments of four mma.m16n8k16 whose order of K is not the memory's: in instruction j the lane's
// elements 4 j to 4 j + 3 stand where the instruction has k = 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t. Both
// operands are permuted alike, and a sum does not mind.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/device.cuh"
#include "cuda/gemm_w8a16/gemm_w8a16.h"

namespace fastinfer::cuda {
namespace {

constexpr int kChunk = 64;  // of K: 4 lanes x 16

// Four int8 as two registers of two bf16 or f16, exact.
template <DType kType>
__device__ inline void expand(uint32_t bytes, uint32_t (&pairs)[2]) {
  const uint32_t u = bytes ^ 0x80808080u;  // s + 128
  if constexpr (kType == DType::f16) {
    // 0x6400 + u is 1024 + u in f16; 0x6480 is 1024 + 128.
    pairs[0] = subtract_halves(permute_bytes(u, 0x64646464u, 0x4140), 0x64806480u);
    pairs[1] = subtract_halves(permute_bytes(u, 0x64646464u, 0x4342), 0x64806480u);
  } else {
    // 0x4b000000 + u is 2^23 + u in f32; what is left fits the upper half of a float.
    uint32_t f[4];
    for (int i = 0; i < 4; ++i) {
      const float v = DeviceVec::from_bits(permute_bytes(u, 0x4b000000u, 0x7440u + uint32_t(i)));
      f[i] = DeviceVec::to_bits(v - 8388736.0f);
    }
    pairs[0] = permute_bytes(f[0], f[1], 0x7632);
    pairs[1] = permute_bytes(f[2], f[3], 0x7632);
  }
}

__device__ inline uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// acc[i] += (16 rows of the weight) (8 rows i of x)^T over a chunk. upper, lower: bytes of rows g
// and g + 8 of the weight; x[i]: the lane's elements of row g of those 8.
template <DType kType, int kTiles>
__device__ inline void multiply_chunk(const uint4& upper, const uint4& lower,
                                      const uint4 (&x)[kTiles][2], float (&acc)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t top[2], bottom[2];
    expand<kType>(word(upper, j), top);
    expand<kType>(word(lower, j), bottom);
    const uint32_t a[4] = {top[0], bottom[0], top[1], bottom[1]};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint4& pairs = x[i][j / 2];
      mma_16bit<kType>(acc[i], a, word(pairs, j % 2 * 2), word(pairs, j % 2 * 2 + 1));
    }
  }
}

// Finishes one element; neighbouring threads should have neighbouring n.
__device__ inline void finish(const GemmW8A16& p, int64_t m, int64_t n, float acc) {
  const float bias = p.bias != nullptr ? p.bias[n] : 0.0f;
  float y = activate(p.activation, DeviceVec::fma(acc, p.w_scale[n], bias));
  const int64_t size = cpu::size_of(p.out_dtype);
  if (p.residual != nullptr) {
    const char* residual = static_cast<const char*>(p.residual);
    y += DeviceVec::load(residual + (m * p.ld_residual + n) * size, p.out_dtype);
  }
  DeviceVec::store(static_cast<char*>(p.out) + (m * p.ld_out + n) * size, p.out_dtype, y);
}

}  // namespace
}  // namespace fastinfer::cuda
