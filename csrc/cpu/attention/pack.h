// Packing for attention: q scaled, k transposed, v in chunks of d; all widened to float. Layouts:
// layout.h.
#pragma once

#include "cpu/attention/layout.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kChunkUnits = kPanel / kUnit;  // of d, that a chunk of v is wide at most

// Calls body(std::integral_constant<DType, dtype>).
template <class Body>
inline auto with_dtype(DType dtype, Body&& body) {
  if (dtype == DType::bf16) return body(std::integral_constant<DType, DType::bf16>());
  if (dtype == DType::f16) return body(std::integral_constant<DType, DType::f16>());
  return body(std::integral_constant<DType, DType::f32>());
}

inline const char* query_at(const Attention& p, const AttentionTask& t, const Buffers& b,
                            int64_t r) {
  return static_cast<const char*>(p.q) + t.batch * p.q_stride.batch +
         b.rows[r].head * p.q_stride.head + b.rows[r].query * p.q_stride.row;
}

template <class T, DType kType>
void pack_q(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t rows) {
  const auto scale = T::set1(p.scale);
  const int64_t head_dim = p.head_dim, head_pad = b.head_pad;
  float* to = b.q;
  for (int64_t r = 0; r < rows; ++r) {
    const char* q = query_at(p, t, b, r);
    const char* ahead = query_at(p, t, b, std::min(r + kRowsAhead, rows - 1));
    for (int64_t d = 0; d < head_dim; d += T::width) {
      __builtin_prefetch(ahead + d * size_of(kType));
      const int n = int(std::min<int64_t>(T::width, head_dim - d));
      T::store(to + r * head_pad + d, DType::f32,
               T::mul(T::load(static_cast<const void*>(q + d * size_of(kType)), kType, n), scale));
    }
  }
}

// Keys [first, first + n). Lanes past n, up to a multiple of the vector, are zero.
template <class T, DType kType>
void pack_k(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t first,
            int64_t n) {
  constexpr int kW = T::width;
  const int64_t head_dim = p.head_dim, step = p.k_stride.row;
  const char* k = static_cast<const char*>(p.k) + t.batch * p.k_stride.batch +
                  t.kv_head * p.k_stride.head + first * p.k_stride.row;
  for (int64_t j = 0; j < round_up(n, kUnit); j += kW) {
    float* to = b.k + j / kPanel * kPanel * b.head_pad + j % kPanel;
    for (int64_t d = 0; d < head_dim; d += kW) {
      const int wide = int(std::min<int64_t>(kW, head_dim - d));
      typename T::F lanes[kW];
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) {
        lanes[i] = j + i < n
                       ? T::load(static_cast<const void*>(k + (j + i) * step + d * size_of(kType)),
                                 kType, wide)
                       : T::set1(0.0f);
        __builtin_prefetch(k + (j + i + kRowsAhead) * step + d * size_of(kType));
      }
      T::transpose(lanes);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) T::store(to + (d + i) * kPanel, DType::f32, lanes[i]);
    }
  }
}

// Units of d in chunk c of `chunks`, and where it begins: as equal as can be.
inline int64_t chunk_begin(int64_t head_pad, int64_t chunks, int64_t c) {
  return head_pad / kUnit * c / chunks;
}
inline int64_t chunk_count(int64_t head_pad) {
  return (head_pad / kUnit + kChunkUnits - 1) / kChunkUnits;
}

// Keys [first, first + n), and zeros up to a multiple of a unit. Returns whether all are finite.
template <class T, DType kType>
bool pack_v(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t first, int64_t n,
            int64_t keys) {
  const char* v = static_cast<const char*>(p.v) + t.batch * p.v_stride.batch +
                  t.kv_head * p.v_stride.head + first * p.v_stride.row;
  const int64_t chunks = chunk_count(b.head_pad), size = size_of(kType);
  const int64_t head_dim = p.head_dim, step = p.v_stride.row;
  auto poison = T::set1(0.0f);  // 0 * x is 0 unless x is Inf or NaN
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = chunk_begin(b.head_pad, chunks, c) * kUnit;
    const int64_t end = chunk_begin(b.head_pad, chunks, c + 1) * kUnit;
    float* to = b.v + begin * keys;
    for (int64_t j = 0; j < round_up(n, kUnit); ++j) {
      const char* row = v + j * step;
      const int64_t last = j < n ? std::min(end, head_dim) : begin;
      int64_t d = begin;
      for (; d < last; d += T::width, to += T::width) {
        const int wide = int(std::min<int64_t>(T::width, last - d));
        const auto x = T::load(static_cast<const void*>(row + d * size), kType, wide);
        __builtin_prefetch(row + kRowsAhead * step + d * size);
        poison = T::fma(x, T::set1(0.0f), poison);
        T::store(to, DType::f32, x);
      }
      for (; d < end; d += T::width, to += T::width) T::store(to, DType::f32, T::set1(0.0f));
    }
  }
  float lanes[T::width];
  T::store(lanes, DType::f32, poison);
  bool finite = true;
  for (float lane : lanes) finite &= lane == 0.0f;
  return finite;
}

}  // namespace
}  // namespace fastinfer::cpu
