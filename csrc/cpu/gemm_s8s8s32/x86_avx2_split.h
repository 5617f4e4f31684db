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

constexpr int64_t kBlockRows = 128, kNormRows = 16;
constexpr int64_t kMostPieces = 3;  // of r in one group of 4: |a - c| <= 255 < 64 + 3 * 64
constexpr int64_t kNormUnit = 256;

// One row and 16 of K: d, and what its sums of 16 bits start from.
struct Unit {
  int32_t start;  // two int16: -128 times the sum of d over k % 4 < 2, and over k % 4 >= 2
  int8_t d[16];
};

// A piece of r, 4 along K, and where its sums and its 4 of K x 16 columns are.
struct Rest {
  uint16_t sums_bytes;  // 64 a row
  uint16_t b_bytes;     // within kBlockK of K
  int32_t r;
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
  int32_t* mean;        // c
  int32_t* rest_start;  // -128 times the sum of r
  int32_t* first;       // 64 of K have rests[first[k / 64]] to the next
  Norm* most_norm;      // [K / 16]: of all rows
  Norm* norms;          // [K / 16][norm_stride]
  Unit* units;          // [K / 16][rows]
  Rest* rests;
  int64_t rows, norm_stride, bytes;

  static int64_t most_rests(int64_t rows, int64_t k_pad) { return rows * k_pad / 16; }

  SplitRows(void* memory, int64_t block_rows, int64_t k_pad)
      : rows(block_rows), norm_stride(round_up(rows, kNormRows)), bytes(0) {
    const auto take = [&](auto*& array, int64_t count) {
      using T = std::remove_reference_t<decltype(*array)>;
      array = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes));
      bytes += round_up(count * int64_t(sizeof(T)), 64);
    };
    take(is_split, 1);
    take(mean, rows);
    take(rest_start, rows);
    take(first, k_pad / kBlockK + 1);
    take(most_norm, k_pad / 16);
    take(norms, k_pad / 16 * norm_stride + kNormRows);
    take(units, k_pad / 16 * rows);
    take(rests, most_rests(rows, k_pad) + 8 * kMostPieces);
  }
};

int32_t row_sum(const int8_t* a, int64_t k_pad) {
  __m256i sums_s32 = _mm256_setzero_si256();
  for (int64_t k = 0; k < k_pad; k += 32) {
    const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_bytes(a + k));
    sums_s32 = _mm256_add_epi32(sums_s32, _mm256_madd_epi16(pairs_s16, _mm256_set1_epi16(1)));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums_s32);
  return std::accumulate(lanes, lanes + 8, 0);
}

// Appends the pieces of r of the group of 4 at a, the group-th of its kBlockK.
void append_rests(const int8_t* a, int64_t row, int64_t group, SplitRows* s, int32_t* count) {
  const int32_t mean = s->mean[row];
  int32_t left[4];
  for (int i = 0; i < 4; ++i) {
    left[i] = a[i] - mean - std::clamp(a[i] - mean, -64, 64);
    s->rest_start[row] -= 128 * left[i];
  }
  while ((left[0] | left[1] | left[2] | left[3]) != 0) {
    int8_t piece[4];
    for (int i = 0; i < 4; ++i) {
      piece[i] = int8_t(std::clamp(left[i], -64, 64));
      left[i] -= piece[i];
    }
    Rest& rest = s->rests[(*count)++];
    rest.sums_bytes = uint16_t(row * 64);
    rest.b_bytes = uint16_t(group * 64);
    std::memcpy(&rest.r, piece, 4);
  }
}

// d of 32 along K, the k-th and on, of a row; its rests go to s.
inline __m256i split_32(const int8_t* a, int64_t k, int64_t row, SplitRows* s, int32_t* count) {
  const __m256i v = load_bytes(a), c = _mm256_set1_epi8(int8_t(s->mean[row]));
  const __m256i d = _mm256_subs_epi8(v, c);
  const __m256i saturated = _mm256_xor_si256(d, _mm256_sub_epi8(v, c));
  const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), d);
  const __m256i over = _mm256_or_si256(
      saturated, _mm256_cmpgt_epi16(_mm256_abs_epi16(pairs_s16), _mm256_set1_epi16(128)));
  if (_mm256_testz_si256(over, over)) return d;
  const __m256i fits = _mm256_cmpeq_epi32(over, _mm256_setzero_si256());
  unsigned bits = ~unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(fits))) & 0xff;
  for (; bits != 0; bits &= bits - 1) {
    const int group = __builtin_ctz(bits);
    append_rests(a + group * 4, row, k % kBlockK / 4 + group, s, count);
  }
  const __m256i clamped =
      _mm256_min_epi8(_mm256_max_epi8(d, _mm256_set1_epi8(-64)), _mm256_set1_epi8(64));
  return _mm256_blendv_epi8(clamped, d, fits);
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
  for (int64_t i = 0; i < rows; ++i) {
    s->mean[i] = row_sum(a + i * k_pad, k_pad) / int32_t(k_pad);
    s->rest_start[i] = 0;
  }
  std::memset(s->norms, 0, size_t(k_pad / 16 * s->norm_stride) * sizeof(Norm));
  for (int64_t k = 0; k < k_pad; k += 32) {
    if (k % kBlockK == 0) s->first[k / kBlockK] = count;
    Unit* unit = s->units + k / 16 * rows;
    Norm* norm = s->norms + k / 16 * s->norm_stride;
    __m256i most_norms = _mm256_setzero_si256();
    for (int64_t i = 0; i < rows; ++i, ++unit, ++norm) {
      const __m256i d = split_32(a + i * k_pad + k, k, i, s, &count);
      if (count > most) return false;
      // Over the four steps of each half of 16, for both pairs of a step.
      const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), d);
      __m256i sums = _mm256_add_epi16(pairs_s16, _mm256_shuffle_epi32(pairs_s16, 0x4e));
      sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xb1));
      sums = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sums, 7));
      const __m256i squares = square_pairs(d);
      __m256i norms = _mm256_adds_epu16(squares, _mm256_shuffle_epi32(squares, 0x4e));
      norms = _mm256_adds_epu16(norms, _mm256_shuffle_epi32(norms, 0xb1));
      norms = _mm256_srli_epi16(norms, 8);
      norms = _mm256_adds_epu8(_mm256_packus_epi16(norms, norms), _mm256_set1_epi8(1));
      most_norms = _mm256_max_epu8(most_norms, norms);
      unit[0].start = _mm256_cvtsi256_si32(sums);
      unit[rows].start = _mm256_extract_epi32(sums, 4);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(unit[0].d), _mm256_castsi256_si128(d));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(unit[rows].d), _mm256_extracti128_si256(d, 1));
      store_norms(norms, norm, norm + s->norm_stride);
    }
    store_norms(most_norms, s->most_norm + k / 16, s->most_norm + k / 16 + 1);
  }
  s->first[k_pad / kBlockK] = count;
  return true;
}

}  // namespace
}  // namespace fastinfer::cpu
