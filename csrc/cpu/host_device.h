// Marks what device code shares with the CPU's.
#pragma once

#ifdef __CUDACC__
#define FASTINFER_HOST_DEVICE __host__ __device__
#else
#define FASTINFER_HOST_DEVICE
#endif
