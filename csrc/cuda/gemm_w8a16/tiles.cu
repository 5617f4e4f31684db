// M > 16, 16-bit x: tiles of 64 rows of the weight x 32 or 64 rows of x, 64 of K a stage, copied by
// cp.async; the weight becomes 16 bits between shared memory and the tensor cores.
//
//   block     4 warps, each 16 rows of the weight x all rows of x
//   shared    x: rows of 128 bytes, piece i of row r at i ^ (r % 8), so that a quarter of a warp (2
//             rows, every other piece) reads each bank once; w: rows of 64 bytes, read 2 at a time
//   work      a chunk of 64 of K: 176 integer and float operations a lane (bf16) for 8 or 16 mma
//   bound     M <= 64: memory, N K bytes; above: the tensor cores, through mma.sync
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_w8a16/common.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kPiece = 16, kWarps = 4, kThreads = kWarps * kWarp, kN = 64, kStages = 5;
constexpr int kPiecesX = kChunk * 2 / kPiece, kPiecesW = kChunk / kPiece;

__device__ inline char* piece_x(char* x, int row, int index) {
  return x + (row * kPiecesX + (index ^ row % 8)) * kPiece;
}
__device__ inline char* piece_w(char* w, int row, int index) {
  return w + (row * kPiecesW + index) * kPiece;
}

template <int kM>
constexpr int stage_bytes() {
  return (kN * kPiecesW + kM * kPiecesX) * kPiece;
}

template <DType kType, int kM>
__global__ void __launch_bounds__(kThreads) w8a16_tiles_kernel(const GemmW8A16 p) {
  constexpr int kTiles = kM / 8, kLdSums = kN + 4;
  static_assert(kM * kLdSums * 4 <= kStages * stage_bytes<kM>(), "the sums lie where stages did");
  char* shared = dynamic_shared();
  const int64_t n0 = int64_t(blockIdx.x) * kN, m0 = int64_t(blockIdx.y) * kM;
  const int64_t n_pad = (p.n + 15) / 16 * 16;
  const int steps = int(p.k_pad / kChunk);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const auto* x = static_cast<const uint16_t*>(p.x);
  const auto copy = [&](int step) {
    char* w_stage = shared + step % kStages * stage_bytes<kM>();
    char* x_stage = w_stage + kN * kPiecesW * kPiece;
    const int64_t k = int64_t(step) * kChunk;
#pragma unroll
    for (int i = 0; i < kN * kPiecesW / kThreads; ++i) {
      const int at = i * kThreads + int(threadIdx.x), row = at / kPiecesW, index = at % kPiecesW;
      const bool valid = n0 + row < n_pad;
      const int8_t* source = valid ? p.w + (n0 + row) * p.k_pad + k + index * kPiece : p.w;
      copy_async(piece_w(w_stage, row, index), source, valid);
    }
#pragma unroll
    for (int i = 0; i < kM * kPiecesX / kThreads; ++i) {
      const int at = i * kThreads + int(threadIdx.x), row = at / kPiecesX, index = at % kPiecesX;
      const bool valid = m0 + row < p.m && k + index * 8 < p.k;
      const uint16_t* source = valid ? x + (m0 + row) * p.ldx + k + index * 8 : x;
      copy_async(piece_x(x_stage, row, index), source, valid);
    }
  };
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) copy(s);
    copy_commit();
  }
  float acc[kTiles][4] = {};
  for (int step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    __syncthreads();  // the stage has come for everyone, and the one before is free
    if (step + kStages - 1 < steps) copy(step + kStages - 1);
    copy_commit();
    char* w_stage = shared + step % kStages * stage_bytes<kM>();
    char* x_stage = w_stage + kN * kPiecesW * kPiece;
    const auto at = [](char* p_) { return *reinterpret_cast<const uint4*>(p_); };
    const uint4 upper = at(piece_w(w_stage, warp * 16 + g, t));
    const uint4 lower = at(piece_w(w_stage, warp * 16 + g + 8, t));
    uint4 pairs[kTiles][2];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      pairs[i][0] = at(piece_x(x_stage, i * 8 + g, t * 2));
      pairs[i][1] = at(piece_x(x_stage, i * 8 + g, t * 2 + 1));
    }
    multiply_chunk<kType>(upper, lower, pairs, acc);
  }
  copy_wait<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);  // [kM][kLdSums]
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[(i * 8 + t * 2 + e % 2) * kLdSums + warp * 16 + g + e / 2 * 8] = acc[i][e];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kM * kN; i += kThreads) {
    const int64_t m = m0 + i / kN, n = n0 + i % kN;
    if (m < p.m && n < p.n) finish(p, m, n, sums[i / kN * kLdSums + i % kN]);
  }
}

template <DType kType, int kM>
cudaError_t launch_tile(const GemmW8A16& p, cudaStream_t stream) {
  const int64_t tiles_m = (p.m + kM - 1) / kM;
  if (tiles_m > 65535) return cudaErrorInvalidValue;
  const dim3 grid(unsigned((p.n + kN - 1) / kN), unsigned(tiles_m));
  const LaunchShape shape{grid, dim3(kThreads), kStages * stage_bytes<kM>(), false};
  return launch(w8a16_tiles_kernel<kType, kM>, shape, stream, p);
}

template <DType kType>
cudaError_t launch_type(const GemmW8A16& p, cudaStream_t stream) {
  return p.m <= 32 ? launch_tile<kType, 32>(p, stream) : launch_tile<kType, 64>(p, stream);
}

}  // namespace

cudaError_t launch_w8a16_tiles(const GemmW8A16& p, cudaStream_t stream) {
  if (p.x_dtype == DType::bf16) return launch_type<DType::bf16>(p, stream);
  if (p.x_dtype == DType::f16) return launch_type<DType::f16>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fastinfer::cuda
