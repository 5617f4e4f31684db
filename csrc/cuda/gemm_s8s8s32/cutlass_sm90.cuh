// gemm_s8s8s32 on sm_90 by CUTLASS 3.x: TMA brings tiles of x and w into shared memory, wgmma
// multiplies them from there into int32 registers (x is its operand A, the rows of w the columns of
// its B), and an epilogue visitor tree of the contract's arithmetic finishes them.
//
//   warpgroups  3: one whose warps issue TMA, two that multiply and finish
//   wgmma       m64n128k32 or m64n256k32, s32.s8.s8 (SASS: IGMMA.64x128x32.S8.S8): 64 N 32
//               multiply-adds, 4096 of them a cycle and multiprocessor, so 64 or 128 cycles
//   registers   128 sums a thread, 64 with stream-K; setmaxnreg gives 232 to the warps that
//               multiply, 40 to those that load
//   shared      tiles of 128 bytes of K, in the 128-byte swizzle; outputs go out through TMA in
//               pieces of 64 bytes of a row, and the residual comes in the same way into the same
//               buffers
//   vectors     along the second mode of the tile by way of shared memory, along the first straight
//               to registers; masked at the edges
//   overflow    none: K <= 131071 (cpu/gemm_s8s8s32/gemm_s8s8s32.h)
//   bound       wgmma: 2 m n k / 1979 TOP/s on an H100 or H200; beside it w from memory, n k bytes
//               at 3.35 or 4.8 TB/s, and the traffic from L2 (cutlass_heuristics.cpp)
//   slow        a few rows and a K too short to be cut: most multiprocessors idle
//
// Compiled by nvcc 13.0 alone, 50 to 85 s and 3.3 to 4.6 GB an instance:
//
//   kernel             a block's tile   stages   shared    spills
//   128x256            128 x 256 x 128       4   224768      none
//   128x128            128 x 128 x 128       6   210944      none
//   128x128_stream_k   128 x 128 x 128       6   223232      none; 32-bit: 52 bytes, where it loads
//   sp24               128 x 256 x 128       4   199680      none
//
// Nothing here has ever run on a GPU. The visitor trees, the layouts of 2:4 weights and the work of
// stream-K have run on the host: tests/cutlass.
#pragma once

#include <cutlass/cutlass.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "cuda/device_vec.cuh"
#include "cuda/gemm_s8s8s32/cutlass_epilogue.h"
#include "cuda/gemm_s8s8s32/cutlass_kernels.h"

namespace fastinfer::cuda {
namespace {

using cute::_0;
using cute::_1;
using cute::_2;
using cute::Int;
using cute::Shape;
namespace fusion = cutlass::epilogue::fusion;

// The root of the visitor tree: takes the fragments that its children loaded, and itself the
// residual, which is the C of CUTLASS where there is one.
template <class Out>
struct Finish {
  using Arguments = FragmentEpilogue;
  using Params = FragmentEpilogue;
  struct SharedStorage {};

  template <class Problem>
  static constexpr Params to_underlying_arguments(const Problem&, const Arguments& arguments,
                                                  void*) {
    return arguments;
  }
  template <class Problem>
  static bool can_implement(const Problem&, const Arguments&) {
    return true;
  }
  template <class Problem>
  static size_t get_workspace_size(const Problem&, const Arguments&) {
    return 0;
  }
  template <class Problem>
  static cutlass::Status initialize_workspace(const Problem&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }

  CUTLASS_HOST_DEVICE Finish() {}
  CUTLASS_HOST_DEVICE Finish(const Params& given, const SharedStorage&) : params(given) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return params.has_residual; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return params.has_residual; }

  template <class... Args>
  CUTLASS_DEVICE auto get_producer_load_callbacks(
      const fusion::detail::ProducerLoadArgs<Args...>&) {
    return fusion::EmptyProducerLoadCallbacks{};
  }

  template <class Residual>
  struct Callbacks : fusion::EmptyConsumerStoreCallbacks {
    template <int kCount>
    CUTLASS_DEVICE cutlass::Array<Out, kCount> visit(
        const cutlass::Array<int32_t, kCount>& acc, int epi_v, int, int,
        const cutlass::Array<float, kCount>& w_scale,
        const cutlass::Array<float, kCount>& compensation,
        const cutlass::Array<float, kCount>& bias, const cutlass::Array<float, kCount>& a_scale,
        const cutlass::Array<float, kCount>& a_offset) {
      static_assert(cute::is_same_v<typename Residual::value_type, Out>, "bits are not converted");
      const auto added = cute::recast<cutlass::Array<Out, kCount>>(residual)(epi_v);
      cutlass::Array<Out, kCount> out;
      finish_fragment<DeviceVec, kCount>(finish, acc.data(), w_scale.data(), compensation.data(),
                                         bias.data(), a_scale.data(), a_offset.data(), added.data(),
                                         out.data());
      return out;
    }

    const Residual& residual;
    FragmentEpilogue finish;
  };
  template <bool, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const fusion::detail::ConsumerStoreArgs<Args...>& args) {
    return Callbacks<cute::remove_cvref_t<decltype(args.tCrC)>>{{}, args.tCrC, params};
  }

  Params params;
};

// The visitor tree. A block is a tile of x by rows of the weight or, kSwapped, the other way round;
// what follows the second mode of the tile is a row, the same for all rows of it.
template <class Tile, class Element>
using AlongSecond = fusion::Sm90RowBroadcast<0, Tile, Element, float>;
template <class Tile, class Element>
using AlongFirst = fusion::Sm90ColBroadcast<0, Tile, Element, float, cute::Stride<_1, _0, _0>, 1>;
template <class Tile, class Element, bool kSwapped>
using OfWeight =
    cute::conditional_t<kSwapped, AlongFirst<Tile, Element>, AlongSecond<Tile, Element>>;
template <class Tile, bool kSwapped>
using OfX = cute::conditional_t<kSwapped, AlongSecond<Tile, float>, AlongFirst<Tile, float>>;
template <class Tile, class Out, bool kSwapped>
using TreeNodes =
    fusion::Sm90EVT<Finish<Out>, OfWeight<Tile, float, kSwapped>, OfWeight<Tile, int32_t, kSwapped>,
                    OfWeight<Tile, float, kSwapped>, OfX<Tile, kSwapped>, OfX<Tile, kSwapped>>;
template <class Tile, class Out, bool kSwapped>
struct Tree : TreeNodes<Tile, Out, kSwapped> {
  using Base = TreeNodes<Tile, Out, kSwapped>;
  using Base::Base;
};

}  // namespace
}  // namespace fastinfer::cuda

// What CUTLASS asks of a tree of one's own. Without it the residual would pass through registers of
// the accumulator's type.
template <class Tile, class Out, bool kSwapped>
struct cutlass::epilogue::fusion::FusionCallbacksTraits<
    fastinfer::cuda::Tree<Tile, Out, kSwapped>> {
  using DispatchPolicy = void;
  using Callbacks = fastinfer::cuda::Tree<Tile, Out, kSwapped>;
  using Operation = FusionOperation;
  using CtaTile_MNK = void;
  using EpilogueTile_MN = void;
  using ElementCompute = float;
};

namespace fastinfer::cuda {
namespace {

using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using ProblemShape = Shape<int32_t, int32_t, int32_t, int32_t>;
constexpr int kAlignment = 16;  // bytes, of what TMA moves

template <class Tile, class Out, bool kSwapped, bool kCooperative>
struct CutlassEpilogue {
  using Visitor = Tree<Tile, Out, kSwapped>;
  using Layout = cute::conditional_t<kSwapped, ColumnMajor, RowMajor>;
  static constexpr int kElements = kAlignment / int(sizeof(Out));
  // What is finished at a time: 64 bytes of a row. Three such buffers, with two on their way out,
  // leave room for a stage more of the operands than CUTLASS's own choice.
  static constexpr int kPieceM = kCooperative ? 128 : 64, kPieceN = 64 / int(sizeof(Out));
  static constexpr int kFragment = kPieceM * kPieceN / (kCooperative ? 256 : 128);
  using Collective = typename cutlass::epilogue::collective::detail::Sm90TmaBuilderImpl<
      Tile, Shape<Int<kPieceM>, Int<kPieceN>>, int32_t, float, Out, Layout, kElements, Out, Layout,
      kElements, Visitor,
      cutlass::epilogue::Sm90TmaWarpSpecialized<3, 2, kFragment, true, false>>::CollectiveOp;
  using Stages = cutlass::gemm::collective::StageCountAutoCarveout<int(
      sizeof(typename Collective::SharedStorage))>;

  static typename Visitor::Arguments visitor_arguments(const GemmS8S8S32& p) {
    return {{p.w_scale}, {p.compensation}, {p.bias},
            {p.a_scale}, {p.a_offset},     {p.activation, p.out_dtype, p.residual != nullptr}};
  }

  static typename Collective::Arguments arguments(const GemmS8S8S32& p) {
    const auto out = static_cast<Out*>(p.out);
    // TMA wants an address, also of what it will not read.
    const bool has_residual = p.residual != nullptr;
    const Out* residual = has_residual ? static_cast<const Out*>(p.residual) : out;
    const int64_t ld_residual = has_residual ? p.ld_residual : p.ld_out;
    if constexpr (kSwapped) {
      return {visitor_arguments(p), residual, {_1{}, ld_residual, 0}, out, {_1{}, p.ld_out, 0}};
    } else {
      return {visitor_arguments(p), residual, {ld_residual, _1{}, 0}, out, {p.ld_out, _1{}, 0}};
    }
  }
};

// cutlass::gemm::device::GemmUniversalAdapter keeps CUDA's errors to itself.
template <class Kernel>
cudaError_t launch_kernel(const typename Kernel::Arguments& arguments, void* workspace,
                          cudaStream_t stream) {
  if (Kernel::initialize_workspace(arguments, workspace, stream) != cutlass::Status::kSuccess) {
    const cudaError_t error = cudaGetLastError();
    return error != cudaSuccess ? error : cudaErrorInvalidValue;
  }
  auto params = Kernel::to_underlying_arguments(arguments, workspace);
  const void* kernel = reinterpret_cast<const void*>(cutlass::device_kernel<Kernel>);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::SharedStorageSize);
  if (error != cudaSuccess) return error;
  using Cluster = typename Kernel::ClusterShape;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cute::size<0>(Cluster{})),
                              unsigned(cute::size<1>(Cluster{})), 1};
  cudaLaunchConfig_t config{};
  config.gridDim = Kernel::get_grid_shape(params);
  config.blockDim = Kernel::get_block_shape();
  config.dynamicSmemBytes = size_t(Kernel::SharedStorageSize);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* parameters[] = {&params};
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

inline cutlass::KernelHardwareInfo hardware(int multiprocessors) {
  cutlass::KernelHardwareInfo info;
  info.sm_count = multiprocessors;
  return info;
}

}  // namespace
}  // namespace fastinfer::cuda
