// The float epilogue of gemm_s8s8s32.h over the outputs that a thread holds: what the CUTLASS
// kernels call, in plain C++, so that it is tested on the host to the bits of
// cpu/gemm_s8s8s32/epilogue.h.
#pragma once

#include "cpu/vec/math.h"
#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cuda {

// What is the same for all outputs.
struct FragmentEpilogue {
  Activation activation;
  DType out_dtype;    // the 16-bit types share a kernel
  bool has_residual;  // else what it is given for one is not read
};

namespace {

template <class V, Activation kActivation, int kCount>
FASTINFER_HOST_DEVICE inline void activate_all(float (&y)[kCount]) {
  FASTINFER_UNROLL
  for (int i = 0; i < kCount; ++i) y[i] = cpu::activate<V, kActivation>(y[i]);
}

// One branch for all of them; the elements then run side by side.
template <class V, int kCount>
FASTINFER_HOST_DEVICE inline void activate_all(Activation activation, float (&y)[kCount]) {
  switch (activation) {
    case Activation::none: return;
    case Activation::relu: return activate_all<V, Activation::relu>(y);
    case Activation::gelu: return activate_all<V, Activation::gelu>(y);
    case Activation::gelu_tanh: return activate_all<V, Activation::gelu_tanh>(y);
    case Activation::silu: return activate_all<V, Activation::silu>(y);
    case Activation::quick_gelu: return activate_all<V, Activation::quick_gelu>(y);
  }
}

template <class V, DType kOut, int kCount, class Out>
FASTINFER_HOST_DEVICE inline void add_and_store(bool has_residual, const Out* residual,
                                                float (&y)[kCount], Out* out) {
  static_assert(sizeof(Out) == cpu::size_of(kOut), "elements of kOut");
  FASTINFER_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (has_residual) y[i] = V::add(y[i], V::load(residual + i, kOut));
    V::store(out + i, kOut, y[i]);
  }
}

// kCount outputs, each with its own values of the vectors; Out: float, or uint16_t for the bits of
// a 16-bit type. V: cpu::ScalarVec or, on a GPU, its equal.
template <class V, int kCount, class Out>
FASTINFER_HOST_DEVICE inline void finish_fragment(const FragmentEpilogue& e, const int32_t* acc,
                                                  const float* w_scale, const float* compensation,
                                                  const float* bias, const float* a_scale,
                                                  const float* a_offset, const Out* residual,
                                                  Out* out) {
  float y[kCount];
  FASTINFER_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const float sum = V::mul(V::mul(compensation[i], V::set1(-0x1p-7f)), w_scale[i]);
    const float scaled = V::mul(float(acc[i]), w_scale[i]);
    y[i] = V::fma(scaled, a_scale[i], V::fma(a_offset[i], sum, bias[i]));
  }
  activate_all<V>(e.activation, y);
  if constexpr (sizeof(Out) == 4) {
    add_and_store<V, DType::f32>(e.has_residual, residual, y, out);
  } else if (e.out_dtype == DType::bf16) {
    add_and_store<V, DType::bf16>(e.has_residual, residual, y, out);
  } else {
    add_and_store<V, DType::f16>(e.has_residual, residual, y, out);
  }
}

}  // namespace
}  // namespace fastinfer::cuda
