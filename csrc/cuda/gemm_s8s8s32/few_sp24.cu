// M <= 16, a 2:4 weight: every row of it is read once, expanded in registers, and multiplied by
// mma.m16n8k32 as the operand of 16 rows; x comes from L1.
//
//   block    plan.warps warps share 16 rows of the weight; warp i takes 256 of K, and those that
//            are a multiple of 256 plan.warps further
//   lane     4 g + t has k = 32 t to 32 t + 31 of a chunk of 128, of rows g and g + 8 of the weight
//            and of row g of x. They are the fragments of four mma whose order of K is not the
//            memory's: in instruction j the groups of 4 numbered 2 j and 2 j + 1 stand where the
//            instruction has k = 4 t and 16 + 4 t. Both operands are permuted alike
//   flight   a batch of two chunks, whose masks share sectors: 4 loads of 16 bytes and 4 of 4 a
//            lane, the first before the kernel that quantises x has ended
//   sums     int32, of the warps in shared memory, exact in any order
//   work     per 16 bytes of values: 26 operations, 2 mma where M <= 8 and 4 above
//   bound    memory: 5/8 N K bytes
//   slow     where x is not in L1: 16 rows of the weight read all of it
//   nvcc     13.0, sm_90a: 70 registers for M <= 8, 80 above, no spills
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/epilogue.cuh"
#include "cuda/gemm_s8s8s32/sp24.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kRows = 16, kChunks = kSp24WarpK / (4 * kSp24LaneK);
constexpr int kLdSums = kRows + 4;  // so that a warp writes to 32 banks

struct Sp24Rows {
  Sp24Piece pieces[kChunks][2];  // of rows g and g + 8

  // Pieces i and i + 4 of both; zeros past the end.
  __device__ void load(const Sp24Weight (&rows)[2], int64_t i, int64_t count) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pieces[c][half].load(rows[half], i + c * 4, i + c * 4 < count);
      }
    }
  }
};

// kTiles: of 8 rows of x.
template <int kTiles>
__global__ void __launch_bounds__(kSp24MostWarps* kWarp)
    few_sp24_kernel(const GemmS8S8S32 p, const Sp24Weight weight) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int warps = blockDim.x / kWarp;
  const int64_t n0 = int64_t(blockIdx.x) * kRows;  // rows up to N rounded up to 16 are there
  const Sp24Weight rows[2] = {sp24_row(weight, n0 + g, p.k_pad),
                              sp24_row(weight, n0 + g + 8, p.k_pad)};
  const int64_t count = p.k_pad / kSp24LaneK, step = int64_t(warps) * kChunks * 4;
  int64_t i = warp * kChunks * 4 + t;
  int32_t acc[kTiles][4] = {};
  Sp24Rows batch;
  batch.load(rows, i, count);
  wait_for_previous_kernel();
  // All lanes of a warp go through the loop alike: they multiply together.
  for (int64_t first = i - t; first < count; first += step, i += step) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      uint4 x[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int64_t m = tile * 8 + g;
        const bool inside = m < p.m && i + c * 4 < count;
        const auto* row =
            reinterpret_cast<const uint4*>(p.a + m * p.k_pad + (i + c * 4) * kSp24LaneK);
#pragma unroll
        for (int half = 0; half < 2; ++half) x[tile][half] = inside ? row[half] : uint4{0, 0, 0, 0};
      }
      uint32_t upper[8], lower[8];
      expand(batch.pieces[c][0], upper);
      expand(batch.pieces[c][1], lower);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t a[4] = {upper[2 * j], lower[2 * j], upper[2 * j + 1], lower[2 * j + 1]};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint4 v = x[tile][j / 2];
          mma_s8(acc[tile], a, j % 2 == 0 ? v.x : v.z, j % 2 == 0 ? v.y : v.w);
        }
      }
    }
    batch.load(rows, i + step, count);
  }
  let_next_kernel_begin();
  constexpr int kM = kTiles * 8;
  int32_t* sums = reinterpret_cast<int32_t*>(dynamic_shared());  // [warps][kM][kLdSums]
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int m = tile * 8 + t * 2 + e % 2, n = g + e / 2 * 8;
      sums[(warp * kM + m) * kLdSums + n] = acc[tile][e];
    }
  }
  __syncthreads();
  for (int j = threadIdx.x; j < kM * kRows; j += int(blockDim.x)) {
    const int m = j / kRows, n = j % kRows;
    if (m >= p.m || n0 + n >= p.n) continue;
    int32_t sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums[(w * kM + m) * kLdSums + n];
    finish(p, m, n0 + n, sum);
  }
}

template <int kTiles>
cudaError_t launch_few(const GemmS8S8S32& p, const Sp24Weight& weight, int warps, bool dependent,
                       cudaStream_t stream) {
  const LaunchShape shape{dim3(unsigned((p.n + kRows - 1) / kRows)), dim3(unsigned(warps * kWarp)),
                          warps * kTiles * 8 * kLdSums * 4, dependent};
  return launch(few_sp24_kernel<kTiles>, shape, stream, p, weight);
}

}  // namespace

cudaError_t launch_few_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                            bool dependent, cudaStream_t stream) {
  if (p.m > kSp24FewMostM || plan.warps < 1 || plan.warps > kSp24MostWarps) {
    return cudaErrorInvalidValue;
  }
  if (p.m <= 8) return launch_few<1>(p, weight, plan.warps, dependent, stream);
  return launch_few<2>(p, weight, plan.warps, dependent, stream);
}

}  // namespace fastinfer::cuda
