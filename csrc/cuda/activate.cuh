// The activations of cpu/vec/math.h on the GPU, chosen at run time.
#pragma once

#include "cpu/vec/math.h"
#include "cuda/device.cuh"

namespace fastinfer::cuda {
namespace {

__device__ inline float activate(Activation activation, float z) {
  switch (activation) {
    case Activation::none: return z;
    case Activation::relu: return cpu::relu<DeviceVec>(z);
    case Activation::gelu: return cpu::gelu_erf<DeviceVec>(z);
    case Activation::gelu_tanh: return cpu::gelu_tanh<DeviceVec>(z);
    case Activation::silu: return cpu::silu<DeviceVec>(z);
    case Activation::quick_gelu: break;
  }
  return cpu::quick_gelu<DeviceVec>(z);
}

}  // namespace
}  // namespace fastinfer::cuda
