// gemm_s8s8s32_3x16x4_avx2. Contract and layouts: gemm_s8s8s32.h.
//
// Bytes are widened to int16 and multiplied with vpmaddwd, which adds two exact int32 products;
// vpmaddubsw would add two products in 16 bits and saturate. 16 multiply-adds take one vpmaddwd
// and one vpaddd.
//
// Registers: 3 rows x 16 columns, 4 ymm a row, each 4 columns x 2 partial sums (k % 4 < 2, >= 2),
// added in pairs at the end: 12 sums, 1 for A, 1 product. A step of 4 along K: 12 vpmaddwd with B
// from memory, 12 vpaddd, 3 vpmovsxbw for A = 27 operations on 3 ports for 192 multiply-adds.
// With more than one block of rows, a slice of kSliceK of a panel is widened once into a buffer
// (16 KiB, L1) and serves them all; with one block it is widened in the loop.
// Overflow: none; vpmaddwd sums are at most 2 * 128 * 128.
#include <algorithm>

#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kSliceK = 512, kMostRows = 255;

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
template <int MR, bool kWide>
void tile(const int8_t* a, int64_t lda_bytes, const void* b, int64_t k_count, int32_t* sums) {
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
void tiles(const int8_t* a, int64_t lda_bytes, int64_t rows, const void* b, int64_t k_count,
           int32_t* sums) {
  int64_t m = 0;
  for (; m + 3 <= rows; m += 3) {
    tile<3, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
  }
  if (rows - m == 2) tile<2, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
  if (rows - m == 1) tile<1, kWide>(a + m * lda_bytes, lda_bytes, b, k_count, sums + m * 16);
}

}  // namespace

void gemm_s8s8s32_3x16x4_avx2(const GemmS8S8S32& p) {
  const EpilogueFn epilogue = select_epilogue<Avx2Vec>(p);
  alignas(64) int32_t sums[kMostRows * 16];
  alignas(64) int16_t wide[kSliceK * 16];
  for (int64_t n = 0; n < p.n; n += kPanelColumns) {
    const int8_t* panel = p.panels + n * p.k_pad;
    for (int64_t m = 0; m < p.m; m += kMostRows) {
      const int64_t rows = std::min(kMostRows, p.m - m);
      const int8_t* a = p.a + m * p.k_pad;
      std::memset(sums, 0, size_t(rows) * 16 * sizeof(int32_t));
      if (rows <= 3) {
        tiles<false>(a, p.k_pad, rows, panel, p.k_pad, sums);
      } else {
        for (int64_t k = 0; k < p.k_pad; k += kSliceK) {
          const int64_t count = std::min(kSliceK, p.k_pad - k);
          for (int64_t i = 0; i < count * 16; i += 16) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(wide + i), widen(panel + k * 16 + i));
          }
          tiles<true>(a + k, p.k_pad, rows, wide, count, sums);
        }
      }
      epilogue(p, sums, 16, m, rows, n, std::min<int64_t>(16, p.n - n));
    }
  }
}

}  // namespace fastinfer::cpu
