// M > 4: tiles of int32 sums by mma.sync.m16n8k32, the weight as its operand of 16 rows, so that 8
// rows of x fill an instruction. The one kernel for sm_80 to sm_120, whatever M is.
//
//   block     TileShape (heuristics.h): block_n rows of w x block_m rows of x, 128 bytes of K a
//   stage stages    copied by cp.async, all but one on their way while that one is multiplied;
//   those of
//             the weight begin before the kernel that quantises x has ended
//   shared    rows of 128 bytes; the 16-byte piece i of row r lies at piece i ^ (r % 8), so that
//             the 8 rows that ldmatrix reads at once lie in different banks
//   splits    of K along grid.z: each leaves its int32 sums in memory, the last one to finish a
//             tile adds them up, exact in any order, and finishes the tile
//   bound     M <= 64: memory, N K bytes; above: the tensor cores
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/epilogue.cuh"
#include "cuda/gemm_s8s8s32/launch.h"

namespace fastinfer::cuda {
namespace {

constexpr int kPiece = 16, kPieces = kBlockK / kPiece;

__device__ inline char* piece(char* tile, int row, int index) {
  return tile + row * kBlockK + (index ^ row % 8) * kPiece;
}

template <int kTile>
struct Tiles {
  static constexpr TileShape shape = kTileShapes[kTile];
  static constexpr int kN = shape.block_n, kM = shape.block_m, kThreads = shape.threads();
  static constexpr int kStages = shape.stages, kStageBytes = (kN + kM) * kBlockK;
  static constexpr int kWarpN = kN / shape.warps_n, kWarpM = kM / shape.warps_m;
  static constexpr int kAcross = kWarpN / 16, kPairs = kWarpM / 16;
  static constexpr int kLdSums = kN + 4;  // of the sums in shared memory
  static_assert(kWarpN % 16 == 0 && kWarpM % 16 == 0, "whole fragments");
  static_assert(kM * kLdSums * 4 <= kStages * kStageBytes, "the sums lie where the stages did");

  // Starts copying kRows rows of 128 bytes; zeros past the last row and past k_end.
  template <int kRows>
  __device__ static void copy(char* to, const int8_t* from, int64_t first, int64_t rows,
                              int64_t k_pad, int64_t k, int64_t k_end) {
    static_assert(kRows * kPieces % kThreads == 0, "every thread copies as much");
#pragma unroll
    for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
      const int at = i * kThreads + int(threadIdx.x), row = at / kPieces, index = at % kPieces;
      const bool valid = first + row < rows && k + index * kPiece < k_end;
      // Of what is not valid nothing is read; its address is one that is.
      const int8_t* source = valid ? from + (first + row) * k_pad + k + index * kPiece : from;
      copy_async(piece(to, row, index), source, valid);
    }
  }

  __device__ static void multiply(char* stage, int warp_n, int warp_m,
                                  int32_t (&acc)[kAcross][2 * kPairs][4]) {
    char *w = stage, *x = stage + kN * kBlockK;
    const int lane = threadIdx.x % kWarp, row = lane % 16, half = lane / 16;
#pragma unroll
    for (int k = 0; k < kPieces; k += 2) {
      uint32_t a[kAcross][4], b[kPairs][4];
#pragma unroll
      for (int i = 0; i < kAcross; ++i) {
        load_matrix(a[i], piece(w, warp_n * kWarpN + i * 16 + row, k + half));
      }
#pragma unroll
      for (int j = 0; j < kPairs; ++j) {
        load_matrix(b[j], piece(x, warp_m * kWarpM + j * 16 + row, k + half));
      }
#pragma unroll
      for (int i = 0; i < kAcross; ++i) {
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
          mma_s8(acc[i][2 * j], a[i], b[j][0], b[j][2]);
          mma_s8(acc[i][2 * j + 1], a[i], b[j][1], b[j][3]);
        }
      }
    }
  }
};

template <int kTile>
__global__ void __launch_bounds__(Tiles<kTile>::kThreads)
    tiles_kernel(const GemmS8S8S32 p, const int splits, const int64_t k_per_split,
                 const GemmWorkspace workspace) {
  using T = Tiles<kTile>;
  char* shared = dynamic_shared();
  const int64_t n0 = int64_t(blockIdx.x) * T::kN, m0 = int64_t(blockIdx.y) * T::kM;
  const int64_t k_begin = int64_t(blockIdx.z) * k_per_split;
  const int64_t k_end = k_begin + k_per_split < p.k_pad ? k_begin + k_per_split : p.k_pad;
  const int steps = int((k_end - k_begin + kBlockK - 1) / kBlockK);
  const int64_t n_pad = (p.n + 15) / 16 * 16;
  const auto copy_w = [&](int step) {
    char* stage = shared + step % T::kStages * T::kStageBytes;
    T::template copy<T::kN>(stage, p.w, n0, n_pad, p.k_pad, k_begin + step * kBlockK, k_end);
  };
  const auto copy_x = [&](int step) {
    char* stage = shared + step % T::kStages * T::kStageBytes + T::kN * kBlockK;
    T::template copy<T::kM>(stage, p.a, m0, p.m, p.k_pad, k_begin + step * kBlockK, k_end);
  };
  for (int s = 0; s < T::kStages - 1 && s < steps; ++s) copy_w(s);
  wait_for_previous_kernel();
  for (int s = 0; s < T::kStages - 1; ++s) {  // the first group holds the weight of all of them
    if (s < steps) copy_x(s);
    copy_commit();
  }
  int32_t acc[T::kAcross][2 * T::kPairs][4] = {};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_n = warp % T::shape.warps_n, warp_m = warp / T::shape.warps_n;
  for (int step = 0; step < steps; ++step) {
    copy_wait<T::kStages - 2>();
    __syncthreads();  // the stage has come for everyone, and the one before is free
    if (step + T::kStages - 1 < steps) {
      copy_w(step + T::kStages - 1);
      copy_x(step + T::kStages - 1);
    }
    copy_commit();
    T::multiply(shared + step % T::kStages * T::kStageBytes, warp_n, warp_m, acc);
  }
  let_next_kernel_begin();
  copy_wait<0>();
  __syncthreads();
  int32_t* sums = reinterpret_cast<int32_t*>(shared);  // [kM][kLdSums]
#pragma unroll
  for (int i = 0; i < T::kAcross; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * T::kPairs; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int n = warp_n * T::kWarpN + i * 16 + lane / 4 + e / 2 * 8;
        const int m = warp_m * T::kWarpM + j * 8 + lane % 4 * 2 + e % 2;
        sums[m * T::kLdSums + n] = acc[i][j][e];
      }
    }
  }
  __syncthreads();
  constexpr int kElements = T::kM * T::kN;
  const auto at = [](int i) { return i / T::kN * T::kLdSums + i % T::kN; };
  if (splits > 1) {
    const int64_t tile = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    int32_t* partials = workspace.partials + tile * splits * kElements;
    for (int i = threadIdx.x; i < kElements; i += T::kThreads) {
      partials[int64_t(blockIdx.z) * kElements + i] = sums[at(i)];
    }
    __threadfence();
    __syncthreads();
    const int arrived = threadIdx.x == 0 ? atomicAdd(workspace.counters + tile, 1) : 0;
    if (__syncthreads_or(arrived == splits - 1) == 0) return;
    __threadfence();
    for (int i = threadIdx.x; i < kElements; i += T::kThreads) {
      int32_t sum = sums[at(i)];
      for (int z = 0; z < splits; ++z) {
        if (z != int(blockIdx.z)) sum += load_shared_between_blocks(partials + z * kElements + i);
      }
      sums[at(i)] = sum;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kElements; i += T::kThreads) {
    const int64_t m = m0 + i / T::kN, n = n0 + i % T::kN;
    if (m < p.m && n < p.n) finish(p, m, n, sums[at(i)]);
  }
}

template <int kTile>
cudaError_t launch_tile(const GemmS8S8S32& p, const GemmPlan& plan, const GemmWorkspace& workspace,
                        bool dependent, cudaStream_t stream) {
  constexpr TileShape tile = kTileShapes[kTile];
  const dim3 grid(unsigned((p.n + tile.block_n - 1) / tile.block_n),
                  unsigned((p.m + tile.block_m - 1) / tile.block_m), unsigned(plan.splits));
  const LaunchShape shape{grid, dim3(tile.threads()), tile.shared_bytes(), dependent};
  return launch(tiles_kernel<kTile>, shape, stream, p, plan.splits, plan.k_per_split, workspace);
}

}  // namespace

cudaError_t launch_tiles(const GemmS8S8S32& p, const GemmPlan& plan, const GemmWorkspace& workspace,
                         bool dependent, cudaStream_t stream) {
  static_assert(kTileShapeCount == 4, "one case below for each");
  switch (plan.tile) {
    case 0: return launch_tile<0>(p, plan, workspace, dependent, stream);
    case 1: return launch_tile<1>(p, plan, workspace, dependent, stream);
    case 2: return launch_tile<2>(p, plan, workspace, dependent, stream);
    case 3: return launch_tile<3>(p, plan, workspace, dependent, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace fastinfer::cuda
