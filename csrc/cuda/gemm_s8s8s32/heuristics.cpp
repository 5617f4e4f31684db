#include "cuda/gemm_s8s8s32/heuristics.h"

#include <algorithm>

#include "cpu/ceil_div.h"

namespace fastinfer::cuda {

namespace {

// Blocks that should be under way on a multiprocessor, so that enough bytes are: at 4.8 TB/s and
// 800 ns a multiprocessor of 132 wants 29 KB in flight, and a block of 64 weight rows has
// (stages - 1) * 8 KB.
constexpr int kBlocksPerMultiprocessor = 2;
// Less than this of K a split and the sums cost more to add up than to form.
constexpr int64_t kLeastKPerSplit = 4 * kBlockK;
constexpr int kMostSplits = 16;

// k_step: what a warp takes of K a step; two steps keep it busy.
int gemv_warps_per_row(int64_t n, int64_t k_pad, int64_t k_step, int multiprocessors) {
  int warps = 1;
  while (warps < kGemvWarps && k_pad >= warps * 4 * k_step &&
         ceil_div(n * warps, kGemvRows * kGemvWarps) <
             int64_t(multiprocessors) * 2 * kBlocksPerMultiprocessor) {
    warps *= 2;
  }
  return warps;
}

GemmPlan plan_gemv(int64_t n, int64_t k_pad, int multiprocessors) {
  GemmPlan plan{};
  plan.gemv = true;
  plan.splits = 1;
  plan.k_per_split = k_pad;
  plan.warps_per_row = gemv_warps_per_row(n, k_pad, 512, multiprocessors);
  return plan;
}

// Warps that should be under way on a multiprocessor: one of few_sp24.cu has 2.5 KB in flight, and
// 29 KB are wanted (above); twice that, since a warp that multiplies loads nothing.
constexpr int kSp24WarpsPerMultiprocessor = 24;

int sp24_warps(int64_t n, int64_t k_pad, int multiprocessors) {
  int warps = 4;
  while (warps < kSp24MostWarps && k_pad >= warps * 2 * kSp24WarpK &&
         ceil_div(n, 16) * warps < int64_t(multiprocessors) * kSp24WarpsPerMultiprocessor) {
    warps *= 2;
  }
  return warps;
}

int tile_for(int64_t m, int64_t n, int multiprocessors) {
  if (m <= 16) return 0;
  if (m <= 32) return 1;
  const bool few = ceil_div(m, 128) * ceil_div(n, 128) < multiprocessors;
  return m <= 64 || few ? 2 : 3;
}

}  // namespace

GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k_pad, int multiprocessors) {
  if (m <= kGemvMostM) return plan_gemv(n, k_pad, multiprocessors);
  GemmPlan plan{};
  plan.tile = tile_for(m, n, multiprocessors);
  const TileShape& shape = kTileShapes[plan.tile];
  const int64_t tiles = ceil_div(m, shape.block_m) * ceil_div(n, shape.block_n);
  const int64_t wanted = int64_t(multiprocessors) * kBlocksPerMultiprocessor;
  const int64_t most = std::clamp<int64_t>(k_pad / kLeastKPerSplit, 1, kMostSplits);
  const int64_t splits = std::clamp<int64_t>(wanted / tiles, 1, most);
  plan.k_per_split =
      std::max<int64_t>(kBlockK, ceil_div(ceil_div(k_pad, kBlockK), splits) * kBlockK);
  plan.splits = int(std::max<int64_t>(1, ceil_div(k_pad, plan.k_per_split)));
  if (plan.splits > 1) {
    plan.tiles = tiles;
    plan.partial_bytes = tiles * plan.splits * shape.block_m * shape.block_n * 4;
  }
  return plan;
}

Sp24Plan plan_gemm_sp24(int64_t m, int64_t n, int64_t k_pad, int multiprocessors) {
  Sp24Plan plan{};
  if (m <= kGemvMostM) {
    plan.gemv = true;
    plan.warps_per_row = gemv_warps_per_row(n, k_pad, 1024, multiprocessors);
  } else if (m <= kSp24FewMostM) {
    plan.warps = sp24_warps(n, k_pad, multiprocessors);
  } else {
    plan.dense_bytes = ceil_div(n, 16) * 16 * k_pad;
    plan.dense = plan_gemm(m, n, k_pad, multiprocessors);
  }
  return plan;
}

}  // namespace fastinfer::cuda
