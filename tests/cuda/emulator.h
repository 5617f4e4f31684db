// Runs a kernel written over cuda/device.cuh on the host: the threads of a block are fibres on one
// thread, the blocks follow one another. What the hardware leaves open is made hostile:
//
// * the fibres run in ascending or in descending order (set_descending), each as far as the next
//   barrier, so that a barrier that is missing gives two different results;
// * an asynchronous copy happens when it is waited for and not before;
// * dynamic shared memory is full of garbage when a block begins, and ends at a guard page;
// * an access through a pointer that is not aligned as its type is ends the test (the compiler
// checks
//   it, see CMakeLists.txt);
// * threads of a block, or of a warp, that wait for others which never come end the test.
//
// What it cannot show: the time that anything takes, the order of memory between blocks that run
// at once, and whether the reading of the PTX ISA that it shares with device.cuh is right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cpu/vec/scalar.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};

using cudaStream_t = struct Stream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };

namespace fastinfer::cuda::emulator {

struct Place {
  dim3 thread, block, block_dim, grid_dim;
  int lane;
};
const Place& place();
[[noreturn]] void fail(const char* what);

void set_descending(bool descending);
void block_barrier();
bool block_or(bool value);
void warp_barrier();
// Puts `bytes` (at most 64) where the other lanes find them until the next warp_barrier().
void put(const void* value, size_t bytes);
const void* of_lane(int lane);
void copy_async(void* shared, const void* global, bool valid);
void copy_commit();
void copy_wait(int groups);
char* dynamic_shared();
void run(dim3 grid, dim3 block, int shared_bytes, const std::function<void()>& kernel);

}  // namespace fastinfer::cuda::emulator

#define threadIdx (::fastinfer::cuda::emulator::place().thread)
#define blockIdx (::fastinfer::cuda::emulator::place().block)
#define blockDim (::fastinfer::cuda::emulator::place().block_dim)
#define gridDim (::fastinfer::cuda::emulator::place().grid_dim)

inline void __syncthreads() { fastinfer::cuda::emulator::block_barrier(); }
inline int __syncthreads_or(int value) {
  return fastinfer::cuda::emulator::block_or(value != 0) ? 1 : 0;
}
inline void __syncwarp() { fastinfer::cuda::emulator::warp_barrier(); }
inline void __threadfence() {}
inline int atomicAdd(int* p, int v) {
  const int old = *p;
  *p += v;
  return old;
}

namespace fastinfer::cuda {

inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += int32_t(int8_t(a >> i)) * int32_t(int8_t(b >> i));
  return c;
}

template <class T>
T of_lane(int lane) {
  T value;
  std::memcpy(&value, emulator::of_lane(lane), sizeof value);
  return value;
}

template <class T>
T shuffle_xor(T v, int lanes) {
  emulator::put(&v, sizeof v);
  emulator::warp_barrier();
  const T other = of_lane<T>(emulator::place().lane ^ lanes);
  emulator::warp_barrier();
  return other;
}

inline void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::put(&mine, sizeof mine);
  emulator::warp_barrier();
  const int g = emulator::place().lane / 4, t = emulator::place().lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g, upper = i / 2, column = 2 * t + i % 2;  // upper: row g + 8
    for (int k = 0; k < 4; ++k) {  // the lanes that hold k = 4 k to 4 k + 3 and 16 more
      const auto left = of_lane<Operands>(row * 4 + k), right = of_lane<Operands>(column * 4 + k);
      c[i] = dot4(left.a[upper], right.b[0], c[i]);
      c[i] = dot4(left.a[upper + 2], right.b[1], c[i]);
    }
  }
  emulator::warp_barrier();
}

template <cpu::DType kType>
void mma_16bit(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::put(&mine, sizeof mine);
  emulator::warp_barrier();
  const auto value = [](uint32_t pair, int i) {
    const uint16_t half = uint16_t(pair >> (16 * i));
    return cpu::ScalarVec::load(&half, kType);
  };
  const int g = emulator::place().lane / 4, t = emulator::place().lane % 4;
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 8; ++k) {  // pairs
      const auto left = of_lane<Operands>(g * 4 + k % 4);
      const auto right = of_lane<Operands>((2 * t + i % 2) * 4 + k % 4);
      for (int e = 0; e < 2; ++e) {
        c[i] += value(left.a[i / 2 + k / 4 * 2], e) * value(right.b[k / 4], e);
      }
    }
  }
  emulator::warp_barrier();
}

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t digits) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = digits >> (4 * i) & 15;
    if (digit > 7) emulator::fail("a digit of permute_bytes is above 7");
    result |= uint32_t(bytes >> (digit * 8) & 0xff) << (8 * i);
  }
  return result;
}

inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i += 16) {
    const float left = cpu::ScalarVec::from_f16(uint16_t(a >> i));
    const float right = cpu::ScalarVec::from_f16(uint16_t(b >> i));
    result |= uint32_t(cpu::ScalarVec::to_f16(left - right)) << i;
  }
  return result;
}

inline void load_matrix(uint32_t (&r)[4], const void* row) {
  emulator::put(&row, sizeof row);
  emulator::warp_barrier();
  const int g = emulator::place().lane / 4, t = emulator::place().lane % 4;
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&r[i], of_lane<const char*>(i * 8 + g) + t * 4, 4);
  }
  emulator::warp_barrier();
}

inline void copy_async(void* shared, const void* global, bool valid) {
  emulator::copy_async(shared, global, valid);
}
inline void copy_commit() { emulator::copy_commit(); }
template <int kGroups>
void copy_wait() {
  emulator::copy_wait(kGroups);
}

inline uint4 load_once(const void* p) {
  uint4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline uint32_t load_word_once(const void* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline int32_t load_shared_between_blocks(const int32_t* p) { return *p; }

inline char* dynamic_shared() { return emulator::dynamic_shared(); }
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_begin() {}

template <class Shape, class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t,
                   Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
  emulator::run(shape.grid, shape.block, shape.shared_bytes,
                [&] { kernel(Parameters(arguments)...); });
  return cudaSuccess;
}

}  // namespace fastinfer::cuda
