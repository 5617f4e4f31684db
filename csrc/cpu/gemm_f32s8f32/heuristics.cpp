#include "cpu/gemm_f32s8f32/heuristics.h"

#include "cpu/ceil_div.h"

namespace fastinfer::cpu {

namespace {

// Cost model in cycles of one core: multiply-adds a cycle, and cycles a byte to read weights from
// beyond the L2 cache, to widen an element of x and to start a parallel region.
double macs_per_cycle(Isa isa) {
  switch (isa) {
    case Isa::generic: return 0.2;
    case Isa::avx2:
    case Isa::avxvnni: return 12;
    case Isa::avx512vnni:
    case Isa::avx512vbmi2: return 15;
    case Isa::avx512bf16:
    case Isa::amx: return 25;
    case Isa::neondot:
    case Isa::neoni8mm: return 8;
  }
  return 1;
}
constexpr double kCyclesPerWeightByte = 0.13;
constexpr double kCyclesPerInput = 0.3;
constexpr double kCyclesPerParallelRegion = 8000;

double task_cycles(double m, double n, double k, Isa isa) {
  return std::max(m * n * k / macs_per_cycle(isa), n * k * kCyclesPerWeightByte) +
         m * k * kCyclesPerInput;
}

}  // namespace

WeightOnlyPlan plan_weight_only(int64_t m, int64_t n, int64_t k, int threads) {
  WeightOnlyPlan plan{&select_gemm_f32s8f32(), 1, 1};
  const Isa isa = plan.kernel->isa;
  const int64_t panels = ceil_div(n, kPanelColumns), blocks = ceil_div(m, kRowsAtOnce);
  double best = task_cycles(double(m), double(n), double(k), isa);
  for (int64_t tm = 1; tm <= std::min<int64_t>(threads, blocks); ++tm) {
    const int64_t tn = std::min<int64_t>(threads / tm, panels);
    if (tm * tn <= 1) continue;
    const double rows = double(std::min(m, ceil_div(blocks, tm) * kRowsAtOnce));
    const double columns = double(ceil_div(panels, tn) * kPanelColumns);
    const double cycles = task_cycles(rows, columns, double(k), isa) + kCyclesPerParallelRegion;
    if (cycles < best) {
      best = cycles;
      plan.tasks_m = tm;
      plan.tasks_n = tn;
    }
  }
  return plan;
}

}  // namespace fastinfer::cpu
