// attention on AMX-BF16: bfloat16 inputs by tdpbf16ps; others by x86_avx512.cpp. Formula:
// attention.h, "In tiles of bfloat16"; layouts: layout.h, whose pairs are what the instruction
// takes; packing and the loops around: rows.h.
//
// tdpbf16ps multiplies 16 rows x 32 elements of A with 16 pairs of elements x 16 columns of B into
// 16 x 16 float32: 8192 multiply-adds in 16 cycles, in proportion fewer for fewer rows of A. It
// takes subnormals for zero, whatever MXCSR says (Intel SDM vol. 2).
//
// Tiles: 2 x 2 sums (tmm0-3), 2 of A (tmm4, 5: 16 rows of q or p), 2 of B (tmm6, 7: a unit of keys
// of k, or of d of v): four loads of 8 cycles each for four products. A group is 32 rows; 16 or
// fewer take half of the tiles, and a task of fewer configures tiles of just as many. Else the rows
// past the end of a group are whatever the scratch holds: a row of A meets one row of C alone, and
// theirs come to nothing.
//
// For a group: scores of the whole block of keys into scratch (32 x 256 floats, 34 KiB of an L1 of
// 48), there mask and softmax in AVX-512, which leave p in the place of s and rescale o, then o +=
// p v, with the sums in tiles for the whole block. k and v come from L2 by tileloaddt1, which
// leaves L1 to s and p.
//
// Floor, in cycles for 16 scores: D / 16 in the tiles at their peak of 1024 operations a cycle, 4
// at D = 64; softmax is 16 instructions, of which the rounding to bfloat16 and the sum are two
// operations each on two ports, 8 cycles. Measured on Emerald Rapids, one core, 512 x 64:
// tiles 8.3, softmax 9.7, packing and the rest 5. The tiles and the softmax of one group wait for
// each other. vdpbf16ps takes 2.3 cycles there, so x86_avx512bf16.cpp is never better: even with
// one row of A, a product is bound by the load of B, 8 cycles, where vdpbf16ps takes 16 times 2.3.
// A choice by the number of rows would also give a query other bits beside other queries.
//
// Slow: few rows, where packing shows, as in x86_avx512.cpp; D that is no multiple of 32, since
// zeros fill it up; values that are not finite.
#include "cpu/amx.h"
#include "cpu/attention/rows.h"
#include "cpu/attention/x86_avx512bf16.h"

namespace fastinfer::cpu {

void attention_avx512(const Attention& p, const AttentionTask& t);

namespace {

constexpr int64_t kTileBytes = 64;                 // of a row of a tile: 32 elements, 16 sums
constexpr int64_t kScoreBytes = 4 * kScoreStride;  // from one row of s or p to the next
constexpr int64_t kLaneBytes = 4;                  // a float, or a pair of bfloat16

// Sums of kRows x kColumns tiles, in tmm0 and tmm1, then tmm2 and tmm3.
template <int kRows, int kColumns>
void zero_sums() {
  tile_zero<0>();
  if constexpr (kColumns == 2) tile_zero<1>();
  if constexpr (kRows == 2) tile_zero<2>();
  if constexpr (kRows == 2 && kColumns == 2) tile_zero<3>();
}
template <int kRows, int kColumns>
void load_sums(const float* c, int64_t ld_bytes) {
  const char* at = reinterpret_cast<const char*>(c);
  const char* below = at + kAmxRows * ld_bytes;
  tile_load<0>(at, ld_bytes);
  if constexpr (kColumns == 2) tile_load<1>(at + kTileBytes, ld_bytes);
  if constexpr (kRows == 2) tile_load<2>(below, ld_bytes);
  if constexpr (kRows == 2 && kColumns == 2) tile_load<3>(below + kTileBytes, ld_bytes);
}
template <int kRows, int kColumns>
void store_sums(float* c, int64_t ld_bytes) {
  char* at = reinterpret_cast<char*>(c);
  char* below = at + kAmxRows * ld_bytes;
  tile_store<0>(at, ld_bytes);
  if constexpr (kColumns == 2) tile_store<1>(at + kTileBytes, ld_bytes);
  if constexpr (kRows == 2) tile_store<2>(below, ld_bytes);
  if constexpr (kRows == 2 && kColumns == 2) tile_store<3>(below + kTileBytes, ld_bytes);
}

// Elements that are NaN or Inf.
__mmask32 not_finite(__m512i v) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  return _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, exponent), exponent);
}

// Two tiles of B side by side, zero in the place of what is not finite.
void copy_finite(const char* b, int64_t ldb, int columns, char* to) {
  for (int64_t row = 0; row < kAmxRows; ++row) {
    for (int64_t at = 0; at < columns * kTileBytes; at += kTileBytes) {
      const __m512i v = _mm512_loadu_si512(b + row * ldb + at);
      _mm512_store_si512(to + row * 2 * kTileBytes + at, _mm512_maskz_mov_epi16(~not_finite(v), v));
    }
  }
}

// Sums += A B over `steps` products: rows of a `lda` bytes apart, 32 elements each; rows of b, a
// pair of elements each, `ldb` bytes apart.
template <int kRows, int kColumns, bool kFinite>
void multiply(const float* a_begin, int64_t lda, const float* b_begin, int64_t ldb, int64_t steps) {
  const char* a = reinterpret_cast<const char*>(a_begin);
  const char* b = reinterpret_cast<const char*>(b_begin);
  alignas(64) char finite[kFinite ? 1 : kAmxRows * 2 * kTileBytes];
  for (; steps > 0; --steps, a += kTileBytes, b += kAmxRows * ldb) {
    const char* columns = b;
    int64_t stride = ldb;
    if constexpr (!kFinite) {
      copy_finite(b, ldb, kColumns, finite);
      columns = finite, stride = 2 * kTileBytes;
    }
    tile_stream<6>(columns, stride);
    tile_load<4>(a, lda);
    tile_dp_bf16<0, 4, 6>();
    if constexpr (kColumns == 2) {
      tile_stream<7>(columns + kTileBytes, stride);
      tile_dp_bf16<1, 4, 7>();
    }
    if constexpr (kRows == 2) {
      tile_load<5>(a + kAmxRows * lda, lda);
      tile_dp_bf16<2, 5, 6>();
    }
    if constexpr (kRows == 2 && kColumns == 2) tile_dp_bf16<3, 5, 7>();
  }
}

// For register tiles that add what copy_finite() leaves out, and nothing else.
struct NotFiniteTile : PairTile {
  static F keep_nonzero(F v, F a) {
    const __m512i bits = _mm512_castps_si512(PairTile::keep_nonzero(v, a));
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(not_finite(bits), bits));
  }
};

// What softmax.h takes of a tile.
struct AmxTile : PairTile {
  static constexpr int64_t kUnitsAtOnce = 2;

  // y = max((s - u) f, -126), p = 2^floor(y) c(y - floor(y)): c is the minimax polynomial of degree
  // 4 on [0, 1], relative error 2.7e-6, beside 2^-8 of the rounding that follows. p is never
  // subnormal, which the instructions would take for zero, and which is slow to make; it is zero
  // for what is hidden alone.
  static F probability(F s, F minus_u, F f) {
    const __mmask16 seen = _mm512_cmp_ps_mask(s, set1(kLeast), _CMP_NLT_UQ);  // NaN, too
    const F y = max(set1(-126.0f), mul(add(s, minus_u), f));
    const F r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF);
    F c = set1(0.013534169644117355f);
    c = fma(c, r, set1(0.052011460065841675f));
    c = fma(c, r, set1(0.2414427399635315f));
    c = fma(c, r, set1(0.6930038332939148f));
    c = fma(c, r, set1(1.0000026226043701f));
    return _mm512_maskz_scalef_ps(seen, c, y);
  }

  // Two units in one rounding, which costs as much for one.
  static F probabilities(const float* s, F minus_u, F f, uint16_t* p, F sum) {
    const F low = probability(load(s), minus_u, f);
    const F high = probability(load(s + width), minus_u, f);
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(p, (__m512i)both);
    return _mm512_dpbf16_ps(sum, both, (__m512bh)_mm512_set1_epi16(0x3f80));
  }
};

struct AmxBlocks {
  static constexpr int64_t kGroup = 2 * kAmxRows, kBlockGroups = 1, kUnits = 2;

  static int64_t group_begin(int64_t rows, int64_t, int64_t g) {
    return std::min(rows, g * kGroup);
  }

  static void run(const Attention& p, const Buffers& b, int64_t g, int64_t, int64_t first,
                  int64_t keys_pad, bool finite) {
    if (!sees_some(b, g)) return;
    const int64_t rows = b.begin[g + 1] - b.begin[g];
    with_constant<2>((rows + kAmxRows - 1) / kAmxRows, [&](auto r) {
      constexpr int kRows = decltype(r)::value;
      scores<kRows>(b, g);
      softmax_group<AmxTile, false>(p, b, g, first, b.s);
      if (finite) {
        values<kRows, true>(b, g, keys_pad);
      } else {
        values<kRows, false>(b, g, keys_pad);
      }
      b.started[g] = 1;
    });
  }

  template <int kRows>
  static void scores(const Buffers& b, int64_t g) {
    const int64_t pairs = b.head_pad / 2;
    const float* q = b.q + b.begin[g] * pairs;
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      for (int64_t u = 0; u < b.units[g * kPanels + panel]; u += kUnits) {
        zero_sums<kRows, 2>();
        multiply<kRows, 2, true>(q, pairs * kLaneBytes, b.k + panel * kPanel * pairs + u * kUnit,
                                 kPanel * kLaneBytes, pairs / kUnit);
        store_sums<kRows, 2>(b.s + panel * kPanel + u * kUnit, kScoreBytes);
      }
    }
  }

  template <int kRows, bool kFinite>
  static void values(const Buffers& b, int64_t g, int64_t keys_pad) {
    const int64_t chunks = chunk_count(b.head_pad);
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = chunk_begin(b.head_pad, chunks, c);
      const int64_t units = chunk_begin(b.head_pad, chunks, c + 1) - begin;
      const float* v = b.v + begin * kUnit * keys_pad / 2;
      float* o = b.o + b.begin[g] * b.head_pad + begin * kUnit;
      for (int64_t u = 0; u < units; u += 2) {
        with_constant<2>(std::min<int64_t>(2, units - u), [&](auto columns) {
          constexpr int kColumns = decltype(columns)::value;
          if (b.started[g]) {
            load_sums<kRows, kColumns>(o + u * kUnit, b.head_pad * kLaneBytes);
          } else {
            zero_sums<kRows, kColumns>();
          }
          each_panel(b, g, [&](int64_t pair, int64_t pairs) {
            multiply<kRows, kColumns, kFinite>(b.s + pair, kScoreBytes,
                                               v + (pair * units + u) * kUnit, units * kTileBytes,
                                               pairs / kAmxRows);
          });
          store_sums<kRows, kColumns>(o + u * kUnit, b.head_pad * kLaneBytes);
        });
      }
      if constexpr (!kFinite) {
        const int64_t rows = b.begin[g + 1] - b.begin[g];
        for (int64_t r = 0; r < rows; r += kTileRows) {
          each_panel(b, g, [&](int64_t pair, int64_t pairs) {
            value_panel<NotFiniteTile>(b.s + r * kScoreStride + pair, v + pair * units * kUnit,
                                       pairs, std::min(kTileRows, rows - r), units, false,
                                       o + r * b.head_pad, b.head_pad);
          });
        }
      }
    }
  }

  // Calls body(pair, pairs) with the pairs of keys that the group has probabilities of in a panel.
  template <class Body>
  static void each_panel(const Buffers& b, int64_t g, Body&& body) {
    for (int64_t panel = 0; panel < kPanels; ++panel) {
      const int64_t units = b.units[g * kPanels + panel];
      if (units > 0) body(panel * kPanel / 2, units * kUnit / 2);
    }
  }
};

}  // namespace

void attention_amx(const Attention& p, const AttentionTask& t) {
  if (p.dtype != DType::bf16) return attention_avx512(p, t);
  const int r = int(std::clamp<int64_t>(t.row_end - t.row_begin, 1, kAmxRows));
  const Tiles tiles({r, r, r, r, r, r, 16, 16});
  attention_rows<AmxTile, AmxBlocks>(p, t);
}

}  // namespace fastinfer::cpu
