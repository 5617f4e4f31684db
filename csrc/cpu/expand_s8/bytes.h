// Masked slices by 8 bytes at a time: a table of byte shuffles, one row a mask of 8 bits. Included
// by x86_avx2.cpp and arm_neon.cpp, which say how 8 bytes are shuffled.
//
// The table is 2 KiB and stays in L1. A byte of mask costs four loads, a shuffle, a store and a
// count of bits; the chain from one to the next is the count and an addition.
#pragma once

#include <algorithm>
#include <array>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {
namespace {

struct ExpandTable {
  // shuffle[m][i]: which value byte i takes; one with bit 7 set gives 0.
  alignas(64) uint8_t shuffle[256][8];
  uint8_t count[256];
};

constexpr ExpandTable make_expand_table() {
  ExpandTable table{};
  for (int mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (int i = 0; i < 8; ++i) table.shuffle[mask][i] = mask >> i & 1 ? next++ : uint8_t(0x80);
    table.count[mask] = next;
  }
  return table;
}
constexpr ExpandTable kExpandTable = make_expand_table();

// shuffle8(values, row of the table, out)
template <class Shuffle>
const uint8_t* expand_by_bytes(const ExpandS8& p, Shuffle&& shuffle8) {
  const uint8_t* masked = p.masked;
  int8_t* out = p.out;
  for (int64_t s = 0; s < p.slices; ++s) {
    masked = std::min(masked, p.last);
    const uint8_t* value = masked + kMaskBytes;
    for (int64_t i = 0; i < kMaskBytes; ++i, out += 8) {
      const uint8_t mask = masked[i];
      shuffle8(value, kExpandTable.shuffle[mask], out);
      value += kExpandTable.count[mask];
    }
    masked = value;
  }
  return masked;
}

}  // namespace
}  // namespace fastinfer::cpu
