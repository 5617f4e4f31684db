#include "cuda/gemm_s8s8s32/heuristics.h"

#include <algorithm>

namespace fastinfer::cuda {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks that should be under way on a multiprocessor, so that enough bytes are: at 4.8 TB/s and
// 800 ns a multiprocessor of 132 wants 29 KB in flight, and a block of 64 weight rows has
// (stages - 1) * 8 KB.
constexpr int kBlocksPerMultiprocessor = 2;
// Less than this of K a split and the sums cost more to add up than to form.
constexpr int64_t kLeastKPerSplit = 4 * kBlockK;
constexpr int kMostSplits = 16;

GemmPlan plan_gemv(int64_t n, int64_t k_pad, int multiprocessors) {
  GemmPlan plan{};
  plan.gemv = true;
  plan.splits = 1;
  plan.k_per_split = k_pad;
  plan.warps_per_row = 1;
  // A warp takes 512 bytes of K a step; two steps keep it busy.
  while (plan.warps_per_row < kGemvWarps && k_pad >= int64_t(plan.warps_per_row) * 2048 &&
         ceil_div(n * plan.warps_per_row, kGemvRows * kGemvWarps) <
             int64_t(multiprocessors) * 2 * kBlocksPerMultiprocessor) {
    plan.warps_per_row *= 2;
  }
  return plan;
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
  plan.k_per_split = ceil_div(ceil_div(k_pad, kBlockK), splits) * kBlockK;
  plan.splits = int(std::max<int64_t>(1, ceil_div(k_pad, plan.k_per_split)));
  if (plan.splits > 1) {
    plan.tiles = tiles;
    plan.partial_bytes = tiles * plan.splits * shape.block_m * shape.block_n * 4;
  }
  return plan;
}

}  // namespace fastinfer::cuda
