// Which CUTLASS kernel (cutlass.h) multiplies, and what they take: plain C++.
#pragma once

#include <cstdint>

#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cuda {

enum class CutlassTile : int32_t {
  m128n256 = 0,           // two warpgroups share a tile: least traffic from L2
  m128n128 = 1,           // one tile a warpgroup: one finishes while the other multiplies
  m128n128_stream_k = 2,  // two share a tile, and K is cut where multiprocessors would idle
};
constexpr int kCutlassTileCount = 3;

// Rows of x and of the weight that a block multiplies, and how many blocks of a cluster lie side by
// side in either direction and share what they read.
struct CutlassTileShape {
  int m, n, cluster_m, cluster_n;

  constexpr int cluster() const { return cluster_m * cluster_n; }
};
// By CutlassTile. Stream-K has its clusters along N, so that one row of tiles fills them.
constexpr CutlassTileShape kCutlassTileShapes[kCutlassTileCount] = {
    {128, 256, 2, 1},
    {128, 128, 2, 1},
    {128, 128, 1, 2},
};
constexpr int kCutlassStepK = 128;
// CUTLASS's stream-K cuts off no fewer steps of K than these.
constexpr int kCutlassLeastSteps = 8;

// From so many rows on CUTLASS multiplies, where it can.
constexpr int64_t kCutlassLeastM = 65;

struct CutlassPlan {
  CutlassTile tile;
  int swizzle;          // tiles are taken in squares of 1, 2, 4 or 8 clusters, which stay in L2
  int multiprocessors;  // of the GPU
};

// Whether the kernels can: TMA wants a, w, out and residual 16-byte aligned, rows of out and
// residual a multiple of 16 bytes long and apart; there is no multiplier.
bool cutlass_fits(const GemmS8S8S32& p);

// The fastest plan by cutlass_cycles. m, n >= 1, k_pad a positive multiple of 64, multiprocessors
// >= 2.
CutlassPlan plan_cutlass(int64_t m, int64_t n, int64_t k_pad, int multiprocessors);

// Cycles that a tile is thought to take.
double cutlass_cycles(CutlassTile tile, int64_t m, int64_t n, int64_t k_pad, int multiprocessors);

}  // namespace fastinfer::cuda
