// float32 x: a warp an output, multiply-adds by lane; so that a model that is not in 16 bits runs,
// too. And rows of x brought into the form that the other kernels ask for.
//
//   bound   the multiply-adds of the CUDA cores; not tuned
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_w8a16/common.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

__global__ void __launch_bounds__(kThreads) w8a32_kernel(const GemmW8A16 p) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t n = int64_t(blockIdx.x) * kWarps + warp;
  if (n >= p.n) return;
  const int8_t* w = p.w + n * p.k_pad;
  for (int64_t m = blockIdx.y; m < p.m; m += gridDim.y) {
    const float* x = static_cast<const float*>(p.x) + m * p.ldx;
    float acc = 0.0f;
    for (int64_t k = lane; k < p.k; k += kWarp) acc = DeviceVec::fma(x[k], float(w[k]), acc);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) acc += shuffle_xor(acc, lanes);
    if (lane == 0) finish(p, m, n, acc);
  }
}

__global__ void __launch_bounds__(kThreads)
    pad_rows_kernel(const uint16_t* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_pad,
                    uint16_t* padded) {
  for (int64_t m = blockIdx.x; m < rows; m += gridDim.x) {
    for (int64_t i = threadIdx.x; i < k_pad; i += kThreads) {
      padded[m * k_pad + i] = i < k ? x[m * ldx + i] : uint16_t(0);
    }
  }
}

constexpr int64_t kMostBlocks = 65535;

}  // namespace

cudaError_t launch_w8a32(const GemmW8A16& p, cudaStream_t stream) {
  const int64_t rows = p.m < kMostBlocks ? p.m : kMostBlocks;
  const dim3 grid(unsigned((p.n + kWarps - 1) / kWarps), unsigned(rows));
  return launch(w8a32_kernel, LaunchShape{grid, dim3(kThreads), 0, false}, stream, p);
}

cudaError_t launch_pad_rows(const void* x, int64_t ldx, int64_t rows, int64_t k, void* padded,
                            cudaStream_t stream) {
  const int64_t blocks = rows < kMostBlocks ? rows : kMostBlocks;
  const LaunchShape shape{dim3(unsigned(blocks)), dim3(kThreads), 0, false};
  return launch(pad_rows_kernel, shape, stream, static_cast<const uint16_t*>(x), ldx, rows, k,
                (k + 7) / 8 * 8, static_cast<uint16_t*>(padded));
}

}  // namespace fastinfer::cuda
