// Dense weights: the kernel of cutlass_sm90.cuh, one instance a file.
#pragma once

#include "cuda/gemm_s8s8s32/cutlass_sm90.cuh"

namespace fastinfer::cuda {
namespace {

// kTile names the block and its cluster; Schedule says how warpgroups share the work, Scheduler how
// blocks do.
template <CutlassTile kTile, class Out, class Schedule, class Scheduler>
struct DenseGemm {
  static constexpr CutlassTileShape shape = kCutlassTileShapes[int(kTile)];
  using Tile = Shape<Int<shape.m>, Int<shape.n>, Int<kCutlassStepK>>;
  using Cluster = Shape<Int<shape.cluster_m>, Int<shape.cluster_n>, _1>;
  static constexpr bool kCooperative =
      cute::is_same_v<Schedule, cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Epilogue = CutlassEpilogue<Tile, Out, false, kCooperative>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, RowMajor, kAlignment, int8_t,
      ColumnMajor, kAlignment, int32_t, Tile, Cluster, typename Epilogue::Stages,
      Schedule>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<ProblemShape, Mainloop,
                                                      typename Epilogue::Collective, Scheduler>;

  static typename Kernel::Arguments arguments(const GemmS8S8S32& p, const CutlassPlan& plan) {
    typename Kernel::TileSchedulerArguments scheduler{};
    scheduler.max_swizzle_size = plan.swizzle;
    if constexpr (cute::is_same_v<Scheduler, cutlass::gemm::StreamKScheduler>) {
      using Params = typename Kernel::TileScheduler::Params;
      scheduler.decomposition_mode = Params::DecompositionMode::StreamK;
      // int32 sums are the same in any order.
      scheduler.reduction_mode = Params::ReductionMode::Nondeterministic;
    }
    return {cutlass::gemm::GemmUniversalMode::kGemm,
            {int32_t(p.m), int32_t(p.n), int32_t(p.k_pad), 1},
            {p.a, {p.k_pad, _1{}, 0}, p.w, {p.k_pad, _1{}, 0}},
            Epilogue::arguments(p),
            hardware(plan.multiprocessors),
            scheduler};
  }

  static int64_t workspace_bytes(const GemmS8S8S32& p, const CutlassPlan& plan) {
    return int64_t(Kernel::get_workspace_size(arguments(p, plan)));
  }

  static cudaError_t launch(const GemmS8S8S32& p, const CutlassPlan& plan, void* workspace,
                            cudaStream_t stream) {
    return launch_kernel<Kernel>(arguments(p, plan), workspace, stream);
  }

  static constexpr CutlassKernel kernel{workspace_bytes, launch};
};

template <CutlassTile kTile, class Out, class Scheduler = cutlass::gemm::PersistentScheduler>
using Cooperative =
    DenseGemm<kTile, Out, cutlass::gemm::KernelTmaWarpSpecializedCooperative, Scheduler>;
template <CutlassTile kTile, class Out>
using Pingpong = DenseGemm<kTile, Out, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                           cutlass::gemm::PersistentScheduler>;

}  // namespace
}  // namespace fastinfer::cuda
