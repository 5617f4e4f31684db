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
#include "cpu/gemm_s8s8s32/x86_amx_blocks.h"

namespace fastinfer::cpu {

void gemm_s8s8s32_1x16x4_generic(const GemmS8S8S32& p);

namespace {

constexpr int64_t kKeepK = 1024, kSliceK = 1024;
constexpr int64_t kChunkBytes = 1 << 20;  // of panels, half of a 2 MiB L2
constexpr int64_t kFetchedRows = 256, kFetchedChunkBytes = 192 << 10;  // the next is fetched
constexpr int64_t kMostRows = 256;  // whose sums wait between slices

// The panels at column n from k on, or the one that there is.
PanelPair pair_of(const GemmS8S8S32& p, int64_t n, int64_t k) {
  const int8_t* first = p.panels + n * p.k_pad + k * kPanelColumns;
  return {first, p.n - n > kPanelColumns ? first + kPanelColumns * p.k_pad : first};
}

// The first of the pair of panels at column n; null if the weight has none there.
const int8_t* pair_at(const GemmS8S8S32& p, int64_t n) {
  return n + 32 <= round_up(p.n + p.n_after, kPanelColumns) ? p.panels + n * p.k_pad : nullptr;
}

// What a block fetches: from `panel` on and from its neighbour; nothing if it is null.
Ahead ahead_from(const GemmS8S8S32& p, const int8_t* panel, int64_t lines) {
  if (panel == nullptr) return {};
  return {{panel, panel + kPanelColumns * p.k_pad}, lines};
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
      Ahead ahead = ahead_from(p, pair_at(p, n + end - begin), lines);
      ahead.skip(m / 32 * steps);
      blocks.add({sums, row + m, std::min<int64_t>(32, rows - m), n, true}, pair_of(p, n, 0), 0,
                 steps, ahead);
    }
  }
  blocks.flush();
}

// The same for any K.
template <class Finish>
void columns_outside(const GemmS8S8S32& p, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  const int64_t slice = slice_k(p.k_pad, kSliceK);
  alignas(64) int32_t sums[kMostRows / 32 * kBlockSums];
  Blocks2x2<false, Finish> blocks(p, p.out_bytes >= kPastCachesBytes);
  for (int64_t m_begin = 0; m_begin < rows; m_begin += kMostRows) {
    const int64_t m_end = std::min(rows, m_begin + kMostRows);
    const int64_t lines = lines_ahead(ceil_div(m_end - m_begin, 32));
    for (int64_t n = begin; n < end; n += 32) {
      for (int64_t k = 0; k < p.k_pad; k += slice) {
        const int64_t k_end = std::min(p.k_pad, k + slice), steps = (k_end - k) / kBlockK;
        Ahead ahead = ahead_from(p, next_slice(p, n, k_end), lines);
        for (int64_t m = m_begin; m < m_end; m += 32, ahead.skip(steps)) {
          blocks.add({sums + (m - m_begin) * 32, row + m, std::min<int64_t>(32, rows - m), n,
                      k_end == p.k_pad},
                     pair_of(p, n, k), k, steps, ahead);
        }
      }
    }
    blocks.flush();
  }
}

using Blocks2x2Fn = void (*)(const GemmS8S8S32& p, int64_t row, int64_t rows, int64_t begin,
                             int64_t end);

Blocks2x2Fn select_blocks_2x2(const GemmS8S8S32& p) {
  return select_finish(p, [&p](auto finishing) -> Blocks2x2Fn {
    using Finish = typename decltype(finishing)::type;
    return p.k_pad <= kKeepK ? rows_outside<Finish> : columns_outside<Finish>;
  });
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
