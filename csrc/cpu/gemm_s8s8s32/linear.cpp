#include "cpu/gemm_s8s8s32/linear.h"

#include <algorithm>
#include <atomic>

#include "cpu/scratch.h"

namespace fastinfer::cpu {

namespace {

// Bytes of the scales and offsets that stand before the quantised rows of a chunk.
int64_t scale_bytes(const LinearPlan& plan) { return round_up(plan.mc * 8, 64); }

struct Job {
  const LinearW8A8* p;
  LinearPlan plan;
  int64_t rows_per_task, panels_per_task;
  std::atomic<bool> ok{true};
};

void multiply(const LinearW8A8& p, const LinearPlan& plan, int64_t m_begin, int64_t m_end,
              int64_t n_begin, int64_t n_end, void* scratch) {
  const int64_t k_pad = p.weight.k_pad;
  float* scale = static_cast<float*>(scratch);
  float* offset = scale + plan.mc;
  int8_t* q = static_cast<int8_t*>(scratch) + scale_bytes(plan);
  for (int64_t m = m_begin; m < m_end; m += plan.mc) {
    const int64_t rows = std::min(plan.mc, m_end - m);
    QuantizeRowwise quantize{};
    quantize.x = static_cast<const char*>(p.x) + m * p.ldx_bytes;
    quantize.x_dtype = p.x_dtype;
    quantize.ldx_bytes = p.ldx_bytes;
    quantize.rows = rows;
    quantize.k = p.weight.k;
    quantize.k_store = k_pad;
    quantize.tile_rows = plan.gemm->tile_rows;
    quantize.flip = plan.gemm->flip;
    quantize.q = q;
    quantize.scale = scale;
    quantize.offset = offset;
    plan.quantize->run(quantize);

    GemmS8S8S32 gemm{};
    gemm.m = rows;
    gemm.n_begin = n_begin;
    gemm.n_end = n_end;
    gemm.k_pad = k_pad;
    gemm.a = q;
    gemm.a_scale = scale;
    gemm.a_offset = offset;
    gemm.panels = p.weight.panels;
    gemm.compensation = p.weight.compensation;
    gemm.b_scale = p.w_scale;
    gemm.bias = p.bias;
    gemm.activation = p.activation;
    gemm.residual = p.residual == nullptr
                        ? nullptr
                        : static_cast<const char*>(p.residual) + m * p.residual_ld_bytes;
    gemm.residual_ld_bytes = p.residual_ld_bytes;
    gemm.out = static_cast<char*>(p.out) + m * p.out_ld_bytes;
    gemm.out_ld_bytes = p.out_ld_bytes;
    gemm.out_dtype = p.out_dtype;
    plan.gemm->run(gemm);
  }
}

void run_task(void* context, int64_t i) {
  Job& job = *static_cast<Job*>(context);
  const LinearW8A8& p = *job.p;
  const int64_t task_m = i / job.plan.tasks_n, task_n = i % job.plan.tasks_n;
  const int64_t m_begin = std::min(p.m, task_m * job.rows_per_task);
  const int64_t m_end = std::min(p.m, m_begin + job.rows_per_task);
  const int64_t n_begin = std::min(p.weight.n, task_n * job.panels_per_task * kPanelColumns);
  const int64_t n_end = std::min(p.weight.n, n_begin + job.panels_per_task * kPanelColumns);
  if (m_begin == m_end || n_begin == n_end) return;
  // The quantised rows of one chunk, their scales and offsets.
  static thread_local Scratch scratch;
  const int64_t bytes = scale_bytes(job.plan) + job.plan.mc * p.weight.k_pad;
  void* memory = scratch.at_least(size_t(bytes));
  if (memory == nullptr) {
    job.ok = false;
    return;
  }
  multiply(p, job.plan, m_begin, m_end, n_begin, n_end, memory);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

bool linear_w8a8(const LinearW8A8& p, int threads, ParallelFor parallel_for) {
  if (p.m == 0 || p.weight.n == 0) return true;
  Job job;
  job.p = &p;
  job.plan = plan_linear(p.m, p.weight.n, p.weight.k_pad, threads);
  job.rows_per_task = round_up(ceil_div(p.m, job.plan.tasks_m), kPanelColumns);
  job.panels_per_task = ceil_div(ceil_div(p.weight.n, kPanelColumns), job.plan.tasks_n);
  const int64_t tasks = job.plan.tasks_m * job.plan.tasks_n;
  if (tasks == 1) {
    run_task(&job, 0);
  } else {
    parallel_for(tasks, run_task, &job);
  }
  return job.ok;
}

}  // namespace fastinfer::cpu
