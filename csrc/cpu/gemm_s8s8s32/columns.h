// One product of prepared rows with a range of a weight's columns, whatever its layout: the step of
// the driver linear.cpp that knows what a layout asks for.
#pragma once

#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/gemm_s8s8s32/linear.h"

namespace fastinfer::cpu {

// Scratch that multiply_columns wants for a weight and at most `rows` rows.
int64_t columns_scratch_bytes(const LinearPlan& plan, const PackedWeight& weight, int64_t rows);

// Columns [begin, end) of `weight` for the rows in `gemm`, which is complete but for n, panels,
// compensation, b_scale and bias; its out, residual and multiplier stand at column `begin`, a
// multiple of 16. scratch: 64-byte aligned.
void multiply_columns(const LinearPlan& plan, const LinearWeight& weight, int64_t begin,
                      int64_t end, GemmS8S8S32 gemm, int8_t* scratch);

}  // namespace fastinfer::cpu
