# The hand-written kernels and their launchers: nvcc compiles them for GPUs, the tests for the host.
set(FASTINFER_CUDA_SOURCES
  act_mul/act_mul.cu
  gemm_s8s8s32/expand_sp24.cu
  gemm_s8s8s32/few_sp24.cu
  gemm_s8s8s32/gemv.cu
  gemm_s8s8s32/gemv_sp24.cu
  gemm_s8s8s32/launch.cpp
  gemm_s8s8s32/sp24.cpp
  gemm_s8s8s32/sp24_metadata.cu
  gemm_s8s8s32/tiles.cu
  gemm_w8a16/few.cu
  gemm_w8a16/launch.cpp
  gemm_w8a16/plain.cu
  gemm_w8a16/tiles.cu
  norm/norm.cu
  quantize_rowwise/quantize_rowwise.cu
  rope/rope.cu)
list(TRANSFORM FASTINFER_CUDA_SOURCES PREPEND "${PROJECT_SOURCE_DIR}/csrc/cuda/")
