// The walk of every kernel of act_mul, over a `Vec` (cpu/vec/scalar.h). Formula: act_mul.h.
#pragma once

#include "cpu/act_mul/act_mul.h"
#include "cpu/inline.h"
#include "cpu/vec/for_each.h"
#include "cpu/vec/math.h"

namespace fastinfer::cpu {
namespace {

template <class V, DType kType, Activation kActivation>
void act_mul_rows(const ActMul& p) {
  constexpr int64_t kSize = size_of(kType);
  const char* x = static_cast<const char*>(p.x);
  const char* other = static_cast<const char*>(p.other);
  char* y = static_cast<char*>(p.y);
  const auto step = [&](int64_t k, int n) FASTINFER_INLINE {
    auto v = activate<V, kActivation>(V::load(x + k * kSize, kType, n));
    if (other != nullptr) v = V::mul(v, V::load(other + k * kSize, kType, n));
    V::store(y + k * kSize, kType, v, n);
  };
  for (int64_t m = 0; m < p.rows; ++m, x += p.ldx_bytes, y += p.k * kSize) {
    for_each_vector<V>(p.k, step);
    if (other != nullptr) other += p.other_ld_bytes;
  }
}

template <class V, DType kType>
void act_mul_dtype(const ActMul& p) {
  switch (p.activation) {
    case Activation::none: return act_mul_rows<V, kType, Activation::none>(p);
    case Activation::relu: return act_mul_rows<V, kType, Activation::relu>(p);
    case Activation::gelu: return act_mul_rows<V, kType, Activation::gelu>(p);
    case Activation::gelu_tanh: return act_mul_rows<V, kType, Activation::gelu_tanh>(p);
    case Activation::silu: return act_mul_rows<V, kType, Activation::silu>(p);
    case Activation::quick_gelu: return act_mul_rows<V, kType, Activation::quick_gelu>(p);
  }
}

template <class V>
void run_act_mul(const ActMul& p) {
  switch (p.dtype) {
    case DType::bf16: return act_mul_dtype<V, DType::bf16>(p);
    case DType::f16: return act_mul_dtype<V, DType::f16>(p);
    default: return act_mul_dtype<V, DType::f32>(p);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
