// Marks what device code shares with the CPU's.
#pragma once

#ifdef __CUDACC__
#define FASTINFER_HOST_DEVICE __host__ __device__
#else
#define FASTINFER_HOST_DEVICE
#endif

// Before a loop over an array that must stay in registers.
#ifdef __CUDA_ARCH__
#define FASTINFER_UNROLL _Pragma("unroll")
#else
#define FASTINFER_UNROLL
#endif
