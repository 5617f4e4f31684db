// Scalar reference of attention: the formula of attention.h, one row and one element at a time.
// Bound by scalar multiply-adds; it exists to be right.
#include <limits>

#include "cpu/attention/layout.h"
#include "cpu/vec/math.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

float element(const void* base, const HeadStrides& s, int64_t b, int64_t h, int64_t row, int64_t d,
              DType dtype) {
  return ScalarVec::load(
      static_cast<const char*>(base) + b * s.batch + h * s.head + row * s.row + d * size_of(dtype),
      dtype);
}

float score(const Attention& p, const AttentionTask& t, const Row& row, const float* q, int64_t j) {
  if (j < row.begin || j >= row.end) return -kInf;
  const int64_t at = p.mask_per_key ? j : 0;
  if (p.mask_kind == MaskKind::boolean && row.mask[at] == 0) return -kInf;
  float s = 0.0f;
  for (int64_t d = 0; d < p.head_dim; ++d) {
    s = ScalarVec::fma(q[d], element(p.k, p.k_stride, t.batch, t.kv_head, j, d, p.dtype), s);
  }
  if (p.mask_kind == MaskKind::additive) {
    const float add = ScalarVec::load(row.mask + at * size_of(p.mask_dtype), p.mask_dtype);
    s = add == -kInf ? -kInf : s + add;
  }
  return s;
}

void attend(const Attention& p, const AttentionTask& t, const Row& row) {
  float q[kMaxHeadDim], o[kMaxHeadDim] = {}, l[16] = {}, s[kKeyBlock], m = -kInf;
  for (int64_t d = 0; d < p.head_dim; ++d) {
    q[d] = element(p.q, p.q_stride, t.batch, row.head, row.query, d, p.dtype) * p.scale;
  }
  for (int64_t first = 0; first < p.tk; first += kKeyBlock) {
    const int64_t n = std::min(kKeyBlock, p.tk - first);
    const float before = m;
    for (int64_t j = 0; j < n; ++j) {
      s[j] = score(p, t, row, q, first + j);
      if (s[j] > m) m = s[j];
    }
    const float u = m == -kInf ? 0.0f : m, a = exp_nonpositive<ScalarVec>(before - u);
    float sum[16] = {};
    for (int64_t j = 0; j < n; ++j) {
      s[j] = s[j] == -kInf ? 0.0f : exp_nonpositive<ScalarVec>(s[j] - u);
      sum[j % 16] += s[j];
    }
    for (int x = 0; x < 16; ++x) l[x] = ScalarVec::fma(l[x], a, sum[x]);
    for (int64_t d = 0; d < p.head_dim; ++d) {
      o[d] *= a;
      for (int64_t j = 0; j < n; ++j) {
        if (s[j] == 0.0f) continue;
        const float v = element(p.v, p.v_stride, t.batch, t.kv_head, first + j, d, p.dtype);
        o[d] = ScalarVec::fma(s[j], v, o[d]);
      }
    }
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int x = 0; x < half; ++x) l[x] += l[x + half];
  }
  const float inverse = 1.0f / (l[0] == 0.0f ? 1.0f : l[0]);
  char* out = static_cast<char*>(p.out) + t.batch * p.out_stride.batch +
              row.head * p.out_stride.head + row.query * p.out_stride.row;
  for (int64_t d = 0; d < p.head_dim; ++d) {
    ScalarVec::store(out + d * size_of(p.dtype), p.dtype, ScalarVec::fma(o[d], inverse, 0.0f));
  }
}

}  // namespace

void attention_generic(const Attention& p, const AttentionTask& t) {
  each_row(p, t, [&](int64_t, const Row& row) { attend(p, t, row); });
}

}  // namespace fastinfer::cpu
