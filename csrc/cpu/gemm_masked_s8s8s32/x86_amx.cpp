// gemm_masked_s8s8s32_32x32x64_amx: whole blocks of 32 rows. Contract: gemm_masked_s8s8s32.h; A and
// the blocks of 32 x 32 as in gemm_s8s8s32/x86_amx.cpp.
//
// Columns outside, rows inside, K in equal slices: a slice of a pair of panels is put together
// (expand_s8) where it stays in L1 for all rows; what comes next is fetched into L2 meanwhile, as
// it is stored. (Whole panels, which go to L2 and come back: 0.7 to 0.85 of the dense weight's
// speed with 32 to 128 rows, where this has 0.8 to 1.0. To put the next slice together between the
// products of this one gains nothing.) The sums of all rows wait between slices in scratch.
// Overflow: none, as in gemm_s8s8s32.h. Slow: few rows, for which to put a weight together takes
// longer than to multiply it. Other rows than whole blocks: with tiles of other heights between
// those of each pair it took 1.3 to 2 times as long.
#include <algorithm>

#include "cpu/amx.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_s8s8s32/x86_amx_blocks.h"

namespace fastinfer::cpu {

void gemm_s8s8s32_1x16x4_generic(const GemmS8S8S32& p);

namespace {

// Short slices leave L1 to A; with more rows than these storing sums between them takes longer.
constexpr int64_t kFewSlicedRows = 256, kShortSliceK = 512, kLongSliceK = 1024;

// Two panels, or one, as they are stored: where they go on.
class StoredPair {
 public:
  StoredPair(const GemmMaskedS8S8S32& g, int64_t column)
      : g_(g), count_(g.gemm.n - column > kPanelColumns ? 2 : 1) {
    const int64_t panel = g.panel + column / kPanelColumns;
    for (int64_t i = 0; i < count_; ++i) at_[i] = masked_panel(*g.weight, panel + i);
  }

  // Puts the next slices together, those of the second panel `stride` bytes after the first's.
  PanelPair expand(int64_t slices, int8_t* to, int64_t stride) {
    const PackedWeight& w = *g_.weight;
    const bool pairs = w.layout == WeightLayout::sp24;
    for (int64_t i = 0; i < count_; ++i) {
      at_[i] = g_.expand({at_[i], w.masked_end, slices, pairs, to + i * stride});
    }
    return {to, to + (count_ - 1) * stride};
  }

  PanelPair rest() const {
    return {reinterpret_cast<const int8_t*>(at_[0]),
            reinterpret_cast<const int8_t*>(at_[count_ - 1])};
  }

 private:
  const GemmMaskedS8S8S32& g_;
  int64_t count_;
  const uint8_t* at_[2];
};

template <class Finish>
void masked_columns(const GemmMaskedS8S8S32& g) {
  const GemmS8S8S32& p = g.gemm;
  const PackedWeight& w = *g.weight;
  const int64_t slice = slice_k(p.k_pad, p.m <= kFewSlicedRows ? kShortSliceK : kLongSliceK);
  const int64_t stride = slice * kPanelColumns;
  int32_t* const sums = reinterpret_cast<int32_t*>(g.scratch + 2 * stride);
  // On average, of those that a slice has.
  const int64_t stored = (w.masked_end - w.masked) / (panels_of(w) * (p.k_pad / kBlockK));
  const int64_t lines = ceil_div(stored, kLine * (p.m / 32));
  Blocks2x2<false, Finish> blocks(p, p.out_bytes >= kPastCachesBytes);
  for (int64_t n = 0; n < p.n; n += 32) {
    StoredPair pair(g, n);
    for (int64_t k = 0; k < p.k_pad; k += slice) {
      const int64_t k_end = std::min(p.k_pad, k + slice), steps = (k_end - k) / kBlockK;
      const PanelPair b = pair.expand(steps, g.scratch, stride);
      Ahead ahead;
      if (k_end < p.k_pad) {
        ahead = {pair.rest(), lines};
      } else if (n + 32 < p.n) {
        ahead = {StoredPair(g, n + 32).rest(), lines};
      }
      for (int64_t m = 0; m < p.m; m += 32, ahead.skip(steps)) {
        blocks.add({sums + m * 32, m, 32, n, k_end == p.k_pad}, b, k, steps, ahead);
      }
    }
  }
  blocks.flush();
}

}  // namespace

void gemm_masked_s8s8s32_32x32x64_amx(const GemmMaskedS8S8S32& g) {
  // The loops above take at least one step along K.
  if (g.gemm.k_pad == 0) return gemm_s8s8s32_1x16x4_generic(g.gemm);
  const Tiles tiles({16, 16, 16, 16, 16, 16, 16, 16});
  select_finish(g.gemm,
                [&g](auto finishing) { masked_columns<typename decltype(finishing)::type>(g); });
}

}  // namespace fastinfer::cpu
