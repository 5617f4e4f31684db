// The activations that kernels apply; cpu/vec/math.h holds their formulas.
#pragma once

#include <cstdint>

namespace fastinfer::cpu {

enum class Activation : int32_t {
  none = 0,
  relu = 1,
  gelu = 2,
  gelu_tanh = 3,
  silu = 4,
  quick_gelu = 5
};
constexpr int kActivationCount = 6;

}  // namespace fastinfer::cpu
