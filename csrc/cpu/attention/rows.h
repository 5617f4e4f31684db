// The loops of an attention task: blocks of keys, blocks of rows, panels, groups.
//
// For a block of keys, k is transposed into panels of 64 keys and v copied into chunks of 64
// elements, so that the tile streams both from L1. Then the groups of rows go over it: scores,
// softmax, sums. How they multiply is said by a `Blocks`, RegisterBlocks or another with
//   kGroup                            rows of a group, at most
//   kBlockGroups                      groups of a block, whose scores are in scratch together
//   kUnits                            units of keys, and of elements of d, that go together
//   group_begin(rows, groups, g)      the first row of group g
//   run(p, b, g_begin, g_end, first, keys_pad, finite)
//                                     groups [g_begin, g_end) over the block of keys from `first`;
//                                     starts those that see some of them
#pragma once

#include "cpu/attention/pack_pairs.h"
#include "cpu/attention/softmax.h"
#include "cpu/attention/tile.h"

namespace fastinfer::cpu {
namespace {

// Units of a panel, from its first on, that hold keys of [low, high).
inline int64_t units_of(int64_t panel_begin, int64_t low, int64_t high) {
  return low < high ? (high - panel_begin + kUnit - 1) / kUnit : 0;
}

// Fills units[g][panel] for the block of keys from `first`, in multiples of kUnits; returns how
// many keys of it are seen.
template <int64_t kUnits>
int64_t seen_units(const Attention& p, const Buffers& b, int64_t groups, int64_t first) {
  int64_t keys = 0;
  for (int64_t panel = 0; panel < kPanels; ++panel) {
    const int64_t begin = first + panel * kPanel;
    const char* mask = nullptr;  // the row of the mask that was looked at last, and where
    int64_t low = 0, high = 0, seen = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const Row *row = b.rows + b.begin[g], *last = b.rows + b.begin[g + 1] - 1;
      int64_t units = 0;
      if (p.mask_kind == MaskKind::none) {  // begin and end grow with the row
        units = units_of(begin, std::max(begin, row->begin), std::min(begin + kPanel, last->end));
      }
      for (; p.mask_kind != MaskKind::none && row <= last; ++row) {
        const int64_t from = std::max(begin, row->begin), to = std::min(begin + kPanel, row->end);
        if (mask != row->mask || low != from || high != to) {
          mask = row->mask, low = from, high = to;
          seen = units_of(begin, from, to);
          for (; seen > 0; --seen) {
            const int64_t unit = begin + (seen - 1) * kUnit;
            if (mask_shows(p, mask, std::max(from, unit), std::min(to, unit + kUnit))) break;
          }
        }
        units = std::max(units, seen);
        if (units == kPanel / kUnit) break;
      }
      units = round_up(units, kUnits);
      b.units[g * kPanels + panel] = uint8_t(units);
      if (units > 0) keys = std::max(keys, panel * kPanel + units * kUnit);
    }
  }
  return std::min(keys, p.tk - first);
}

// Whether some row of the group needs mask_row in the block of keys from `first`.
inline bool some_hidden(const Attention& p, const Row* rows, int64_t count, const uint8_t* units,
                        int64_t first) {
  if (p.mask_kind != MaskKind::none) return true;
  for (int64_t panel = 0; panel < kPanels; ++panel) {
    if (units[panel] == 0) continue;
    const int64_t begin = first + panel * kPanel, end = begin + units[panel] * kUnit;
    // Begin and end grow with the row.
    if (begin < rows[count - 1].begin || end > rows[0].end) return true;
  }
  return false;
}

// k and v of keys [first, first + n); returns whether v is finite.
template <class T>
bool pack_keys(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t first,
               int64_t n, int64_t keys_pad) {
  if constexpr (T::kPairs) {
    pack_k_pairs<T>(p, t, b, first, n, keys_pad);
    return pack_v_pairs<T>(p, t, b, first, n, keys_pad);
  } else {
    return with_dtype(p.dtype, [&](auto type) {
      pack_k<T, decltype(type)::value>(p, t, b, first, n);
      return pack_v<T, decltype(type)::value>(p, t, b, first, n, keys_pad);
    });
  }
}

// The sums of a group that has none yet.
inline void start_sums(const Buffers& b, int64_t g) {
  if (b.started[g]) return;
  b.started[g] = 1;
  std::memset(b.o + b.begin[g] * b.head_pad, 0,
              size_t((b.begin[g + 1] - b.begin[g]) * b.head_pad) * sizeof(float));
}

inline bool sees_some(const Buffers& b, int64_t g) {
  const uint8_t* units = b.units + g * kPanels;
  return (units[0] | units[1] | units[2] | units[3]) != 0;
}

// Scores s of group g, kScaled or still to be multiplied by the scale, become probabilities; m, l
// and o are brought up to the block of keys from `first`.
template <class T, bool kScaled>
void softmax_group(const Attention& p, const Buffers& b, int64_t g, int64_t first, float* s) {
  const uint8_t* units = b.units + g * kPanels;
  const int64_t begin = b.begin[g], end = b.begin[g + 1];
  // The softmax multiplies as it goes, but not after a sum with the mask or a turn of the order.
  const bool ahead = !kScaled && (p.mask_kind == MaskKind::additive || !(p.scale > 0.0f));
  if (ahead) {
    for (int64_t r = begin; r < end; ++r) {
      mask_row<T, true>(p, b.rows[r], first, 0, units, s + (r - begin) * kScoreStride);
    }
  } else if (some_hidden(p, b.rows + begin, end - begin, units, first)) {
    int64_t past = 0;  // the last key that the group has scores of
    each_unit(units, [&](int64_t unit) { past = unit + kUnit; });
    const Row* before = nullptr;  // the row looked at last, and up to where it sees all
    int64_t seen = 0;
    for (int64_t r = begin; r < end; ++r) {
      const Row& row = b.rows[r];
      if (before == nullptr || row.mask != before->mask || row.begin != before->begin ||
          row.end != before->end) {
        seen = all_seen(p, row, first);
        before = &row;
      }
      if (seen >= past) continue;
      mask_row<T, false>(p, row, first, seen, units, s + (r - begin) * kScoreStride);
    }
  }
  const float scale = kScaled || ahead ? 1.0f : p.scale;
  for (int64_t r = begin; r < end; r += kTileRows) {
    with_constant<kTileRows>(std::min(kTileRows, end - r), [&](auto rows) {
      softmax_rows<T, decltype(rows)::value>(units, scale, s + (r - begin) * kScoreStride, b.m + r,
                                             b.l + r * 16, b.started[g] != 0, b.o + r * b.head_pad,
                                             b.head_pad);
    });
  }
}

// By the register tiles of tile.h. A block is 48 rows: scores of every panel, softmax, then sums;
// the scores (48 x 256 floats) stay in L2, a panel in L1 for all 8 groups.
template <class T>
struct RegisterBlocks {
  static constexpr int64_t kGroup = kTileRows, kBlockGroups = 8, kUnits = 1;

  static int64_t group_begin(int64_t rows, int64_t groups, int64_t g) { return rows * g / groups; }

  static void run(const Attention& p, const Buffers& b, int64_t g_begin, int64_t g_end,
                  int64_t first, int64_t keys_pad, bool finite) {
    const auto scores = [&](int64_t g) {
      return b.s + (b.begin[g] - b.begin[g_begin]) * kScoreStride;
    };
    const auto count = [&](int64_t g) { return b.begin[g + 1] - b.begin[g]; };
    constexpr int64_t kOfLane = T::kPairs ? 2 : 1;  // elements of d, or keys
    const int64_t depth = (p.head_dim + kOfLane - 1) / kOfLane, depth_pad = b.head_pad / kOfLane;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      for (int64_t g = g_begin; g < g_end; ++g) {
        score_panel<T>(b.q + b.begin[g] * depth_pad, depth_pad, b.k + panel * kPanel * depth_pad,
                       depth, count(g), b.units[g * kPanels + panel], p.scale,
                       scores(g) + panel * kPanel);
      }
    }
    for (int64_t g = g_begin; g < g_end; ++g) {
      if (!sees_some(b, g)) continue;
      softmax_group<T, true>(p, b, g, first, scores(g));
      start_sums(b, g);
    }
    const int64_t chunks = chunk_count(b.head_pad);
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t unit = chunk_begin(b.head_pad, chunks, c);
      const int64_t units = chunk_begin(b.head_pad, chunks, c + 1) - unit;
      const float* v = b.v + unit * kUnit * keys_pad / kOfLane;
      for (int64_t panel = 0; panel < kPanels; ++panel) {
        for (int64_t g = g_begin; g < g_end; ++g) {
          const int64_t keys = b.units[g * kPanels + panel] * kUnit / kOfLane;
          if (keys == 0) continue;
          value_panel<T>(scores(g) + panel * kPanel / kOfLane,
                         v + panel * kPanel / kOfLane * units * kUnit, keys, count(g), units,
                         finite, b.o + b.begin[g] * b.head_pad + unit * kUnit, b.head_pad);
        }
      }
    }
  }
};

inline char* out_at(const Attention& p, const AttentionTask& t, const Row& row) {
  return static_cast<char*>(p.out) + t.batch * p.out_stride.batch + row.head * p.out_stride.head +
         row.query * p.out_stride.row;
}

// out = o * (1 / l) + 0 for one row.
template <class T, DType kType>
void finish_row(const Attention& p, const float* o, const float* l, char* out, const char* ahead) {
  constexpr int kParts = 16 / T::width;
  typename T::F part[kParts];
  for (int x = 0; x < kParts; ++x) part[x] = T::load(l + x * T::width);
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int x = 0; x < half; ++x) part[x] = T::add(part[x], part[x + half]);
  }
  const float sum = T::lane_sum(part[0]);
  const auto inverse = T::set1(1.0f / (sum == 0.0f ? 1.0f : sum));  // 0: a row that sees no key
  const int64_t head_dim = p.head_dim;
  for (int64_t d = 0; d < head_dim; d += T::width) {
    const int n = int(std::min<int64_t>(T::width, head_dim - d));
    __builtin_prefetch(ahead + d * size_of(kType), 1);
    T::store(out + d * size_of(kType), kType, T::fma(T::load(o + d), inverse, T::set1(0.0f)), n);
  }
}

// out of groups [g_begin, g_end).
template <class T>
void finish_groups(const Attention& p, const AttentionTask& t, const Buffers& b, int64_t g_begin,
                   int64_t g_end) {
  for (int64_t g = g_begin; g < g_end; ++g) start_sums(b, g);
  const int64_t begin = b.begin[g_begin], end = b.begin[g_end];
  with_dtype(p.dtype, [&](auto type) {
    for (int64_t r = begin; r < end; ++r) {
      const char* ahead = out_at(p, t, b.rows[std::min(r + kRowsAhead, end - 1)]);
      finish_row<T, decltype(type)::value>(p, b.o + r * b.head_pad, b.l + r * 16,
                                           out_at(p, t, b.rows[r]), ahead);
    }
  });
}

template <class T, class Blocks = RegisterBlocks<T>>
void attention_rows(const Attention& p, const AttentionTask& t) {
  const int64_t rows = t.row_end - t.row_begin;
  if (rows <= 0) return;
  const Buffers b = buffers_of(p, rows, t.scratch, Blocks::kUnits * kUnit);
  const int64_t groups = (rows + Blocks::kGroup - 1) / Blocks::kGroup;
  for (int64_t g = 0; g <= groups; ++g) b.begin[g] = Blocks::group_begin(rows, groups, g);
  each_row(p, t, [&](int64_t r, const Row& row) {
    // One by one: a copy of the whole would wait for the stores of its members.
    b.rows[r].head = row.head;
    b.rows[r].query = row.query;
    b.rows[r].begin = row.begin;
    b.rows[r].end = row.end;
    b.rows[r].mask = row.mask;
    b.m[r] = kHidden;
  });
  std::memset(b.started, 0, size_t(groups));
  std::memset(b.l, 0, size_t(rows * 16) * 4);
  if constexpr (T::kPairs) {
    pack_q_pairs<T>(p, t, b, rows);
  } else {
    with_dtype(p.dtype, [&](auto type) { pack_q<T, decltype(type)::value>(p, t, b, rows); });
  }
  const int64_t keys_end = b.rows[rows - 1].end;
  bool finished = false;
  for (int64_t first = b.rows[0].begin / kKeyBlock * kKeyBlock; first < keys_end;
       first += kKeyBlock) {
    const int64_t keys = seen_units<Blocks::kUnits>(p, b, groups, first);
    if (keys == 0) continue;
    const int64_t keys_pad = round_up(keys, Blocks::kUnits * kUnit);
    const bool finite = pack_keys<T>(p, t, b, first, keys, keys_pad);
    finished = first + kKeyBlock >= keys_end;
    for (int64_t g = 0; g < groups; g += Blocks::kBlockGroups) {
      const int64_t g_end = std::min(g + Blocks::kBlockGroups, groups);
      Blocks::run(p, b, g, g_end, first, keys_pad, finite);
      if (finished) finish_groups<T>(p, t, b, g, g_end);  // the sums are in L1
    }
  }
  if (!finished) finish_groups<T>(p, t, b, 0, groups);
}

}  // namespace
}  // namespace fastinfer::cpu
