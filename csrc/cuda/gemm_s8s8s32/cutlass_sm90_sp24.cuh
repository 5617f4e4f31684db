// 2:4 sparse weights: the kernel of cutlass_sm90.cuh with the weight as operand A of the sparse
// wgmma, m64n256k64, which multiplies 64 of K in the time of 32. So a tile is 128 rows of the
// weight x 256 rows of x, and the output is written as the transpose of a column-major one.
//
//   step      128 of K: 8 KiB of values, 2 KiB of metadata, 32 KiB of x, which two blocks of a
//             cluster share
//   bound     traffic from L2: 10 + 32 / 2 KiB for 512 cycles of wgmma, 51 bytes a cycle, is more
//             than L2 gives (cutlass_heuristics.cpp); dense 128 x 256 asks for 32
#pragma once

#include "cuda/gemm_s8s8s32/cutlass_sm90.cuh"
#include "cuda/gemm_s8s8s32/cutlass_sp24.h"

namespace fastinfer::cuda {
namespace {

template <class Out>
struct Sp24Gemm {
  using Tile = Shape<Int<128>, Int<256>, Int<kCutlassStepK>>;
  using Cluster = Shape<_2, _1, _1>;
  using Schedule = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = CutlassEpilogue<Tile, Out, true, true>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassSparseTensorOp, int8_t, RowMajor, kAlignment,
      int8_t, ColumnMajor, kAlignment, int32_t, Tile, Cluster, typename Epilogue::Stages,
      Schedule>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<ProblemShape, Mainloop, typename Epilogue::Collective,
                                           cutlass::gemm::PersistentScheduler>;

  // The layout of the metadata that sp24.h writes out: blocks of 64 rows, one below the other.
  using Config = typename Mainloop::SparseConfig;
  static_assert(
      cute::is_same_v<typename Config::TensorEAtom,
                      cute::Layout<Shape<Int<64>, Int<128>>, cute::Stride<Int<128>, _1>>>);

  static cudaError_t launch(const GemmS8S8S32& p, const uint8_t* metadata, int multiprocessors,
                            cudaStream_t stream) {
    const ProblemShape problem{int32_t(p.n), int32_t(p.m), int32_t(p.k_pad), 1};
    const typename Kernel::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                               problem,
                                               {p.w,
                                                Config::fill_layoutA(problem),
                                                p.a,
                                                {p.k_pad, _1{}, 0},
                                                metadata,
                                                Config::fill_layoutE(problem)},
                                               Epilogue::arguments(p),
                                               hardware(multiprocessors),
                                               {}};
    return launch_kernel<Kernel>(arguments, nullptr, stream);
  }
};

}  // namespace
}  // namespace fastinfer::cuda
