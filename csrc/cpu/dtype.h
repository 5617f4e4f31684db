// Element types that kernels read and write, and their scalar conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastinfer::cpu {

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, s32 = 3, s8 = 4 };

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::s8 ? 1 : dtype == DType::f32 || dtype == DType::s32 ? 4 : 2;
}

}  // namespace fastinfer::cpu
