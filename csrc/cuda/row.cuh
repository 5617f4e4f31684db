// What kernels over rows share: elements eight at a time, reductions over a block, int8 rows out.
#pragma once

#include "cpu/quantize_rowwise/row_scale.h"
#include "cuda/device.cuh"

namespace fastinfer::cuda {
namespace {

using cpu::RowRange;
using cpu::RowScale;

constexpr int kLoad = 8;  // elements a thread takes at a time: 16 bytes of a 16-bit type

// Whether 16-byte accesses of every row are aligned.
inline bool rows_aligned(const void* x, int64_t ldx, DType dtype) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0 && ldx * cpu::size_of(dtype) % 16 == 0;
}

// Elements k to k + 7 of a row of `columns`; zeros past its end.
template <DType kType>
__device__ inline void load_elements(const void* row, int64_t k, int64_t columns, bool aligned,
                                     float (&v)[kLoad]) {
  constexpr int kSize = int(cpu::size_of(kType)), kVectors = kLoad * kSize / 16;
  const char* p = static_cast<const char*>(row) + k * kSize;
  if (aligned && k + kLoad <= columns) {
    uint4 raw[kVectors];
    for (int i = 0; i < kVectors; ++i) raw[i] = reinterpret_cast<const uint4*>(p)[i];
    for (int i = 0; i < kLoad; ++i) {
      v[i] = DeviceVec::load(reinterpret_cast<const char*>(raw) + i * kSize, kType);
    }
    return;
  }
  for (int i = 0; i < kLoad; ++i) {
    v[i] = k + i < columns ? DeviceVec::load(p + i * kSize, kType) : 0.0f;
  }
}

template <DType kType>
__device__ inline void store_elements(void* row, int64_t k, int64_t columns, bool aligned,
                                      const float (&v)[kLoad]) {
  constexpr int kSize = int(cpu::size_of(kType)), kVectors = kLoad * kSize / 16;
  char* p = static_cast<char*>(row) + k * kSize;
  if (aligned && k + kLoad <= columns) {
    uint4 raw[kVectors];
    for (int i = 0; i < kLoad; ++i) {
      DeviceVec::store(reinterpret_cast<char*>(raw) + i * kSize, kType, v[i]);
    }
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(p)[i] = raw[i];
    return;
  }
  for (int i = 0; i < kLoad && k + i < columns; ++i) DeviceVec::store(p + i * kSize, kType, v[i]);
}

// The least and greatest element; either is NaN if an element is NaN or Inf.
struct FiniteRange {
  float low, high;
  bool finite;

  __device__ static FiniteRange empty() { return {3.402823466e38f, -3.402823466e38f, true}; }
  __device__ void take(const float (&v)[kLoad], int64_t count) {
    for (int i = 0; i < kLoad; ++i) {
      if (i >= count) break;
      low = v[i] < low ? v[i] : low;
      high = v[i] > high ? v[i] : high;
      finite = finite && v[i] - v[i] == 0.0f;
    }
  }
  __device__ void take(const FiniteRange& other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
    finite = finite && other.finite;
  }
  __device__ FiniteRange exchanged(int lanes) const {
    FiniteRange other;
    other.low = shuffle_xor(low, lanes);
    other.high = shuffle_xor(high, lanes);
    other.finite = shuffle_xor(int(finite), lanes) != 0;
    return other;
  }
  // Of a row of `columns`.
  __device__ RowRange range(int64_t columns) const {
    if (columns == 0) return {0.0f, 0.0f};
    const float poison = finite ? 0.0f : DeviceVec::from_bits(0x7fc00000u);
    return {low + poison, high + poison};
  }
};

// A value that each thread holds a part of, whole in every thread. T: `take(T)` joins another part,
// `exchanged(lanes)` is that of the lane whose number differs in those bits. kThreads: of the
// block.
template <int kThreads, class T>
__device__ inline T reduce_block(T part) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T parts[kWarps];
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) part.take(part.exchanged(lanes));
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = part;
  __syncthreads();
  T all = parts[0];
  for (int i = 1; i < kWarps; ++i) all.take(parts[i]);
  __syncthreads();  // parts may be written again
  return all;
}

// Bytes k to k + 7 of an int8 row, k a multiple of 8 and the row 8-byte aligned.
__device__ inline void store_row_bytes(int8_t* q, int64_t k, int64_t columns,
                                       const float (&v)[kLoad], const RowScale& s) {
  uint32_t packed[2] = {0, 0};
  for (int i = 0; i < kLoad; ++i) {
    const int8_t byte = s.finite && k + i < columns ? cpu::quantize_element(v[i], s) : int8_t(0);
    packed[i / 4] |= uint32_t(uint8_t(byte)) << (i % 4 * 8);
  }
  *reinterpret_cast<uint2*>(q + k) = {packed[0], packed[1]};
}

}  // namespace
}  // namespace fastinfer::cuda
