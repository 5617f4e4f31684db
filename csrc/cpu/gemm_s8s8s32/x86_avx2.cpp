// gemm_s8s8s32_3x16x16_avx2. Contract and layouts: gemm_s8s8s32.h.
//
// vpmaddubsw takes twice as many bytes as vpmaddwd takes int16, but adds two products in 16 bits
// and saturates. Here it never does: B is unsigned, b + 128 <= 255, and A is split in three,
//
//   a[m,k] = c[m] + d[m,k] + r[m,k]
//   sum_k a b = sum_k d b + (sum_k r (b + 128) - 128 sum_k r) + c sum_k b
//
// A pair of neighbours along K fits if |d[k] + d[k+1]| <= 128 (and d is int8): its positive
// products, and its negative ones, are then within 128 * 255 = 32640. r = 0 but where a pair does
// not fit: there the group of 4 is clamped to [-64, 64], and what is left over is r, in pieces of
// [-64, 64]. c is the mean of the row, within [-63, 63]. So a pair does not fit where neighbours
// are both far off the mean on the same side: in Gaussian rows in 9 % of the groups at K = 384, 6 %
// at 768, 3 % at 3072, with outliers in fewer. And where most of a row lies near its least element,
// -127, as after GELU, c = -63 has all of those fit, with d >= -64, and is nearer to the others.
//
// Most of the widening to 32 bits is saved, too. A lane of 16 bits adds up four steps of 4 along K,
// modulo 2^16, from a start of -128 sum d:
//
//   start + sum of 8 products d (b + 128) = sum of 8 products d b     (mod 2^16)
//
// which is exact if that sum is within int16. By Cauchy and Schwarz it is where |d| |b| <= 32767,
// |d|^2 and |b|^2 the sums of those 8 squares. The norms of d stand beside the rows, those of b are
// taken when a slice is copied to L1, the most over 16 columns. A row and 16 of K that may not fit,
// in Gaussian rows and weights 4 % at K = 384 and 1 % at 768, are done again widened at every step,
// and the difference is added; where it is a sixth of the rows, all are widened at every step.
//
// A tile is 3 rows and 16 columns, with sums of 32 and of 16 bits in 12 registers; then 2 of B, 1
// of A, 1 product. Of 16 of K and 16 columns a row takes 8 x (vpmaddubsw, vpaddw), 2 x (vpmaddwd by
// ones, vpaddd) and 5 broadcasts for 256 multiply-adds, 10 of which need a multiplying port; with a
// vpmaddwd to each vpmaddubsw it would be 16.
//
// Measured on a Zen 1 core of 2.98 GHz, whose one multiplying port takes 2 cycles for 32 bytes: for
// these 256 multiply-adds 20 cycles are the floor (76 GOP/s). In registers alone, without
// broadcasts and loads, they take 21. A tile over and over takes 23.6 (65), since additions and
// broadcasts need that port, too; with the sums in memory and B in registers instead it was 29. The
// kernel, rows prepared each time, Gaussian rows and weights, M = 128: 41 GOP/s at K = 384, 48 at
// 768, 52 at 3072, 54 at 4096; vpmaddwd alone could reach 48 with nothing else to do, as fp32
// could. Slow: uniform weights, whose norms are large for their range (30).
//
// Up to kMostFewRows rows widen every product, read B where it lies, and need no norms of it. One
// row on that core, 768 x 3072 and back: 14 to 16 GB/s of weights from its caches, 9 to 10 from
// memory, where reading alone reaches 13 to 14.
//
// Rows are widened instead, and multiplied by vpmaddwd, where splitting does not pay: more rests
// than one for four groups. Overflow: int32 arithmetic modulo 2^32, exact because the true sum
// fits; vpmaddwd sums are at most 2 * 128 * 128.
#include <algorithm>

#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/gemm_s8s8s32/x86_avx2_split.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kSliceK = 512, kMostFewRows = 3, kPrefetchBytes = 1024;

// Sums of 8 products fit in 16 bits where the norms say that |d| |b| < 2^15.
constexpr int64_t kMostProduct = int64_t(32767) * 32767 / kNormUnit;

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

// Rows [row, row + rows), at most kBlockRows, widened to int16.
void widened_rows(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows) {
  alignas(64) int32_t sums[kBlockRows * 16];
  alignas(64) int16_t wide[kSliceK * 16];
  const int8_t* a = p.a + row * p.k_pad;
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    std::memset(sums, 0, size_t(rows) * 16 * sizeof(int32_t));
    if (rows <= kMostFewRows) {
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

inline __m256i broadcast_four(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

inline __m256i load_sums(const int32_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

inline void store_sums(int32_t* p, __m256i v) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), v);
}

// sums[i * 16 + c] = c sum b - 128 sum r, for all rows and one panel.
void start_sums(const SplitRows& s, const int32_t* compensation, int32_t* sums) {
  // The compensation is -128 * sum b.
  const __m256i low = _mm256_srai_epi32(load_bytes(compensation), 7);
  const __m256i high = _mm256_srai_epi32(load_bytes(compensation + 8), 7);
  for (int64_t i = 0; i < s.rows; ++i, sums += 16) {
    const __m256i centre = _mm256_set1_epi32(s.centre[i]),
                  start = _mm256_set1_epi32(s.rest_start[i]);
    store_sums(sums, _mm256_sub_epi32(start, _mm256_mullo_epi32(centre, low)));
    store_sums(sums + 8, _mm256_sub_epi32(start, _mm256_mullo_epi32(centre, high)));
  }
}

// b + 128.
inline __m256i shifted(__m256i b_s8) { return _mm256_xor_si256(b_s8, _mm256_set1_epi8(-128)); }

// 32 of b + 128, from those or from b itself.
template <bool kShifted>
__m256i load_b(const void* b) {
  return kShifted ? load_bytes(b) : shifted(load_bytes(b));
}

// sums += the rests of a slice of K of one panel; row i has rests[first[i]] to
// rests[first[i + 1] - 1]. kShifted: as of load_b.
template <bool kShifted>
void add_rests(const SplitRows& s, const int32_t* first, const void* panel, int32_t* sums) {
  const __m256i ones_s16 = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < s.rows; ++i, sums += 16) {
    __m256i low_s32 = load_sums(sums), high_s32 = load_sums(sums + 8);
    for (int32_t t = first[i]; t < first[i + 1]; ++t) {
      const char* b = static_cast<const char*>(panel) + s.groups[t];
      const __m256i r_s8 = _mm256_set1_epi32(s.rests[t]);
      const __m256i low_s16 = _mm256_maddubs_epi16(load_b<kShifted>(b), r_s8);
      const __m256i high_s16 = _mm256_maddubs_epi16(load_b<kShifted>(b + 32), r_s8);
      low_s32 = _mm256_add_epi32(low_s32, _mm256_madd_epi16(low_s16, ones_s16));
      high_s32 = _mm256_add_epi32(high_s32, _mm256_madd_epi16(high_s16, ones_s16));
    }
    store_sums(sums, low_s32);
    store_sums(sums + 8, high_s32);
  }
}

// Of 16 of K and one panel, for k % 4 < 2 and k % 4 >= 2: no column has a sum of the squares of b
// that is more.
struct Squares {
  int32_t pair[2];
};

// b_u8 = b + 128 of 16 of K and one panel.
Squares copy_b(const int8_t* b, uint8_t* b_u8) {
  __m256i squares[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i v = load_bytes(b + i * 32);
    squares[i % 2] = _mm256_adds_epu16(squares[i % 2], square_pairs(v));
    _mm256_store_si256(reinterpret_cast<__m256i*>(b_u8 + i * 32), shifted(v));
  }
  const __m256i most = _mm256_max_epu16(squares[0], squares[1]);
  __m128i four = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epu16(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu16(four, _mm_shuffle_epi32(four, 0xb1));
  const auto up = [](int sum) { return sum == 65535 ? 8 * 128 * 128 : sum; };
  return {{up(_mm_extract_epi16(four, 0)), up(_mm_extract_epi16(four, 1))}};
}

// acc += pairs of products of b and d, 16 bits a lane, wrapping round. In assembly for the same
// reason as multiply_add.
inline void multiply_add_pairs(__m256i& acc_s16, __m256i b_u8, __m256i d_s8) {
  __m256i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
          : "+x"(acc_s16), "=&x"(product)
          : "x"(b_u8), "x"(d_s8));
}

// start + those pairs.
inline __m256i first_pairs(__m256i start_s16, __m256i b_u8, __m256i d_s8) {
  __m256i acc_s16;
  __asm__("vpmaddubsw %3, %2, %0\n\tvpaddw %1, %0, %0"
          : "=&x"(acc_s16)
          : "x"(start_s16), "x"(b_u8), "x"(d_s8));
  return acc_s16;
}

// acc += the pairs of v, 32 bits a lane. In assembly for the same reason.
inline void widen_add(__m256i& acc_s32, __m256i v_s16, const __m256i& ones_s16) {
  __m256i product;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
          : "+x"(acc_s32), "=&x"(product)
          : "x"(v_s16), "m"(ones_s16));
}

// acc += pairs of products of b and d, widened at once.
inline void widen_add_products(__m256i& acc_s32, __m256i b_u8, __m256i d_s8,
                               const __m256i& ones_s16) {
  __m256i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
          : "+x"(acc_s32), "=&x"(product)
          : "x"(b_u8), "x"(d_s8), "m"(ones_s16));
}

// sums[i * 16 + c] += 16 of K for each of `list`, for MR rows of one tile; `units` are its first
// row's of the slice, b_u8 is that slice of the panel. kShort: products are added up in 16 bits,
// for which all 16 registers are needed: two sums of 32 and two of 16 bits a row, two of B, d, a
// product.
template <int MR, bool kShort>
void tile_sums(const Unit* units, const uint8_t* b_u8, const uint16_t* list, int64_t count,
               int32_t* sums) {
  alignas(32) static constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const __m256i& ones_s16 = *reinterpret_cast<const __m256i*>(kOnes);
  __m256i acc_s32[MR][2];
#pragma GCC unroll 3
  for (int i = 0; i < MR; ++i) {
    acc_s32[i][0] = load_sums(sums + i * 16);
    acc_s32[i][1] = load_sums(sums + i * 16 + 8);
  }
  for (const uint16_t* const end = list + count; list != end; ++list) {
    const Unit* unit = units + *list * kTileRows;
    const uint8_t* b = b_u8 + *list * 256;
    __m256i acc_s16[MR][2];
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      const __m256i low_u8 = load_bytes(b + step * 64), high_u8 = load_bytes(b + step * 64 + 32);
#pragma GCC unroll 3
      for (int i = 0; i < MR; ++i) {
        const __m256i d_s8 = broadcast_four(unit[i].d + step * 4);
        if constexpr (!kShort) {
          widen_add_products(acc_s32[i][0], low_u8, d_s8, ones_s16);
          widen_add_products(acc_s32[i][1], high_u8, d_s8, ones_s16);
        } else if (step == 0) {
          const __m256i start_s16 = _mm256_set1_epi32(unit[i].start);
          acc_s16[i][0] = first_pairs(start_s16, low_u8, d_s8);
          acc_s16[i][1] = first_pairs(start_s16, high_u8, d_s8);
        } else {
          multiply_add_pairs(acc_s16[i][0], low_u8, d_s8);
          multiply_add_pairs(acc_s16[i][1], high_u8, d_s8);
        }
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < MR; ++i) {
      if constexpr (kShort) {
        widen_add(acc_s32[i][0], acc_s16[i][0], ones_s16);
        widen_add(acc_s32[i][1], acc_s16[i][1], ones_s16);
      } else {
        const __m256i start_s32 = _mm256_set1_epi32(unit[i].wide_start);
        acc_s32[i][0] = _mm256_add_epi32(acc_s32[i][0], start_s32);
        acc_s32[i][1] = _mm256_add_epi32(acc_s32[i][1], start_s32);
      }
    }
  }
#pragma GCC unroll 3
  for (int i = 0; i < MR; ++i) {
    store_sums(sums + i * 16, acc_s32[i][0]);
    store_sums(sums + i * 16 + 8, acc_s32[i][1]);
  }
}

template <bool kShort>
void tile_sums(int64_t rows, const Unit* units, const uint8_t* b_u8, const uint16_t* list,
               int64_t count, int32_t* sums) {
  const auto run = rows == 3   ? tile_sums<3, kShort>
                   : rows == 2 ? tile_sums<2, kShort>
                               : tile_sums<1, kShort>;
  run(units, b_u8, list, count, sums);
}

// All rows of a block, MR of them: so few that B is read where it lies, and widened at every step.
template <int MR>
void few_rows(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, const SplitRows& s) {
  alignas(32) int32_t sums[MR * 16];
  uint32_t d_start[MR] = {};  // modulo 2^32, as the sums that it goes into
  for (int i = 0; i < MR; ++i) {
    for (int64_t at = 0; at < s.steps; ++at) d_start[i] += uint32_t(s.unit(i, at)->wide_start);
  }
  const __m256i ones_s16 = _mm256_set1_epi16(1);
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    start_sums(s, p.compensation + n, sums);
    __m256i acc_s32[MR][2];
#pragma GCC unroll 3
    for (int i = 0; i < MR; ++i) {
      const __m256i start_s32 = _mm256_set1_epi32(int32_t(d_start[i]));
      acc_s32[i][0] = _mm256_add_epi32(load_sums(sums + i * 16), start_s32);
      acc_s32[i][1] = _mm256_add_epi32(load_sums(sums + i * 16 + 8), start_s32);
    }
    const Unit* unit = s.units;
    for (const int8_t *b = panel, *end = panel + p.k_pad * 16; b != end; unit += kTileRows) {
#pragma GCC unroll 4
      for (int step = 0; step < 4; ++step, b += 64) {
        _mm_prefetch(b + kPrefetchBytes, _MM_HINT_T0);
        const __m256i low_u8 = load_b<false>(b), high_u8 = load_b<false>(b + 32);
#pragma GCC unroll 3
        for (int i = 0; i < MR; ++i) {
          const __m256i d_s8 = broadcast_four(unit[i].d + step * 4);
          widen_add_products(acc_s32[i][0], low_u8, d_s8, ones_s16);
          widen_add_products(acc_s32[i][1], high_u8, d_s8, ones_s16);
        }
      }
    }
#pragma GCC unroll 3
    for (int i = 0; i < MR; ++i) {
      store_sums(sums + i * 16, acc_s32[i][0]);
      store_sums(sums + i * 16 + 8, acc_s32[i][1]);
    }
    // After the others, which brought the panel from memory in order.
    for (int64_t k = 0; k < p.k_pad; k += kSplitSliceK) {
      add_rests<false>(s, s.first + k / kSplitSliceK * s.rows, panel + k * 16, sums);
    }
    epilogue(p, sums, 16, row, MR, n, std::min<int64_t>(16, p.n - n));
  }
}

// Puts right what tile_sums adds in 16 bits to the sums of one row.
__attribute__((noinline)) void correct_sums(const Unit& unit, const uint8_t* b, int32_t* sums) {
  const __m256i ones_s16 = _mm256_set1_epi16(1);
  for (int j = 0; j < 2; ++j, sums += 8, b += 32) {
    __m256i acc_s32 = _mm256_add_epi32(load_sums(sums), _mm256_set1_epi32(unit.wide_start));
    __m256i short_s16 = _mm256_set1_epi32(unit.start);
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      const __m256i d_s8 = broadcast_four(unit.d + step * 4);
      const __m256i products_s16 = _mm256_maddubs_epi16(load_bytes(b + step * 64), d_s8);
      acc_s32 = _mm256_add_epi32(acc_s32, _mm256_madd_epi16(products_s16, ones_s16));
      short_s16 = _mm256_add_epi16(short_s16, products_s16);
    }
    store_sums(sums, _mm256_sub_epi32(acc_s32, _mm256_madd_epi16(short_s16, ones_s16)));
  }
}

// Whether no sum of a row with these norms can wrap round.
inline bool fits(Norm norm, const Squares& squares) {
  return norm.pair[0] < 255 && norm.pair[1] < 255 &&
         int64_t(norm.pair[0]) * squares.pair[0] <= kMostProduct &&
         int64_t(norm.pair[1]) * squares.pair[1] <= kMostProduct;
}

// Whether 16 of K are to be added up in 16 bits; then the rows where these wrap round are put
// right.
bool make_short(const SplitRows& s, int64_t first_row, int64_t rows, int64_t at,
                const Squares& squares, const uint8_t* b, int32_t* sums) {
  if (fits(s.most_norm[at], squares)) return true;
  Norm most;
  for (int i = 0; i < 2; ++i) {
    most.pair[i] = uint8_t(std::min<int64_t>(kMostProduct / std::max(squares.pair[i], 1), 254));
  }
  int16_t most_pair;
  std::memcpy(&most_pair, &most, 2);
  const __m256i most_u8 = _mm256_set1_epi16(most_pair);
  const Norm* norms = s.norms + at * s.norm_stride + first_row;
  uint32_t over[kBlockRows / kNormRows];  // two bits a row
  int count = 0;
  for (int64_t i = 0; i < rows; i += kNormRows) {
    const __m256i v = load_bytes(norms + i);
    const __m256i row_fits = _mm256_cmpeq_epi16(_mm256_min_epu8(v, most_u8), v);
    over[i / kNormRows] = ~uint32_t(_mm256_movemask_epi8(row_fits)) & 0x55555555;
    count += __builtin_popcount(over[i / kNormRows]);
  }
  if (count > rows / 6) return false;
  for (int64_t i = 0; i < rows; i += kNormRows) {
    for (uint32_t bits = over[i / kNormRows]; bits != 0; bits &= bits - 1) {
      const int64_t row = i + __builtin_ctz(bits) / 2;
      if (row < rows) correct_sums(*s.unit(first_row + row, at), b, sums + row * 16);
    }
  }
  return true;
}

// Rows [row, row + rows) of p, which are rows [first_row, ...) of `s`.
void split_rows(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                const SplitRows& s, int64_t first_row) {
  alignas(64) int32_t all_sums[kBlockRows * 16];
  alignas(64) uint8_t b[kSplitSliceK * 16];
  uint16_t lists[2][kSplitSliceK / 16];  // of 16 of K: widened at once, and short
  int32_t* const sums = all_sums + first_row * 16;
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    start_sums(s, p.compensation + n, all_sums);
    char* out = static_cast<char*>(p.out) + row * p.out_ld_bytes + n * size_of(p.out_dtype);
    for (int64_t k = 0; k < p.k_pad; k += kSplitSliceK) {
      const int64_t steps = std::min(kSplitSliceK, p.k_pad - k) / 16;
      int64_t counts[2] = {0, 0};
      for (int64_t i = 0; i < steps; ++i) {
        const Squares squares = copy_b(panel + (k + i * 16) * 16, b + i * 256);
        const bool kind = make_short(s, first_row, rows, k / 16 + i, squares, b + i * 256, sums);
        lists[kind][counts[kind]++] = uint16_t(i);
      }
      add_rests<true>(s, s.first + k / kSplitSliceK * s.rows, b, all_sums);
      // Beside each tile a share of the next slice, which follows in memory, is prefetched, and
      // beside those of the last slice their lines of the output.
      const char* next = reinterpret_cast<const char*>(panel + (k + steps * 16) * 16);
      const char* const next_end = next + steps * 256;
      const int64_t share = (steps * 4 * kTileRows / rows + 1) * 64;
      for (int64_t i = 0, tile; i < rows; i += tile) {
        const int64_t at = (first_row + i) % kTileRows;
        tile = std::min(kTileRows - at, rows - i);
        for (const char* const to = std::min(next + share, next_end); next < to; next += 64) {
          _mm_prefetch(next, _MM_HINT_T1);
        }
        if (k + steps * 16 == p.k_pad) {
          for (int64_t j = i; j < i + tile; ++j) {
            _mm_prefetch(out + j * p.out_ld_bytes, _MM_HINT_T0);
          }
        }
        const Unit* units = s.unit(first_row + i, k / 16);
        tile_sums<true>(tile, units, b, lists[1], counts[1], sums + i * 16);
        tile_sums<false>(tile, units, b, lists[0], counts[0], sums + i * 16);
      }
    }
    epilogue(p, sums, 16, row, rows, n, std::min<int64_t>(16, p.n - n));
  }
}

}  // namespace

int64_t gemm_s8s8s32_avx2_prepared_bytes(int64_t m, int64_t k_pad) {
  const int64_t whole = m / kBlockRows * SplitRows(nullptr, kBlockRows, k_pad).bytes;
  return whole + SplitRows(nullptr, m % kBlockRows, k_pad).bytes;
}

void gemm_s8s8s32_avx2_prepare(const int8_t* a, int64_t m, int64_t k_pad, void* prepared) {
  char* memory = static_cast<char*>(prepared);
  for (int64_t i = 0; i < m; i += kBlockRows) {
    SplitRows s(memory, std::min(kBlockRows, m - i), k_pad);
    *s.is_split = k_pad > 0 && split(a + i * k_pad, k_pad, &s);
    memory += s.bytes;
  }
}

void gemm_s8s8s32_3x16x16_avx2(const GemmS8S8S32& p) {
  const EpilogueFn epilogue = select_epilogue<Avx2Vec>(p);
  const int64_t block_bytes = SplitRows(nullptr, kBlockRows, p.k_pad).bytes;
  for (int64_t m = 0, rows; m < p.m; m += rows) {
    const int64_t at = p.prepared_row + m, first_row = at % kBlockRows, block = at - first_row;
    rows = std::min(kBlockRows - first_row, p.m - m);
    const SplitRows s(static_cast<char*>(p.prepared) + block / kBlockRows * block_bytes,
                      std::min(kBlockRows, p.prepared_rows - block), p.k_pad);
    if (!*s.is_split) {
      widened_rows(p, epilogue, m, rows);
    } else if (rows == s.rows && rows <= kMostFewRows) {
      const auto run = rows == 3 ? few_rows<3> : rows == 2 ? few_rows<2> : few_rows<1>;
      run(p, epilogue, m, s);
    } else {
      split_rows(p, epilogue, m, rows, s, first_row);
    }
  }
}

}  // namespace fastinfer::cpu
