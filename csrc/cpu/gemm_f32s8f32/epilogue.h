// The float epilogue of gemm_f32s8f32.h over a `Vec` (cpu/vec/scalar.h).
#pragma once

#include "cpu/gemm_f32s8f32/gemm_f32s8f32.h"
#include "cpu/vec/math.h"

namespace fastinfer::cpu {
namespace {

template <class V, Activation kActivation, DType kOut>
void epilogue_rows(const GemmF32S8F32& p, const float* sums, int64_t ld_sums, int64_t row,
                   int64_t rows, int64_t column, int64_t columns) {
  constexpr int64_t kSize = size_of(kOut);
  for (int64_t i = 0; i < columns; i += V::width) {
    const int n = int(std::min<int64_t>(V::width, columns - i));
    const auto scale = V::load(p.b_scale + column + i, n);
    const auto bias = p.bias ? V::load(p.bias + column + i, n) : V::set1(0.0f);
    char* out = static_cast<char*>(p.out) + row * p.out_ld_bytes + (column + i) * kSize;
    const char* residual = static_cast<const char*>(p.residual);
    if (residual) residual += row * p.residual_ld_bytes + (column + i) * kSize;
    for (int64_t r = 0; r < rows; ++r, out += p.out_ld_bytes) {
      auto y = activate<V, kActivation>(V::fma(V::load(sums + r * ld_sums + i), scale, bias));
      if (residual) {
        y = V::add(y, V::load(residual, kOut, n));
        residual += p.residual_ld_bytes;
      }
      V::store(out, kOut, y, n);
    }
  }
}

// Finishes rows [row, row + rows) x columns [column, column + columns) of the block from
// sums[r * ld_sums + c], readable to a multiple of 16 columns.
using EpilogueFn = void (*)(const GemmF32S8F32& p, const float* sums, int64_t ld_sums, int64_t row,
                            int64_t rows, int64_t column, int64_t columns);

template <class V, Activation kActivation>
EpilogueFn epilogue_for_dtype(DType out_dtype) {
  if (out_dtype == DType::bf16) return epilogue_rows<V, kActivation, DType::bf16>;
  if (out_dtype == DType::f16) return epilogue_rows<V, kActivation, DType::f16>;
  return epilogue_rows<V, kActivation, DType::f32>;
}

// The epilogue of this activation and output type: chosen once a call, not once a tile.
template <class V>
EpilogueFn select_epilogue(const GemmF32S8F32& p) {
  switch (p.activation) {
    case Activation::none: return epilogue_for_dtype<V, Activation::none>(p.out_dtype);
    case Activation::relu: return epilogue_for_dtype<V, Activation::relu>(p.out_dtype);
    case Activation::gelu: return epilogue_for_dtype<V, Activation::gelu>(p.out_dtype);
    case Activation::gelu_tanh: return epilogue_for_dtype<V, Activation::gelu_tanh>(p.out_dtype);
    case Activation::silu: return epilogue_for_dtype<V, Activation::silu>(p.out_dtype);
    case Activation::quick_gelu: break;
  }
  return epilogue_for_dtype<V, Activation::quick_gelu>(p.out_dtype);
}

}  // namespace
}  // namespace fastinfer::cpu
