// How the kernels for few rows end: the parts of lanes and warps put together, and finished.
#pragma once

#include "cuda/gemm_s8s8s32/epilogue.cuh"
#include "cuda/gemm_s8s8s32/heuristics.h"

namespace fastinfer::cuda {
namespace {

constexpr int kGemvThreads = kGemvWarps * kWarp;

// acc[m][r]: what this lane has of the sum of row m of x and row r of the warp's part of the
// weight. `warps_per_row` neighbouring warps share kGemvRows rows.
template <int kM>
__device__ inline void finish_gemv(const GemmS8S8S32& p, int warps_per_row,
                                   int32_t (&acc)[kM][kGemvRows]) {
  __shared__ int32_t sums[kGemvWarps][kM][kGemvRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < kGemvRows; ++r) {
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        acc[m][r] += shuffle_xor(acc[m][r], lanes);
      }
      if (lane == 0) sums[warp][m][r] = acc[m][r];
    }
  }
  __syncthreads();
  const int columns = kGemvWarps / warps_per_row * kGemvRows;
  const int64_t first = int64_t(blockIdx.x) * columns;
  for (int i = threadIdx.x; i < kM * columns; i += kGemvThreads) {
    const int m = i / columns, n = i % columns;
    if (first + n >= p.n) continue;
    int32_t sum = 0;
    for (int w = 0; w < warps_per_row; ++w) {
      sum += sums[n / kGemvRows * warps_per_row + w][m][n % kGemvRows];
    }
    finish(p, m, first + n, sum);
  }
}

}  // namespace
}  // namespace fastinfer::cuda
