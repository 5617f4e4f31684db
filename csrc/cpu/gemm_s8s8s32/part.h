// Parts of a product: the same but for the rows or the columns that it has.
#pragma once

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {
namespace {

// Columns [column, column + columns). `panels` is left to the caller, since not every weight has
// panels of one length; what comes after it in memory is not known then, and n_after is 0.
inline GemmS8S8S32 columns_from(GemmS8S8S32 p, int64_t column, int64_t columns) {
  const int64_t out = column * size_of(p.out_dtype);
  p.n = columns;
  p.n_after = 0;
  p.compensation += column;
  p.b_scale += column;
  if (p.bias != nullptr) p.bias += column;
  if (p.multiplier != nullptr) p.multiplier += column;
  if (p.residual != nullptr) p.residual = static_cast<const char*>(p.residual) + out;
  p.out = static_cast<char*>(p.out) + out;
  return p;
}

// Rows [row, row + rows); row begins a block of A's layout.
inline GemmS8S8S32 rows_from(GemmS8S8S32 p, int64_t row, int64_t rows) {
  p.m = rows;
  p.a += row * p.k_pad;
  p.prepared_row += row;
  p.a_scale += row;
  p.a_offset += row;
  if (p.multiplier != nullptr) {
    p.multiplier = reinterpret_cast<const float*>(reinterpret_cast<const char*>(p.multiplier) +
                                                  row * p.multiplier_ld_bytes);
  }
  if (p.residual != nullptr) {
    p.residual = static_cast<const char*>(p.residual) + row * p.residual_ld_bytes;
  }
  p.out = static_cast<char*>(p.out) + row * p.out_ld_bytes;
  return p;
}

}  // namespace
}  // namespace fastinfer::cpu
