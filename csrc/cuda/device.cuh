// What kernels use of the GPU, under names of their own: a kernel written in these terms also runs
// on the host, over the emulator of tests/cuda, where every thread of a block is a fibre.
//
// Fragments of mma.sync are those of the PTX ISA ("Matrix Fragments for mma.m16n8k32"): lane
// 4 g + t holds, 4 bytes a register, of A rows g and g + 8 at k = 4 t and 16 + 4 t; of B column g
// at the same k; of C rows g and g + 8, columns 2 t and 2 t + 1.
#pragma once

#include <cstdint>

#ifdef FASTINFER_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include "cpu/activation.h"
#include "cuda/device_vec.cuh"

namespace fastinfer::cuda {

using cpu::Activation;

constexpr int kWarp = 32;

#ifndef FASTINFER_EMULATE

// c + the four products of the signed bytes of a and b.
__device__ inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  return __dp4a(int32_t(a), int32_t(b), c);
}

// c += A B for int8 A [16, 32], B [32, 8].
__device__ inline void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += A B for A [16, 16], B [16, 8] of bf16 or f16. Two elements a register: lane 4 g + t holds of
// A rows g and g + 8 at k = 2 t and 8 + 2 t, of B column g at the same k; C as above.
template <DType kType>
__device__ inline void mma_16bit(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == DType::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Byte i of the result is the one of a (0 to 3) or b (4 to 7) that hexadecimal digit i names; the
// four low digits are below 8, the others do not matter. (__byte_perm takes any digits, at the cost
// of an operation.)
__device__ inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t digits) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(digits));
  return d;
}

// Two float16 differences.
__device__ inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// Four matrices of 8 rows of 16 bytes: lanes 8 i to 8 i + 7 point to the rows of matrix i; lane
// 4 g + t gets bytes 4 t to 4 t + 3 of row g of each.
__device__ inline void load_matrix(uint32_t (&r)[4], const void* row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Copies 16 bytes to shared memory on the side, or writes zeros there; done when waited for.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Closes a group of copies.
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kGroups groups of this thread are under way.
template <int kGroups>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// 16 bytes that are read once: past L1.
__device__ inline uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 4 bytes that are read once, beside others of the same sector: through L1.
__device__ inline uint32_t load_word_once(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

// What another block of the same launch has written: from L2, where its writes are.
__device__ inline int32_t load_shared_between_blocks(const int32_t* p) { return __ldcg(p); }

template <class T>
__device__ inline T shuffle_xor(T v, int lanes) {
  return __shfl_xor_sync(0xffffffffu, v, lanes);
}

// The block's dynamic shared memory, 128-byte aligned.
__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// A kernel launched as `dependent` may begin before the one before it on the stream has ended; it
// waits here before it reads what that one wrote (and, so that order is kept down a chain of
// kernels, before it writes). Elsewhere nothing happens.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the next kernel may begin, for what does not depend on this one.
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif  // FASTINFER_EMULATE

struct LaunchShape {
  dim3 grid, block;
  int shared_bytes;  // dynamic
  bool dependent;    // see wait_for_previous_kernel
  // The most that a launch of this kernel asks for, where that varies: launches from two threads
  // set the same limit.
  int most_shared_bytes = 0;
};

#ifndef FASTINFER_EMULATE

// Launches nothing if the grid is empty. Safe in a capture: no allocation, no synchronisation.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   Arguments... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return cudaSuccess;
  // 48 KiB is the limit of static memory and dynamic together; no kernel has 1 KiB of the former.
  if (shape.shared_bytes > 47 * 1024) {
    const int most = shape.most_shared_bytes > 0 ? shape.most_shared_bytes : shape.shared_bytes;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = size_t(shape.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.dependent ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

#endif  // FASTINFER_EMULATE

}  // namespace fastinfer::cuda
