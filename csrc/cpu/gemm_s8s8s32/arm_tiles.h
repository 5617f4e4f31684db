// How both Arm kernels of gemm_s8s8s32 walk a matrix: row blocks, groups of panels, epilogue.
// Included by arm_neondot.cpp and arm_neoni8mm.cpp, which say what `R` is: R::kMaxRows,
// R::panels(mr), and R::sums<MR, NP>, which computes MR rows x NP panels of 16 columns.
#pragma once

#include <algorithm>

#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/neon.h"

namespace fastinfer::cpu {
namespace {

template <class R, int MR, int NP>
void arm_tile(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t column) {
  alignas(64) int32_t sums[MR * NP * kPanelColumns];
  R::template sums<MR, NP>(p.a + row * p.k_pad, p.panels + column * p.k_pad, p.k_pad, sums);
  epilogue(p, sums, NP * kPanelColumns, row, MR, column,
           std::min<int64_t>(NP * kPanelColumns, p.n - column));
}

// Columns from `column` on in groups of NP panels, each over all the rows while it is in L1; then
// the remaining panels in smaller groups.
template <class R, int MR, int NP>
void arm_columns(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                 int64_t column) {
  for (; p.n - column > (NP - 1) * kPanelColumns; column += NP * kPanelColumns) {
    for (int64_t i = 0; i < rows; i += MR) arm_tile<R, MR, NP>(p, epilogue, row + i, column);
  }
  if constexpr (NP > 1) {
    if (column < p.n) arm_columns<R, MR, NP / 2>(p, epilogue, row, rows, column);
  }
}

// `rows`, a multiple of mr, in blocks of mr rows.
template <class R, int MR>
void arm_rows(const GemmS8S8S32& p, int mr, int64_t row, int64_t rows) {
  if (mr == MR) {
    arm_columns<R, MR, R::panels(MR)>(p, select_epilogue<NeonVec>(p), row, rows, 0);
  } else if constexpr (MR > 1) {
    arm_rows<R, MR - 1>(p, mr, row, rows);
  }
}

// Row blocks as equal as they can be: at most one row more in one than in another.
template <class R>
void arm_gemm(const GemmS8S8S32& p) {
  if (p.m == 0) return;
  const int64_t blocks = (p.m + R::kMaxRows - 1) / R::kMaxRows;
  const int mr = int((p.m + blocks - 1) / blocks);  // rows of the taller blocks
  const int64_t taller = p.m - blocks * (mr - 1);   // how many of them
  arm_rows<R, R::kMaxRows>(p, mr, 0, taller * mr);
  if (taller < blocks) {
    arm_rows<R, R::kMaxRows>(p, mr - 1, taller * mr, (blocks - taller) * (mr - 1));
  }
}

}  // namespace
}  // namespace fastinfer::cpu
