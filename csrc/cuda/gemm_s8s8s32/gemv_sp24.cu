// M <= 4, a 2:4 weight: as gemv.cu, by half the dp4a, since x is gathered to meet the values.
//
//   block    4 warps; a warp, or 2 or 4 of them by K, takes 4 rows of the weight
//   lane     k = 32 lane to 32 lane + 31 of every 1024 of K, of 4 rows and 2 steps: 8 loads of 16
//            bytes of values and 8 of 4 bytes of masks before the first is used, and those of the
//            first steps before the kernel that quantises x has ended (wait_for_previous_kernel)
//   x        int8 rows, from L1, 32 bytes a lane and row
//   work     per 16 bytes of values: 8 operations for the masks, M x 4 permute_bytes and M x 4 dp4a
//   bound    memory: 5/8 N K bytes; of what a multiprocessor can do in that time, at 4.8 TB/s,
//            permutations are 41 % at M = 4 (sp24.cuh)
//   slow     a lane's 32 bytes of x are two loads that skip every other 16 bytes: at M = 4 they may
//            keep L1 as busy as the weight keeps memory
//   nvcc     13.0, sm_90a: 72, 79, 96, 128 registers for M = 1 to 4, no spills
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/gemv.cuh"
#include "cuda/gemm_s8s8s32/sp24.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kSteps = 2, kThreads = kGemvThreads;

struct Sp24Batch {
  Sp24Piece pieces[kSteps][kGemvRows];

  // Pieces i, i + step, ... of the rows from `row` on, of which there are `count`; zeros past the
  // end.
  __device__ void load(const Sp24Weight& row, int64_t i, int64_t step, int64_t count) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int r = 0; r < kGemvRows; ++r) {
        pieces[s][r].load(row, r * count + i + s * step, i + s * step < count);
      }
    }
  }
};

template <int kM>
__global__ void __launch_bounds__(kThreads)
    gemv_sp24_kernel(const GemmS8S8S32 p, const Sp24Weight weight, const int warps_per_row) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int groups = kGemvWarps / warps_per_row;  // of rows, in the block
  const int group = warp / warps_per_row, part = warp % warps_per_row;
  const int64_t n0 = (int64_t(blockIdx.x) * groups + group) * kGemvRows;
  const int64_t count = p.k_pad / kSp24LaneK, step = int64_t(warps_per_row) * kWarp;
  const Sp24Weight row = sp24_row(weight, n0, p.k_pad);  // and those after it, up to N_pad
  int64_t i = part * kWarp + lane;
  int32_t acc[kM][kGemvRows] = {};
  Sp24Batch batch;
  batch.load(row, i, step, count);
  wait_for_previous_kernel();
  for (; i < count; i += kSteps * step) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (i + s * step >= count) break;
      uint32_t digits[kGemvRows][4];
#pragma unroll
      for (int r = 0; r < kGemvRows; ++r) gather_digits(batch.pieces[s][r].masks, digits[r]);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const int8_t* x = p.a + m * p.k_pad + (i + s * step) * kSp24LaneK;
        const uint4 x0 = reinterpret_cast<const uint4*>(x)[0];
        const uint4 x1 = reinterpret_cast<const uint4*>(x)[1];
#pragma unroll
        for (int r = 0; r < kGemvRows; ++r) {
          const uint4 w = batch.pieces[s][r].values;
          const auto& d = digits[r];
          acc[m][r] = dot4(w.x, permute_bytes(x0.x, x0.y, d[0]), acc[m][r]);
          acc[m][r] = dot4(w.y, permute_bytes(x0.z, x0.w, d[1]), acc[m][r]);
          acc[m][r] = dot4(w.z, permute_bytes(x1.x, x1.y, d[2]), acc[m][r]);
          acc[m][r] = dot4(w.w, permute_bytes(x1.z, x1.w, d[3]), acc[m][r]);
        }
      }
    }
    batch.load(row, i + kSteps * step, step, count);
  }
  let_next_kernel_begin();
  finish_gemv<kM>(p, warps_per_row, acc);
}

}  // namespace

cudaError_t launch_gemv_sp24(const GemmS8S8S32& p, const Sp24Weight& weight, const Sp24Plan& plan,
                             bool dependent, cudaStream_t stream) {
  const int64_t columns = kGemvWarps / plan.warps_per_row * kGemvRows;
  const LaunchShape shape{dim3(unsigned((p.n + columns - 1) / columns)), dim3(kThreads), 0,
                          dependent};
  switch (p.m) {
    case 1: return launch(gemv_sp24_kernel<1>, shape, stream, p, weight, plan.warps_per_row);
    case 2: return launch(gemv_sp24_kernel<2>, shape, stream, p, weight, plan.warps_per_row);
    case 3: return launch(gemv_sp24_kernel<3>, shape, stream, p, weight, plan.warps_per_row);
    case 4: return launch(gemv_sp24_kernel<4>, shape, stream, p, weight, plan.warps_per_row);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace fastinfer::cuda
