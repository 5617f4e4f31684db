// M <= 16, 16-bit x: the weight is read once, 16 bytes a lane, and multiplied by mma.m16n8k16 as
// the operand of 16 rows; x comes from L1.
//
//   block    8 warps share 16 rows of the weight: warp i takes chunks i, i + 8, ... of 64 of K
//   warp     kAhead chunks of both halves of the rows in flight: 2 kAhead loads of 16 bytes a lane
//   sums     the warps' parts added in the order of the warps, so a result is the same every time
//   work     per 16 bytes of weight: 44 integer and float operations (bf16; f16: 20) and 4 mma
//   bound    memory: N K bytes. 512 blocks of N = 8192 put 31 warps on a multiprocessor: 63 KB in
//            flight
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_w8a16/common.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kRows = 16, kAhead = 2;

// kTiles: of 8 rows of x.
template <DType kType, int kTiles>
__global__ void __launch_bounds__(kThreads) few_kernel(const GemmW8A16 p) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int64_t n0 = int64_t(blockIdx.x) * kRows;  // rows up to N rounded up to 16 are there
  const int8_t* upper = p.w + (n0 + g) * p.k_pad + t * 16;
  const int8_t* lower = upper + 8 * p.k_pad;
  const uint16_t* x = static_cast<const uint16_t*>(p.x);
  float acc[kTiles][4] = {};
  constexpr int64_t kStep = kWarps * kChunk;
  for (int64_t k = warp * kChunk; k < p.k_pad; k += kAhead * kStep) {
    uint4 w[kAhead][2];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const bool inside = k + i * kStep < p.k_pad;
      w[i][0] = inside ? load_once(upper + k + i * kStep) : uint4{0, 0, 0, 0};
      w[i][1] = inside ? load_once(lower + k + i * kStep) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      uint4 pairs[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int64_t m = tile * 8 + g, first = k + i * kStep + t * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t at = first + half * 8;
          pairs[tile][half] = m < p.m && at < p.k
                                  ? *reinterpret_cast<const uint4*>(x + m * p.ldx + at)
                                  : uint4{0, 0, 0, 0};
        }
      }
      multiply_chunk<kType>(w[i][0], w[i][1], pairs, acc);
    }
  }
  __shared__ float sums[kWarps][kTiles * 8][kRows];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[warp][tile * 8 + t * 2 + e % 2][g + e / 2 * 8] = acc[tile][e];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTiles * 8 * kRows; i += kThreads) {
    const int m = i / kRows, n = i % kRows;
    if (m >= p.m || n0 + n >= p.n) continue;
    float sum = sums[0][m][n];
    for (int part = 1; part < kWarps; ++part) sum += sums[part][m][n];
    finish(p, m, n0 + n, sum);
  }
}

template <DType kType>
cudaError_t launch_type(const GemmW8A16& p, cudaStream_t stream) {
  const LaunchShape shape{dim3(unsigned((p.n + kRows - 1) / kRows)), dim3(kThreads), 0, false};
  if (p.m <= 8) return launch(few_kernel<kType, 1>, shape, stream, p);
  return launch(few_kernel<kType, 2>, shape, stream, p);
}

}  // namespace

cudaError_t launch_w8a16_few(const GemmW8A16& p, cudaStream_t stream) {
  if (p.m > kFewMostM) return cudaErrorInvalidValue;
  if (p.x_dtype == DType::bf16) return launch_type<DType::bf16>(p, stream);
  if (p.x_dtype == DType::f16) return launch_type<DType::f16>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fastinfer::cuda
