#include "cpu/attention/heuristics.h"

#include <algorithm>

#include "cpu/ceil_div.h"

namespace fastinfer::cpu {

namespace {

// Measured with the rows avx2, avx512 and avx512bf16; amx, which is taken for every call of
// bfloat16 (x86_amx.cpp says why), is cut into the same tasks.
//
// q and o of a task in floats: with a block of k and v they fit in an L2 of 1 MiB, and every key
// that is packed serves some hundreds of rows.
constexpr int64_t kTaskElements = 1 << 15;
// A task packs all keys that its rows see, at the price of about 8 rows: no fewer than these.
constexpr int64_t kLeastRows = 96;
constexpr int64_t kTasksPerThread = 4;
// Multiply-adds below which starting a thread takes longer than the work.
constexpr int64_t kSerialWork = 1 << 18;

}  // namespace

AttentionPlan plan_attention(const Attention& p, int threads) {
  AttentionPlan plan{};
  plan.rows = p.tq * (p.heads / p.kv_heads);
  const int64_t most = std::clamp<int64_t>(kTaskElements / p.head_dim, 2 * kLeastRows, 512);
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t wanted = threads > 1 ? ceil_div(kTasksPerThread * threads, heads) : 1;
  plan.splits = std::max(ceil_div(plan.rows, most),
                         std::min(wanted, std::max<int64_t>(1, plan.rows / kLeastRows)));
  const double work = double(heads) * double(plan.rows) * double(p.tk) * double(2 * p.head_dim);
  plan.workers = work < double(kSerialWork) ? 1 : std::min<int64_t>(threads, heads * plan.splits);
  return plan;
}

}  // namespace fastinfer::cpu
