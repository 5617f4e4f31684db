// M <= 4: every row of the weight is read once, 16 bytes a lane, and multiplied by dp4a.
//
//   block    4 warps; a warp, or 2 or 4 of them by K, takes 4 rows of the weight
//   lane     bytes 16 lane to 16 lane + 15 of every 512 of K, of 4 rows and 2 steps: 8 loads of 16
//            bytes before the first is used, and those of the first steps before the kernel that
//            quantises x has ended (wait_for_previous_kernel)
//   x        int8 rows, from L1: M bytes a byte of 4 weights
//   work     per 16 bytes of weight: M x 4 dp4a
//   bound    memory: N K bytes. A multiprocessor holds 4 blocks or more: 64 KB in flight
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/gemv.cuh"
#include "cuda/gemm_s8s8s32/launch.h"

namespace fastinfer::cuda {
namespace {

constexpr int kLaneBytes = 16, kWarpBytes = kLaneBytes * kWarp, kSteps = 2;
constexpr int kThreads = kGemvThreads;

struct WeightBatch {
  uint4 w[kSteps][kGemvRows];

  // From byte k of every row on; `step` bytes between steps; zeros past the end.
  __device__ void load(const int8_t* const (&rows)[kGemvRows], int64_t k, int64_t step,
                       int64_t k_pad) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int r = 0; r < kGemvRows; ++r) {
        w[s][r] = k + s * step < k_pad ? load_once(rows[r] + k + s * step) : uint4{0, 0, 0, 0};
      }
    }
  }
};

template <int kM>
__global__ void __launch_bounds__(kThreads)
    gemv_kernel(const GemmS8S8S32 p, const int warps_per_row) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int groups = kGemvWarps / warps_per_row;  // of rows, in the block
  const int group = warp / warps_per_row, part = warp % warps_per_row;
  const int64_t n0 = (int64_t(blockIdx.x) * groups + group) * kGemvRows;
  const int8_t* rows[kGemvRows];
#pragma unroll
  for (int r = 0; r < kGemvRows; ++r) {  // a row past the end is read as the last one
    rows[r] = p.w + (n0 + r < p.n ? n0 + r : p.n - 1) * p.k_pad;
  }
  const int64_t step = int64_t(warps_per_row) * kWarpBytes;
  int64_t k = int64_t(part) * kWarpBytes + lane * kLaneBytes;
  int32_t acc[kM][kGemvRows] = {};
  WeightBatch batch;
  batch.load(rows, k, step, p.k_pad);
  wait_for_previous_kernel();
  for (; k < p.k_pad; k += kSteps * step) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (k + s * step >= p.k_pad) break;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint4 x = *reinterpret_cast<const uint4*>(p.a + m * p.k_pad + k + s * step);
#pragma unroll
        for (int r = 0; r < kGemvRows; ++r) {
          const uint4 w = batch.w[s][r];
          acc[m][r] = dot4(w.x, x.x, acc[m][r]);
          acc[m][r] = dot4(w.y, x.y, acc[m][r]);
          acc[m][r] = dot4(w.z, x.z, acc[m][r]);
          acc[m][r] = dot4(w.w, x.w, acc[m][r]);
        }
      }
    }
    batch.load(rows, k + kSteps * step, step, p.k_pad);
  }
  let_next_kernel_begin();
  finish_gemv<kM>(p, warps_per_row, acc);
}

}  // namespace

cudaError_t launch_gemv(const GemmS8S8S32& p, const GemmPlan& plan, bool dependent,
                        cudaStream_t stream) {
  const int64_t columns = kGemvWarps / plan.warps_per_row * kGemvRows;
  const LaunchShape shape{dim3(unsigned((p.n + columns - 1) / columns)), dim3(kThreads), 0,
                          dependent};
  switch (p.m) {
    case 1: return launch(gemv_kernel<1>, shape, stream, p, plan.warps_per_row);
    case 2: return launch(gemv_kernel<2>, shape, stream, p, plan.warps_per_row);
    case 3: return launch(gemv_kernel<3>, shape, stream, p, plan.warps_per_row);
    case 4: return launch(gemv_kernel<4>, shape, stream, p, plan.warps_per_row);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace fastinfer::cuda
