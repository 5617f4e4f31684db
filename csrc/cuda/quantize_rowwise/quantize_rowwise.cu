// A block a row. The row is read once: what a thread has measured it keeps in registers, kKept
// times 8 elements, and rereads (from L1 or L2) only what lies beyond.
//
//   threads   32, 128 or 512 a block, by K
//   registers kKept * 8 floats of x
//   bound     memory: size_of(x) + 1 bytes an element
//
// Never run on a GPU yet; see bench/results/gpu.md.
#include "cuda/quantize_rowwise/quantize_rowwise.h"

#include "cuda/row.cuh"

namespace fastinfer::cuda {
namespace {

constexpr int kKept = 2;

template <DType kType, int kThreads>
__device__ void quantize_row(const QuantizeRowwise& p, int64_t m, bool aligned) {
  const char* row = static_cast<const char*>(p.x) + m * p.ldx * cpu::size_of(kType);
  constexpr int64_t kStep = kThreads * kLoad;
  const int64_t first = int64_t(threadIdx.x) * kLoad;
  float kept[kKept][kLoad];
  FiniteRange range = FiniteRange::empty();
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int64_t k = first + i * kStep;
    if (k >= p.k) break;
    load_elements<kType>(row, k, p.k, aligned, kept[i]);
    range.take(kept[i], p.k - k);
  }
  for (int64_t k = first + kKept * kStep; k < p.k; k += kStep) {
    float v[kLoad];
    load_elements<kType>(row, k, p.k, aligned, v);
    range.take(v, p.k - k);
  }
  const RowRange whole = reduce_block<kThreads>(range).range(p.k);
  RowScale s = cpu::measured_row_scale(whole, p.offset == nullptr);
  if (s.finite && p.given_scale != nullptr) {
    s = cpu::fixed_row_scale(*p.given_scale, p.offset != nullptr ? *p.given_offset : 0.0f);
  }
  if (threadIdx.x == 0) {
    p.scale[m] = s.scale;
    if (p.offset != nullptr) p.offset[m] = s.offset;
  }
  int8_t* q = p.q + m * p.k_pad;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int64_t k = first + i * kStep;
    if (k >= p.k_pad) break;
    store_bytes<true>(q, k, p.k_pad, quantized_bytes(kept[i], p.k - k, s));
  }
  for (int64_t k = first + kKept * kStep; k < p.k_pad; k += kStep) {
    float v[kLoad];
    load_elements<kType>(row, k, p.k, aligned, v);
    store_bytes<true>(q, k, p.k_pad, quantized_bytes(v, p.k - k, s));
  }
}

// Int8 rows into rows of k_pad bytes.
template <int kThreads>
__device__ void copy_row(const QuantizeRowwise& p, int64_t m) {
  const int8_t* row = static_cast<const int8_t*>(p.x) + m * p.ldx;
  int8_t* q = p.q + m * p.k_pad;
  for (int64_t k = threadIdx.x; k < p.k_pad; k += kThreads) q[k] = k < p.k ? row[k] : int8_t(0);
  if (threadIdx.x != 0) return;
  p.scale[m] = p.given_scale[m * p.given_step];
  p.offset[m] = p.given_offset[m * p.given_step];
}

template <DType kType, int kThreads>
__global__ void __launch_bounds__(kThreads)
    quantize_rowwise_kernel(const QuantizeRowwise p, const bool aligned) {
  let_next_kernel_begin();  // it waits for the end of this one where it must
  wait_for_previous_kernel();
  const int64_t m = blockIdx.x;
  if (m == 0) {
    for (int64_t i = threadIdx.x; i < p.counter_count; i += kThreads) p.counters[i] = 0;
  }
  if constexpr (kType == DType::s8) {
    copy_row<kThreads>(p, m);
  } else {
    quantize_row<kType, kThreads>(p, m, aligned);
  }
}

template <DType kType, int kThreads>
cudaError_t launch_rows(const QuantizeRowwise& p, cudaStream_t stream) {
  const LaunchShape shape{dim3(unsigned(p.rows)), dim3(kThreads), 0, false};
  const bool aligned = rows_aligned(p.x, p.ldx, kType);
  return launch(quantize_rowwise_kernel<kType, kThreads>, shape, stream, p, aligned);
}

template <DType kType>
cudaError_t launch_type(const QuantizeRowwise& p, cudaStream_t stream) {
  if (p.k_pad <= 512) return launch_rows<kType, 32>(p, stream);
  if (p.k_pad <= 2048) return launch_rows<kType, 128>(p, stream);
  return launch_rows<kType, 512>(p, stream);
}

}  // namespace

cudaError_t launch_quantize_rowwise(const QuantizeRowwise& p, cudaStream_t stream) {
  switch (p.x_dtype) {
    case DType::f32: return launch_type<DType::f32>(p, stream);
    case DType::bf16: return launch_type<DType::bf16>(p, stream);
    case DType::f16: return launch_type<DType::f16>(p, stream);
    case DType::s8: return launch_type<DType::s8>(p, stream);
    case DType::s32: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastinfer::cuda
