#include "cpu/gemm_s8s8s32/heuristics.h"

#include <algorithm>
#include <limits>

namespace fastinfer::cpu {

namespace {

// Cost model in cycles of one core, per ISA: multiply-adds a cycle, and cycles that reading a byte
// of weights from beyond the L2 cache adds, that it takes to quantise an element, to read one that
// another core has quantised and to start a parallel region. Two tasks with the same rows quantise
// them each, or share them; two with the same columns read the same weights.
double macs_per_cycle(Isa isa) {
  switch (isa) {
    case Isa::generic: return 1;
    case Isa::avx2: return 20;
    case Isa::avxvnni: return 60;
    case Isa::avx512vnni:
    case Isa::avx512vbmi2:
    case Isa::avx512bf16: return 110;
    case Isa::amx: return 450;
    case Isa::neondot: return 50;
    case Isa::neoni8mm: return 100;
  }
  return 1;
}
constexpr double kCyclesPerWeightByte = 0.08;
constexpr double kCyclesPerQuantizedElement = 0.35;
constexpr double kCyclesPerSharedElement = 0.13;
constexpr double kCyclesPerExpandedByte = 0.1;
constexpr double kCyclesPerParallelRegion = 8000;

// Cores differ in speed, those of a shared machine from moment to moment: a task is cut into
// pieces that another thread may take over, chunks of rows and, the last of these or all, units of
// columns. None has so few rows that reading the weights again for them takes more than an eighth
// of the time; where an L2 of 2 MiB keeps the weights, reading costs a quarter. Panels go by a
// multiple of every kernel's micro-tiles.
constexpr int64_t kChunksPerTask = 4, kUnitsPerChunk = 8;
constexpr double kLeastWorkPerRead = 8;
constexpr int64_t kKeptWeightBytes = 1 << 20;
constexpr double kKeptReadShare = 0.25;
constexpr int64_t kUnitPanels = 12;

// Quantised rows kept at a time: half of a 2 MiB L2 leaves room for the weight panels.
constexpr int64_t kQuantizedBytes = 1 << 20;
constexpr int64_t kRowStep = 32;

// A gate waits for its factor in a tile of L2, beside the rows and the panels of either weight; its
// columns are a multiple of those of the micro-tiles, its rows are not a power of two apart.
constexpr int64_t kGateBytes = 128 << 10;
constexpr int64_t kGateRows = 160, kGateColumnStep = 192, kGateGap = 16;

// With fewer rows AVX-512 VNNI reads weights faster than tile loads do: from L2 at one row, from
// beyond it (weights over kCachedWeightBytes) up to seven.
constexpr int64_t kLeastAmxRowsCached = 2, kLeastAmxRowsUncached = 8;
constexpr int64_t kCachedWeightBytes = 3 << 19;

// Expanded panels of a weight that leaves zeros out: a quarter of a 1 MiB L2.
constexpr int64_t kExpandedBytes = 256 << 10;

double quantize_cycles(double m, double k) { return m * k * kCyclesPerQuantizedElement; }

// Beside quantising.
double task_cycles(double m, double n, double k, Isa isa, const WeightKinds& kinds) {
  const double work = kinds.masked ? 1 : kinds.stored;
  return work * m * n * k / macs_per_cycle(isa) + kinds.stored * n * k * kCyclesPerWeightByte +
         (kinds.masked ? n * k * kCyclesPerExpandedByte : 0);
}

// Rows that a piece of a task along M has at least.
double least_piece_rows(double n, double k, Isa isa, const WeightKinds& kinds) {
  const double share = kinds.stored * n * k <= double(kKeptWeightBytes) ? kKeptReadShare : 1;
  const double read = share * kCyclesPerWeightByte;
  const double cycles = kinds.masked ? kinds.stored * read + kCyclesPerExpandedByte : read;
  return kLeastWorkPerRead * cycles * macs_per_cycle(isa);
}

const GemmS8S8S32Kernel& kernel_of(Isa isa) {
  int count;
  const GemmS8S8S32Kernel* kernels = gemm_s8s8s32_kernels(&count);
  int i = count - 1;
  while (i > 0 && kernels[i].isa != isa) --i;
  return kernels[i];
}

}  // namespace

const GemmS8S8S32Kernel& select_gemm_s8s8s32(int64_t m, int64_t weight_bytes) {
  int count;
  const GemmS8S8S32Kernel* kernels = gemm_s8s8s32_kernels(&count);
  const int64_t least_amx_rows =
      weight_bytes <= kCachedWeightBytes ? kLeastAmxRowsCached : kLeastAmxRowsUncached;
  int i = count - 1;
  while (i > 0 &&
         (!isa_allowed(kernels[i].isa) || (kernels[i].isa == Isa::amx && m < least_amx_rows))) {
    --i;
  }
  return kernels[i];
}

int64_t expanded_columns(const GemmS8S8S32Kernel& gemm, int64_t k_pad) {
  return std::max<int64_t>(1, kExpandedBytes / std::max<int64_t>(1, k_pad) / gemm.nr) * gemm.nr;
}

LinearPlan plan_linear(int64_t m, int64_t n, int64_t k_pad, int threads, const WeightKinds& kinds) {
  LinearPlan plan{};
  plan.gemm = &select_gemm_s8s8s32(m, n * k_pad);
  plan.quantize = &select_quantize_rowwise();
  plan.tasks_m = plan.tasks_n = 1;
  if (kinds.masked) {
    plan.expand = &select_expand_s8();
    const bool few = m <= kFewMaskedRows && plan.gemm->isa == Isa::amx;
    plan.masked = select_gemm_masked_s8s8s32(few ? Isa::avx512vnni : plan.gemm->isa);
    if (plan.masked != nullptr) plan.gemm = &kernel_of(plan.masked->companion);
  }
  if (kinds.only_bsr) plan.bsr = select_gemm_bsr_s8s8s32(plan.gemm->isa);
  plan.tile_rows = plan.bsr != nullptr ? plan.bsr->tile_rows : plan.gemm->tile_rows;
  plan.flip = plan.bsr != nullptr ? plan.bsr->flip : plan.gemm->flip;
  const Isa isa = plan.gemm->isa;
  const int64_t rows = std::max<int64_t>(1, (m + kRowStep - 1) / kRowStep);
  const int64_t panels = std::max<int64_t>(1, (n + kPanelColumns - 1) / kPanelColumns);
  // Rows that all tasks find in one place: as many as stay in L2.
  const double elements = double(m) * double(k_pad);
  const double shared = elements <= double(kQuantizedBytes)
                            ? quantize_cycles(double(m) / threads, double(k_pad)) +
                                  elements * kCyclesPerSharedElement + kCyclesPerParallelRegion
                            : std::numeric_limits<double>::infinity();
  double best = task_cycles(double(m), double(n), double(k_pad), isa, kinds) +
                quantize_cycles(double(m), double(k_pad));
  for (int64_t tm = 1; tm <= std::min<int64_t>(threads, rows); ++tm) {
    const int64_t tn = std::min<int64_t>(threads / tm, panels);
    if (tm * tn == 1) continue;
    const double task_m = std::min<double>(double(m), double((rows + tm - 1) / tm * kRowStep));
    const double task_n = double((panels + tn - 1) / tn * kPanelColumns);
    const double own = quantize_cycles(task_m, double(k_pad));
    const double cycles = task_cycles(task_m, task_n, double(k_pad), isa, kinds) +
                          std::min(own, shared) + kCyclesPerParallelRegion;
    if (cycles < best) {
      best = cycles;
      plan.tasks_m = tm;
      plan.tasks_n = tn;
      plan.share_rows = shared < own;
    }
  }
  // Equal chunks of at most kQuantizedBytes, and of a piece of the task.
  const int64_t task_rows = (rows + plan.tasks_m - 1) / plan.tasks_m;
  const int64_t most = std::max<int64_t>(1, kQuantizedBytes / (k_pad > 0 ? k_pad : 1) / kRowStep);
  int64_t chunks = (task_rows + most - 1) / most;
  if (plan.tasks_m > 1 && plan.tasks_n == 1) {
    const double least = least_piece_rows(double(n), double(k_pad), isa, kinds);
    const int64_t pieces = int64_t(double(task_rows * kRowStep) / least);
    chunks = std::max(chunks, std::min(kChunksPerTask, pieces));
  }
  plan.mc = (task_rows + chunks - 1) / chunks * kRowStep;
  return plan;
}

int64_t unit_panels(int64_t task_panels) {
  return round_up((task_panels + kUnitsPerChunk - 1) / kUnitsPerChunk, kUnitPanels);
}

GateTile gate_tile(int64_t rows) {
  rows = std::min(rows, kGateRows);
  const int64_t most = kGateBytes / int64_t(sizeof(float)) / rows;
  const int64_t columns = std::max(kGateColumnStep, most / kGateColumnStep * kGateColumnStep);
  return {rows, columns, columns + kGateGap};
}

}  // namespace fastinfer::cpu
