// CUDA's names for a C++ compiler, so that CUTLASS's device functions are plain functions. Those
// that the tests call touch memory alone; the rest must only compile.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_types.h>

static const dim3 threadIdx, blockIdx, gridDim, blockDim;
inline void __syncthreads() {}
inline void __syncwarp(unsigned = 0) {}
inline void __threadfence() {}
template <class T>
T atomicAdd(T*, T v) {
  return v;
}
template <class T>
T atomicCAS(T*, T, T v) {
  return v;
}
inline int __ffs(int v) { return __builtin_ffs(v); }
template <class T>
T __shfl_sync(unsigned, T v, int) {
  return v;
}
template <class T, class... Rest>
T __shfl_up_sync(unsigned, T v, Rest...) {
  return v;
}
template <class T, class... Rest>
T __shfl_down_sync(unsigned, T v, Rest...) {
  return v;
}
template <class T, class... Rest>
T __shfl_xor_sync(unsigned, T v, Rest...) {
  return v;
}
namespace cutlass::arch {
inline int SmId() { return 0; }
}  // namespace cutlass::arch
