// exp, SiLU, GELU over a `Vec` (scalar.h): fixed sequences of multiplies, adds, fused
// multiply-adds and divisions, so the bits are the same on every ISA, and on a GPU.
#pragma once

#include "cpu/activation.h"
#include "cpu/host_device.h"
#include "cpu/vec/gelu_table.h"

namespace fastinfer::cpu {
namespace {

// 2^n (1 + r + r^2 p(r)), shifted = n + 1.5 * 2^23.
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F exp_of_parts(typename V::F r, typename V::F shifted) {
  typename V::F p = V::set1(0.001393365440890193f);
  p = V::fma(p, r, V::set1(0.008363182656466961f));
  p = V::fma(p, r, V::set1(0.04166646674275398f));
  p = V::fma(p, r, V::set1(0.16666576266288757f));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::mul(p, V::pow2_shifted(shifted));
}

// exp(x) = 2^n (1 + r + r^2 p(r)), n = round(x / ln 2), r = x - n ln 2 in two pieces (Cody and
// Waite); p is a Chebyshev fit of degree 4 on |r| <= ln 2 / 2. Relative error < 1.3 * 2^-24.
// x is clamped to [-87, 88]; NaN stays NaN.
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F exp(typename V::F x) {
  using F = typename V::F;
  const F hi = V::set1(88.0f), lo = V::set1(-87.0f), magic = V::set1(12582912.0f);
  x = V::select_lt(hi, x, hi, x);
  x = V::select_lt(x, lo, lo, x);
  const F shifted = V::fma(x, V::set1(1.44269504f), magic);
  const F n = V::add(shifted, V::set1(-12582912.0f));
  F r = V::fma(n, V::set1(-0.693145752f), x);
  r = V::fma(n, V::set1(-1.42860677e-6f), r);
  return exp_of_parts<V>(r, shifted);
}

// exp(x) for x <= 0 or NaN, which stays NaN: as above with one clamp and ln 2 in one piece, whose
// error in r is 0.05 |x| 2^-24.
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F exp_nonpositive(typename V::F x) {
  x = V::max(V::set1(-87.0f), x);
  const typename V::F shifted = V::fma(x, V::set1(1.44269504f), V::set1(12582912.0f));
  const typename V::F n = V::add(shifted, V::set1(-12582912.0f));
  return exp_of_parts<V>(V::fma(n, V::set1(-0.693147182f), x), shifted);
}

// x / (1 + exp(-x))
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F silu(typename V::F x) {
  return V::div(x, V::add(V::set1(1.0f), exp<V>(V::mul(x, V::set1(-1.0f)))));
}

// x / (1 + exp(-1.702 x))
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F quick_gelu(typename V::F x) {
  return V::div(x, V::add(V::set1(1.0f), exp<V>(V::mul(x, V::set1(-1.702f)))));
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)),  u = sqrt(2/pi) (x + 0.044715 x^3)
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F gelu_tanh(typename V::F x) {
  const typename V::F minus_2u =
      V::mul(x, V::fma(V::mul(x, x), V::set1(-0.0713548162726f), V::set1(-1.59576912161f)));
  return V::div(x, V::add(V::set1(1.0f), exp<V>(minus_2u)));
}

// x Phi(x) = |x| (Phi(|x|) - 1/2) + x / 2, with Phi of gelu_table.h, |x| clamped to 5.5, from where
// on it is 0 or x. |error| < (0.52 + 1) |x| 2^-24.
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F gelu_erf(typename V::F x) {
  using F = typename V::F;
  const F magnitude = V::abs(x), a = V::min(V::set1(5.5f), magnitude);
  const F shifted = V::fma(a, V::set1(2.66666675f), V::set1(12582912.0f));  // n + 1.5 * 2^23
  const F n = V::add(shifted, V::set1(-12582912.0f));
  const F r = V::fma(n, V::set1(-0.375f), a);
  F phi = V::lookup16(phi_coefficients(kPhiDegree), shifted);
  FASTINFER_UNROLL
  for (int k = kPhiDegree - 1; k >= 0; --k)
    phi = V::fma(phi, r, V::lookup16(phi_coefficients(k), shifted));
  return V::fma(magnitude, phi, V::mul(x, V::set1(0.5f)));
}

// max(x, 0); NaN stays NaN, -0 stays -0.
template <class V>
FASTINFER_HOST_DEVICE inline typename V::F relu(typename V::F x) {
  return V::select_lt(x, V::set1(0.0f), V::set1(0.0f), x);
}

template <class V, Activation kActivation>
FASTINFER_HOST_DEVICE inline typename V::F activate(typename V::F z) {
  if constexpr (kActivation == Activation::relu) return relu<V>(z);
  if constexpr (kActivation == Activation::gelu) return gelu_erf<V>(z);
  if constexpr (kActivation == Activation::gelu_tanh) return gelu_tanh<V>(z);
  if constexpr (kActivation == Activation::silu) return silu<V>(z);
  if constexpr (kActivation == Activation::quick_gelu) return quick_gelu<V>(z);
  return z;
}

}  // namespace
}  // namespace fastinfer::cpu
