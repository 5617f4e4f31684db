// Packing for attention in pairs of bfloat16: q as it is, k transposed, v in chunks of d. Layouts:
// layout.h; interface of T: tile.h.
#pragma once

#include "cpu/attention/pack.h"

namespace fastinfer::cpu {
namespace {

// In pairs of d. Stores may pass the end of a row, which the next one then overwrites; q of the
// scratch has room for floats.
template <class T>
void pack_q_pairs(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const char* q = query_at(p, t, b, r);
    const char* ahead = query_at(p, t, b, std::min(r + kRowsAhead, rows - 1));
    float* to = b.q + r * b.head_pad / 2;
    for (int64_t d = 0; d < p.head_dim; d += 2 * T::width) {
      const int n = int(std::min<int64_t>(2 * T::width, p.head_dim - d));
      __builtin_prefetch(ahead + 2 * d);
      T::store(to + d / 2, DType::f32, T::load_pairs(q + 2 * d, n));
    }
  }
}

// Keys [first, first + n), in pairs of d, and zeros up to `keys`, a multiple of a unit.
template <class T>
void pack_k_pairs(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t first,
                  int64_t n, int64_t keys) {
  constexpr int kW = T::width;
  const int64_t step = p.k_stride.row, pairs = b.head_pad / 2;
  const char* k = static_cast<const char*>(p.k) + t.batch * p.k_stride.batch +
                  t.kv_head * p.k_stride.head + first * step;
  for (int64_t j = 0; j < keys; j += kW) {
    float* to = b.k + j / kPanel * kPanel * pairs + j % kPanel;
    for (int64_t d = 0; d < p.head_dim; d += 2 * kW) {
      const int wide = int(std::min<int64_t>(2 * kW, p.head_dim - d));
      typename T::F lanes[kW];
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) {
        lanes[i] = j + i < n ? T::load_pairs(k + (j + i) * step + 2 * d, wide) : T::set1(0.0f);
        __builtin_prefetch(k + (j + i + kRowsAhead) * step + 2 * d);
      }
      T::transpose(lanes);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i) {
        if (d / 2 + i < pairs) T::store(to + (d / 2 + i) * kPanel, DType::f32, lanes[i]);
      }
    }
  }
}

// Keys [first, first + n) in pairs, and zeros up to `keys`. Returns whether all are finite.
template <class T>
bool pack_v_pairs(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t first,
                  int64_t n, int64_t keys) {
  const char* v = static_cast<const char*>(p.v) + t.batch * p.v_stride.batch +
                  t.kv_head * p.v_stride.head + first * p.v_stride.row;
  const int64_t chunks = chunk_count(b.head_pad), step = p.v_stride.row;
  auto most = T::set1(0.0f);  // of the magnitudes; NaN and Inf have the greatest bits
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = chunk_begin(b.head_pad, chunks, c) * kUnit;
    const int64_t end = chunk_begin(b.head_pad, chunks, c + 1) * kUnit;
    float* to = b.v + begin * keys / 2;
    for (int64_t j = 0; j < keys; j += 2) {
      const char* row = v + j * step;
      for (int64_t d = begin; d < end; d += T::width, to += T::width) {
        const int wide = int(std::clamp<int64_t>(p.head_dim - d, 0, T::width));
        const auto x =
            T::interleave(row + 2 * d, j < n ? wide : 0, row + step + 2 * d, j + 1 < n ? wide : 0);
        __builtin_prefetch(row + kRowsAhead * step + 2 * d);
        __builtin_prefetch(row + (kRowsAhead + 1) * step + 2 * d);
        most = T::greatest(x, most);
        T::store(to, DType::f32, x);
      }
    }
  }
  constexpr uint16_t kInf = 0x7f80;
  uint16_t lanes[2 * T::width];
  T::store(lanes, DType::f32, most);
  bool finite = true;
  for (uint16_t lane : lanes) finite &= lane < kInf;
  return finite;
}

}  // namespace
}  // namespace fastinfer::cpu
