#include "cpu/gemm_f32s8f32/linear.h"

#include <algorithm>
#include <atomic>

#include "cpu/gemm_f32s8f32/heuristics.h"
#include "cpu/scratch.h"

namespace fastinfer::cpu {

namespace {

struct Job {
  const LinearW8A16* p;
  WeightOnlyPlan plan;
  std::atomic<bool> ok{true};
};

// Part i of `parts` of n, in whole units: where it begins; part `parts` begins at n.
int64_t begin_of(int64_t i, int64_t parts, int64_t n, int64_t unit) {
  const int64_t units = (n + unit - 1) / unit;
  return std::min(n, units * i / parts * unit);
}

void run_task(void* context, int64_t i) {
  Job& job = *static_cast<Job*>(context);
  const LinearW8A16& p = *job.p;
  const PackedWeight& w = p.weight.packed;
  const int64_t task_m = i / job.plan.tasks_n, task_n = i % job.plan.tasks_n;
  const int64_t row = begin_of(task_m, job.plan.tasks_m, p.m, kRowsAtOnce);
  const int64_t column = begin_of(task_n, job.plan.tasks_n, w.n, kPanelColumns);
  const int64_t out_bytes = column * size_of(p.out_dtype);
  GemmF32S8F32 gemm{};
  gemm.m = begin_of(task_m + 1, job.plan.tasks_m, p.m, kRowsAtOnce) - row;
  gemm.n = begin_of(task_n + 1, job.plan.tasks_n, w.n, kPanelColumns) - column;
  gemm.k = w.k;
  gemm.x = static_cast<const char*>(p.x) + row * p.ldx_bytes;
  gemm.x_dtype = p.x_dtype;
  gemm.ldx_bytes = p.ldx_bytes;
  gemm.panels = w.panels + column * w.k_pad;
  gemm.b_scale = p.weight.scale + column;
  gemm.bias = p.weight.bias == nullptr ? nullptr : p.weight.bias + column;
  gemm.activation = p.activation;
  if (p.residual != nullptr) {
    gemm.residual = static_cast<const char*>(p.residual) + row * p.residual_ld_bytes + out_bytes;
    gemm.residual_ld_bytes = p.residual_ld_bytes;
  }
  gemm.out = static_cast<char*>(p.out) + row * p.out_ld_bytes + out_bytes;
  gemm.out_ld_bytes = p.out_ld_bytes;
  gemm.out_dtype = p.out_dtype;
  static thread_local Scratch scratch;
  gemm.scratch = scratch.at_least(size_t(gemm_f32s8f32_scratch_bytes(gemm.m, gemm.k)));
  if (gemm.scratch == nullptr) {
    job.ok = false;
  } else {
    job.plan.kernel->run(gemm);
  }
}

}  // namespace

bool linear_w8a16(const LinearW8A16& p, int threads, ParallelFor parallel_for) {
  const PackedWeight& w = p.weight.packed;
  if (p.m == 0 || w.n == 0) return true;
  Job job;
  job.p = &p;
  job.plan = plan_weight_only(p.m, w.n, w.k, threads);
  const int64_t tasks = job.plan.tasks_m * job.plan.tasks_n;
  if (tasks == 1) {
    run_task(&job, 0);
  } else {
    parallel_for(tasks, run_task, &job);
  }
  return job.ok;
}

}  // namespace fastinfer::cpu
