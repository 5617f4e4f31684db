#include "cpu/gemm_s8s8s32/columns.h"

#include <algorithm>

#include "cpu/gemm_s8s8s32/part.h"

namespace fastinfer::cpu {

namespace {

// Rows whose tiles are gathered at a time: a multiple of the rows of any A layout's blocks.
constexpr int64_t kGatherRows = 64;

// Panels are expanded into scratch, as many as stay in L2, and multiplied as dense ones.
void expand_and_multiply(const LinearPlan& plan, const PackedWeight& w, int64_t panel,
                         const GemmS8S8S32& gemm, int8_t* scratch) {
  const int64_t most = expanded_columns(*plan.gemm, w.k_pad), slices = w.k_pad / kBlockK;
  for (int64_t column = 0; column < gemm.n; column += most) {
    GemmS8S8S32 part = columns_from(gemm, column, std::min(most, gemm.n - column));
    part.panels = scratch;
    for (int64_t n = 0; n < part.n; n += kPanelColumns, ++panel) {
      plan.expand->run({masked_panel(w, panel), w.masked_end, slices,
                        w.layout == WeightLayout::sp24, scratch + n * w.k_pad});
    }
    plan.gemm->run(part);
  }
}

// Rows [row, row + rows) of A with the slices of tiles [tiles.begin, tiles.end) alone, in A's
// layout (quantize_rowwise.h).
void gather(const PackedWeight& w, TileRange tiles, const GemmS8S8S32& p, int64_t tile_rows,
            int64_t row, int64_t rows, int8_t* to) {
  for (int64_t m = row; m < row + rows; m += tile_rows) {
    // A block of tile_rows rows is [K / 64][its rows][64].
    const int64_t height = std::min(tile_rows, p.m - m) * kBlockK;
    const int8_t* block = p.a + m * p.k_pad;
    for (int64_t t = tiles.begin; t < tiles.end; ++t, to += height) {
      std::memcpy(to, block + tile_slice(w, t) * height, size_t(height));
    }
  }
}

bool same_slices(const PackedWeight& w, TileRange a, TileRange b) {
  return a.end - a.begin == b.end - b.begin &&
         std::memcmp(w.index + (panels_of(w) + 1 + a.begin) * 4,
                     w.index + (panels_of(w) + 1 + b.begin) * 4, size_t(a.end - a.begin) * 4) == 0;
}

// The tiles of a panel are one after the other, in the order of a dense panel whose K is that of
// the tiles: it is multiplied as such, with what A has there. Neighbours of the same slices go
// together.
void gather_and_multiply(const LinearPlan& plan, const PackedWeight& w, int64_t panel,
                         const GemmS8S8S32& gemm, int8_t* scratch) {
  for (int64_t column = 0; column < gemm.n;) {
    const TileRange tiles = panel_tiles(w, panel);
    int64_t count = 1;
    while (column + count * kPanelColumns < gemm.n &&
           same_slices(w, tiles, panel_tiles(w, panel + count))) {
      ++count;
    }
    GemmS8S8S32 columns =
        columns_from(gemm, column, std::min(count * kPanelColumns, gemm.n - column));
    columns.k_pad = (tiles.end - tiles.begin) * kBlockK;
    columns.panels = w.panels + tiles.begin * kSliceBytes;
    for (int64_t row = 0; row < gemm.m; row += kGatherRows) {
      const int64_t rows = std::min(kGatherRows, gemm.m - row);
      gather(w, tiles, gemm, plan.gemm->tile_rows, row, rows, scratch);
      GemmS8S8S32 part = rows_from(columns, row, rows);
      part.a = scratch;
      part.prepared = nullptr;
      part.prepared_row = 0;
      if (plan.gemm->prepare.run != nullptr) {
        part.prepared = scratch + kGatherRows * w.k_pad;
        part.prepared_rows = rows;
        plan.gemm->prepare.run(scratch, rows, part.k_pad, part.prepared);
      }
      plan.gemm->run(part);
    }
    panel += count;
    column += count * kPanelColumns;
  }
}

}  // namespace

int64_t columns_scratch_bytes(const LinearPlan& plan, const PackedWeight& weight, int64_t rows) {
  if (is_masked(weight.layout)) {
    const int64_t masked = plan.masked != nullptr ? masked_scratch_bytes(rows, weight.k_pad) : 0;
    if (plan.masked != nullptr && plan.masked->row_step == 1) return masked;
    return std::max(masked, expanded_columns(*plan.gemm, weight.k_pad) * weight.k_pad);
  }
  if (weight.layout == WeightLayout::dense || plan.bsr != nullptr) return 0;
  const auto prepared_bytes = plan.gemm->prepare.bytes;
  return kGatherRows * weight.k_pad +
         (prepared_bytes == nullptr ? 0 : round_up(prepared_bytes(kGatherRows, weight.k_pad), 64));
}

void multiply_columns(const LinearPlan& plan, const LinearWeight& weight, int64_t begin,
                      int64_t end, GemmS8S8S32 gemm, int8_t* scratch) {
  const PackedWeight& w = weight.packed;
  const int64_t panel = begin / kPanelColumns;
  gemm.n = end - begin;
  gemm.n_after = w.n - end;
  gemm.compensation = w.compensation + begin;
  gemm.b_scale = weight.scale + begin;
  gemm.bias = weight.bias == nullptr ? nullptr : weight.bias + begin;
  if (w.layout == WeightLayout::dense) {
    gemm.panels = w.panels + begin * w.k_pad;
    plan.gemm->run(gemm);
  } else if (plan.bsr != nullptr) {
    plan.bsr->run({gemm, &w, panel});
  } else if (!is_masked(w.layout)) {
    gather_and_multiply(plan, w, panel, gemm, scratch);
  } else if (plan.masked != nullptr && gemm.m % plan.masked->row_step == 0) {
    plan.masked->run({gemm, &w, panel, scratch, plan.expand->run});
  } else {
    expand_and_multiply(plan, w, panel, gemm, scratch);
  }
}

}  // namespace fastinfer::cpu
