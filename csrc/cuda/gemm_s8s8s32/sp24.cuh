// A 2:4 weight in registers: what its masks (pack.h) make of x, or of the values, by permute_bytes.
//
// A lane has 32 neighbours along K of a row: 32 bits of masks, 8 groups of 4, and 16 bytes of
// values, two a group. Of a mask's bits two are set, so the three low ones alone tell which: they
// are the index into a table of 8 bytes that is the two operands of permute_bytes. A damaged mask
// (0 or 7) gives some byte; nothing outside the registers depends on it.
//
//   gather_digits   8 operations a 32 of K, once a row of the weight; then a word of values, 2
//                   groups, costs one permute_bytes and one dp4a a row of x
//   expand          26 operations a 32 of K
//
// A multiprocessor of 132 that shares 4.8 TB/s gets 21 bytes a clock at 1.7 GHz, 8.5 groups of 2.5
// bytes, and does 64 permutations and 64 dp4a a clock: with M rows of x, 8.5 (1 + M / 2) and
// 8.5 M / 2 by gather_digits, 26 and 17 at M = 4; 28 by expand.
#pragma once

#include "cuda/device.cuh"
#include "cuda/gemm_s8s8s32/sp24.h"

namespace fastinfer::cuda {
namespace {

constexpr int kSp24LaneK = 32;  // of K a lane takes at a time

__device__ inline Sp24Weight sp24_row(const Sp24Weight& weight, int64_t n, int64_t k_pad) {
  return {weight.masks + n * (k_pad / 8), weight.values + n * (k_pad / 2)};
}

struct Sp24Piece {
  uint4 values;
  uint32_t masks;

  // Piece i from the beginning of a row on, which may be one of a row after it; or zeros, and
  // nothing is read.
  __device__ void load(const Sp24Weight& row, int64_t i, bool inside) {
    values = inside ? load_once(row.values + i * 16) : uint4{0, 0, 0, 0};
    masks = inside ? load_word_once(row.masks + i * 4) : 0;
  }
  __device__ uint32_t value_word(int i) const {
    return i == 0 ? values.x : i == 1 ? values.y : i == 2 ? values.z : values.w;
  }
};

// digits[i]: permute_bytes(x of group 2 i, x of group 2 i + 1, digits[i]) are the 4 bytes of x that
// meet word i of the values.
__device__ inline void gather_digits(uint32_t masks, uint32_t (&digits)[4]) {
  // By the low bits of a mask: 1 keeps 0 and 3, 2 keeps 1 and 3, 3 keeps 0 and 1, 4 keeps 2 and 3,
  // 5 keeps 0 and 2, 6 keeps 1 and 2.
  const uint32_t index = masks & 0x77777777u;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t pairs =
        permute_bytes(0x10313000u, 0x00212032u, index >> (16 * half)) | 0x44004400u;
    digits[2 * half] = pairs;
    digits[2 * half + 1] = pairs >> 16;
  }
}

// words[j]: the 4 bytes of group j, zeros where nothing is kept.
__device__ inline void expand(const Sp24Piece& piece, uint32_t (&words)[8]) {
  const uint32_t index = piece.masks & 0x77777777u;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Of each of 4 groups the digits of k = 0 and 1, and of k = 2 and 3: 0 or 1 is a value, 4 a
    // zero; odd groups have the upper half of a word of values.
    const uint32_t four = index >> (16 * half);
    const uint32_t front = permute_bytes(0x10044044u, 0x44044044u, four) | 0x22002200u;
    const uint32_t back = permute_bytes(0x44141444u, 0x44414110u, four) | 0x22002200u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t digits = permute_bytes(front, back, uint32_t((4 + j) * 16 + j));
      words[4 * half + j] = permute_bytes(piece.value_word(2 * half + j / 2), 0, digits);
    }
  }
}

}  // namespace
}  // namespace fastinfer::cuda
