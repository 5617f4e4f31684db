// gemm_bsr_s8s8s32_64x16x64_amx. Contract: gemm_bsr_s8s8s32.h; A in blocks of 16 rows, slices of 64
// of K: what a tile of the weight meets is a tile of AMX, 1 KiB in one place, and is read there.
//
// Tiles: sums of 64 rows x 16 columns (tmm0-3), 1 of the weight (tmm4), 3 of A in turns (tmm5-7):
// five loads for four tdpbssd of 16 cycles. A panel's tiles are read once for 64 rows, by
// tileloaddt1, which leaves L1 to A; 64 rows of more than half a KiB come from L2, at 1.4 cycles a
// line, so that four products take 110 cycles, not 68 (gemm_s8s8s32/x86_amx.cpp).
//
// Panels go by chunks whose tiles stay in L2 for all rows (128 and 512 rows x 4096 x 4096 at 90 %
// sparsity in 0.9 to 0.95 of the time). kGroupPanels panels go through the epilogue together, so
// that 256 bytes of an output row are written at once; finishing their rows between the products of
// the next group gains nothing. Rows past a multiple of 16 take tiles of just as many rows.
// Overflow: none, as in gemm_s8s8s32.h. Slow: a high sparsity, where quantising the rows and
// writing the output are most of the work.
#include <algorithm>
#include <cstring>

#include "cpu/amx.h"
#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kTileRows = 16, kGroupTiles = 4, kGroupPanels = 4;
constexpr int64_t kGroupColumns = kGroupPanels * kPanelColumns;
constexpr int64_t kChunkBytes = 512 << 10;  // of tiles, a quarter of a 2 MiB L2

// Sums of kTiles tiles of `rows` rows each with a panel, rows kGroupColumns apart. A tile of rows
// is `block` bytes from the next.
template <int kTiles>
void panel_sums(const int8_t* a, int64_t block, int64_t rows, const PackedWeight& w,
                TileRange tiles, int32_t* sums) {
  constexpr int64_t kTileSums = kTileRows * kGroupColumns, kRowBytes = kGroupColumns * 4;
  tile_zero<0>();
  if constexpr (kTiles > 1) tile_zero<1>();
  if constexpr (kTiles > 2) tile_zero<2>();
  if constexpr (kTiles > 3) tile_zero<3>();
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int8_t* at = a + tile_slice(w, t) * rows * kBlockK;
    tile_stream<4>(w.panels + t * kSliceBytes, kBlockK);
    tile_load<5>(at, kBlockK);
    tile_dp_s8<0, 5, 4>();
    if constexpr (kTiles > 1) {
      tile_load<6>(at + block, kBlockK);
      tile_dp_s8<1, 6, 4>();
    }
    if constexpr (kTiles > 2) {
      tile_load<7>(at + 2 * block, kBlockK);
      tile_dp_s8<2, 7, 4>();
    }
    if constexpr (kTiles > 3) {
      tile_load<5>(at + 3 * block, kBlockK);
      tile_dp_s8<3, 5, 4>();
    }
  }
  tile_store<0>(sums, kRowBytes);
  if constexpr (kTiles > 1) tile_store<1>(sums + kTileSums, kRowBytes);
  if constexpr (kTiles > 2) tile_store<2>(sums + 2 * kTileSums, kRowBytes);
  if constexpr (kTiles > 3) tile_store<3>(sums + 3 * kTileSums, kRowBytes);
}

using PanelSumsFn = void (*)(const int8_t*, int64_t, int64_t, const PackedWeight&, TileRange,
                             int32_t*);
constexpr PanelSumsFn kPanelSums[kGroupTiles] = {panel_sums<1>, panel_sums<2>, panel_sums<3>,
                                                 panel_sums<4>};

// Columns [begin, end) of `tiles` tiles of `rows` rows each, from row m on.
void row_group(const GemmBsrS8S8S32& g, EpilogueFn epilogue, int64_t m, int64_t tiles, int64_t rows,
               int64_t begin, int64_t end) {
  const GemmS8S8S32& p = g.gemm;
  alignas(64) int32_t sums[kGroupTiles * kTileRows * kGroupColumns];
  for (int64_t n = begin; n < end; n += kGroupColumns) {
    const int64_t columns = std::min(kGroupColumns, end - n);
    for (int64_t c = 0; c < columns; c += kPanelColumns) {
      kPanelSums[tiles - 1](p.a + m * p.k_pad, kTileRows * p.k_pad, rows, *g.weight,
                            panel_tiles(*g.weight, g.panel + (n + c) / kPanelColumns), sums + c);
    }
    epilogue(p, sums, kGroupColumns, m, tiles * rows, n, columns);
  }
}

// Where a chunk of columns ends that begins at one.
int64_t chunk_end(const GemmBsrS8S8S32& g, int64_t begin) {
  const auto tiles_before = [&g](int64_t n) {
    return panel_tiles(*g.weight, g.panel + n / kPanelColumns).begin;
  };
  const int64_t most = tiles_before(begin) + kChunkBytes / kSliceBytes;
  int64_t end = begin + kGroupColumns;
  while (end < g.gemm.n && tiles_before(end) < most) end += kGroupColumns;
  return std::min(end, g.gemm.n);
}

}  // namespace

void gemm_bsr_s8s8s32_64x16x64_amx(const GemmBsrS8S8S32& g) {
  const EpilogueFn epilogue = select_epilogue<Avx512Vec>(g.gemm);
  const int64_t tail = g.gemm.m % kTileRows, main = g.gemm.m - tail;
  Tiles tiles;
  for (int64_t begin = 0, end; begin < g.gemm.n; begin = end) {
    end = chunk_end(g, begin);
    if (main > 0) {
      tiles.configure({16, 16, 16, 16, 16, 16, 16, 16});
      for (int64_t m = 0; m < main; m += kGroupTiles * kTileRows) {
        const int64_t row_tiles = std::min(kGroupTiles, (main - m) / kTileRows);
        row_group(g, epilogue, m, row_tiles, kTileRows, begin, end);
      }
    }
    if (tail > 0) {
      const int r = int(tail);
      tiles.configure({r, r, r, r, 16, r, r, r});
      row_group(g, epilogue, main, 1, tail, begin, end);
    }
  }
}

}  // namespace fastinfer::cpu
