// fastinfer::attention: softmax(q k^T * scale + mask) v. Kernels: cpu/attention.
#include "cpu/attention/attention.h"

#include <cmath>

#include "ops/functions.h"
#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "attention";

// q, k or v: [batch, heads, tokens, head_dim] of one dtype, copied only where head_dim has gaps.
Tensor heads_of(const char* name, const Tensor& t, ScalarType dtype) {
  check_cpu(kOp, name, t);
  STD_TORCH_CHECK(t.scalar_type() == dtype, kOp, ": ", name, " has dtype ",
                  dtype_text(t.scalar_type()), ", want that of q, ", dtype_text(dtype));
  STD_TORCH_CHECK(t.dim() == 4, kOp, ": ", name, " has shape ", shape_text(t),
                  ", want [B, H, T, D]");
  return t.size(3) > 1 && t.stride(3) != 1 ? torch::stable::contiguous(t) : t;
}

cpu::HeadStrides strides_of(const Tensor& t) {
  const int64_t size = int64_t(t.element_size());
  return {t.stride(0) * size, t.stride(1) * size, t.stride(2) * size};
}

// Fills the fields of p that describe the mask; the tensor returned holds its memory.
Tensor open_mask(const Tensor& given, ScalarType dtype, cpu::Attention* p) {
  check_cpu(kOp, "mask", given);
  const ScalarType type = given.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Bool || type == ScalarType::Float || type == dtype, kOp,
                  ": mask has dtype ", dtype_text(type), ", want bool, float32 or that of q, ",
                  dtype_text(dtype));
  const int64_t want[4] = {p->batch, p->heads, p->tq, p->tk}, dims = given.dim();
  bool fits = dims <= 4;
  for (int64_t i = 0; fits && i < dims; ++i) {
    fits = given.size(i) == 1 || given.size(i) == want[4 - dims + i];
  }
  STD_TORCH_CHECK(fits, kOp, ": mask has shape ", shape_text(given),
                  ", want one that broadcasts to [", want[0], ", ", want[1], ", ", want[2], ", ",
                  want[3], "]");
  const auto step = [&](const Tensor& t, int64_t i) -> int64_t {  // i: dimension of `want`
    const int64_t at = i - (4 - dims);
    return at < 0 || t.size(at) == 1 ? 0 : t.stride(at);
  };
  const int64_t last = step(given, 3);
  const Tensor mask = last == 0 || last == 1 ? given : torch::stable::contiguous(given);
  const int64_t size = int64_t(mask.element_size());
  p->mask = mask.const_data_ptr();
  p->mask_kind = type == ScalarType::Bool ? cpu::MaskKind::boolean : cpu::MaskKind::additive;
  if (type != ScalarType::Bool) p->mask_dtype = *float_dtype(type);
  p->mask_stride = {step(mask, 0) * size, step(mask, 1) * size, step(mask, 2) * size};
  p->mask_per_key = last != 0;
  return mask;
}

}  // namespace

Tensor attention(const Tensor& q_, const Tensor& k_, const Tensor& v_,
                 const std::optional<Tensor>& mask_, std::optional<double> scale, bool causal,
                 int64_t window) {
  cpu::Attention p{};
  const ScalarType type = q_.scalar_type();
  p.dtype = check_float(kOp, "q", type);
  const Tensor q = heads_of("q", q_, type), k = heads_of("k", k_, type),
               v = heads_of("v", v_, type);
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.tq = q.size(2);
  p.head_dim = q.size(3);
  p.kv_heads = k.size(1);
  p.tk = k.size(2);
  STD_TORCH_CHECK(p.head_dim >= 1 && p.head_dim <= cpu::kMaxHeadDim, kOp, ": q has shape ",
                  shape_text(q), ", want [B, H, T, D] with D from 1 to ", cpu::kMaxHeadDim);
  STD_TORCH_CHECK(k.size(0) == p.batch && k.size(3) == p.head_dim, kOp, ": k has shape ",
                  shape_text(k), ", want [B, H, T, D] with B = ", p.batch, " and D = ", p.head_dim,
                  ", as q has");
  STD_TORCH_CHECK(p.kv_heads > 0 ? p.heads % p.kv_heads == 0 : p.heads == 0, kOp, ": k has ",
                  p.kv_heads, " heads, want a divisor of the ", p.heads, " of q");
  for (int64_t i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(v.size(i) == k.size(i), kOp, ": v has shape ", shape_text(v),
                    ", want that of k, ", shape_text(k));
  }
  STD_TORCH_CHECK(window >= 0, kOp, ": window is ", window, ", want >= 0");
  STD_TORCH_CHECK(window == 0 || causal, kOp, ": window is ", window,
                  " and causal is False, want a window with causal alone");
  std::optional<Tensor> mask;
  if (mask_) mask.emplace(open_mask(*mask_, type, &p));

  p.q = q.const_data_ptr();
  p.k = k.const_data_ptr();
  p.v = v.const_data_ptr();
  p.q_stride = strides_of(q);
  p.k_stride = strides_of(k);
  p.v_stride = strides_of(v);
  p.scale = float(scale.value_or(1.0 / std::sqrt(double(p.head_dim))));
  p.causal = causal;
  p.window = window;
  Tensor out = empty_heads_output(p.batch, p.heads, p.tq, p.head_dim, type);
  p.out = out.mutable_data_ptr();
  p.out_stride = strides_of(out);
  STD_TORCH_CHECK(cpu::attention(p, int(torch::stable::get_num_threads()), parallel_for), kOp,
                  ": out of memory for a task of q of shape ", shape_text(q));
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("attention", TORCH_BOX(&attention)); }

}  // namespace fastinfer::ops
