// A block a token: its cosines and sines come from memory once and serve every head from L1. A
// thread takes eight elements and their partners: of pairs of halves eight of each half, of pairs
// of neighbours eight side by side. What lies beyond r is copied eight elements at a time.
//
//   threads   32 to 256 a block, one for every piece of work in a token as far as they go; 48 to 64
//             registers, nothing spilled (sm_80, sm_90a)
//   bound     memory: 2 * size_of(x) bytes an element, and the table once
//   slow      rows or halves whose length or address is not a multiple of 16 bytes: an element at a
//             time. Few tokens: a block each is all there is.
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/rope/rope.h"

#include <algorithm>

#include "cuda/row.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kMostThreads = 256;

// One head of one token.
struct Head {
  const char *x, *cos, *sin;
  char* out;
};

// a[i] cos[i] + sign b[i] sin[i]: each product is rounded, then their sum.
template <DType kTable, bool kVector>
__device__ inline void rotate(const Head& head, int k, int columns, const float (&a)[kLoad],
                              const float (&b)[kLoad], const float (&sign)[kLoad],
                              float (&result)[kLoad]) {
  float cos[kLoad], sin[kLoad];
  unpack(load_raw<kTable, kVector>(head.cos, k, columns), cos);
  unpack(load_raw<kTable, kVector>(head.sin, k, columns), sin);
  for (int i = 0; i < kLoad; ++i) {
    result[i] = DeviceVec::fma(b[i] * sin[i], sign[i], a[i] * cos[i]);
  }
}

// Elements k to k + 7 of the first half, k < half, and those of the second.
template <DType kType, DType kTable, bool kVector>
__device__ inline void rotate_halves(const Head& head, int k, int half) {
  constexpr int64_t kSize = cpu::size_of(kType), kTableSize = cpu::size_of(kTable);
  const Head second{head.x + half * kSize, head.cos + half * kTableSize,
                    head.sin + half * kTableSize, head.out + half * kSize};
  constexpr float kMinus[kLoad] = {-1, -1, -1, -1, -1, -1, -1, -1};
  constexpr float kPlus[kLoad] = {1, 1, 1, 1, 1, 1, 1, 1};
  float x0[kLoad], x1[kLoad], y0[kLoad], y1[kLoad];
  unpack(load_raw<kType, kVector>(head.x, k, half), x0);
  unpack(load_raw<kType, kVector>(second.x, k, half), x1);
  rotate<kTable, kVector>(head, k, half, x0, x1, kMinus, y0);
  rotate<kTable, kVector>(second, k, half, x1, x0, kPlus, y1);
  store_raw<kType, kVector>(head.out, k, half, pack<kType>(y0));
  store_raw<kType, kVector>(second.out, k, half, pack<kType>(y1));
}

// Elements k to k + 7 of r.
template <DType kType, DType kTable, bool kVector>
__device__ inline void rotate_pairs(const Head& head, int k, int r) {
  constexpr float kSigns[kLoad] = {-1, 1, -1, 1, -1, 1, -1, 1};
  float x[kLoad], partner[kLoad], y[kLoad];
  unpack(load_raw<kType, kVector>(head.x, k, r), x);
  for (int i = 0; i < kLoad; ++i) partner[i] = x[i ^ 1];
  rotate<kTable, kVector>(head, k, r, x, partner, kSigns, y);
  store_raw<kType, kVector>(head.out, k, r, pack<kType>(y));
}

// kVector: every row is aligned to 16 bytes, and head_size, r and, of halves, r / 2 are multiples
// of 8.
template <DType kType, DType kTable, bool kInterleaved, bool kVector>
__global__ void __launch_bounds__(kMostThreads, 4) rope_kernel(const Rope p) {
  constexpr int64_t kSize = cpu::size_of(kType), kTableSize = cpu::size_of(kTable);
  const int64_t token = blockIdx.x, b = token / p.tokens, t = token % p.tokens;
  const int r = int(p.r), rotated = kInterleaved ? r : r / 2, rest = int(p.head_size) - r;
  const int rotations = (rotated + kLoad - 1) / kLoad;
  const int pieces = rotations + (rest + kLoad - 1) / kLoad;  // of a head
  const char* x = static_cast<const char*>(p.x) + (b * p.x_batch + t * p.x_token) * kSize;
  const char* cos =
      static_cast<const char*>(p.cos) + (b * p.cos_batch + t * p.cos_token) * kTableSize;
  const char* sin =
      static_cast<const char*>(p.sin) + (b * p.sin_batch + t * p.sin_token) * kTableSize;
  char* out = static_cast<char*>(p.out) + token * p.heads * p.head_size * kSize;
  for (int i = int(threadIdx.x); i < int(p.heads) * pieces; i += int(blockDim.x)) {
    const int h = i / pieces, piece = i % pieces;
    const Head head{x + h * p.x_head * kSize, cos, sin, out + h * p.head_size * kSize};
    if (piece >= rotations) {
      const int k = r + (piece - rotations) * kLoad, columns = int(p.head_size);
      store_raw<kType, kVector>(head.out, k, columns, load_raw<kType, kVector>(head.x, k, columns));
    } else if (kInterleaved) {
      rotate_pairs<kType, kTable, kVector>(head, piece * kLoad, rotated);
    } else {
      rotate_halves<kType, kTable, kVector>(head, piece * kLoad, rotated);
    }
  }
}

template <DType kType, DType kTable>
cudaError_t launch_type(const Rope& p, cudaStream_t stream) {
  const int64_t rotated = p.interleaved ? p.r : p.r / 2;
  const bool vector =
      rotated % kLoad == 0 && p.head_size % kLoad == 0 && rows_aligned(p.x, p.x_batch, kType) &&
      rows_aligned(p.x, p.x_token, kType) && rows_aligned(p.x, p.x_head, kType) &&
      rows_aligned(p.out, 0, kType) && rows_aligned(p.cos, p.cos_batch, kTable) &&
      rows_aligned(p.cos, p.cos_token, kTable) && rows_aligned(p.sin, p.sin_batch, kTable) &&
      rows_aligned(p.sin, p.sin_token, kTable);
  const int64_t pieces = (rotated + kLoad - 1) / kLoad + (p.head_size - p.r + kLoad - 1) / kLoad;
  const int64_t work = p.heads * pieces;
  if (work == 0) return cudaSuccess;
  const int64_t threads = std::min<int64_t>((work + kWarp - 1) / kWarp * kWarp, kMostThreads);
  const LaunchShape shape{dim3(unsigned(p.batches * p.tokens)), dim3(unsigned(threads)), 0, false};
  const auto kernel = p.interleaved ? vector ? rope_kernel<kType, kTable, true, true>
                                             : rope_kernel<kType, kTable, true, false>
                      : vector      ? rope_kernel<kType, kTable, false, true>
                                    : rope_kernel<kType, kTable, false, false>;
  return launch(kernel, shape, stream, p);
}

}  // namespace

cudaError_t launch_rope(const Rope& p, cudaStream_t stream) {
  const bool wide_table = p.table_dtype == DType::f32;
  switch (p.x_dtype) {
    case DType::f32: return launch_type<DType::f32, DType::f32>(p, stream);
    case DType::bf16:
      return wide_table ? launch_type<DType::bf16, DType::f32>(p, stream)
                        : launch_type<DType::bf16, DType::bf16>(p, stream);
    case DType::f16:
      return wide_table ? launch_type<DType::f16, DType::f32>(p, stream)
                        : launch_type<DType::f16, DType::f16>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace fastinfer::cuda
