// The masks of a 2:4 weight as the metadata that the sparse wgmma of sm_90 reads (sp24.h).
//
//   thread   128 of K of a row: 16 bytes of masks read, 16 of metadata written; 4 words of 8
//   groups,
//            a word by 2 permute_bytes into a table of places and 1 to put them together
//   bound    memory: N K / 4 bytes, 1/8 of what the product reads of its operands at M = N
//   nvcc     13.0, sm_90a: no spills
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/gemm_s8s8s32/sp24.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kThreads = 256;

// Of 8 masks the places that they keep, 4 bits each. The three low bits of a mask tell (sp24.cuh).
__device__ inline uint32_t places(uint32_t masks) {
  constexpr uint32_t kLow = 0x040d0c04u, kHigh = 0x0409080eu;  // first | second << 2
  const uint32_t index = masks & 0x77777777u;
  const uint32_t front = permute_bytes(kLow, kHigh, index);
  const uint32_t back = permute_bytes(kLow, kHigh, index >> 16);
  return permute_bytes(front | front >> 4, back | back >> 4, 0x6420);
}

__global__ void __launch_bounds__(kThreads)
    sp24_metadata_kernel(const uint8_t* masks, const int64_t n, const int64_t k_pad,
                         uint8_t* metadata) {
  const int64_t n_pad = (n + kSp24MetadataRows - 1) / kSp24MetadataRows * kSp24MetadataRows;
  const int64_t pieces = sp24_metadata_bytes(n, k_pad) / 16;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  wait_for_previous_kernel();  // it may read the metadata that was there
  if (i >= pieces) return;
  const int64_t row = i % n_pad, k = i / n_pad * kSp24MetadataK;
  uint32_t words[4];
  for (int w = 0; w < 4; ++w) {
    const bool inside = row < n && k + w * 32 < k_pad;
    const auto* at = reinterpret_cast<const uint32_t*>(masks + row * (k_pad / 8) + k / 8) + w;
    words[w] = places(inside ? *at : 0x33333333u);
  }
  reinterpret_cast<uint4*>(metadata)[i] = {words[0], words[1], words[2], words[3]};
}

}  // namespace

cudaError_t launch_sp24_metadata(const Sp24Weight& weight, int64_t n, int64_t k_pad,
                                 uint8_t* metadata, bool dependent, cudaStream_t stream) {
  const int64_t pieces = sp24_metadata_bytes(n, k_pad) / 16;
  const LaunchShape shape{dim3(unsigned((pieces + kThreads - 1) / kThreads)), dim3(kThreads), 0,
                          dependent};
  return launch(sp24_metadata_kernel, shape, stream, weight.masks, n, k_pad, metadata);
}

}  // namespace fastinfer::cuda
