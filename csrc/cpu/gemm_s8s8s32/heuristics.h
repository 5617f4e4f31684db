// Every tuning number of gemm_s8s8s32 and the choices made from them: which kernel, which cache
// block, how threads share the work.
#pragma once

#include <cstdint>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::cpu {

struct LinearPlan {
  const GemmS8S8S32Kernel* gemm;
  const QuantizeRowwiseKernel* quantize;
  const ExpandS8Kernel* expand;           // for weights that leave zeros out
  const GemmMaskedS8S8S32Kernel* masked;  // multiplies them as they are; null: expand first
  const GemmBsrS8S8S32Kernel* bsr;        // for tiles; null: gather first
  int64_t tile_rows;                      // layout of A
  uint8_t flip;
  int64_t mc;                // rows quantised and multiplied at a time
  int64_t tasks_m, tasks_n;  // the grid of tasks, tasks_m * tasks_n <= threads
  bool share_rows;           // whether rows of floats are quantised once, by all threads, and not
                             // by each of the tasks that need them
};

// The kernel that selection takes for m rows and a weight of so many bytes.
FASTINFER_API const GemmS8S8S32Kernel& select_gemm_s8s8s32(int64_t m, int64_t weight_bytes);

// What a plan must know of the weights. stored: their bytes over those of dense ones.
struct WeightKinds {
  double stored = 1;
  bool masked = false;    // some have slices that leave zeros out
  bool only_bsr = false;  // all are of tiles
};

// n: the columns of all weights together, each padded to 16.
FASTINFER_API LinearPlan plan_linear(int64_t m, int64_t n, int64_t k_pad, int threads,
                                     const WeightKinds& kinds = {});

// How many panels of a task of so many go from one thread to another together.
FASTINFER_API int64_t unit_panels(int64_t task_panels);

// How many columns of a weight that leaves zeros out are expanded at a time: a multiple of the
// kernel's nr.
int64_t expanded_columns(const GemmS8S8S32Kernel& gemm, int64_t k_pad);

// The part of a gate that is computed before its factor: rows of `ld` floats.
struct GateTile {
  int64_t rows, columns, ld;
};
GateTile gate_tile(int64_t rows);

}  // namespace fastinfer::cpu
