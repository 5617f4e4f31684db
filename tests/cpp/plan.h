// What a test must know of the plan that linear_w8a8 makes.
#pragma once

#include "cpu/gemm_s8s8s32/heuristics.h"

namespace fastinfer::test {

// Whether tasks are of whole rows, and other threads take units of the last chunk of each. columns:
// those of all weights, padded; of a gate and its factor `outputs` is half of them.
inline bool cuts_last_chunks(int64_t m, int64_t columns, int64_t outputs, int64_t k, int threads,
                             const cpu::WeightKinds& kinds = {}) {
  const cpu::LinearPlan plan =
      cpu::plan_linear(m, columns, round_up(k, cpu::kBlockK), threads, kinds);
  const int64_t panels = outputs / cpu::kPanelColumns;
  return plan.tasks_m > 1 && plan.tasks_n == 1 && !plan.share_rows &&
         cpu::unit_panels(panels) < panels;
}

}  // namespace fastinfer::test
