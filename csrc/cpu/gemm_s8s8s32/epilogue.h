// The float epilogue of gemm_s8s8s32.h over a `Vec` (cpu/vec/scalar.h): the one place that turns
// int32 sums into results.
#pragma once

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/vec/math.h"

namespace fastinfer::cpu {
namespace {

template <class V, Activation kActivation>
inline typename V::F activate(typename V::F z) {
  if constexpr (kActivation == Activation::relu) return relu<V>(z);
  if constexpr (kActivation == Activation::gelu) return gelu_erf<V>(z);
  if constexpr (kActivation == Activation::gelu_tanh) return gelu_tanh<V>(z);
  if constexpr (kActivation == Activation::silu) return silu<V>(z);
  return z;
}

template <class V, Activation kActivation, DType kOut>
void epilogue_rows(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                   int64_t rows, int64_t column, int64_t columns) {
  constexpr int64_t kSize = size_of(kOut);
  for (int64_t i = 0; i < columns; i += V::width) {
    const int n = columns - i < V::width ? int(columns - i) : V::width;
    const auto b_scale = V::load(p.b_scale + column + i, n);
    const auto bias = p.bias ? V::load(p.bias + column + i, n) : V::set1(0.0f);
    char* out = static_cast<char*>(p.out) + row * p.out_ld_bytes + (column + i) * kSize;
    const char* residual = static_cast<const char*>(p.residual);
    if (residual) residual += row * p.residual_ld_bytes + (column + i) * kSize;
    for (int64_t r = 0; r < rows; ++r) {
      const auto scaled = V::mul(V::from_s32(acc + r * ld_acc + i), b_scale);
      auto y = activate<V, kActivation>(V::fma(scaled, V::set1(p.a_scale[row + r]), bias));
      if (residual) y = V::add(y, V::load(residual + r * p.residual_ld_bytes, kOut, n));
      V::store(out + r * p.out_ld_bytes, kOut, y, n);
    }
  }
}

template <class V, Activation kActivation>
void epilogue_dtype(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                    int64_t rows, int64_t column, int64_t columns) {
  switch (p.out_dtype) {
    case DType::f32:
      return epilogue_rows<V, kActivation, DType::f32>(p, acc, ld_acc, row, rows, column, columns);
    case DType::bf16:
      return epilogue_rows<V, kActivation, DType::bf16>(p, acc, ld_acc, row, rows, column, columns);
    case DType::f16:
      return epilogue_rows<V, kActivation, DType::f16>(p, acc, ld_acc, row, rows, column, columns);
    case DType::s32:
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(static_cast<char*>(p.out) + (row + r) * p.out_ld_bytes + column * 4,
                    acc + r * ld_acc, size_t(columns) * 4);
      }
  }
}

// Finishes rows [row, row + rows) x columns [column, column + columns) of the block from
// acc[r * ld_acc + c]; acc is readable to a multiple of 16 columns.
template <class V>
void epilogue(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row, int64_t rows,
              int64_t column, int64_t columns) {
  switch (p.activation) {
    case Activation::none:
      return epilogue_dtype<V, Activation::none>(p, acc, ld_acc, row, rows, column, columns);
    case Activation::relu:
      return epilogue_dtype<V, Activation::relu>(p, acc, ld_acc, row, rows, column, columns);
    case Activation::gelu:
      return epilogue_dtype<V, Activation::gelu>(p, acc, ld_acc, row, rows, column, columns);
    case Activation::gelu_tanh:
      return epilogue_dtype<V, Activation::gelu_tanh>(p, acc, ld_acc, row, rows, column, columns);
    case Activation::silu:
      return epilogue_dtype<V, Activation::silu>(p, acc, ld_acc, row, rows, column, columns);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
