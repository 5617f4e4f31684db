// One block of keys of the online softmax, for the rows of a group. Formula: attention.h.
#pragma once

#include <limits>

#include "cpu/attention/layout.h"
#include "cpu/vec/math.h"

namespace fastinfer::cpu {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;
constexpr float kLeast = -std::numeric_limits<float>::max();  // below it is -Inf alone

// Calls body(key) for the first key of every unit that the group has scores of, or of every kStep
// of them, from key `first` on, which begins a unit.
template <int64_t kStep = 1, class Body>
inline void each_unit(const uint8_t* units, Body&& body, int64_t first = 0) {
  int64_t unit = first % kPanel / kUnit;
  for (int64_t panel = first / kPanel; panel < kPanels; ++panel, unit = 0) {
    for (; unit < units[panel]; unit += kStep) body(panel * kPanel + unit * kUnit);
  }
}

// Up to which key of a block from `first` on, a multiple of a unit, a row sees all: as far as that
// is quick to say. Most masks hide the padding at the end of a few sequences, if anything.
inline int64_t all_seen(const Attention& p, const Row& row, int64_t first) {
  if (p.mask_kind == MaskKind::additive || row.begin > first) return 0;
  int64_t seen = std::min(row.end - first, kKeyBlock);
  if (p.mask_kind == MaskKind::boolean && seen > 0) {
    const char* mask = row.mask + (p.mask_per_key ? first : 0);
    const void* hidden = std::memchr(mask, 0, size_t(p.mask_per_key ? seen : 1));
    if (hidden != nullptr) seen = static_cast<const char*>(hidden) - mask;
  }
  return seen < 0 ? 0 : seen / kUnit * kUnit;
}

// Adds the mask and hides what is not visible: key `first` of all is element 0 of s, and up to
// element `seen` all is visible. With kScale, scores are multiplied by the scale first.
template <class T, bool kScale>
void mask_row(const Attention& p, const Row& row, int64_t first, int64_t seen, const uint8_t* units,
              float* s) {
  using F = typename T::F;
  const F hidden = T::set1(kHidden), zero = T::set1(0.0f), least = T::set1(kLeast);
  const int64_t element = mask_element_size(p), step = p.mask_per_key ? element : 0;
  const auto lanes_before = [](int64_t end, int64_t key) {
    return int(std::clamp<int64_t>(end - key, 0, T::width));
  };
  const auto mask_unit = [&](int64_t unit) {
#pragma GCC unroll 4
    for (int64_t j = unit; j < unit + kUnit; j += T::width) {
      const int64_t key = first + j;
      F v = T::load(s + j);
      if constexpr (kScale) v = T::mul(v, T::set1(p.scale));
      if (p.mask_kind != MaskKind::none) {
        const void* at = row.mask + key * step;
        const int n = step == 0 ? 1 : int(std::clamp<int64_t>(p.tk - key, 0, T::width));
        if (n > 0) {
          F m =
              p.mask_kind == MaskKind::boolean ? T::from_bool(at, n) : T::load(at, p.mask_dtype, n);
          if (step == 0) {
            float lanes[T::width];
            T::store(lanes, DType::f32, m);
            m = T::set1(lanes[0]);
          }
          v = p.mask_kind == MaskKind::boolean ? T::select_lt(zero, m, v, hidden)
                                               : T::select_lt(m, least, m, T::add(v, m));
        }
      }
      v = T::keep(v, lanes_before(row.end, key), hidden);
      if (key < row.begin) v = T::keep(hidden, lanes_before(row.begin, key), v);
      T::store(s + j, DType::f32, v);
    }
  };
  each_unit(units, mask_unit, seen);
}

template <class T>
constexpr int64_t units_at_once() {
  if constexpr (T::kPairs) return T::kUnitsAtOnce;
  return 1;
}

// s, times the scale, becomes p; m, l and, if it was started, o of the R rows are brought up to
// this block. The scale is greater than 0, and 1 unless T works in pairs; m, like s, is not
// multiplied by it.
template <class T, int R>
void softmax_rows(const uint8_t* units, float scale, float* s, float* m, float* l, bool started,
                  float* o, int64_t head_pad) {
  using F = typename T::F;
  constexpr int kParts = 16 / T::width;
  F most[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) most[r] = T::set1(kHidden);
  each_unit(units, [&](int64_t unit) {
#pragma GCC unroll 4
    for (int64_t j = unit; j < unit + kUnit; j += T::width) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) most[r] = T::max(T::load(s + r * kScoreStride + j), most[r]);
    }
  });
  float u[R], a[16] = {};
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const float block = T::reduce_max(most[r]), before = m[r];
    m[r] = block > before ? block : before;
    u[r] = m[r] < kLeast ? 0.0f : m[r];
    a[r] = (before - u[r]) * scale;
  }
  for (int r = 0; r < R; r += T::width)
    T::store(a + r, DType::f32, exp_nonpositive<T>(T::load(a + r)));
  // Two rows in turns: the sum of a row is one chain of additions.
#pragma GCC unroll 4
  for (int first = 0; first < R; first += 2) {
    constexpr int kMost = R < 2 ? 1 : 2;
    const int rows = R - first < kMost ? 1 : kMost;
    F sum[kMost][kParts];
#pragma GCC unroll 2
    for (int r = 0; r < kMost; ++r) {
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) sum[r][part] = T::set1(0.0f);
    }
    each_unit<units_at_once<T>()>(units, [&](int64_t unit) {
#pragma GCC unroll 2
      for (int r = 0; r < rows; ++r) {
        float* row = s + (first + r) * kScoreStride;
        const F shift = T::set1(-u[first + r]);
        if constexpr (T::kPairs) {  // half as wide: what is overwritten was read before
          uint16_t* to = reinterpret_cast<uint16_t*>(row) + unit;
          sum[r][0] = T::probabilities(row + unit, shift, T::set1(scale * kLog2E), to, sum[r][0]);
        } else {
#pragma GCC unroll 4
          for (int part = 0; part < kParts; ++part) {
            float* at = row + unit + part * T::width;
            const F x = T::load(at);
            const F e = T::select_lt(x, T::set1(kLeast), T::set1(0.0f),
                                     exp_nonpositive<T>(T::add(x, shift)));
            sum[r][part] = T::add(sum[r][part], e);
            T::store(at, DType::f32, e);
          }
        }
      }
    });
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) {
      const F factor = T::set1(a[first + r]);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        float* at = l + (first + r) * 16 + part * T::width;
        T::store(at, DType::f32, T::fma(T::load(at), factor, sum[r][part]));
      }
      if (started && a[first + r] != 1.0f) {
        for (int64_t d = 0; d < head_pad; d += T::width) {
          float* at = o + (first + r) * head_pad + d;
          T::store(at, DType::f32, T::mul(T::load(at), factor));
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastinfer::cpu
