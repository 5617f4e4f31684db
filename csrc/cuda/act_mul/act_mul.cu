// Without int8 rows: a thread for every 16 elements, blocks of 256 along a row and across rows.
// With them: a block a row, of a thread for every 16 elements (a warp for short rows).
//
//   1  x, other -> y, to memory, and to shared memory in the dtype of x; its range
//   2  y -> q
//
// Shared memory holds rows of up to kSharedRowBytes, which is 48 K elements of 16 bits. Of longer
// ones y is computed twice.
//
//   threads   256, or 32 to 512 a block; 37 to 55 registers, nothing spilled (sm_80, sm_90a)
//   bound     memory: 2 * size_of(x) + 1 bytes an element for SwiGLU to int8 rows, and about as
//             long the arithmetic: exp and the division of SiLU are some 30 instructions, the
//             rest 20
//   slow      rows of an odd length or address: an element at a time. A single long row with int8
//             rows: one block.
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/act_mul/act_mul.h"

#include <algorithm>

#include "cpu/vec/math.h"
#include "cuda/row.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kElementThreads = 256;
constexpr int kElementsAThread = 16;
constexpr int64_t kSharedRowBytes = 96 << 10;  // of the 99 KiB that every architecture has

// How int8 rows are made: not at all, or with y in shared memory, or with y computed again.
enum class RowsFrom { none, shared, again };

template <Activation kActivation>
__device__ inline void activate_all(float (&v)[kLoad]) {
  for (int i = 0; i < kLoad; ++i) v[i] = cpu::activate<DeviceVec, kActivation>(v[i]);
}

__device__ inline void activate(Activation activation, float (&v)[kLoad]) {
  switch (activation) {
    case Activation::none: return;
    case Activation::relu: return activate_all<Activation::relu>(v);
    case Activation::gelu: return activate_all<Activation::gelu>(v);
    case Activation::gelu_tanh: return activate_all<Activation::gelu_tanh>(v);
    case Activation::silu: return activate_all<Activation::silu>(v);
    case Activation::quick_gelu: return activate_all<Activation::quick_gelu>(v);
  }
}

// kVector: every row is aligned to 16 bytes, rows of q to 8, and k is a multiple of 8.
template <DType kType, bool kVector, RowsFrom kRows>
__global__ void __launch_bounds__(kMostThreads, 2) act_mul_kernel(const ActMul p) {
  constexpr int64_t kSize = cpu::size_of(kType);
  constexpr int kBatch = 4 / kSize;  // loads of eight elements that a thread has under way
  const int64_t m = blockIdx.x;
  const int columns = int(p.k), step = int(gridDim.y * blockDim.x) * kLoad;
  const int first = int(blockIdx.y * blockDim.x + threadIdx.x) * kLoad;
  const char* x = static_cast<const char*>(p.x) + m * p.ldx * kSize;
  const char* other = static_cast<const char*>(p.other) + m * p.ld_other * kSize;
  char* y = static_cast<char*>(p.y) + m * p.k * kSize;
  const bool gated = p.other != nullptr;
  auto* kept = reinterpret_cast<Raw<kType>*>(dynamic_shared());  // elements 8 i to 8 i + 7 at i

  // Calls use(k, elements k to k + 7 of y).
  const auto for_each_chunk = [&](auto&& use) {
    for (int k0 = first; k0 < columns; k0 += kBatch * step) {
      Raw<kType> a[kBatch] = {}, b[kBatch] = {};
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int k = k0 + i * step;
        if (k < columns) {
          a[i] = load_raw<kType, kVector>(x, k, columns);
          if (gated) b[i] = load_raw<kType, kVector>(other, k, columns);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int k = k0 + i * step;
        if (k >= columns) break;
        float v[kLoad], factor[kLoad];
        unpack(a[i], v);
        unpack(b[i], factor);
        activate(p.activation, v);
        for (int j = 0; j < kLoad && gated; ++j) v[j] *= factor[j];
        use(k, pack<kType>(v));
      }
    }
  };

  FiniteRange range = FiniteRange::empty();
  for_each_chunk([&](int k, const Raw<kType>& raw) {
    if (p.y != nullptr) store_raw<kType, kVector>(y, k, columns, raw);
    if constexpr (kRows != RowsFrom::none) {
      float v[kLoad];
      unpack(raw, v);
      range.take(v, kVector ? kLoad : columns - k);
      if (kRows == RowsFrom::shared) kept[unsigned(k) / kLoad] = raw;
    }
  });
  if constexpr (kRows != RowsFrom::none) {
    const RowRange whole = reduce_block<kMostThreads>(range, int(blockDim.x)).range(columns);
    const RowScale scale = cpu::measured_row_scale(whole, false);
    if (threadIdx.x == 0) {
      p.scale[m] = scale.scale;
      p.offset[m] = scale.offset;
    }
    int8_t* q = p.q + m * p.k;
    const auto put = [&](int k, const Raw<kType>& raw) {
      float v[kLoad];
      unpack(raw, v);
      store_bytes<kVector>(q, k, columns, quantized_bytes(v, kVector ? kLoad : columns - k, scale));
    };
    if constexpr (kRows == RowsFrom::shared) {
      for (int k = first; k < columns; k += step) put(k, kept[unsigned(k) / kLoad]);
    } else {
      for_each_chunk(put);
    }
  }
}

template <DType kType, RowsFrom kRows>
cudaError_t launch_rows(const ActMul& p, bool vector, const LaunchShape& shape,
                        cudaStream_t stream) {
  const auto kernel =
      vector ? act_mul_kernel<kType, true, kRows> : act_mul_kernel<kType, false, kRows>;
  return launch(kernel, shape, stream, p);
}

template <DType kType>
cudaError_t launch_type(const ActMul& p, cudaStream_t stream) {
  const bool vector = p.k % kLoad == 0 && rows_aligned(p.x, p.ldx, kType) &&
                      rows_aligned(p.other, p.ld_other, kType) && rows_aligned(p.y, p.k, kType) &&
                      reinterpret_cast<uintptr_t>(p.q) % kLoad == 0;
  const auto rows = unsigned(p.rows);
  if (p.scale == nullptr) {
    constexpr int64_t kBlockElements = kElementThreads * kElementsAThread;
    const int64_t blocks = std::min<int64_t>((p.k + kBlockElements - 1) / kBlockElements, 65535);
    const LaunchShape shape{dim3(rows, unsigned(blocks)), dim3(kElementThreads), 0, false};
    return launch_rows<kType, RowsFrom::none>(p, vector, shape, stream);
  }
  const int64_t warps = (p.k + kWarp * kElementsAThread - 1) / (kWarp * kElementsAThread);
  const int64_t threads = std::min<int64_t>(std::max<int64_t>(1, warps) * kWarp, kMostThreads);
  const int64_t bytes = (p.k + kLoad - 1) / kLoad * int64_t(sizeof(Raw<kType>));
  LaunchShape shape{dim3(rows), dim3(unsigned(threads)), int(bytes), false, int(kSharedRowBytes)};
  if (bytes <= kSharedRowBytes) {
    return launch_rows<kType, RowsFrom::shared>(p, vector, shape, stream);
  }
  shape.shared_bytes = 0;
  return launch_rows<kType, RowsFrom::again>(p, vector, shape, stream);
}

}  // namespace

cudaError_t launch_act_mul(const ActMul& p, cudaStream_t stream) {
  switch (p.dtype) {
    case DType::f32: return launch_type<DType::f32>(p, stream);
    case DType::bf16: return launch_type<DType::bf16>(p, stream);
    case DType::f16: return launch_type<DType::f16>(p, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace fastinfer::cuda
