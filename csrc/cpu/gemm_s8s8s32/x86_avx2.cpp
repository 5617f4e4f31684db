// gemm_s8s8s32_5x16x4_avx2. Contract and layouts: gemm_s8s8s32.h.
//
// vpmaddubsw takes twice as many bytes as vpmaddwd takes int16, but adds two products in 16 bits
// and saturates. Here it never does: B is unsigned, b + 128 <= 255, and A is split in three,
//
//   a[m,k] = c[m] + d[m,k] + r[m,k]
//   sum_k a b = sum_k d (b + 128) + sum_k r (b + 128) + c sum_k (b + 128) - 128 sum_k a
//
// A pair of neighbours along K fits if |d[k] + d[k+1]| <= 128 (and d is int8): its positive
// products, and its negative ones, are then within 128 * 255 = 32640. c is the mean of the row, and
// r = 0 but where a pair does not fit: there the group of 4 is clamped to [-64, 64], and what is
// left over is r, in pieces of [-64, 64]. For that, neighbours must both be far off the mean on the
// same side: in Gaussian rows, whose greatest of 768 is 3.2 standard deviations, in 4 % of the
// groups, with outliers in fewer.
//
// A block of rows is split once, kSplitBytes of d, which stay in L2, and meets every panel, a slice
// of kSplitSliceK along K at a time (12 KiB of b + 128, L1). Registers: 5 rows x 2 ymm of 8 columns
// are 10 sums, 2 for B, 1 for A, 1 for ones, 1 product. A step of 4 along K: 10 x (vpmaddubsw,
// vpmaddwd by ones, vpaddd), 2 loads, 5 broadcasts for 320 multiply-adds; widened to int16 they
// take 20 x (vpmaddwd, vpaddd). Bound by the two multiplying ports: 190 GOP/s on a Zen 3 core of
// 3.2 GHz. Measured there, Gaussian rows: 135 to 160, widened 115; a sixth of the groups in r, as
// after GELU: 110 to 125.
//
// Rows are widened instead, and multiplied by vpmaddwd, where splitting does not pay: fewer than
// kLeastSplitRows, a K too long for a block of as many, more rests than one for four groups.
// Overflow: int32 arithmetic modulo 2^32, exact because the true sum fits; vpmaddwd sums are at
// most 2 * 128 * 128.
#include <algorithm>
#include <iterator>
#include <numeric>

#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kSliceK = 512, kMostRows = 256;
constexpr int64_t kSplitBytes = 128 << 10, kSplitSliceK = 768, kLeastSplitRows = 4,
                  kMostRests = 8192;

inline __m256i widen(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// acc += vpmaddwd(a, *b). In assembly, so that B stays a memory operand and one product is alive
// at a time: 12 sums, 3 rows of A and the product are all 16 registers, and compilers spill sums.
inline void multiply_add(__m256i& acc_s32, __m256i a_s16, const __m256i* b) {
  __m256i product;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
          : "+x"(acc_s32), "=&x"(product)
          : "x"(a_s16), "m"(*b));
}

// The 4 bytes at p as 4 int16, four times over.
inline __m256i broadcast(const int8_t* p) {
  return _mm256_cvtepi8_epi16(
      _mm_castps_si128(_mm_broadcast_ss(reinterpret_cast<const float*>(p))));
}

// sums[i * 16 + c] += MR rows of A times k_count of K of one panel. kWide: b is int16 already.
// 4 ymm of sums a row, each 4 columns x 2 partial sums (k % 4 < 2, >= 2), added in pairs at the
// end.
template <int MR, bool kWide>
void wide_tile(const int8_t* a, int64_t lda_bytes, const void* b, int64_t k_count, int32_t* sums) {
  __m256i acc_s32[MR][4] = {};
  for (int64_t k = 0; k < k_count; k += 4) {
    __m256i a_s16[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) a_s16[i] = broadcast(a + i * lda_bytes + k);
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j) {
      if constexpr (kWide) {
        const __m256i* b_s16 = static_cast<const __m256i*>(b) + k + j;
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) multiply_add(acc_s32[i][j], a_s16[i], b_s16);
      } else {
        const __m256i b_s16 = widen(static_cast<const int8_t*>(b) + k * 16 + j * 16);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
          acc_s32[i][j] = _mm256_add_epi32(acc_s32[i][j], _mm256_madd_epi16(a_s16[i], b_s16));
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < 4; j += 2) {
      const __m256i pairs = _mm256_hadd_epi32(acc_s32[i][j], acc_s32[i][j + 1]);
      const __m256i in_order = _mm256_permute4x64_epi64(pairs, 0xd8);
      __m256i* out = reinterpret_cast<__m256i*>(sums + i * 16 + j * 4);
      _mm256_store_si256(out, _mm256_add_epi32(_mm256_load_si256(out), in_order));
    }
  }
}

template <bool kWide>
void wide_tiles(const int8_t* a, int64_t lda_bytes, int64_t rows, const void* b, int64_t k_count,
                int32_t* sums) {
  int64_t m = 0;
  for (; m + 3 <= rows; m += 3) {
    wide_tile<3, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
  }
  if (rows - m == 2) wide_tile<2, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
  if (rows - m == 1) wide_tile<1, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
}

// Rows [row, row + rows), at most kMostRows, widened to int16.
void widened_rows(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows) {
  alignas(64) int32_t sums[kMostRows * 16];
  alignas(64) int16_t wide[kSliceK * 16];
  const int8_t* a = p.a + row * p.k_pad;
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    std::memset(sums, 0, size_t(rows) * 16 * sizeof(int32_t));
    if (rows <= 3) {
      wide_tiles<false>(a, p.k_pad, rows, panel, p.k_pad, sums);
    } else {
      for (int64_t k = 0; k < p.k_pad; k += kSliceK) {
        const int64_t count = std::min(kSliceK, p.k_pad - k);
        for (int64_t i = 0; i < count * 16; i += 16) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(wide + i), widen(panel + k * 16 + i));
        }
        wide_tiles<true>(a + k, p.k_pad, rows, wide, count, sums);
      }
    }
    epilogue(p, sums, 16, row, rows, n, std::min<int64_t>(16, p.n - n));
  }
}

// A piece of r: 4 along K.
struct Rest {
  int32_t group;
  int32_t r;
};

constexpr int64_t kMostPieces = 3;  // of one group: |a - c| <= 255 < 64 + 3 * 64

struct SplitRows {
  alignas(64) int8_t d[kSplitBytes];  // k_pad bytes a row
  int32_t sum[kMostRows];             // of a
  int32_t mean[kMostRows];            // c
  int32_t first[kMostRows + 1];       // row i has rests[first[i]] to rests[first[i + 1] - 1]
  Rest rests[kMostRests];
};

int32_t row_sum(const int8_t* a, int64_t k_pad) {
  __m256i sums_s32 = _mm256_setzero_si256();
  for (int64_t k = 0; k < k_pad; k += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + k));
    const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
    sums_s32 = _mm256_add_epi32(sums_s32, _mm256_madd_epi16(pairs_s16, _mm256_set1_epi16(1)));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums_s32);
  return std::accumulate(lanes, lanes + 8, 0);
}

// Appends the pieces of r of the group of 4 at a.
void append_rests(const int8_t* a, int32_t mean, int32_t group, SplitRows* s, int32_t* count) {
  int32_t left[4];
  for (int i = 0; i < 4; ++i) left[i] = a[i] - mean - std::clamp(a[i] - mean, -64, 64);
  while ((left[0] | left[1] | left[2] | left[3]) != 0) {
    int8_t piece[4];
    for (int i = 0; i < 4; ++i) {
      piece[i] = int8_t(std::clamp(left[i], -64, 64));
      left[i] -= piece[i];
    }
    Rest& rest = s->rests[(*count)++];
    rest.group = group;
    std::memcpy(&rest.r, piece, 4);
  }
}

// Returns false if there are too many rests.
bool split(const int8_t* a, int64_t rows, int64_t k_pad, SplitRows* s) {
  const __m256i zero = _mm256_setzero_si256();
  const int64_t most = std::min(kMostRests - 8 * kMostPieces, rows * k_pad / 16);
  int32_t count = 0;
  s->first[0] = 0;
  for (int64_t i = 0; i < rows; ++i, a += k_pad) {
    s->sum[i] = row_sum(a, k_pad);
    s->mean[i] = s->sum[i] / int32_t(k_pad);
    const __m256i c = _mm256_set1_epi8(int8_t(s->mean[i]));
    for (int64_t k = 0; k < k_pad; k += 32) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + k));
      __m256i d = _mm256_subs_epi8(v, c);
      const __m256i saturated = _mm256_xor_si256(d, _mm256_sub_epi8(v, c));
      const __m256i pairs_s16 = _mm256_maddubs_epi16(_mm256_set1_epi8(1), d);
      const __m256i over = _mm256_or_si256(
          saturated, _mm256_cmpgt_epi16(_mm256_abs_epi16(pairs_s16), _mm256_set1_epi16(128)));
      if (!_mm256_testz_si256(over, over)) {
        const __m256i fits = _mm256_cmpeq_epi32(over, zero);
        const __m256i clamped =
            _mm256_min_epi8(_mm256_max_epi8(d, _mm256_set1_epi8(-64)), _mm256_set1_epi8(64));
        d = _mm256_blendv_epi8(clamped, d, fits);
        unsigned bits = ~unsigned(_mm256_movemask_ps(_mm256_castsi256_ps(fits))) & 0xff;
        for (; bits != 0; bits &= bits - 1) {
          const int32_t group = int32_t(k / 4) + __builtin_ctz(bits);
          append_rests(a + group * 4, s->mean[i], group, s, &count);
        }
        if (count > most) return false;
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(s->d + i * k_pad + k), d);
    }
    s->first[i + 1] = count;
  }
  return true;
}

// 8 columns of 4 along K: b + 128.
inline __m256i load_u8(const int8_t* p) {
  return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                          _mm256_set1_epi8(-128));
}

// sums[i * 16 + c] = c sum (b + 128) - 128 sum a, for all rows and one panel.
void start_sums(const SplitRows& s, int64_t rows, int64_t k_pad, const int32_t* compensation,
                int32_t* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    const __m256i mean = _mm256_set1_epi32(s.mean[i]);
    const __m256i start = _mm256_set1_epi32(128 * (s.mean[i] * int32_t(k_pad) - s.sum[i]));
    for (int j = 0; j < 16; j += 8) {
      // The compensation is -128 * sum b.
      const __m256i minus_b = _mm256_srai_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(compensation + j)), 7);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + i * 16 + j),
                         _mm256_sub_epi32(start, _mm256_mullo_epi32(mean, minus_b)));
    }
  }
}

// acc += four products of a and b in each lane. In assembly for the same reason as multiply_add.
inline void multiply_add_fours(__m256i& acc_s32, __m256i b_u8, __m256i a_s8, __m256i ones_s16) {
  __m256i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
          : "+x"(acc_s32), "=&x"(product)
          : "x"(b_u8), "x"(a_s8), "x"(ones_s16));
}

// sums += the rests of all rows in groups [begin, end), whose b + 128 is b. Row i has got to
// cursor[i].
void add_rests(const SplitRows& s, int64_t rows, int64_t begin, int64_t end, const uint8_t* b,
               int32_t* cursor, int32_t* sums) {
  const __m256i ones_s16 = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < rows; ++i, sums += 16) {
    int32_t t = cursor[i];
    if (t == s.first[i + 1] || s.rests[t].group >= end) continue;
    __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums));
    __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + 8));
    for (; t < s.first[i + 1] && s.rests[t].group < end; ++t) {
      const auto* b_u8 = reinterpret_cast<const __m256i*>(b + (s.rests[t].group - begin) * 64);
      const __m256i r_s8 = _mm256_set1_epi32(s.rests[t].r);
      multiply_add_fours(low, _mm256_load_si256(b_u8), r_s8, ones_s16);
      multiply_add_fours(high, _mm256_load_si256(b_u8 + 1), r_s8, ones_s16);
    }
    cursor[i] = t;
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8), high);
  }
}

// sums[i * 16 + c] += MR rows of d times k_count of K of b + 128.
template <int MR>
void split_tile(const int8_t* d, int64_t k_pad, const uint8_t* b, int64_t k_count, int32_t* sums) {
  __m256i ones_s16 = _mm256_set1_epi16(1);
  __asm__("" : "+x"(ones_s16));  // not to be folded into memory operands
  __m256i acc_s32[MR][2];
#pragma GCC unroll 12
  for (int i = 0; i < MR * 2; ++i) {
    acc_s32[i / 2][i % 2] = _mm256_load_si256(reinterpret_cast<__m256i*>(sums + i * 8));
  }
  for (int64_t k = 0; k < k_count; k += 4, d += 4, b += 64) {
    const __m256i low_u8 = _mm256_load_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i high_u8 = _mm256_load_si256(reinterpret_cast<const __m256i*>(b + 32));
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      int32_t four;
      std::memcpy(&four, d + i * k_pad, 4);
      const __m256i d_s8 = _mm256_set1_epi32(four);
      multiply_add_fours(acc_s32[i][0], low_u8, d_s8, ones_s16);
      multiply_add_fours(acc_s32[i][1], high_u8, d_s8, ones_s16);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < MR * 2; ++i) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums + i * 8), acc_s32[i / 2][i % 2]);
  }
}

using SplitTileFn = void (*)(const int8_t*, int64_t, const uint8_t*, int64_t, int32_t*);
constexpr SplitTileFn kSplitTiles[] = {split_tile<1>, split_tile<2>, split_tile<3>, split_tile<4>,
                                       split_tile<5>};
constexpr int64_t kMostTileRows = std::size(kSplitTiles);

// Rows [row, row + rows), which `s` holds.
void split_rows(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                const SplitRows& s) {
  alignas(64) int32_t sums[kMostRows * 16];
  alignas(64) uint8_t b[kSplitSliceK * 16];
  int32_t cursor[kMostRows];
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    start_sums(s, rows, p.k_pad, p.compensation + n, sums);
    std::copy_n(s.first, rows, cursor);
    for (int64_t k = 0; k < p.k_pad; k += kSplitSliceK) {
      const int64_t count = std::min(kSplitSliceK, p.k_pad - k);
      for (int64_t i = 0; i < count * 16; i += 32) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(b + i), load_u8(panel + k * 16 + i));
      }
      add_rests(s, rows, k / 4, (k + count) / 4, b, cursor, sums);
      // Tiles as equal as they can be. Beside each its share of the next slice, which follows in
      // memory, is prefetched, and before the epilogue its lines of the output.
      int64_t tiles = (rows + kMostTileRows - 1) / kMostTileRows;
      const int64_t share = count * 16 / tiles;
      const int8_t* next = panel + (k + count) * 16;
      for (int64_t i = 0; tiles > 0; --tiles, next += share) {
        const int64_t mr = (rows - i + tiles - 1) / tiles;
        for (int64_t at = 0; at < share; at += 64) _mm_prefetch(next + at, _MM_HINT_T1);
        const char* out = static_cast<const char*>(p.out) + (row + i) * p.out_ld_bytes;
        for (int64_t r = 0; r < mr && k + count == p.k_pad; ++r, out += p.out_ld_bytes) {
          _mm_prefetch(out + n * size_of(p.out_dtype), _MM_HINT_T0);
        }
        kSplitTiles[mr - 1](s.d + i * p.k_pad + k, p.k_pad, b, count, sums + i * 16);
        i += mr;
      }
    }
    epilogue(p, sums, 16, row, rows, n, std::min<int64_t>(16, p.n - n));
  }
}

}  // namespace

void gemm_s8s8s32_5x16x4_avx2(const GemmS8S8S32& p) {
  const EpilogueFn epilogue = select_epilogue<Avx2Vec>(p);
  const int64_t fit = std::min(kMostRows, kSplitBytes / std::max<int64_t>(p.k_pad, 1));
  SplitRows s;
  for (int64_t m = 0; m < p.m;) {
    int64_t rows = std::min(fit, p.m - m);
    if (p.k_pad > 0 && rows >= kLeastSplitRows && split(p.a + m * p.k_pad, rows, p.k_pad, &s)) {
      split_rows(p, epilogue, m, rows, s);
    } else {
      rows = std::min(kMostRows, p.m - m);
      widened_rows(p, epilogue, m, rows);
    }
    m += rows;
  }
}

}  // namespace fastinfer::cpu
