// gemm_bsr_s8s8s32_16x16x64_avx512vnni. Contract: gemm_bsr_s8s8s32.h; A in blocks of 16 rows,
// slices of 64 of K, q + 128: what a tile meets is 1 KiB in one place.
//
// A step takes 4 of K of a tile: 64 bytes of B, and of each row 4 bytes broadcast from memory. 16
// rows are 16 vpdpbusd (16 cycles on Zen 4, 8 on Intel) against 17 loads (9 cycles): bound by
// vpdpbusd. With fewer than 8 rows, neighbouring steps add to sums of their own, so that there are
// 8 or more on their way. Registers: 16 sums, 1 for B, 1 broadcast.
//
// Blocks: kBlockRows rows of A stay in L2 while all panels pass, kGroupPanels panels of tiles in L1
// for all of the rows; those go through the epilogue together, so that 256 bytes of an output row
// are written at once. Overflow: none, as in gemm_s8s8s32.h. Slow: many rows at a high sparsity,
// where writing the output is most of the work.
#include <algorithm>

#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

constexpr int kTileRows = 16;
constexpr int64_t kBlockRows = 128, kGroupPanels = 4;
constexpr int64_t kGroupColumns = kGroupPanels * kPanelColumns;

// sums[i * kGroupColumns + c] = start[c] + the products of a block of MR rows of A with a panel.
template <int MR>
void tile_sums(const int8_t* a, const PackedWeight& w, TileRange tiles, const int32_t* start,
               int32_t* sums) {
  constexpr int kSplit = MR == 1 ? 8 : MR <= 3 ? 4 : MR <= 7 ? 2 : 1;  // of a row's sums, along K
  __m512i acc_s32[MR][kSplit];
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<kSplit>([&](auto j) FASTINFER_INLINE { acc_s32[i][j] = _mm512_setzero_si512(); });
  });
  const int8_t* b = w.panels + tiles.begin * kSliceBytes;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int8_t* a_slice = a + tile_slice(w, t) * MR * kBlockK;
    for (int step = 0; step < kBlockK / 4; step += kSplit) {
      each<kSplit>([&](auto j) FASTINFER_INLINE {
        const __m512i b_s8 = _mm512_loadu_si512(b);
        b += 64;
        each<MR>([&](auto i) FASTINFER_INLINE {
          acc_s32[i][j] =
              dpbusd(acc_s32[i][j], broadcast_four(a_slice + i * kBlockK + j * 4), b_s8);
        });
      });
      a_slice += 4 * kSplit;
    }
  }
  each<MR>([&](auto i) FASTINFER_INLINE {
    __m512i sum = _mm512_loadu_si512(start);
    each<kSplit>([&](auto j) FASTINFER_INLINE { sum = _mm512_add_epi32(sum, acc_s32[i][j]); });
    _mm512_store_si512(sums + i * kGroupColumns, sum);
  });
}

using TileSumsFn = void (*)(const int8_t*, const PackedWeight&, TileRange, const int32_t*,
                            int32_t*);
constexpr TileSumsFn kTileSums[kTileRows] = {
    tile_sums<1>,  tile_sums<2>,  tile_sums<3>,  tile_sums<4>,  tile_sums<5>,  tile_sums<6>,
    tile_sums<7>,  tile_sums<8>,  tile_sums<9>,  tile_sums<10>, tile_sums<11>, tile_sums<12>,
    tile_sums<13>, tile_sums<14>, tile_sums<15>, tile_sums<16>};

}  // namespace

void gemm_bsr_s8s8s32_16x16x64_avx512vnni(const GemmBsrS8S8S32& g) {
  const GemmS8S8S32& p = g.gemm;
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(p);
  alignas(64) int32_t sums[kTileRows * kGroupColumns];
  for (int64_t block = 0; block < p.m; block += kBlockRows) {
    const int64_t block_end = std::min(p.m, block + kBlockRows);
    for (int64_t n = 0; n < p.n; n += kGroupColumns) {
      const int64_t columns = std::min(kGroupColumns, p.n - n);
      for (int64_t m = block; m < block_end; m += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, block_end - m);
        if (p.m >= kLeastRowsOutputs) prefetch_outputs(p, m, rows, n, columns);
        for (int64_t c = 0; c < columns; c += kPanelColumns) {
          kTileSums[rows - 1](p.a + m * p.k_pad, *g.weight,
                              panel_tiles(*g.weight, g.panel + (n + c) / kPanelColumns),
                              p.compensation + n + c, sums + c);
        }
        epilogue(p, sums, kGroupColumns, m, rows, n, columns);
      }
    }
  }
}

}  // namespace fastinfer::cpu
