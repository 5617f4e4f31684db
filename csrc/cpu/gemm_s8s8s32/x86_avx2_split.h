// Rows of A as x86_avx2.cpp multiplies them: what its `prepare` makes of a chunk of rows, block by
// block of kBlockRows. Why they are split, and what d, r, c and a norm are: see there.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <type_traits>

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kBlockRows = 128, kSplitSliceK = 768, kNormRows = 16;
constexpr int64_t kTileRows = 3;     // whose units stand together
constexpr int32_t kMostCentre = 63;  // |c|
constexpr int64_t kMostPieces = 3;   // of r in one group of 4: |a - c| <= 255 < 64 + 64 + 2 * 64
constexpr int64_t kNormUnit = 256;

// One row and 16 of K: d, and what its sums of 16 bits start from.
struct Unit {
  int32_t start;       // two int16: -128 times the sum of d over k % 4 < 2, and over k % 4 >= 2
  int32_t wide_start;  // -128 times the sum of d
  int8_t d[16];
};

// Of one row and 16 of K, for k % 4 < 2 and k % 4 >= 2: the sum of the squares of d, rounded up to
// kNormUnit; 255 stands for more, too.
struct Norm {
  uint8_t pair[2];
};

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Sums of two squares; where one is 128 * 128, which vpmaddubsw takes for negative, more than it.
inline __m256i square_pairs(__m256i v_s8) {
  const __m256i magnitude = _mm256_abs_epi8(v_s8);
  return _mm256_maddubs_epi16(magnitude, magnitude);
}

// A block of rows in memory.
struct SplitRows {
  bool* is_split;       // false: it does not pay, and the rest is not filled
  int32_t* centre;      // c
  int32_t* rest_start;  // -128 times the sum of r
  int32_t* first;       // [K / kSplitSliceK][rows]: to the next, its rests
  Norm* most_norm;      // [K / 16]: of all rows
  Norm* norms;          // [K / 16][norm_stride]
  Unit* units;          // [rows / kTileRows][K / 16][kTileRows]
  int32_t* rests;       // r, four bytes each
  int32_t* groups;      // theirs: 64 times k / 4 within the slice
  int64_t rows, steps, norm_stride, bytes;

  static int64_t most_rests(int64_t rows, int64_t k_pad) { return rows * k_pad / 16; }

  Unit* unit(int64_t row, int64_t step) const {
    return units + (row / kTileRows * steps + step) * kTileRows + row % kTileRows;
  }

  SplitRows(void* memory, int64_t block_rows, int64_t k_pad)
      : rows(block_rows), steps(k_pad / 16), norm_stride(round_up(rows, kNormRows)), bytes(0) {
    const auto take = [&](auto*& array, int64_t count) {
      using T = std::remove_reference_t<decltype(*array)>;
      array = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes));
      bytes += round_up(count * int64_t(sizeof(T)), 64);
    };
    take(is_split, 1);
    take(centre, rows);
    take(rest_start, rows);
    take(first, (k_pad + kSplitSliceK - 1) / kSplitSliceK * rows + 1);
    take(most_norm, steps);
    take(norms, steps * norm_stride + kNormRows);
    take(units, round_up(rows, kTileRows) * steps);
    take(rests, most_rests(rows, k_pad) + 8 * kMostPieces);
    take(groups, most_rests(rows, k_pad) + 8 * kMostPieces);
  }
};

inline int32_t lane_sum(__m256i v_s32) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v_s32);
  return std::accumulate(lanes, lanes + 8, 0);
}

int32_t row_sum(const int8_t* a, int64_t k_pad) {
  __m256i sums_s32 = _mm256_setzero_si256();
  for (int64_t k = 0; k < k_pad; k += 32) {
    const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_bytes(a + k));
    sums_s32 = _mm256_add_epi32(sums_s32, _mm256_madd_epi16(pairs_s16, _mm256_set1_epi16(1)));
  }
  return lane_sum(sums_s32);
}

// For each set of 8 lanes, those in it, then others.
struct LanesFirst {
  uint8_t lane[256][8];

  constexpr LanesFirst() : lane() {
    for (int set = 0; set < 256; ++set) {
      int count = 0;
      for (int i = 0; i < 8; ++i) {
        if (set >> i & 1) lane[set][count++] = uint8_t(i);
      }
    }
  }
};
constexpr LanesFirst kLanesFirst;

// Appends the lanes of r and groups that are in `set`; writes 8.
inline void append(__m256i r, __m256i groups, unsigned set, SplitRows* s, int32_t* count) {
  const __m256i lanes = _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLanesFirst.lane[set])));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(s->rests + *count),
                      _mm256_permutevar8x32_epi32(r, lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(s->groups + *count),
                      _mm256_permutevar8x32_epi32(groups, lanes));
  *count += __builtin_popcount(set);
}

// d of 32 along K, the k-th and on, of a row; its rests go to s. No branch on what is common.
inline __m256i split_32(const int8_t* a, int64_t k, int64_t row, SplitRows* s, int32_t* count) {
  const __m256i v = load_bytes(a), c = _mm256_set1_epi8(int8_t(s->centre[row]));
  const __m256i d = _mm256_subs_epi8(v, c);
  const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), d);
  // Not zero where d is out of int8: one difference saturates, the other wraps round.
  const __m256i left = _mm256_xor_si256(d, _mm256_sub_epi8(v, c));
  const __m256i over = _mm256_or_si256(
      left, _mm256_cmpgt_epi16(_mm256_abs_epi16(pairs_s16), _mm256_set1_epi16(128)));
  const __m256i whole = _mm256_cmpeq_epi32(over, _mm256_setzero_si256());
  const unsigned set = ~unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(whole))) & 0xff;
  const __m256i clamped =
      _mm256_min_epi8(_mm256_max_epi8(d, _mm256_set1_epi8(-64)), _mm256_set1_epi8(64));
  const __m256i groups = _mm256_add_epi32(_mm256_set1_epi32(int32_t(k % kSplitSliceK * 16)),
                                          _mm256_setr_epi32(0, 64, 128, 192, 256, 320, 384, 448));
  append(_mm256_sub_epi8(d, clamped), groups, set, s, count);
  if (!_mm256_testz_si256(left, left)) {  // v - c - d, up to 128, in two pieces
    const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
    const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
    const __m256i c_s16 = _mm256_set1_epi16(int16_t(s->centre[row]));
    const auto over_int8 = [&](__m256i v_s16, __m128i d_s8) {
      return _mm256_sub_epi16(_mm256_sub_epi16(v_s16, c_s16), _mm256_cvtepi8_epi16(d_s8));
    };
    const __m256i r_low = over_int8(low, _mm256_castsi256_si128(d));
    const __m256i r_high = over_int8(high, _mm256_extracti128_si256(d, 1));
    const auto piece = [&](__m256i a_s16, __m256i b_s16) {
      return _mm256_permute4x64_epi64(_mm256_packs_epi16(a_s16, b_s16), 0xd8);
    };
    const __m256i half_low = _mm256_srai_epi16(r_low, 1), half_high = _mm256_srai_epi16(r_high, 1);
    append(piece(half_low, half_high), groups, set, s, count);
    append(piece(_mm256_sub_epi16(r_low, half_low), _mm256_sub_epi16(r_high, half_high)), groups,
           set, s, count);
  }
  return _mm256_blendv_epi8(clamped, d, whole);
}

inline void store_norms(__m256i norms, Norm* low, Norm* high) {
  const int a = _mm256_extract_epi16(norms, 0), b = _mm256_extract_epi16(norms, 8);
  std::memcpy(low, &a, sizeof(Norm));
  std::memcpy(high, &b, sizeof(Norm));
}

// Returns false if there are too many rests.
bool split(const int8_t* a, int64_t k_pad, SplitRows* s) {
  const int64_t rows = s->rows, most = SplitRows::most_rests(rows, k_pad);
  int32_t count = 0;
  __m256i d_sums_s32[kBlockRows];
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t sum = row_sum(a + i * k_pad, k_pad);
    s->centre[i] = std::clamp(sum / int32_t(k_pad), -kMostCentre, kMostCentre);
    s->rest_start[i] = sum - s->centre[i] * int32_t(k_pad);
    d_sums_s32[i] = _mm256_setzero_si256();
  }
  std::memset(s->norms, 0, size_t(s->steps * s->norm_stride) * sizeof(Norm));
  int32_t* first = s->first;
  for (int64_t slice = 0; slice < k_pad; slice += kSplitSliceK) {
    const int64_t end = std::min(k_pad, slice + kSplitSliceK);
    __m256i most_norms[kSplitSliceK / 32] = {};
    for (int64_t i = 0; i < rows; ++i) {
      *first++ = count;
      Unit* unit = s->unit(i, slice / 16);
      Norm* norm = s->norms + slice / 16 * s->norm_stride + i;
      for (int64_t k = slice; k < end; k += 32) {
        const __m256i d = split_32(a + i * k_pad + k, k, i, s, &count);
        if (count > most) return false;
        // Over the four steps of each half of 16, for both pairs of a step.
        const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), d);
        d_sums_s32[i] =
            _mm256_add_epi32(d_sums_s32[i], _mm256_madd_epi16(pairs_s16, _mm256_set1_epi16(1)));
        __m256i sums = _mm256_add_epi16(pairs_s16, _mm256_shuffle_epi32(pairs_s16, 0x4e));
        sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1));
        const __m256i wide = _mm256_madd_epi16(sums, _mm256_set1_epi16(-128));
        sums = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sums, 7));
        const __m256i squares = square_pairs(d);
        __m256i norms = _mm256_adds_epu16(squares, _mm256_shuffle_epi32(squares, 0x4e));
        norms = _mm256_adds_epu16(norms, _mm256_shuffle_epi32(norms, 0xb1));
        norms = _mm256_srli_epi16(norms, 8);
        norms = _mm256_adds_epu8(_mm256_packus_epi16(norms, norms), _mm256_set1_epi8(1));
        __m256i& most_norm = most_norms[(k - slice) / 32];
        most_norm = _mm256_max_epu8(most_norm, norms);
        store_norms(norms, norm, norm + s->norm_stride);
        unit[0].start = _mm256_cvtsi256_si32(sums);
        unit[0].wide_start = _mm256_cvtsi256_si32(wide);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(unit[0].d), _mm256_castsi256_si128(d));
        Unit& next = unit[kTileRows];
        next.start = _mm256_extract_epi32(sums, 4);
        next.wide_start = _mm256_extract_epi32(wide, 4);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(next.d), _mm256_extracti128_si256(d, 1));
        unit += 2 * kTileRows;
        norm += 2 * s->norm_stride;
      }
    }
    for (int64_t k = slice; k < end; k += 32) {
      Norm* most_norm = s->most_norm + k / 16;
      store_norms(most_norms[(k - slice) / 32], most_norm, most_norm + 1);
    }
  }
  *first = count;
  for (int64_t i = 0; i < rows; ++i) {
    // Modulo 2^32, as the sums that it goes into.
    s->rest_start[i] = int32_t(128u * uint32_t(lane_sum(d_sums_s32[i]) - s->rest_start[i]));
  }
  return true;
}

}  // namespace
}  // namespace fastinfer::cpu
