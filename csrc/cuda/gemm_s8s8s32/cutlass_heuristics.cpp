#include "cuda/gemm_s8s8s32/cutlass_heuristics.h"

#include <algorithm>
#include <limits>

#include "cpu/ceil_div.h"

namespace fastinfer::cuda {

namespace {

// A cost model in cycles of one multiprocessor of an H100. Only the first figure is NVIDIA's; no
// other has been measured here.
constexpr double kMacsPerCycle = 4096;    // wgmma, int8
constexpr double kL2BytesPerCycle = 26;   // 5.5 to 6 TB/s for all, as others have measured it
constexpr double kCyclesPerOutput = 0.2;  // 25 instructions on 128 lanes
constexpr double kCyclesToBegin = 2000;   // launch, first tiles from memory
// Stream-K launches a memset before it, about 1.5 us.
constexpr double kCyclesToClear = 2500;

// Tiles in whole squares of `swizzle` clusters; those beyond the matrix cost as much as others.
int64_t count_tiles(const CutlassTileShape& shape, int64_t m, int64_t n, int swizzle) {
  return round_up(ceil_div(m, shape.m), shape.cluster_m * swizzle) *
         round_up(ceil_div(n, shape.n), shape.cluster_n * swizzle);
}

int blocks_at_once(const CutlassTileShape& shape, int multiprocessors) {
  return std::max(1, multiprocessors / shape.cluster()) * shape.cluster();
}

// The largest that adds no wave of tiles and that CUTLASS will not make smaller.
int swizzle_for(const CutlassTileShape& shape, int64_t m, int64_t n, int multiprocessors) {
  const int64_t blocks = blocks_at_once(shape, multiprocessors);
  const int64_t waves = ceil_div(count_tiles(shape, m, n, 1), blocks);
  const int64_t least_side = std::min(round_up(ceil_div(m, shape.m), shape.cluster_m),
                                      round_up(ceil_div(n, shape.n), shape.cluster_n));
  for (int swizzle = 8; swizzle > 1; swizzle /= 2) {
    if (least_side >= swizzle && ceil_div(count_tiles(shape, m, n, swizzle), blocks) == waves) {
      return swizzle;
    }
  }
  return 1;
}

struct TileCycles {
  double step;     // of kCutlassStepK
  double finish;   // the epilogue
  double partial;  // sums to memory and back
};

TileCycles tile_cycles(const CutlassTileShape& shape, int64_t m, int64_t n) {
  const double outputs = double(shape.m) * shape.n;
  const double multiply = outputs * kCutlassStepK / kMacsPerCycle;
  // Rows beyond the matrix are not read.
  const double rows = double(std::min<int64_t>(shape.m, m)) / shape.cluster_n +
                      double(std::min<int64_t>(shape.n, n)) / shape.cluster_m;
  const double read = rows * kCutlassStepK / kL2BytesPerCycle;
  return {std::max(multiply, read), outputs * kCyclesPerOutput, outputs * 8 / kL2BytesPerCycle};
}

// PersistentTileSchedulerSm90StreamKParams, in short: the last wave, where it is not full, and the
// one before it are cut into as many equal pieces as there are blocks.
double stream_k_cycles(const TileCycles& cycles, int64_t tiles, int64_t steps, int64_t blocks,
                       int cluster) {
  const int64_t full_waves = tiles / blocks;
  if (tiles % blocks == 0 || steps <= kCutlassLeastSteps) {
    return double(ceil_div(tiles, blocks)) * (double(steps) * cycles.step + cycles.finish);
  }
  const int64_t whole_waves = std::max<int64_t>(0, full_waves - 1);
  const int64_t cut_tiles = tiles - whole_waves * blocks;
  const int64_t pieces =
      std::min(blocks, cut_tiles * steps / kCutlassLeastSteps / cluster * cluster);
  const double share = double(cut_tiles) / double(std::max<int64_t>(1, pieces));
  return double(whole_waves) * (double(steps) * cycles.step + cycles.finish) +
         share * double(steps) * cycles.step + double(ceil_div(cut_tiles, pieces)) * cycles.finish +
         cycles.partial + kCyclesToClear;
}

}  // namespace

bool cutlass_fits(const GemmS8S8S32& p) {
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  if (p.m < 1 || p.n < 1 || p.k_pad < 64 || p.k_pad % 64 != 0) return false;
  if (std::max({p.m, p.n, p.k_pad}) > std::numeric_limits<int32_t>::max()) return false;
  if (p.multiplier != nullptr || !aligned(p.a) || !aligned(p.w) || !aligned(p.out)) return false;
  if (p.out_dtype == DType::s8 || p.out_dtype == DType::s32) return false;
  const int64_t size = cpu::size_of(p.out_dtype);
  if (p.n * size % 16 != 0 || p.ld_out * size % 16 != 0 || p.ld_out < p.n) return false;
  return p.residual == nullptr ||
         (aligned(p.residual) && p.ld_residual * size % 16 == 0 && p.ld_residual >= p.n);
}

double cutlass_cycles(CutlassTile tile, int64_t m, int64_t n, int64_t k_pad, int multiprocessors) {
  const CutlassTileShape& shape = kCutlassTileShapes[int(tile)];
  const TileCycles cycles = tile_cycles(shape, m, n);
  const int64_t tiles = count_tiles(shape, m, n, 1), steps = ceil_div(k_pad, kCutlassStepK);
  const int64_t blocks = blocks_at_once(shape, multiprocessors);
  const double multiply = double(steps) * cycles.step, waves = double(ceil_div(tiles, blocks));
  switch (tile) {
    case CutlassTile::m128n256: return kCyclesToBegin + waves * (multiply + cycles.finish);
    case CutlassTile::m128n128:
      return kCyclesToBegin + waves * std::max(multiply, cycles.finish) + cycles.finish;
    case CutlassTile::m128n128_stream_k: break;
  }
  return kCyclesToBegin + stream_k_cycles(cycles, tiles, steps, blocks, shape.cluster());
}

CutlassPlan plan_cutlass(int64_t m, int64_t n, int64_t k_pad, int multiprocessors) {
  CutlassPlan plan{CutlassTile::m128n256, 1, multiprocessors};
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kCutlassTileCount; ++i) {
    const double cycles = cutlass_cycles(CutlassTile(i), m, n, k_pad, multiprocessors);
    if (cycles < least) {
      least = cycles;
      plan.tile = CutlassTile(i);
    }
  }
  // Tiles that are cut along K are few: their order matters less than those it would add.
  if (plan.tile != CutlassTile::m128n128_stream_k) {
    plan.swizzle = swizzle_for(kCutlassTileShapes[int(plan.tile)], m, n, multiprocessors);
  }
  return plan;
}

}  // namespace fastinfer::cuda
