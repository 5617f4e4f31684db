// The driver of attention: tasks, threads, scratch.
#include <atomic>

#include "cpu/attention/heuristics.h"
#include "cpu/attention/layout.h"
#include "cpu/scratch.h"

namespace fastinfer::cpu {

namespace {

struct Job {
  const Attention* p;
  AttentionPlan plan;
  AttentionFn run;
  std::atomic<int64_t> next{0};
  std::atomic<bool> ok{true};
};

// Takes tasks until none is left: causal ones differ in length, and so do cores.
void work(void* context, int64_t) {
  Job& job = *static_cast<Job*>(context);
  const Attention& p = *job.p;
  const int64_t heads = p.batch * p.kv_heads, splits = job.plan.splits;
  static thread_local Scratch scratch;
  void* memory =
      scratch.at_least(size_t(attention_scratch_bytes(p, (job.plan.rows + splits - 1) / splits)));
  if (memory == nullptr) {
    job.ok = false;
    return;
  }
  for (int64_t i; (i = job.next++) < heads * splits;) {
    const int64_t split = splits - 1 - i / heads, head = i % heads;  // the longest first
    AttentionTask task{};
    task.batch = head / p.kv_heads;
    task.kv_head = head % p.kv_heads;
    task.row_begin = job.plan.rows * split / splits;
    task.row_end = job.plan.rows * (split + 1) / splits;
    task.scratch = memory;
    job.run(p, task);
  }
}

}  // namespace

int64_t attention_scratch_bytes(const Attention& p, int64_t rows) {
  return buffers_of(p, rows, nullptr, kUnit).bytes;
}

bool attention(const Attention& p, int threads, ParallelFor parallel_for) {
  if (p.batch == 0 || p.heads == 0 || p.tq == 0) return true;
  Job job;
  job.p = &p;
  job.plan = plan_attention(p, threads);
  job.run = select_attention().run;
  if (job.plan.workers == 1) {
    work(&job, 0);
  } else {
    parallel_for(job.plan.workers, work, &job);
  }
  return job.ok;
}

}  // namespace fastinfer::cpu
