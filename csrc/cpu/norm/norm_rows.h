// The formula of norm.h over a `Vec` (cpu/vec/scalar.h), written once: an instruction set's file
// instantiates norm_rows and says what bounds it.
//
// A row passes four times, the first from memory and the rest from L1 or L2. Each pass is over
// another row, where there is scratch for four and outputs stay in the caches: the sums, roots and
// quotients at the end of one, which wait for each other, run beside the elements of the next.
//   read_row       x, residual -> sum, scratch = s; the first sum
//   center_row     layer norm: the sums of s - c and of its square
//   write_row      scratch -> y; scratch = y and its range where int8 rows are asked for; asks for
//                  a later row of x and residual, so that memory is read while it is written
//   quantize_row   scratch -> q
// The scratch holds floats: only the first and third pass know a dtype.
#pragma once

#include <cstring>
#include <limits>

#include "cpu/inline.h"
#include "cpu/norm/norm.h"
#include "cpu/quantize_rowwise/layout.h"
#include "cpu/vec/for_each.h"

namespace fastinfer::cpu {
namespace {

constexpr int kPartials = 32;

// body(i, j, n): for_each_vector for a body that sums; its partial sums are those that vector j of
// kPartials / V::width holds. Unrolled, so that j is a constant and the sums stay in registers.
template <class V, class Body>
inline void for_each_summed_vector(int64_t k, Body&& body) {
  constexpr int kVectors = kPartials / V::width;
  int64_t i = 0;
  for (; i + kPartials <= k; i += kPartials) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) body(i + j * V::width, j, V::width);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) {
    const int64_t left = k - i - j * V::width;
    if (left > 0) body(i + j * V::width, j, left < V::width ? int(left) : V::width);
  }
}

// Partial sums and the tree over them.
template <class V>
struct Sum {
  using F = typename V::F;
  static constexpr int kVectors = kPartials / V::width;
  F part[kVectors];

  Sum() {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) part[j] = V::set1(0.0f);
  }
  void add(int j, F v) { part[j] = V::add(part[j], v); }
  void add_square(int j, F v) { part[j] = V::fma(v, v, part[j]); }
  float total() {
#pragma GCC unroll 8
    for (int h = kVectors / 2; h > 0; h /= 2) {
#pragma GCC unroll 8
      for (int j = 0; j < h; ++j) part[j] = V::add(part[j], part[j + h]);
    }
    return V::lane_sum(part[0]);
  }
};

// How an output row is written: not at all, or into the caches, or past them.
enum class Way { none, store, stream };

template <class V, DType kType, Way kWay>
struct Destination {
  char* row;

  // Returns v rounded, as it is stored.
  typename V::F put(int64_t i, typename V::F v, int n) const {
    if (kWay == Way::none) return V::round(v, kType);
    char* p = row + i * size_of(kType);
    return kWay == Way::stream && n == V::width ? V::stream(p, kType, v) : V::store(p, kType, v, n);
  }
};

// body(destination of row m of `out`): one compiled body a way, without a branch an element.
template <class V, DType kType, class Body>
inline void with_destination(const Norm& p, void* out, int64_t m, Body&& body) {
  if (out == nullptr) return body(Destination<V, kType, Way::none>{nullptr});
  char* row = static_cast<char*>(out) + m * p.k * size_of(kType);
  const bool stream = p.stream && reinterpret_cast<uintptr_t>(row) % 64 == 0;
  if (stream) return body(Destination<V, kType, Way::stream>{row});
  body(Destination<V, kType, Way::store>{row});
}

template <class V, DType kType, NormKind kKind>
inline float read_row(const Norm& p, int64_t m, float* scratch) {
  using F = typename V::F;
  const char* x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
  const F zero = V::set1(0.0f);
  Sum<V> sum;
  const auto take = [&](int64_t i, int j, int n, F s) FASTINFER_INLINE {
    s = n == V::width ? s : V::keep(s, n, zero);
    V::store(scratch + i, DType::f32, s);
    if (kKind == NormKind::rms) {
      sum.add_square(j, s);
    } else {
      sum.add(j, s);
    }
  };
  const auto load = [&](const char* row, int64_t i, int n) {
    return V::load(row + i * size_of(kType), kType, n);
  };
  if (p.residual == nullptr) {
    for_each_summed_vector<V>(
        p.k, [&](int64_t i, int j, int n) FASTINFER_INLINE { take(i, j, n, load(x, i, n)); });
  } else {
    const char* residual = static_cast<const char*>(p.residual) + m * p.residual_ld_bytes;
    with_destination<V, kType>(p, p.sum, m, [&](auto out) {
      for_each_summed_vector<V>(p.k, [&](int64_t i, int j, int n) FASTINFER_INLINE {
        take(i, j, n, out.put(i, V::add(load(x, i, n), load(residual, i, n)), n));
      });
    });
  }
  return sum.total();
}

struct Moments {
  float sum, squares;
};

template <class V>
inline Moments center_row(int64_t k, const float* scratch, float center) {
  using F = typename V::F;
  const F minus_center = V::set1(-center), zero = V::set1(0.0f);
  Sum<V> sum, squares;
  for_each_summed_vector<V>(k, [&](int64_t i, int j, int n) FASTINFER_INLINE {
    F d = V::add(V::load(scratch + i), minus_center);
    d = n == V::width ? d : V::keep(d, n, zero);
    sum.add(j, d);
    squares.add_square(j, d);
  });
  return {sum.total(), squares.total()};
}

// Weight or bias as floats: itself, or a copy, or one vector that stands for all of an absent one.
struct Parameter {
  const float* data;
  int64_t mask;  // of its indices

  const float* at(int64_t i) const { return data + (i & mask); }
};

template <class V>
inline Parameter parameter(const void* data, DType dtype, float absent, int64_t k, float* copy) {
  if (data == nullptr) {
    V::store(copy, DType::f32, V::set1(absent));
    return {copy, 0};
  }
  if (dtype == DType::f32) return {static_cast<const float*>(data), -1};
  for_each_vector<V>(k, [&](int64_t i, int n) {
    const char* from = static_cast<const char*>(data) + i * size_of(dtype);
    V::store(copy + i, DType::f32, V::load(from, dtype, n), n);
  });
  return {copy, -1};
}

// later: the next row to be read, which is asked for.
template <class V, DType kType, NormKind kKind, bool kQuantize, class Out>
inline RowRange write_row(const Norm& p, Parameter weight, Parameter bias, Out out, int64_t later,
                          float* scratch, float mean, float rstd) {
  using F = typename V::F;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const char* next_x = static_cast<const char*>(p.x) + later * p.ldx_bytes;
  const char* next_residual =
      p.residual == nullptr ? next_x
                            : static_cast<const char*>(p.residual) + later * p.residual_ld_bytes;
  const F minus_mean = V::set1(-mean), factor = V::set1(rstd), zero = V::set1(0.0f);
  F low = V::set1(kInf), high = V::set1(-kInf), not_finite = zero;
  for_each_vector<V>(p.k, [&](int64_t i, int n) FASTINFER_INLINE {
    __builtin_prefetch(next_x + i * size_of(kType), 0, 2);
    __builtin_prefetch(next_residual + i * size_of(kType), 0, 2);
    F z = V::load(scratch + i);
    if (kKind == NormKind::layer) z = V::add(z, minus_mean);
    z = V::mul(z, factor);
    const F y = out.put(i, V::fma(z, V::load(weight.at(i), n), V::load(bias.at(i), n)), n);
    if (kQuantize) {
      V::store(scratch + i, DType::f32, y);
      const F less = V::min(y, low), more = V::max(y, high), nan = V::fma(y, zero, not_finite);
      low = n == V::width ? less : V::keep(less, n, low);
      high = n == V::width ? more : V::keep(more, n, high);
      not_finite = n == V::width ? nan : V::keep(nan, n, not_finite);
    }
  });
  if (p.k == 0) return {0.0f, 0.0f};
  const float nan = V::lane_sum(not_finite);  // 0, or NaN: 0 * Inf and 0 * NaN are NaN
  return {V::lane_min(low) + nan, V::lane_max(high)};
}

template <class V>
inline void quantize_row(const Norm& p, int64_t m, const float* scratch, const RowRange& range) {
  using F = typename V::F;
  QuantizeRowwise rows{};
  rows.scale = p.scale;
  rows.offset = p.offset;
  const RowScale s = row_scale(rows, m, range);
  int8_t* q = p.q + m * p.k;
  if (!s.finite) {
    std::memset(q, 0, size_t(p.k));
    return;
  }
  const F minus_offset = V::set1(-s.offset), inverse = V::set1(s.inverse);
  const auto step = [&](int64_t i) {
    return V::mul(V::add(V::load(scratch + i), minus_offset), inverse);
  };
  constexpr int kWidth = 4 * V::width;
  const bool stream = p.stream && reinterpret_cast<uintptr_t>(q) % 64 == 0;
  for (int64_t i = 0; i < p.k; i += kWidth) {
    const F a = step(i), b = step(i + V::width), c = step(i + 2 * V::width),
            d = step(i + 3 * V::width);
    if (i + kWidth > p.k) {
      V::store_s8(q + i, a, b, c, d, int(p.k - i));
    } else if (stream) {
      V::stream_s8(q + i, a, b, c, d);
    } else {
      V::store_s8(q + i, a, b, c, d);
    }
  }
}

template <class V, DType kType, NormKind kKind>
inline void norm_rows(const Norm& p) {
  const float k = p.k > 0 ? float(p.k) : 1.0f;  // of no elements the sums are 0 over anything
  // So many rows that outputs go past the caches are bound by memory, and better read one by one.
  const int64_t slots = p.stream ? 1 : norm_scratch_rows(p.k), stride = norm_row_stride(p.k);
  const int64_t lag = slots > 1 ? 1 : 0;  // rows between one pass and the next
  static_assert((kNormPasses & (kNormPasses - 1)) == 0, "slots are a power of two");
  // A longer row that is asked for would push others out of L2.
  constexpr int64_t kAheadBytes = 256 << 10;
  const bool ahead = p.k * size_of(kType) <= kAheadBytes;
  float* const after_rows = p.scratch + slots * stride;
  const Parameter weight = parameter<V>(p.weight, p.weight_dtype, 1.0f, p.k, after_rows);
  const Parameter bias = parameter<V>(p.bias, p.bias_dtype, 0.0f, p.k, after_rows + stride);
  float mean[kNormPasses] = {}, square[kNormPasses];
  RowRange range[kNormPasses];
  // Calls body(m, slot) if there is a row `passes` passes behind row i.
  const auto pass = [&](int64_t i, int64_t passes, auto&& body) {
    const int64_t m = i - passes * lag;
    if (m >= 0 && m < p.rows) body(m, m & (slots - 1));
  };
  for (int64_t i = 0; i < p.rows + (kNormPasses - 1) * lag; ++i) {
    pass(i, 0, [&](int64_t m, int64_t slot) {
      square[slot] = read_row<V, kType, kKind>(p, m, p.scratch + slot * stride) / k;
    });
    pass(i, 1, [&](int64_t, int64_t slot) {
      if (kKind == NormKind::rms) return;
      const float center = square[slot];
      const Moments moments = center_row<V>(p.k, p.scratch + slot * stride, center);
      mean[slot] = center + moments.sum / k;
      square[slot] = moments.squares / k;
    });
    pass(i, 2, [&](int64_t m, int64_t slot) {
      const float rstd = 1.0f / __builtin_sqrtf(square[slot] + p.eps);
      const int64_t later = ahead && i + 1 < p.rows ? i + 1 : m;
      with_destination<V, kType>(p, p.y, m, [&](auto out) {
        const auto write = p.scale == nullptr ? write_row<V, kType, kKind, false, decltype(out)>
                                              : write_row<V, kType, kKind, true, decltype(out)>;
        range[slot] =
            write(p, weight, bias, out, later, p.scratch + slot * stride, mean[slot], rstd);
      });
    });
    pass(i, 3, [&](int64_t m, int64_t slot) {
      if (p.scale != nullptr) quantize_row<V>(p, m, p.scratch + slot * stride, range[slot]);
    });
  }
  V::fence();
}

template <class V, NormKind kKind>
inline void norm_rows(const Norm& p) {
  switch (p.dtype) {
    case DType::bf16: return norm_rows<V, DType::bf16, kKind>(p);
    case DType::f16: return norm_rows<V, DType::f16, kKind>(p);
    default: return norm_rows<V, DType::f32, kKind>(p);
  }
}

template <class V>
inline void norm_rows(const Norm& p) {
  if (p.kind == NormKind::layer) return norm_rows<V, NormKind::layer>(p);
  norm_rows<V, NormKind::rms>(p);
}

}  // namespace
}  // namespace fastinfer::cpu
