// The float epilogue of gemm_s8s8s32.h over a `Vec` (cpu/vec/scalar.h): the one place that turns
// int32 sums into results.
#pragma once

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/inline.h"
#include "cpu/vec/math.h"

namespace fastinfer::cpu {
namespace {

// What the sums of a vector of columns are finished with.
template <class V>
struct ColumnTerms {
  typename V::F b_scale, b_sum, bias;

  // z of gemm_s8s8s32.h.
  typename V::F dequantize(typename V::F acc, typename V::F a_scale, typename V::F a_offset) const {
    return V::fma(V::mul(acc, b_scale), a_scale, V::fma(a_offset, b_sum, bias));
  }
};

// n: the columns that there are.
template <class V>
inline ColumnTerms<V> column_terms(const GemmS8S8S32& p, int64_t column, int n = V::width) {
  ColumnTerms<V> terms;
  const auto compensation = V::from_s32(p.compensation + column);
  terms.b_scale = V::load(p.b_scale + column, n);
  terms.b_sum = V::mul(V::mul(compensation, V::set1(-0x1p-7f)), terms.b_scale);
  terms.bias = p.bias ? V::load(p.bias + column, n) : V::set1(0.0f);
  return terms;
}

// Whether the outputs are floats, z itself or z + residual.
inline bool only_dequantized(const GemmS8S8S32& p) {
  return p.out_dtype == DType::f32 && p.activation == Activation::none && p.multiplier == nullptr;
}

// kVectors neighbouring vectors of columns at a time: a row's page is visited once for all of them.
template <class V, Activation kActivation, DType kOut, int kVectors>
inline void epilogue_columns(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                             int64_t rows, int64_t column, int n_last) {
  constexpr int64_t kSize = size_of(kOut);
  ColumnTerms<V> terms[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int n = v + 1 < kVectors ? V::width : n_last;
    terms[v] = column_terms<V>(p, column + v * V::width, n);
  }
  char* out = static_cast<char*>(p.out) + row * p.out_ld_bytes + column * kSize;
  const char* residual = static_cast<const char*>(p.residual);
  if (residual) residual += row * p.residual_ld_bytes + column * kSize;
  const char* multiplier = reinterpret_cast<const char*>(p.multiplier);
  if (multiplier) multiplier += row * p.multiplier_ld_bytes + column * int64_t(sizeof(float));
  for (int64_t r = 0; r < rows; ++r, acc += ld_acc, out += p.out_ld_bytes) {
    const auto a_scale = V::set1(p.a_scale[row + r]), a_offset = V::set1(p.a_offset[row + r]);
    for (int v = 0; v < kVectors; ++v) {
      const int n = v + 1 < kVectors ? V::width : n_last;
      const auto sums = V::from_s32(acc + v * V::width);
      auto y = activate<V, kActivation>(terms[v].dequantize(sums, a_scale, a_offset));
      if (multiplier) {
        y = V::mul(y, V::load(reinterpret_cast<const float*>(multiplier) + v * V::width, n));
      }
      if (residual) y = V::add(y, V::load(residual + v * V::width * kSize, kOut, n));
      V::store(out + v * V::width * kSize, kOut, y, n);
    }
    if (multiplier) multiplier += p.multiplier_ld_bytes;
    if (residual) residual += p.residual_ld_bytes;
  }
}

template <class V, Activation kActivation, DType kOut>
void epilogue_rows(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                   int64_t rows, int64_t column, int64_t columns) {
  int64_t i = 0;
  for (; i + 2 * V::width <= columns; i += 2 * V::width) {
    epilogue_columns<V, kActivation, kOut, 2>(p, acc + i, ld_acc, row, rows, column + i, V::width);
  }
  for (; i < columns; i += V::width) {
    const int n = columns - i < V::width ? int(columns - i) : V::width;
    epilogue_columns<V, kActivation, kOut, 1>(p, acc + i, ld_acc, row, rows, column + i, n);
  }
}

// Finishes rows [row, row + rows) x columns [column, column + columns) of the block from
// acc[r * ld_acc + c]; acc is readable to a multiple of 16 columns.
using EpilogueFn = void (*)(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                            int64_t rows, int64_t column, int64_t columns);

inline void epilogue_sums(const GemmS8S8S32& p, const int32_t* acc, int64_t ld_acc, int64_t row,
                          int64_t rows, int64_t column, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(static_cast<char*>(p.out) + (row + r) * p.out_ld_bytes + column * 4,
                acc + r * ld_acc, size_t(columns) * 4);
  }
}

template <class V, Activation kActivation>
EpilogueFn epilogue_for_dtype(DType out_dtype) {
  switch (out_dtype) {
    case DType::f32: return epilogue_rows<V, kActivation, DType::f32>;
    case DType::bf16: return epilogue_rows<V, kActivation, DType::bf16>;
    case DType::f16: return epilogue_rows<V, kActivation, DType::f16>;
    case DType::s8:
    case DType::s32: break;
  }
  return epilogue_sums;
}

// A block of so many rows asks for its outputs ahead, since L2 may not hold them: 512 rows, 384 x
// 1536 and 768 x 3072, run at 0.87 of the peak of a Zen 4 instead of 0.8.
constexpr int64_t kLeastRowsOutputs = 64;

// Asks for what the epilogue of these rows and columns will write and add. Inlined by force: GCC 12
// drops calls of a function that does nothing but prefetch.
FASTINFER_INLINE inline void prefetch_outputs(const GemmS8S8S32& p, int64_t row, int64_t rows,
                                              int64_t column, int64_t columns) {
  const int64_t size = size_of(p.out_dtype);
  const char* out = static_cast<const char*>(p.out) + row * p.out_ld_bytes + column * size;
  const char* residual = static_cast<const char*>(p.residual);
  if (residual) residual += row * p.residual_ld_bytes + column * size;
  for (int64_t r = 0; r < rows; ++r, out += p.out_ld_bytes) {
    for (int64_t at = 0; at < columns * size; at += 64) {
      __builtin_prefetch(out + at, 0, 2);
      if (residual) __builtin_prefetch(residual + r * p.residual_ld_bytes + at, 0, 2);
    }
  }
}

// Asks for the vectors that the epilogue of these columns reads: with few rows they are small
// streams of their own, which no prefetcher knows yet.
FASTINFER_INLINE inline void prefetch_terms(const GemmS8S8S32& p, int64_t column, int64_t columns) {
  for (int64_t c = column; c < column + columns; c += kPanelColumns) {
    __builtin_prefetch(p.compensation + c);
    __builtin_prefetch(p.b_scale + c);
    if (p.bias != nullptr) __builtin_prefetch(p.bias + c);
  }
}

// The epilogue of this activation and output type: chosen once a call, not once a tile.
template <class V>
EpilogueFn select_epilogue(const GemmS8S8S32& p) {
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
