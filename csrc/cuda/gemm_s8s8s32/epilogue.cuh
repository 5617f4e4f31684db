// The float epilogue of gemm_s8s8s32.h on the GPU, to the bits of cpu/gemm_s8s8s32/epilogue.h.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/device.cuh"
#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cuda {
namespace {

// Finishes one element; neighbouring threads should have neighbouring n.
__device__ inline void finish(const GemmS8S8S32& p, int64_t m, int64_t n, int32_t acc) {
  const float w_scale = p.w_scale[n], bias = p.bias != nullptr ? p.bias[n] : 0.0f;
  const float sum = float(p.compensation[n]) * -0x1p-7f * w_scale;
  const float shift = DeviceVec::fma(p.a_offset[m], sum, bias);
  float y = activate(p.activation, DeviceVec::fma(float(acc) * w_scale, p.a_scale[m], shift));
  if (p.multiplier != nullptr) y *= p.multiplier[m * p.ld_multiplier + n];
  const int64_t size = cpu::size_of(p.out_dtype);
  if (p.residual != nullptr) {
    const char* residual = static_cast<const char*>(p.residual);
    y += DeviceVec::load(residual + (m * p.ld_residual + n) * size, p.out_dtype);
  }
  DeviceVec::store(static_cast<char*>(p.out) + (m * p.ld_out + n) * size, p.out_dtype, y);
}

}  // namespace
}  // namespace fastinfer::cuda
