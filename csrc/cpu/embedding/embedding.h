// Family embedding: rows of a packed int8 weight as floats.
//
//   out[k] = to_dtype(float(w[row,k]) * scale)    for k < K
//
// The product and the conversion are rounded once each, so that a row is the same bits everywhere.
// Weight: dense layout (gemm_s8s8s32/pack.h), in which 4 neighbours along K lie together and the
// next 4 of the row 64 bytes further on: a row touches K / 4 cache lines. Bound by those.
#pragma once

#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

// w: dense; 0 <= row < w.n; out: w.k elements of float dtype, any alignment.
FASTINFER_API void embedding_row(const PackedWeight& w, int64_t row, float scale, void* out,
                                 DType dtype);

}  // namespace fastinfer::cpu
