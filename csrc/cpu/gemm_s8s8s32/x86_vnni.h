// gemm_s8s8s32 with vpdpbusd, over the register width. Included by x86_avxvnni.cpp (ymm) and
// x86_avx512vnni.cpp (zmm), which say what `R` is. Contract and layouts: gemm_s8s8s32.h.
//
// vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32 lane without
// saturating. A arrives as q + 128 (flip = 0x80), so the sums start from the compensation
// -128 * sum_k b: int32 arithmetic modulo 2^32, exact because the true sum fits.
//
// One step takes 4 of K: NP panels of 16 columns (a panel is 64 bytes: 64 / sizeof(reg)
// registers), MR rows, each row's 4 bytes broadcast from memory (a load, no shuffle).
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/gemm_s8s8s32/epilogue.h"

namespace fastinfer::cpu {
namespace {

template <class R, int MR, int NP>
void vnni_tile(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t column) {
  constexpr int kRegs = 64 / int(sizeof(typename R::reg));  // registers a panel
  constexpr int kLanes = 16 / kRegs;
  const int64_t panel_bytes = kPanelColumns * p.k_pad;
  const int8_t* a = p.a + row * p.k_pad;
  const int8_t* b = p.panels + column * p.k_pad;
  typename R::reg acc_s32[MR][NP * kRegs];
#pragma GCC unroll 32
  for (int j = 0; j < NP * kRegs; ++j) {
    const auto start = R::load(p.compensation + column + j * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) acc_s32[i][j] = start;
  }
  for (int64_t k = 0; k < p.k_pad; k += 4, a += 4, b += 64) {
    typename R::reg b_s8[NP * kRegs];
#pragma GCC unroll 32
    for (int j = 0; j < NP * kRegs; ++j) {
      b_s8[j] = R::load(b + j / kRegs * panel_bytes + j % kRegs * int(sizeof(typename R::reg)));
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      int32_t four;
      std::memcpy(&four, a + i * p.k_pad, 4);
      const auto a_u8 = R::broadcast(four);
#pragma GCC unroll 32
      for (int j = 0; j < NP * kRegs; ++j) {
        R::dpbusd(acc_s32[i][j], a_u8, b_s8[j]);
      }
    }
  }
  alignas(64) int32_t sums[MR][NP * kPanelColumns];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < NP * kRegs; ++j) R::store(&sums[i][j * kLanes], acc_s32[i][j]);
  }
  epilogue(p, sums[0], NP * kPanelColumns, row, MR, column,
           std::min<int64_t>(NP * kPanelColumns, p.n - column));
}

// All columns from `column` on in groups of NP panels, for all row blocks of MR rows and one of
// the rest; then the remaining panels in smaller groups.
template <class R, int MR, int NP>
void vnni_columns(const GemmS8S8S32& p, EpilogueFn epilogue, int64_t row, int64_t rows,
                  int64_t column) {
  for (; p.n - column > (NP - 1) * kPanelColumns; column += NP * kPanelColumns) {
    int64_t i = 0;
    for (; i + MR <= rows; i += MR) vnni_tile<R, MR, NP>(p, epilogue, row + i, column);
  }
  if constexpr (NP > 1) {
    if (column < p.n) vnni_columns<R, MR, NP / 2>(p, epilogue, row, rows, column);
  }
}

template <class R, int MR>
void vnni_rows(const GemmS8S8S32& p, int64_t row, int64_t rows) {
  vnni_columns<R, MR, R::panels(MR)>(p, select_epilogue<typename R::Vec>(p), row, rows, 0);
}

template <class R, int MR>
void vnni_dispatch(const GemmS8S8S32& p, int mr, int64_t row, int64_t rows) {
  if (mr == MR) {
    vnni_rows<R, MR>(p, row, rows);
  } else if constexpr (MR > 1) {
    vnni_dispatch<R, MR - 1>(p, mr, row, rows);
  }
}

// Blocks of rows as equal as they can be: at most one row more in one than in another.
template <class R>
void vnni_gemm(const GemmS8S8S32& p) {
  if (p.m == 0) return;
  const int64_t blocks = (p.m + R::kMaxRows - 1) / R::kMaxRows;
  const int mr = int((p.m + blocks - 1) / blocks);  // rows of the taller blocks
  const int64_t taller = p.m - blocks * (mr - 1);   // how many of them
  vnni_dispatch<R, R::kMaxRows>(p, mr, 0, taller * mr);
  if (taller < blocks) {
    vnni_dispatch<R, R::kMaxRows>(p, mr - 1, taller * mr, (blocks - taller) * (mr - 1));
  }
}

}  // namespace
}  // namespace fastinfer::cpu
