// gemm_s8s8s32_32x32x64_amx. Contract and layouts: gemm_s8s8s32.h.
//
// tdpbssd multiplies a tile of up to 16 rows x 64 bytes of A with one of 16 groups of 4 rows x 16
// columns of B, signed by signed, into 16 x 16 int32: 16384 multiply-adds in 16 cycles, and in
// proportion fewer cycles for fewer rows of A. A and B tiles are contiguous in memory (1 KiB).
//
// Tiles: 2 x 2 sums (tmm0-3), 2 of A (tmm4, 5), 2 of B (tmm6, 7): four loads for four products.
// One operand stays in L1; the other comes from L2 by tileloaddt1, which does not displace the
// first (Emerald Rapids: 17.1 cycles a product so, 22.7 with both from L2).
//   - K <= kKeepK: rows outside, columns inside. 32 rows of A stay in L1 for a chunk of panels
//     in L2, and the pages of 32 output rows are written one after the other. With 64 to
//     kFetchedRows rows, chunks are small and the next one is fetched meanwhile: a weight that
//     comes from L3 or memory takes longer than the products of its first block of rows (64 and 128
//     rows x 768 x 3072 in 0.84 to 0.88 of the time, 256 in 0.9). With more rows the first block
//     matters less, and runs of output that are as short as a chunk is narrow take longer (768
//     columns in 1.05 to 1.1);
//   - K > kKeepK: columns outside, rows inside, K in equal slices of at most kSliceK: a slice of a
//     pair of panels stays in L1 for all rows, the next one is fetched into L2 meanwhile; the sums
//     of all row blocks wait between slices.
//     Where FinishInLine finishes them, whole lines of outputs that L2 does not hold go past the
//     caches: each block has two lines in each of many pages, which no hardware prefetcher follows,
//     so that writing them as usual waits for L3. With 1.5 MiB of outputs a core it takes 0.97 to
//     1.03 of the time, reading them again included, from 2 MiB on 0.75 to 0.95; with fewer, and
//     with rows outside, 1.0 to 1.6 times as long (one core and two).
// The sums of a block are stored between the first products of the next one, which hides the
// latency of the last products, and finished a few rows a step; all at once where a division would
// hold up the few products of a step. GELU, which has none, is spread between the products of a
// step: 512 x 384 x 1536 in 0.81 of the time.
// Bound, beside the products, by lines on their way to L1, whose buffers are few: an operand from
// L2 takes 1.4 cycles a line, eight lines a product; a line of output takes 3 to 5 from L2, 7 to
// 10 from L3. Measured on one core, quantised rows in L2 and float32 out, of the peak: 71 %
// at 128 x 768 x 768, 57 % at 512 x 768 x 3072 (6 MiB of output), 58 % at 128 x 3072 x 768.
// Floating-point instructions run beside tdpbssd at one a cycle, not two, and shuffles besides, so
// that an activation of n of them is bound by 64 n cycles a block: GELU, 16 with what comes before
// it, takes longer than the products of K < 1024.
// Fewer than 33 rows, and what is left over, take the shapes 1x4, 2x2, 3x1 with tiles of just as
// many rows as there are: time grows evenly with M.
// Overflow: none, |sum| <= 128 * 128 * 131071 < 2^31. Slow: outputs that miss L2, with rows
// outside; one row (AVX-512 VNNI reads B faster).
#include <algorithm>
#include <cstring>

#include "cpu/amx.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

void gemm_s8s8s32_1x16x4_generic(const GemmS8S8S32& p);

namespace {

constexpr int64_t kTile = 1024, kLine = 64;

constexpr int64_t kKeepK = 1024, kSliceK = 1024;
constexpr int64_t kChunkBytes = 1 << 20;  // of panels, half of a 2 MiB L2
constexpr int64_t kFetchedRows = 256, kFetchedChunkBytes = 192 << 10;  // the next is fetched
constexpr int64_t kMostRows = 256;  // whose sums wait between slices
// Of a core's outputs: they and A are more than an L2 of 2 MiB holds.
constexpr int64_t kPastCachesBytes = 3 << 19;
constexpr int64_t kBlockSums = 32 * 32;
constexpr int64_t kFewSteps = 8;  // along K: an activation takes longer than the products

// Finishes rows of a block of up to 32 columns by the epilogue of its kind.
class FinishAny {
 public:
  static constexpr bool kInLine = false;
  static constexpr bool kSpread = false;  // between the products of a step

  FinishAny(const GemmS8S8S32& p, bool /*past_caches*/)
      : p_(p), epilogue_(select_epilogue<Avx512Vec>(p)) {}

  void begin(int64_t column) {
    column_ = column;
    columns_ = std::min<int64_t>(32, p_.n - column);
  }
  void rows(const int32_t* acc, int64_t row, int64_t rows) const {
    epilogue_(p_, acc, 32, row, rows, column_, columns_);
  }

 protected:
  const GemmS8S8S32& p_;
  int64_t column_ = 0, columns_ = 0;

 private:
  EpilogueFn epilogue_;
};

// The most frequent kinds in line, with the terms of the columns at hand: few rows at a time are
// worth no call (GCC's vzeroupper, the terms: 128 x 768 x 768 takes 1.16 times as long with them).
template <Activation kActivation, DType kOut, bool kResidual>
class FinishInLine : public FinishAny {
 public:
  static constexpr bool kInLine = true;
  static constexpr bool kSpread = kActivation != Activation::none;

  // past_caches: outputs go to memory, if they are whole lines.
  FinishInLine(const GemmS8S8S32& p, bool past_caches)
      : FinishAny(p, past_caches),
        past_caches_(past_caches &&
                     (reinterpret_cast<uintptr_t>(p.out) | uintptr_t(p.out_ld_bytes)) % kLine ==
                         0) {}
  FinishInLine(const FinishInLine&) = delete;
  FinishInLine& operator=(const FinishInLine&) = delete;
  // Other threads see what was written past the caches before what is written from here on.
  ~FinishInLine() {
    if (past_caches_) V::fence();
  }

  void begin(int64_t column) {
    FinishAny::begin(column);
    if (columns_ < 32) return;
    terms_[0] = column_terms<V>(p_, column);
    terms_[1] = column_terms<V>(p_, column + V::width);
  }
  FASTINFER_INLINE void rows(const int32_t* acc, int64_t row, int64_t rows) const {
    if (columns_ < 32) return FinishAny::rows(acc, row, rows);
    const int64_t at = column_ * size_of(kOut);
    char* out = static_cast<char*>(p_.out) + row * p_.out_ld_bytes + at;
    const char* residual = nullptr;
    if constexpr (kResidual) {
      residual = static_cast<const char*>(p_.residual) + row * p_.residual_ld_bytes + at;
    }
    const ColumnTerms<V> t0 = terms_[0], t1 = terms_[1];
    const float *a_scale = p_.a_scale + row, *a_offset = p_.a_offset + row, *end = a_scale + rows;
    for (; a_scale != end; ++a_scale, ++a_offset, acc += 32, out += p_.out_ld_bytes) {
      const auto scale = V::set1(*a_scale), offset = V::set1(*a_offset);
      auto y0 = activate<V, kActivation>(t0.dequantize(V::from_s32(acc), scale, offset));
      auto y1 = activate<V, kActivation>(t1.dequantize(V::from_s32(acc + V::width), scale, offset));
      if constexpr (kResidual) {
        y0 = V::add(y0, V::load(residual, kOut));
        y1 = V::add(y1, V::load(residual + kVectorBytes, kOut));
        residual += p_.residual_ld_bytes;
      }
      if (past_caches_) {
        V::stream(out, kOut, y0);
        V::stream(out + kVectorBytes, kOut, y1);
      } else {
        V::store(out, kOut, y0);
        V::store(out + kVectorBytes, kOut, y1);
      }
    }
  }

 private:
  using V = Avx512Vec;
  static constexpr int64_t kVectorBytes = V::width * size_of(kOut);
  bool past_caches_;
  ColumnTerms<V> terms_[2];
};

// A 32 x 32 block of sums on its way to the output.
struct Block {
  int32_t* sums = nullptr;
  int64_t row = 0, rows = 0, column = 0;
  bool complete = false;  // all of K is in
};

// What a step along K fetches into L2: `lines` of either panel of a pair.
struct Ahead {
  const int8_t* panel = nullptr;
  int64_t lines = 0;
};

// Where tile T of the sums of a block lies: rows 16 * (T / 2), columns 16 * (T % 2).
constexpr int64_t quarter(int t) { return t / 2 * 16 * 32 + t % 2 * 16; }

template <int T>
inline void next_sums(int32_t* previous, int32_t* sums, bool first_slice) {
  if (previous != nullptr) tile_store<T>(previous + quarter(T), 128);
  if (first_slice) {
    tile_zero<T>();
  } else {
    tile_load<T>(sums + quarter(T), 128);
  }
}

template <int T, bool kStream>
inline void load_operand(const int8_t* tile) {
  if constexpr (kStream) {
    tile_stream<T>(tile, 64);
  } else {
    tile_load<T>(tile, 64);
  }
}

// Blocks of 32 x 32 (or 17 to 31 rows, if the tiles are so configured), one after the other; C in
// tiles 0-3, A in 4, 5, B in 6, 7. A stays in L1 and B is streamed, or the other way around.
template <bool kKeepA, class Finish>
class Blocks2x2 {
 public:
  Blocks2x2(const GemmS8S8S32& p, bool past_caches) : p_(p), finish_(p, past_caches) {}

  // Adds `steps` tiles along K from k_begin to the sums of `block`, zero before k_begin = 0. Those
  // of the last block are stored and finished meanwhile, so that both may have the same place.
  void add(const Block& block, int64_t k_begin, int64_t steps, Ahead ahead = {}) {
    const int64_t a1_step = (block.rows - 16) * 64;
    const int8_t* a0 = p_.a + block.row * p_.k_pad + k_begin * 16;
    const int8_t* a1 = p_.a + (block.row + 16) * p_.k_pad + k_begin / 64 * a1_step;
    const int8_t* b0 = p_.panels + block.column * p_.k_pad + k_begin * 16;
    const int8_t* b1 = p_.n - block.column > 16 ? b0 + kPanelColumns * p_.k_pad : b0;
    const bool first = k_begin == 0;
    load_b<6>(b0);
    load_a<4>(a0);
    next_sums<0>(last_.sums, block.sums, first);
    tile_dp_s8<0, 4, 6>();
    load_b<7>(b1);
    next_sums<1>(last_.sums, block.sums, first);
    tile_dp_s8<1, 4, 7>();
    load_a<5>(a1);
    next_sums<2>(last_.sums, block.sums, first);
    tile_dp_s8<2, 5, 6>();
    next_sums<3>(last_.sums, block.sums, first);
    tile_dp_s8<3, 5, 7>();
    fetch(ahead, 0);
    const bool at_once = !Finish::kInLine && steps <= kFewSteps;
    const int64_t rows_a_step = at_once ? last_.rows : (last_.rows + steps - 1) / steps;
    for (int64_t k = 1; k < steps; ++k) {
      if constexpr (!Finish::kSpread) finish_last(rows_a_step);
      load_b<6>(b0 + k * kTile);
      load_a<4>(a0 + k * kTile);
      tile_dp_s8<0, 4, 6>();
      finish_part<0>(rows_a_step);
      load_b<7>(b1 + k * kTile);
      tile_dp_s8<1, 4, 7>();
      finish_part<1>(rows_a_step);
      load_a<5>(a1 + k * a1_step);
      tile_dp_s8<2, 5, 6>();
      finish_part<2>(rows_a_step);
      tile_dp_s8<3, 5, 7>();
      finish_part<3>(rows_a_step);
      fetch(ahead, k);
    }
    finish_last(last_.rows);
    last_ = block;
    finished_ = 0;
    finish_.begin(block.column);
  }

  // Stores and finishes the last block.
  void flush() {
    tile_store<0>(last_.sums + quarter(0), 128);
    tile_store<1>(last_.sums + quarter(1), 128);
    tile_store<2>(last_.sums + quarter(2), 128);
    tile_store<3>(last_.sums + quarter(3), 128);
    finish_last(last_.rows);
    last_ = {};
  }

 private:
  template <int T>
  static void load_a(const int8_t* tile) {
    load_operand<T, !kKeepA>(tile);
  }
  template <int T>
  static void load_b(const int8_t* tile) {
    load_operand<T, kKeepA>(tile);
  }

  void fetch(Ahead ahead, int64_t step) const {
    const int8_t* panel = ahead.panel + step * ahead.lines * kLine;
    for (int64_t i = 0; i < ahead.lines; ++i, panel += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(panel), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(panel + kPanelColumns * p_.k_pad), _MM_HINT_T1);
    }
  }

  // A fourth of `rows`, where finishing takes so long that a product must follow every few rows:
  // the CPU looks a few hundred instructions ahead, and no further.
  template <int kPart>
  FASTINFER_INLINE void finish_part(int64_t rows) {
    if constexpr (Finish::kSpread) finish_last((rows + 3 - kPart) / 4);
  }

  // The next rows of the last block, `most` of them.
  FASTINFER_INLINE void finish_last(int64_t most) {
    const int64_t rows = last_.complete ? std::min(most, last_.rows - finished_) : 0;
    if (rows == 0) return;
    finish_.rows(last_.sums + finished_ * 32, last_.row + finished_, rows);
    finished_ += rows;
  }

  const GemmS8S8S32& p_;
  Finish finish_;
  Block last_;
  int64_t finished_ = 0;  // rows of the last block
};

// K of a slice, if all are as long.
int64_t slice_k(const GemmS8S8S32& p) {
  const int64_t slices = (p.k_pad + kSliceK - 1) / kSliceK;
  return round_up((p.k_pad + slices - 1) / slices, kBlockK);
}

// The pair of panels at column n; null if the weight has none there.
const int8_t* pair_at(const GemmS8S8S32& p, int64_t n) {
  return n + 32 <= round_up(p.n + p.n_after, kPanelColumns) ? p.panels + n * p.k_pad : nullptr;
}

// Lines of either panel that each step of a block fetches, so that as many come in as the steps of
// all blocks of rows multiply. Lines that are multiplied but once are as well read when their turn
// comes.
int64_t lines_ahead(int64_t row_blocks) { return row_blocks == 1 ? 0 : ceil_div(16, row_blocks); }

// Whether so many rows, of K <= kKeepK, go by small chunks of panels whose next is fetched.
bool fetches_chunks(int64_t rows) { return rows > 32 && rows <= kFetchedRows; }

// The slice of a pair of panels that comes after the one at column n that ends at k_end.
const int8_t* next_slice(const GemmS8S8S32& p, int64_t n, int64_t k_end) {
  if (k_end < p.k_pad) return p.panels + n * p.k_pad + k_end * kPanelColumns;
  return pair_at(p, n + 32);
}

// Rows [row, row + rows) x columns [begin, end), K <= kKeepK. rows: a multiple of 32, or 17 to 31.
template <class Finish>
void rows_outside(const GemmS8S8S32& p, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  alignas(64) int32_t sums[kBlockSums];
  Blocks2x2<true, Finish> blocks(p, /*past_caches=*/false);
  const int64_t steps = p.k_pad / kBlockK;
  const int64_t lines = fetches_chunks(rows) ? lines_ahead(ceil_div(rows, 32)) : 0;
  for (int64_t m = 0; m < rows; m += 32) {
    for (int64_t n = begin; n < end; n += 32) {
      const int8_t* next = pair_at(p, n + end - begin);
      blocks.add({sums, row + m, std::min<int64_t>(32, rows - m), n, true}, 0, steps,
                 next == nullptr ? Ahead{} : Ahead{next + m * steps * lines * kLine / 32, lines});
    }
  }
  blocks.flush();
}

// The same for any K.
template <class Finish>
void columns_outside(const GemmS8S8S32& p, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  const int64_t slice = slice_k(p);
  alignas(64) int32_t sums[kMostRows / 32 * kBlockSums];
  Blocks2x2<false, Finish> blocks(p, p.out_bytes >= kPastCachesBytes);
  for (int64_t m_begin = 0; m_begin < rows; m_begin += kMostRows) {
    const int64_t m_end = std::min(rows, m_begin + kMostRows);
    const int64_t lines = lines_ahead(ceil_div(m_end - m_begin, 32));
    for (int64_t n = begin; n < end; n += 32) {
      for (int64_t k = 0; k < p.k_pad; k += slice) {
        const int64_t k_end = std::min(p.k_pad, k + slice), steps = (k_end - k) / kBlockK;
        const int8_t* next = next_slice(p, n, k_end);
        for (int64_t m = m_begin; m < m_end; m += 32) {
          blocks.add({sums + (m - m_begin) * 32, row + m, std::min<int64_t>(32, rows - m), n,
                      k_end == p.k_pad},
                     k, steps, next == nullptr ? Ahead{} : Ahead{next, lines});
          if (next != nullptr) next += steps * lines * kLine;
        }
      }
    }
    blocks.flush();
  }
}

using Blocks2x2Fn = void (*)(const GemmS8S8S32& p, int64_t row, int64_t rows, int64_t begin,
                             int64_t end);

template <class Finish>
Blocks2x2Fn select_order(const GemmS8S8S32& p) {
  return p.k_pad <= kKeepK ? rows_outside<Finish> : columns_outside<Finish>;
}

template <Activation kActivation>
Blocks2x2Fn select_in_line(const GemmS8S8S32& p) {
  if (p.multiplier == nullptr && p.out_dtype == DType::f32) {
    return p.residual ? select_order<FinishInLine<kActivation, DType::f32, true>>(p)
                      : select_order<FinishInLine<kActivation, DType::f32, false>>(p);
  }
  if (p.multiplier == nullptr && p.out_dtype == DType::bf16 && p.residual == nullptr) {
    return select_order<FinishInLine<kActivation, DType::bf16, false>>(p);
  }
  return select_order<FinishAny>(p);
}

Blocks2x2Fn select_blocks_2x2(const GemmS8S8S32& p) {
  switch (p.activation) {
    case Activation::none: return select_in_line<Activation::none>(p);
    case Activation::gelu: return select_in_line<Activation::gelu>(p);
    default: return select_order<FinishAny>(p);
  }
}

// rows <= 16, 4 panels: C in tiles 0-3, A in 4, B in 5-7.
void block_1x4(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
               int64_t column) {
  const int8_t* a = p.a + row * p.k_pad;
  const int8_t* b = p.panels + column * p.k_pad;
  const int64_t panel = kPanelColumns * p.k_pad, a_step = rows * 64;
  const int64_t panels = std::min<int64_t>(4, (p.n - column + 15) / 16);
  const int8_t* b1 = b + (panels > 1 ? panel : 0);
  const int8_t* b2 = b + (panels > 2 ? 2 * panel : 0);
  const int8_t* b3 = b + (panels > 3 ? 3 * panel : 0);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t k = 0; k < panel; k += kTile, a += a_step) {
    tile_load<4>(a, 64);
    tile_stream<5>(b + k, 64);
    tile_dp_s8<0, 4, 5>();
    tile_stream<6>(b1 + k, 64);
    tile_dp_s8<1, 4, 6>();
    tile_stream<7>(b2 + k, 64);
    tile_dp_s8<2, 4, 7>();
    tile_stream<5>(b3 + k, 64);
    tile_dp_s8<3, 4, 5>();
  }
  alignas(64) int32_t sums[16 * 64];
  tile_store<0>(sums, 256);
  tile_store<1>(sums + 16, 256);
  tile_store<2>(sums + 32, 256);
  tile_store<3>(sums + 48, 256);
  epilogue(p, sums, 64, row, rows, column, std::min<int64_t>(64, p.n - column));
}

// 32 < rows <= 48, 1 panel: C in tiles 0-2, A in 3-5, B in 6.
void block_3x1(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
               int64_t column) {
  const int8_t* a0 = p.a + row * p.k_pad;
  const int8_t* a1 = a0 + 16 * p.k_pad;
  const int8_t* a2 = a1 + 16 * p.k_pad;
  const int8_t* b = p.panels + column * p.k_pad;
  const int64_t panel = kPanelColumns * p.k_pad, a2_step = (rows - 32) * 64;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  for (int64_t k = 0; k < panel; k += kTile, a2 += a2_step) {
    tile_stream<6>(b + k, 64);
    tile_load<3>(a0 + k, 64);
    tile_dp_s8<0, 3, 6>();
    tile_load<4>(a1 + k, 64);
    tile_dp_s8<1, 4, 6>();
    tile_load<5>(a2, 64);
    tile_dp_s8<2, 5, 6>();
  }
  alignas(64) int32_t sums[48 * 16];
  tile_store<0>(sums, 64);
  tile_store<1>(sums + 16 * 16, 64);
  tile_store<2>(sums + 32 * 16, 64);
  epilogue(p, sums, 16, row, rows, column, std::min<int64_t>(16, p.n - column));
}

}  // namespace

void gemm_s8s8s32_32x32x64_amx(const GemmS8S8S32& p) {
  // The loops below take at least one step along K.
  if (p.k_pad == 0) return gemm_s8s8s32_1x16x4_generic(p);
  // The last block takes 1 to 48 rows: a remainder of up to 16 rows joins the 32 before it.
  int64_t tail = p.m % 32;
  if (tail > 0 && tail <= 16 && p.m > 32) tail += 32;
  const int64_t main = p.m - tail;
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(p);
  const Blocks2x2Fn blocks_2x2 = select_blocks_2x2(p);
  // Equal chunks of columns, read once for each group of rows.
  const int64_t bytes =
      p.k_pad <= kKeepK && fetches_chunks(main) ? kFetchedChunkBytes : kChunkBytes;
  const int64_t most = std::max<int64_t>(64, bytes / p.k_pad);
  const int64_t chunks = (p.n + most - 1) / most;
  const int64_t nc = round_up((p.n + chunks - 1) / chunks, 64);
  Tiles tiles;
  for (int64_t begin = 0; begin < p.n; begin += nc) {
    const int64_t end = std::min(p.n, begin + nc);
    if (main > 0) {
      tiles.configure({16, 16, 16, 16, 16, 16, 16, 16});
      blocks_2x2(p, 0, main, begin, end);
    }
    const int r = int(tail % 16 == 0 ? 16 : tail % 16);
    if (tail > 32) {
      tiles.configure({16, 16, r, 16, 16, r, 16, 16});
      for (int64_t n = begin; n < end; n += 16) block_3x1(p, epilogue, main, tail, n);
    } else if (tail > 16) {
      tiles.configure({16, 16, r, r, 16, r, 16, 16});
      blocks_2x2(p, main, tail, begin, end);
    } else if (tail > 0) {
      tiles.configure({r, r, r, r, r, 16, 16, 16});
      for (int64_t n = begin; n < end; n += 64) block_1x4(p, epilogue, main, tail, n);
    }
  }
}

namespace {

// One 16 x 64 by 64 x 16 product of int8 against scalar arithmetic.
bool product_s8_right() {
  alignas(64) int8_t a[1024], b[1024];
  alignas(64) int32_t c[256];
  for (int i = 0; i < 1024; ++i) {
    a[i] = int8_t(i * 37 + 11);
    b[i] = int8_t(i * 53 + 7);
  }
  {
    const Tiles tiles({16, 16, 16, 16, 16, 16, 16, 16});
    tile_zero<0>();
    tile_load<1>(a, 64);
    tile_load<2>(b, 64);
    tile_dp_s8<0, 1, 2>();
    tile_store<0>(c, 64);
  }
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      int32_t sum = 0;
      for (int k = 0; k < 64; ++k) sum += a[m * 64 + k] * b[k / 4 * 64 + n * 4 + k % 4];
      if (sum != c[m * 16 + n]) return false;
    }
  }
  return true;
}

// One 16 x 32 by 32 x 16 product of bfloat16, of integers so small that every order of the sum is
// exact.
bool product_bf16_right() {
  const auto small = [](int i) { return float(i * 37 % 31 - 15); };
  const auto bf16 = [](float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return uint16_t(bits >> 16);
  };
  alignas(64) uint16_t a[512], b[512];
  alignas(64) float c[256];
  for (int i = 0; i < 512; ++i) {
    a[i] = bf16(small(i));
    b[i] = bf16(small(i * i + 5));
  }
  {
    const Tiles tiles({16, 16, 16, 16, 16, 16, 16, 16});
    tile_zero<0>();
    tile_load<1>(a, 64);
    tile_load<2>(b, 64);
    tile_dp_bf16<0, 1, 2>();
    tile_store<0>(c, 64);
  }
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum = 0;
      for (int k = 0; k < 32; ++k) {
        const int at = k / 2 * 32 + n * 2 + k % 2;
        sum += small(m * 32 + k) * small(at * at + 5);
      }
      if (sum != c[m * 16 + n]) return false;
    }
  }
  return true;
}

}  // namespace

// One product of each kind that the kernels use (cpu/arch.cpp).
bool amx_self_test() { return product_s8_right() && product_bf16_right(); }

}  // namespace fastinfer::cpu
