// Which kernel multiplies, and in what pieces: all of the tuning of the family, in plain C++.
#pragma once

#include <cstdint>

namespace fastinfer::cuda {

// A block of the tile kernel: block_n rows of the weight x block_m rows of x, 128 bytes of K at a
// time, `stages` of them on their way.
struct TileShape {
  int block_n, block_m, warps_n, warps_m, stages;

  constexpr int threads() const { return warps_n * warps_m * 32; }
  constexpr int shared_bytes() const { return (block_n + block_m) * 128 * stages; }
};

constexpr int kBlockK = 128;  // bytes of K of a stage

// By the index that a plan names; the launcher has an instance of each. Shared memory: 99 KiB,
// which is what a block may have on compute capability 8.6, 8.9 and 12.
constexpr TileShape kTileShapes[] = {
    {64, 16, 4, 1, 6},
    {64, 32, 4, 1, 6},
    {64, 64, 2, 2, 5},
    {128, 128, 4, 2, 3},
};
constexpr int kTileShapeCount = int(sizeof kTileShapes / sizeof *kTileShapes);

constexpr int kGemvRows = 4;   // rows of the weight a warp
constexpr int kGemvWarps = 4;  // of a block
constexpr int kGemvMostM = 4;

struct GemmPlan {
  bool gemv;
  int warps_per_row;      // gemv: 1, 2 or 4 warps share a row of the weight
  int tile;               // else: into kTileShapes
  int splits;             // of K, 1 or more
  int64_t k_per_split;    // bytes, a multiple of kBlockK
  int64_t tiles;          // counters that the kernel wants at zero; 0 without splits
  int64_t partial_bytes;  // of the int32 sums that splits leave to the last of them
};

// m, n >= 1; k_pad a multiple of 64; multiprocessors: of the GPU.
GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k_pad, int multiprocessors);

constexpr int kSp24FewMostM = 16;
constexpr int kSp24WarpK = 256;     // of K that a warp of few_sp24.cu takes at a time
constexpr int kSp24MostWarps = 16;  // of its block

// Of a weight in the layout "cuda_sp24" (sp24.h).
struct Sp24Plan {
  bool gemv;
  int warps_per_row;    // gemv: 1, 2 or 4 warps share a row of the weight
  int warps;            // few rows: of a block, sharing K; 0 otherwise
  int64_t dense_bytes;  // else: of the weight as rows
  GemmPlan dense;       // and of the product with those
};
Sp24Plan plan_gemm_sp24(int64_t m, int64_t n, int64_t k_pad, int multiprocessors);

}  // namespace fastinfer::cuda
