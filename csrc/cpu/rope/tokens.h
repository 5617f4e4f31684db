// The walk of every vector kernel of rope, over a `Vec` (cpu/vec/scalar.h). Formula: rope.h.
//
// out = fma(b, sign, a) with a = x cos, b = partner sin and sign = -1 or +1: b * sign is exact, so
// the multiply-add rounds once, as a - b or a + b does.
#pragma once

#include <cstring>

#include "cpu/inline.h"
#include "cpu/rope/rope.h"
#include "cpu/vec/for_each.h"

namespace fastinfer::cpu {
namespace {

// Pairs (i, i + r/2): both vectors of a step are loaded once and give two.
template <class V, DType kType, DType kTable>
inline void rotate_halves(const char* x, const char* cos, const char* sin, int64_t r, char* out) {
  constexpr int64_t kSize = size_of(kType), kTableSize = size_of(kTable);
  const auto minus = V::set1(-1.0f), plus = V::set1(1.0f);
  const int64_t half = r / 2;
  for_each_vector<V>(half, [&](int64_t i, int n) FASTINFER_INLINE {
    const int64_t first = i * kSize, second = (half + i) * kSize;
    const int64_t first_angle = i * kTableSize, second_angle = (half + i) * kTableSize;
    const auto x0 = V::load(x + first, kType, n), x1 = V::load(x + second, kType, n);
    const auto b0 = V::mul(x1, V::load(sin + first_angle, kTable, n));
    const auto b1 = V::mul(x0, V::load(sin + second_angle, kTable, n));
    const auto a0 = V::mul(x0, V::load(cos + first_angle, kTable, n));
    const auto a1 = V::mul(x1, V::load(cos + second_angle, kTable, n));
    V::store(out + first, kType, V::fma(b0, minus, a0), n);
    V::store(out + second, kType, V::fma(b1, plus, a1), n);
  });
}

// Pairs (2i, 2i + 1): r is even and so is the width, so no pair is cut.
template <class V, DType kType, DType kTable>
inline void rotate_pairs(const char* x, const char* cos, const char* sin, int64_t r, char* out) {
  constexpr int64_t kSize = size_of(kType), kTableSize = size_of(kTable);
  constexpr float kSigns[16] = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  const auto sign = V::load(kSigns);
  for_each_vector<V>(r, [&](int64_t i, int n) FASTINFER_INLINE {
    const auto v = V::load(x + i * kSize, kType, n);
    const auto a = V::mul(v, V::load(cos + i * kTableSize, kTable, n));
    const auto b = V::mul(V::swap_pairs(v), V::load(sin + i * kTableSize, kTable, n));
    V::store(out + i * kSize, kType, V::fma(b, sign, a), n);
  });
}

template <class V, DType kType, DType kTable>
void rope_tokens(const Rope& p) {
  constexpr int64_t kSize = size_of(kType);
  char* out = static_cast<char*>(p.out);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const char* x = static_cast<const char*>(p.x) + t * p.x_token_bytes;
    const char* cos = static_cast<const char*>(p.cos) + t * p.cos_token_bytes;
    const char* sin = static_cast<const char*>(p.sin) + t * p.sin_token_bytes;
    for (int64_t h = 0; h < p.heads; ++h, x += p.x_head_bytes, out += p.head_size * kSize) {
      if (p.interleaved) {
        rotate_pairs<V, kType, kTable>(x, cos, sin, p.r, out);
      } else {
        rotate_halves<V, kType, kTable>(x, cos, sin, p.r, out);
      }
      if (p.r < p.head_size) {
        std::memcpy(out + p.r * kSize, x + p.r * kSize, size_t((p.head_size - p.r) * kSize));
      }
    }
  }
}

template <class V>
void rope(const Rope& p) {
  const bool wide_table = p.table_dtype == DType::f32;
  switch (p.x_dtype) {
    case DType::bf16:
      return wide_table ? rope_tokens<V, DType::bf16, DType::f32>(p)
                        : rope_tokens<V, DType::bf16, DType::bf16>(p);
    case DType::f16:
      return wide_table ? rope_tokens<V, DType::f16, DType::f32>(p)
                        : rope_tokens<V, DType::f16, DType::f16>(p);
    default: return rope_tokens<V, DType::f32, DType::f32>(p);
  }
}

}  // namespace
}  // namespace fastinfer::cpu
