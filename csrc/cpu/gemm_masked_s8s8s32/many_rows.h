// gemm_masked_s8s8s32 for many rows, with AVX-512: the blocks and tiles of gemm_s8s8s32/x86_vnni.h.
// The first tile of a block that comes to a slice of three panels puts it together in registers
// (expand_s8/vpexpandb.h, pairs_avx512.h) and leaves it in L1, on a Zen 4, whose slices are longer,
// in L2, for the tiles after it. A step of that tile is 24 vpdpbusd, 12 cycles on a Zen 5, 24 on a
// Zen 4, where its three operands take 7. So of the 16 tiles of 128 rows one takes a little longer:
// 0.96 to 1.04 times the dense weight's speed there, where expanding first took 5 % of the whole.
// Included by x86_avx512vbmi2.cpp.
#pragma once

#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/panels.h"
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"

namespace fastinfer::cpu {
namespace {

constexpr int kPanels = 3;  // that share a tile: with 4 rows still 12 sums on their way
static_assert(kPanels * kSliceKZen4 * kPanelColumns == kExpandedSliceBytes);
// A slice that leaves zeros out is at most about as long as this; asking for more or less than
// there is does no harm.
constexpr int64_t kMaskedBytesPerK = kPairsSliceBytes / kBlockK;

// vnni_tile, with panels that leave zeros out: expanded takes their bytes, those of the next panel
// panel_bytes further. Returns where the panels go on; by value, since a reference would keep the
// pointers in memory.
template <int MR, int NP, class Panels>
Panels first_tile(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t column,
                  Panels panels, int8_t* expanded, int64_t panel_bytes, int64_t k_begin,
                  int64_t k_end, int32_t* sums) {
  constexpr int kColumns = NP * kPanelColumns;
  const int8_t* a = p.a + row * p.k_pad + k_begin;
  __m512i acc_s32[MR][NP];
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<NP>([&](auto j) FASTINFER_INLINE {
      acc_s32[i][j] = k_begin == 0 ? Zmm::load(p.compensation + column + j * kPanelColumns)
                                   : Zmm::load(sums + i * kColumns + j * kPanelColumns);
    });
  });
  for (int64_t k = k_begin; k < k_end; k += kBlockK) {
    panels.begin_slice();
    for (int step = 0; step < kBlockK / kPairsK; ++step) {
      each<2>([&](auto half) FASTINFER_INLINE {
        __m512i b_s8[NP];
        panels.next(step, half, b_s8);
        each<NP>([&](auto j)
                     FASTINFER_INLINE { _mm512_store_si512(expanded + j * panel_bytes, b_s8[j]); });
        each<MR>([&](auto i) FASTINFER_INLINE {
          const __m512i a_u8 = broadcast_four(a + i * p.k_pad);
          each<NP>([&](auto j)
                       FASTINFER_INLINE { acc_s32[i][j] = dpbusd(acc_s32[i][j], a_u8, b_s8[j]); });
        });
        a += 4;
        expanded += 64;
      });
    }
    panels.end_slice();
  }
  if (k_end == p.k_pad && dequantize_tile<Zmm>(p, row, column, acc_s32)) return panels;
  each<MR>([&](auto i) FASTINFER_INLINE {
    each<NP>([&](auto j) FASTINFER_INLINE {
      Zmm::store(sums + i * kColumns + j * kPanelColumns, acc_s32[i][j]);
    });
  });
  if (k_end == p.k_pad) {
    epilogue(p, sums, kColumns, row, MR, column, std::min<int64_t>(kColumns, p.n - column));
  }
  return panels;
}

// All columns from `column` on in groups of NP panels, for rows in tiles of MR; then the remaining
// panels one by one.
template <int MR, template <int> class Panels, int NP>
void masked_columns(const GemmMaskedS8S8S32& g, EpilogueFn epilogue, int64_t row, int64_t rows,
                    int64_t column) {
  const GemmS8S8S32& p = g.gemm;
  constexpr int64_t kTiles = kBlockRows / MR;
  alignas(64) int32_t sums[kTiles * MR * NP * kPanelColumns];
  const int64_t slice = slice_k(p), panel_bytes = slice * kPanelColumns;
  Panels<NP> panels(*g.weight);
  for (; p.n - column > (NP - 1) * kPanelColumns; column += NP * kPanelColumns) {
    const uint8_t* next[NP];
    const auto panel = [&](int64_t n) {
      return masked_panel(*g.weight, g.panel + std::min(n, p.n + p.n_after - 1) / kPanelColumns);
    };
    for (int j = 0; j < NP; ++j) {
      panels.at[j] = panel(column + j * kPanelColumns);
      next[j] = panel(column + (NP + j) * kPanelColumns);
    }
    int64_t k = 0;
    do {  // once at least: K = 0 has an epilogue, too
      const int64_t k_end = std::min(p.k_pad, k + slice);
      panels = first_tile<MR, NP>(p, epilogue, row, column, panels, g.scratch, panel_bytes, k,
                                  k_end, sums);
      // What comes next of these panels; after their last slice, of the panels after them. Those of
      // bitmask differ a little in their length: here they are as far apart as they are on average.
      const uint8_t** to = k_end < p.k_pad ? panels.at : next;
      const int64_t apart = NP > 1 ? (to[NP - 1] - to[0]) / (NP - 1) : 0;
      const int64_t bytes = slice * kMaskedBytesPerK, tiles = rows / MR - 1;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i = (tile + 1) * MR;
        if (rows >= kLeastRowsOutputs && k_end == p.k_pad) {
          prefetch_outputs(p, row + i, MR, column, NP * kPanelColumns);
        }
        const Ahead ahead =
            share_of(reinterpret_cast<const int8_t*>(to[0]), apart, bytes, k_end - k, tile, tiles);
        vnni_tile<Zmm, MR, NP, true>(p, epilogue, row + i, column, g.scratch, panel_bytes, k, k_end,
                                     sums + i * NP * kPanelColumns, ahead);
      }
      k = k_end;
    } while (k < p.k_pad);
  }
  if constexpr (NP > 1) {
    if (column < p.n) masked_columns<MR, Panels, 1>(g, epilogue, row, rows, column);
  }
}

template <int MR>
void masked_block(const GemmMaskedS8S8S32& g, int mr, int64_t row, int64_t rows) {
  if (mr == MR) {
    const EpilogueFn epilogue = select_epilogue<Avx512Vec>(g.gemm);
    if (g.weight->layout == WeightLayout::sp24) {
      masked_columns<MR, PairsPanels, kPanels>(g, epilogue, row, rows, 0);
    } else {
      masked_columns<MR, MaskedPanels, kPanels>(g, epilogue, row, rows, 0);
    }
  } else if constexpr (MR > Zmm::kMaxRows / 2) {  // more than kMaxRows rows: no smaller tiles
    masked_block<MR - 1>(g, mr, row, rows);
  }
}

void many_masked_rows(const GemmMaskedS8S8S32& g) {
  for_row_blocks(g.gemm.m, Zmm::kMaxRows, [&](int mr, int64_t row, int64_t rows) {
    masked_block<Zmm::kMaxRows>(g, mr, row, rows);
  });
}

}  // namespace
}  // namespace fastinfer::cpu
