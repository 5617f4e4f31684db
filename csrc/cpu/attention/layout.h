// What every attention kernel shares: which keys a row may see, and the scratch of a task.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention/attention.h"
#include "cpu/ceil_div.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kUnit = 16;   // keys, or elements of a head, that go together
constexpr int64_t kPanel = 64;  // keys of a packed panel
constexpr int64_t kPanels = kKeyBlock / kPanel;
constexpr int64_t kTileRows = 6;    // of a register tile, at most
constexpr int64_t kAmxRows = 16;    // of an AMX tile
constexpr int64_t kBlockRows = 48;  // whose scores are in scratch together, at most
constexpr int64_t kScoreStride = kKeyBlock + kUnit;  // not a power of two: spreads over cache sets

constexpr int64_t kRowsAhead = 32;  // rows of q, k, v and out are asked for before their turn

// One row of a task: keys [begin, end) are visible as far as causal and window go.
struct Row {
  int64_t head, query;
  int64_t begin, end;
  const char* mask;  // element (row, 0), null without a mask
};

// The rows of a task one after another; `body(r, row)` with r from 0.
template <class Body>
inline void each_row(const Attention& p, const AttentionTask& t, Body&& body) {
  const int64_t group = p.heads / p.kv_heads;
  int64_t query = t.row_begin / group, member = t.row_begin % group;
  for (int64_t r = 0; r < t.row_end - t.row_begin; ++r) {
    Row row{};
    row.query = query;
    row.head = t.kv_head * group + member;
    row.end = p.causal ? std::min(p.tk, query + 1) : p.tk;
    row.begin = p.window > 0 ? std::clamp<int64_t>(query - p.window + 1, 0, row.end) : 0;
    if (p.mask_kind != MaskKind::none) {
      row.mask = static_cast<const char*>(p.mask) + t.batch * p.mask_stride.batch +
                 row.head * p.mask_stride.head + query * p.mask_stride.row;
    }
    body(r, row);
    if (++member == group) member = 0, ++query;
  }
}

inline int64_t mask_element_size(const Attention& p) {
  return p.mask_kind == MaskKind::boolean ? 1 : size_of(p.mask_dtype);
}

// Whether the mask lets some key of [begin, end) through.
inline bool mask_shows(const Attention& p, const char* mask, int64_t begin, int64_t end) {
  if (begin >= end) return false;
  if (!p.mask_per_key) begin = 0, end = 1;
  const auto shows = [&](auto hidden) {
    using Bits = decltype(hidden);
    bool any = false;
    for (int64_t j = begin; j < end; ++j) {
      Bits bits;
      std::memcpy(&bits, mask + j * int64_t(sizeof(Bits)), sizeof(Bits));
      any |= bits != hidden;
    }
    return any;
  };
  if (p.mask_kind == MaskKind::boolean) return shows(uint8_t(0));
  if (p.mask_dtype == DType::f32) return shows(uint32_t(0xff800000u));
  return shows(uint16_t(p.mask_dtype == DType::bf16 ? 0xff80 : 0xfc00));
}

// The scratch of a task. head_pad is head_dim rounded up to a unit, or to the two that go together.
//   q[row][head_pad]                 scaled and widened, zero-padded
//   o[row][head_pad], l[row][16], m[row]
//   k[panel][d][64]                  of one block of keys: lane j % 64
//   v[chunk][key][width]             of one block of keys: chunks of at most 64 elements of d
//   s[row % 48][kScoreStride]        scores of a block of rows, then probabilities
//   begin[group]                     first row of a group, and the number of rows at the end
//   units[group][panel]              units of a panel that some row of the group sees, from the
//                                    first on
//   started[group]                   whether o of the group holds sums; before, it is to be zero
// In pairs of bfloat16, q is not scaled, and a lane of q, k, v and p holds two elements: d and d +
// 1, or keys j and j + 1. So there are half as many along d or j, at the begin of the same buffers.
// There is room for what any kernel puts here: AMX tiles read and write rows up to a multiple
// of 16.
struct Buffers {
  float *q, *o, *l, *m, *k, *v, *s;
  Row* rows;
  int64_t* begin;
  uint8_t *units, *started;
  int64_t head_pad, bytes;
};

inline Buffers buffers_of(const Attention& p, int64_t rows, void* scratch, int64_t head_unit) {
  Buffers b{};
  char* const base = static_cast<char*>(scratch);
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    if (base != nullptr) pointer = reinterpret_cast<T*>(base + used);
    used += round_up(count * int64_t(sizeof(T)), 64);
  };
  b.head_pad = round_up(p.head_dim, head_unit);
  const int64_t groups = (rows + kTileRows - 1) / kTileRows;  // no group is smaller
  const int64_t rows_pad = round_up(rows, kAmxRows);
  const int64_t head_most = round_up(p.head_dim, 2 * kUnit);
  const int64_t keys = round_up(std::min(p.tk, kKeyBlock), kPanel);
  take(b.q, rows_pad * head_most);
  take(b.o, rows_pad * head_most);
  take(b.l, rows * 16);
  take(b.m, rows);
  take(b.k, keys * head_most);
  take(b.v, keys * head_most);
  take(b.s, std::min(rows_pad, kBlockRows) * kScoreStride);
  take(b.rows, rows);
  take(b.begin, groups + 1);
  take(b.units, groups * kPanels);
  take(b.started, groups);
  b.bytes = used;
  return b;
}

}  // namespace
}  // namespace fastinfer::cpu
