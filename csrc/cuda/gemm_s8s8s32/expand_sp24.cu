// A 2:4 weight as dense rows, for the kernels that take those.
//
//   thread   32 of K of a row: 20 bytes read, 32 written
//   bound    memory: 13/8 N K bytes
//   nvcc     13.0, sm_90a: 22 registers, no spills
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/sp24.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    expand_sp24_kernel(const Sp24Weight weight, const int64_t pieces, int8_t* dense) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  Sp24Piece piece;
  piece.load(weight, i, i < pieces);
  uint32_t words[8];
  expand(piece, words);
  wait_for_previous_kernel();  // it may read the rows that were there
  if (i >= pieces) return;
  uint4* to = reinterpret_cast<uint4*>(dense + i * kSp24LaneK);
  to[0] = {words[0], words[1], words[2], words[3]};
  to[1] = {words[4], words[5], words[6], words[7]};
}

}  // namespace

cudaError_t launch_expand_sp24(const Sp24Weight& weight, int64_t n, int64_t k_pad, int8_t* dense,
                               bool dependent, cudaStream_t stream) {
  const int64_t pieces = (n + 15) / 16 * 16 * k_pad / kSp24LaneK;  // rows follow one another
  const LaunchShape shape{dim3(unsigned((pieces + kThreads - 1) / kThreads)), dim3(kThreads), 0,
                          dependent};
  return launch(expand_sp24_kernel, shape, stream, weight, pieces, dense);
}

}  // namespace fastinfer::cuda
