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

// Eight elements as they lie in memory.
template <DType kType>
struct Raw {
  static constexpr int kSize = int(cpu::size_of(kType)), kVectors = kLoad * kSize / 16;
  uint4 part[kVectors];

  __device__ char* at(int i) { return reinterpret_cast<char*>(part) + i * kSize; }
  __device__ const char* at(int i) const { return reinterpret_cast<const char*>(part) + i * kSize; }
};

// Bytes, 2 or 4 of them, as they are.
template <int kSize>
__device__ inline void copy_element(void* to, const void* from) {
  if constexpr (kSize == 4) {
    *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  } else {
    *static_cast<uint16_t*>(to) = *static_cast<const uint16_t*>(from);
  }
}

// Elements k to k + 7 of a row of `columns`, zeros past its end. kVector: the row is aligned to 16
// bytes and `columns` a multiple of 8.
template <DType kType, bool kVector>
__device__ inline Raw<kType> load_raw(const void* row, int64_t k, int64_t columns) {
  constexpr int kSize = Raw<kType>::kSize;
  const char* p = static_cast<const char*>(row) + k * kSize;
  Raw<kType> raw{};
  if constexpr (kVector) {
    for (int i = 0; i < raw.kVectors; ++i) raw.part[i] = reinterpret_cast<const uint4*>(p)[i];
  } else {
    for (int i = 0; i < kLoad; ++i) {
      if (k + i < columns) copy_element<kSize>(raw.at(i), p + i * kSize);
    }
  }
  return raw;
}

template <DType kType, bool kVector>
__device__ inline void store_raw(void* row, int64_t k, int64_t columns, const Raw<kType>& raw) {
  constexpr int kSize = Raw<kType>::kSize;
  char* p = static_cast<char*>(row) + k * kSize;
  if constexpr (kVector) {
    for (int i = 0; i < raw.kVectors; ++i) reinterpret_cast<uint4*>(p)[i] = raw.part[i];
  } else {
    for (int i = 0; i < kLoad; ++i) {
      if (k + i < columns) copy_element<kSize>(p + i * kSize, raw.at(i));
    }
  }
}

template <DType kType>
__device__ inline void unpack(const Raw<kType>& raw, float (&v)[kLoad]) {
  if constexpr (kType == DType::bf16) {
    for (int i = 0; i < kLoad; i += 2) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(raw.at(i));
      v[i] = DeviceVec::from_bits(word << 16);
      v[i + 1] = DeviceVec::from_bits(word & 0xffff0000u);
    }
  } else {
    for (int i = 0; i < kLoad; ++i) v[i] = DeviceVec::load(raw.at(i), kType);
  }
}

template <DType kType>
__device__ inline Raw<kType> pack(const float (&v)[kLoad]) {
  Raw<kType> raw;
  if constexpr (kType == DType::f32) {
    for (int i = 0; i < kLoad; ++i) DeviceVec::store(raw.at(i), kType, v[i]);
  } else {
    for (int i = 0; i < kLoad; i += 2) {
      *reinterpret_cast<uint32_t*>(raw.at(i)) = DeviceVec::pack(v[i], v[i + 1], kType);
    }
  }
  return raw;
}

// Elements k to k + 7 of a row of `columns`; zeros past its end.
template <DType kType>
__device__ inline void load_elements(const void* row, int64_t k, int64_t columns, bool aligned,
                                     float (&v)[kLoad]) {
  unpack(aligned && k + kLoad <= columns ? load_raw<kType, true>(row, k, columns)
                                         : load_raw<kType, false>(row, k, columns),
         v);
}

// The least and greatest element; either is NaN if an element is NaN or Inf.
struct FiniteRange {
  float low, high;
  float poison;  // 0, or NaN: 0 * Inf and 0 * NaN are NaN

  __device__ static FiniteRange empty() { return {3.402823466e38f, -3.402823466e38f, 0.0f}; }
  __device__ void take(float v) {
    low = fminf(v, low);  // of a number and NaN: the number
    high = fmaxf(v, high);
    poison = DeviceVec::fma(v, 0.0f, poison);
  }
  // The first `count` of them.
  __device__ void take(const float (&v)[kLoad], int64_t count) {
    for (int i = 0; i < kLoad; ++i) {
      if (count >= kLoad || i < count) take(v[i]);
    }
  }
  __device__ void take(const FiniteRange& other) {
    low = fminf(other.low, low);
    high = fmaxf(other.high, high);
    poison += other.poison;
  }
  __device__ FiniteRange exchanged(int lanes) const {
    return {shuffle_xor(low, lanes), shuffle_xor(high, lanes), shuffle_xor(poison, lanes)};
  }
  // Of a row of `columns`.
  __device__ RowRange range(int64_t columns) const {
    if (columns == 0) return {0.0f, 0.0f};
    return {low + poison, high + poison};
  }
};

// A value that each thread holds a part of, whole in every thread. T: `take(T)` joins another part,
// which it may do twice with the same; `exchanged(lanes)` is that of the lane whose number differs
// in those bits. The block has `threads`, a multiple of 32 and at most kMostThreads, a power of 2.
template <int kMostThreads, class T>
__device__ inline T reduce_block(T part, int threads = kMostThreads) {
  constexpr int kMostWarps = kMostThreads / kWarp;
  __shared__ T parts[kMostWarps];
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) part.take(part.exchanged(lanes));
  const int warps = threads / kWarp, lane = int(threadIdx.x) % kWarp;
  if (warps == 1) return part;
  if (lane == 0) parts[threadIdx.x / kWarp] = part;
  __syncthreads();
  part = parts[lane % kMostWarps < warps ? lane % kMostWarps : 0];
  for (int lanes = kMostWarps / 2; lanes > 0; lanes /= 2) part.take(part.exchanged(lanes));
  __syncthreads();  // parts may be written again
  return part;
}

// The bytes of eight elements; zeros from `count` on, and in a row that is not finite.
__device__ inline uint2 quantized_bytes(const float (&v)[kLoad], int64_t count, const RowScale& s) {
  uint32_t packed[2] = {0, 0};
  if (!s.finite) return {0, 0};
  for (int i = 0; i < kLoad; ++i) {
    const bool real = count >= kLoad || i < count;
    packed[i / 4] |= uint32_t(real ? uint8_t(cpu::quantize_element(v[i], s)) : 0) << (i % 4 * 8);
  }
  return {packed[0], packed[1]};
}

// Stores bytes k to k + 7 of a row of `columns`. kVector: at once, past its end too; k is then a
// multiple of 8, the row 8-byte aligned.
template <bool kVector>
__device__ inline void store_bytes(int8_t* q, int64_t k, int64_t columns, const uint2& bytes) {
  if constexpr (kVector) {
    *reinterpret_cast<uint2*>(q + k) = bytes;
  } else {
    for (int i = 0; i < kLoad && k + i < columns; ++i) {
      q[k + i] = int8_t((i < 4 ? bytes.x : bytes.y) >> (i % 4 * 8));
    }
  }
}

}  // namespace
}  // namespace fastinfer::cuda
