// A block a row, of a thread for every 16 elements (a warp for short rows).
//
//   1  x, residual -> s, to memory and to shared memory, in the dtype of x
//   2  one warp: the statistics of s. Lane i is partial sum i of the formula and the tree over them
//      is a butterfly, so the bits are the CPU's.
//   3  s -> y, to memory and over s in shared memory; its range
//   4  y -> q
//
// Only passes 1 and 3 touch memory: shared memory holds rows of up to kSharedRowBytes, which is
// 48 K elements of 16 bits. Longer rows are read again in each pass.
//
//   threads   32 to 512 a block; 36 to 40 registers, so that a multiprocessor holds 1536 of them,
//             up to 64 for rows of an odd length or address; nothing spilled (sm_80, sm_90a)
//   bound     memory: 3 * size_of(x) + 1 bytes an element for add + norm + quantise. Beside it
//             about 40 instructions an element of 16 bits (counted in sm_90a code), three quarters
//             of what a multiprocessor of an H100 or H200 issues while its share of that arrives.
//             Pass 2 is a chain of K / 32 dependent additions (twice that for a layer norm), 4
//             cycles each, behind which the other blocks of the multiprocessor load and store.
//   slow      rows of an odd length or address: an element at a time. A single row: nothing hides
//             pass 2, about 0.4 us for K = 4096. Rows that shared memory does not hold.
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/norm/norm.h"

#include <algorithm>

#include "cuda/row.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kElementsAThread = 16;
constexpr int64_t kSharedRowBytes = 96 << 10;  // of the 99 KiB that every architecture has

// A sum of the formula: lane i of a warp holds partial sum i.
struct Sum {
  float part = 0.0f;

  __device__ void add(float v) { part += v; }
  __device__ void add_square(float v) { part = DeviceVec::fma(v, v, part); }
  // In every lane: the tree by halves, of which lane 0 is the root.
  __device__ float total() const {
    float all = part;
    for (int h = kWarp / 2; h > 0; h /= 2) all += shuffle_xor(all, h);
    return all;
  }
};

struct Statistics {
  float mean, rstd;
};

// Of a row whose element i is s(i), by a whole warp.
template <NormKind kKind, class Element>
__device__ inline Statistics row_statistics(const Norm& p, Element&& s) {
  const int lane = int(threadIdx.x) % kWarp, k = int(p.k);
  const float count = float(k);
  Sum sum;
#pragma unroll 16
  for (int i = lane; i < k; i += kWarp) {
    if (kKind == NormKind::rms) {
      sum.add_square(s(i));
    } else {
      sum.add(s(i));
    }
  }
  float mean = 0.0f, square = sum.total() / count;
  if (kKind == NormKind::layer) {
    const float center = square;
    Sum rest, squares;
#pragma unroll 16
    for (int i = lane; i < k; i += kWarp) {
      const float d = s(i) - center;
      rest.add(d);
      squares.add_square(d);
    }
    mean = center + rest.total() / count;
    square = squares.total() / count;
  }
  return {mean, 1.0f / sqrtf(square + p.eps)};
}

template <bool kVector>
__device__ inline void load_parameter(const void* data, DType dtype, int k, int columns,
                                      float absent, float (&v)[kLoad]) {
  if (data == nullptr) {
    for (int i = 0; i < kLoad; ++i) v[i] = absent;
  } else if (dtype == DType::f32) {
    unpack(load_raw<DType::f32, kVector>(data, k, columns), v);
  } else if (dtype == DType::bf16) {
    unpack(load_raw<DType::bf16, kVector>(data, k, columns), v);
  } else {
    unpack(load_raw<DType::f16, kVector>(data, k, columns), v);
  }
}

// kVector: every row and parameter is aligned to 16 bytes, rows of q to 8, and k is a multiple of
// 8. kShared: a row fits into shared memory.
template <NormKind kKind, DType kType, bool kVector, bool kShared>
__global__ void __launch_bounds__(kMostThreads, kVector ? 3 : 2) norm_kernel(const Norm p) {
  constexpr int64_t kSize = cpu::size_of(kType);
  constexpr int kBatch = 4 / kSize;  // loads of eight elements that a thread has under way
  const int64_t m = blockIdx.x;
  const int columns = int(p.k), step = int(blockDim.x) * kLoad;
  const int first = int(threadIdx.x) * kLoad;
  const char* x = static_cast<const char*>(p.x) + m * p.ldx * kSize;
  const char* residual = static_cast<const char*>(p.residual) + m * p.ld_residual * kSize;
  char* sum = static_cast<char*>(p.sum) + m * p.k * kSize;
  char* y = static_cast<char*>(p.y) + m * p.k * kSize;
  const bool adds = p.residual != nullptr;
  auto* kept = reinterpret_cast<Raw<kType>*>(dynamic_shared());  // elements 8 i to 8 i + 7 at i

  for (int k0 = first; k0 < columns && (kShared || adds); k0 += kBatch * step) {
    Raw<kType> s[kBatch] = {}, more[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int k = k0 + i * step;
      if (k < columns) {
        s[i] = load_raw<kType, kVector>(x, k, columns);
        if (adds) more[i] = load_raw<kType, kVector>(residual, k, columns);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int k = k0 + i * step;
      if (k >= columns) break;
      if (adds) {
        float a[kLoad], b[kLoad];
        unpack(s[i], a);
        unpack(more[i], b);
        for (int j = 0; j < kLoad; ++j) a[j] += b[j];
        s[i] = pack<kType>(a);
        store_raw<kType, kVector>(sum, k, columns, s[i]);
      }
      if (kShared) kept[unsigned(k) / kLoad] = s[i];
    }
  }
  __syncthreads();

  const char* s_row = kShared ? reinterpret_cast<const char*>(kept) : adds ? sum : x;
  __shared__ Statistics statistics;
  if (threadIdx.x < kWarp) {
    const Statistics of_row =
        row_statistics<kKind>(p, [&](int i) { return DeviceVec::load(s_row + i * kSize, kType); });
    if (threadIdx.x == 0) statistics = of_row;
  }
  __syncthreads();
  const float minus_mean = -statistics.mean, rstd = statistics.rstd;

  // Elements k to k + 7 of y, from those of s.
  const auto normalise = [&](int k) {
    float v[kLoad], weight[kLoad], bias[kLoad];
    unpack(kShared ? kept[unsigned(k) / kLoad] : load_raw<kType, kVector>(s_row, k, columns), v);
    load_parameter<kVector>(p.weight, p.weight_dtype, k, columns, 1.0f, weight);
    load_parameter<kVector>(p.bias, p.bias_dtype, k, columns, 0.0f, bias);
    for (int j = 0; j < kLoad; ++j) {
      const float z = (kKind == NormKind::layer ? v[j] + minus_mean : v[j]) * rstd;
      v[j] = DeviceVec::fma(z, weight[j], bias[j]);
    }
    return pack<kType>(v);
  };
  FiniteRange range = FiniteRange::empty();
  for (int k = first; k < columns; k += step) {
    const Raw<kType> raw = normalise(k);
    if (p.y != nullptr) store_raw<kType, kVector>(y, k, columns, raw);
    if (p.scale == nullptr) continue;
    float v[kLoad];
    unpack(raw, v);
    range.take(v, kVector ? kLoad : columns - k);
    if (kShared) kept[unsigned(k) / kLoad] = raw;
  }
  if (p.scale == nullptr) return;

  const RowRange whole = reduce_block<kMostThreads>(range, int(blockDim.x)).range(columns);
  const RowScale scale = cpu::measured_row_scale(whole, false);
  if (threadIdx.x == 0) {
    p.scale[m] = scale.scale;
    p.offset[m] = scale.offset;
  }
  int8_t* q = p.q + m * p.k;
  for (int k = first; k < columns; k += step) {
    float v[kLoad];
    unpack(kShared ? kept[unsigned(k) / kLoad] : normalise(k), v);
    store_bytes<kVector>(q, k, columns, quantized_bytes(v, kVector ? kLoad : columns - k, scale));
  }
}

template <NormKind kKind, DType kType>
cudaError_t launch_type(const Norm& p, cudaStream_t stream) {
  const auto at_16 = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool vector = p.k % kLoad == 0 && rows_aligned(p.x, p.ldx, kType) &&
                      rows_aligned(p.residual, p.ld_residual, kType) && at_16(p.sum) &&
                      at_16(p.y) && at_16(p.weight) && at_16(p.bias) &&
                      reinterpret_cast<uintptr_t>(p.q) % kLoad == 0;
  const int64_t chunks = (p.k + kLoad - 1) / kLoad, bytes = chunks * int64_t(sizeof(Raw<kType>));
  const int64_t warps = (p.k + kWarp * kElementsAThread - 1) / (kWarp * kElementsAThread);
  const bool shared = bytes <= kSharedRowBytes;
  const int64_t threads = std::min<int64_t>(std::max<int64_t>(1, warps) * kWarp, kMostThreads);
  const LaunchShape shape{dim3(unsigned(p.rows)), dim3(unsigned(threads)), shared ? int(bytes) : 0,
                          false, int(kSharedRowBytes)};
  const auto kernel = vector   ? shared ? norm_kernel<kKind, kType, true, true>
                                        : norm_kernel<kKind, kType, true, false>
                      : shared ? norm_kernel<kKind, kType, false, true>
                               : norm_kernel<kKind, kType, false, false>;
  return launch(kernel, shape, stream, p);
}

template <NormKind kKind>
cudaError_t launch_kind(const Norm& p, cudaStream_t stream) {
  switch (p.dtype) {
    case DType::f32: return launch_type<kKind, DType::f32>(p, stream);
    case DType::bf16: return launch_type<kKind, DType::bf16>(p, stream);
    case DType::f16: return launch_type<kKind, DType::f16>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t launch_norm(const Norm& p, cudaStream_t stream) {
  if (p.kind == NormKind::layer) return launch_kind<NormKind::layer>(p, stream);
  return launch_kind<NormKind::rms>(p, stream);
}

}  // namespace fastinfer::cuda
