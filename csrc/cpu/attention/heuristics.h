// How attention shares its work between threads.
#pragma once

#include "cpu/attention/attention.h"

namespace fastinfer::cpu {

struct AttentionPlan {
  int64_t rows;    // of one key and value head: tq * heads / kv_heads
  int64_t splits;  // tasks of such a head, as equal as can be
  int64_t workers;
};

AttentionPlan plan_attention(const Attention& p, int threads);

}  // namespace fastinfer::cpu
