// CUTLASS's own functions, run on the host: the visitor tree of every kernel, thread by thread, to
// the bits of the CPU's epilogue; the layouts of 2:4 weights; and which block multiplies what.
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cuda/gemm_s8s8s32/cutlass_sm90_dense.cuh"
#include "cuda/gemm_s8s8s32/cutlass_sm90_sp24.cuh"
#include "cutlass_sp24_layout.h"
#include "reference.h"

namespace fastinfer::test {
namespace {

using cpu::Activation;
using cpu::ScalarVec;
using cuda::CutlassTile;
using cute::_0;
using cute::_1;
using cute::get;
using cute::size;

struct Case {
  int m, n;
  Activation activation;
  DType out_dtype;
  bool bias, residual;
};

// The operands of an epilogue, and what the CPU makes of them.
template <class Out>
struct Block {
  std::vector<int32_t> acc, compensation;
  std::vector<float> a_scale, a_offset, w_scale, bias;
  std::vector<Out> residual, want;
  cuda::GemmS8S8S32 p{};

  explicit Block(const Case& c) {
    Random random(uint64_t(c.m * 1000 + c.n * 4 + c.bias * 2 + c.residual));
    const auto floats = [&](int count, float scale) {
      std::vector<float> v;
      for (int i = 0; i < count; ++i) v.push_back(random.unit() * scale);
      return v;
    };
    const int count = c.m * c.n;
    for (int i = 0; i < count; ++i) acc.push_back(int32_t(random.bits()) >> 10);
    for (int i = 0; i < c.n; ++i) compensation.push_back(int32_t(random.bits()) >> 10 & ~127);
    a_scale = floats(c.m, 0x1p-10f);
    a_offset = floats(c.m, 1);
    w_scale = floats(c.n, 0x1p-8f);
    bias = floats(c.n, 1);
    const std::vector<uint8_t> added = random_elements(random, count, c.out_dtype);
    residual.resize(size_t(count));
    want.resize(size_t(count));
    std::memcpy(residual.data(), added.data(), added.size());

    p.m = c.m;
    p.n = p.ld_out = p.ld_residual = c.n;
    p.a_scale = a_scale.data();
    p.a_offset = a_offset.data();
    p.compensation = compensation.data();
    p.w_scale = w_scale.data();
    p.bias = c.bias ? bias.data() : nullptr;
    p.activation = c.activation;
    p.residual = c.residual ? residual.data() : nullptr;
    p.out_dtype = c.out_dtype;

    cpu::GemmS8S8S32 q{};
    q.m = c.m;
    q.n = c.n;
    q.a_scale = p.a_scale;
    q.a_offset = p.a_offset;
    q.compensation = p.compensation;
    q.b_scale = p.w_scale;
    q.bias = p.bias;
    q.activation = c.activation;
    q.residual = p.residual;
    q.residual_ld_bytes = q.out_ld_bytes = c.n * int64_t(sizeof(Out));
    q.out = want.data();
    q.out_dtype = c.out_dtype;
    cpu::select_epilogue<ScalarVec>(q)(q, acc.data(), c.n, 0, c.m, 0, c.n);
  }
};

// One kernel's epilogue, as CollectiveEpilogue::store calls it, without the copies through shared
// memory: from accumulators as wgmma leaves them to the registers of the output.
template <class Gemm, class Out, bool kSwapped>
class Epilogue {
 public:
  explicit Epilogue(const Case& c)
      : c_(c), block_(c), got_(block_.want.size()), visits_(block_.want.size()) {
    const auto problem = cute::make_shape(rows(), columns(), 64, 1);
    const auto arguments = Gemm::Epilogue::visitor_arguments(block_.p);
    const auto params = Visitor::to_underlying_arguments(problem, arguments, nullptr);
    const auto shared = std::make_unique<typename Visitor::SharedStorage>();
    std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof *shared);
    Visitor visitor(params, *shared);
    CHECK(visitor.is_producer_load_needed() == c.residual);
    CHECK(visitor.is_C_load_needed() == c.residual);
    for (int m = 0; m * kTileM < rows(); ++m) {
      for (int n = 0; n * kTileN < columns(); ++n) {
        // A barrier is between what threads begin with and what they do then.
        for (int thread = 0; thread < kThreads; ++thread) run(visitor, m, n, thread, false);
        for (int thread = 0; thread < kThreads; ++thread) run(visitor, m, n, thread, true);
      }
    }
    bool once = true;
    for (int visits : visits_) once = once && visits == 1;
    CHECK(once);
    CHECK(places_agree_);
    CHECK(same_elements(got_.data(), block_.want.data(), int64_t(got_.size()), c.out_dtype));
  }

 private:
  using Visitor = typename Gemm::Epilogue::Visitor;
  using Collective = typename Gemm::Epilogue::Collective;
  using Tile = typename Gemm::Tile;
  using Piece = typename Collective::EpilogueTile;
  using Mma = typename Gemm::Kernel::TiledMma;
  static constexpr int kTileM = size<0>(Tile{}), kTileN = size<1>(Tile{});
  static constexpr int kPieceM = size<0>(Piece{}), kPieceN = size<1>(Piece{});
  static constexpr int kThreads = size(Mma{});
  static constexpr int kFragment = Collective::DispatchPolicy::FragmentSize;

  int rows() const { return kSwapped ? c_.n : c_.m; }
  int columns() const { return kSwapped ? c_.m : c_.n; }
  // Of the output, row-major [m, n]; -1 beyond it.
  int64_t offset(int row, int column) const {
    if (row >= rows() || column >= columns()) return -1;
    return kSwapped ? int64_t(column) * c_.n + row : int64_t(row) * c_.n + column;
  }

  void run(Visitor& visitor, int tile_m, int tile_n, int thread, bool visit) {
    using namespace cute;
    const Mma mma;
    const auto atom = make_tiled_copy_C_atom(typename Collective::CopyAtomC{}, mma);
    const auto tiled = make_tiled_copy_S(Copy_Atom<typename Collective::CopyOpR2S, Out>{}, atom);
    const auto copy = tiled.get_slice(thread);
    const auto whole = make_shape(rows(), columns());
    const Tensor tile =
        local_tile(make_identity_tensor(whole), take<0, 2>(Tile{}), make_coord(tile_m, tile_n));
    const Tensor mine = copy.partition_S(flat_divide(tile, Piece{}));
    const Tensor tile_places = make_coord_tensor(tile.layout());
    const Tensor my_places = make_coord_tensor(mine.layout());
    const auto residue = make_coord(rows(), columns()) - tile(_0{});
    const auto my_residue = make_coord(rows(), columns()) - mine(_0{});
    const Tensor piece = make_tensor(static_cast<Out*>(nullptr), make_layout(Piece{}));
    Tensor added = make_tensor<Out>(make_layout(take<0, 3>(shape(copy.partition_S(piece)))));
    const cutlass::epilogue::fusion::detail::ConsumerStoreArgs arguments(
        make_shape(rows(), columns(), 64, 1), Tile{}, make_coord(tile_m, tile_n, 0, 0), mma,
        Piece{}, tiled, tile_places, residue, my_places, my_residue, added, thread);
    auto callbacks = visitor.template get_consumer_store_callbacks<true>(arguments);
    callbacks.begin();
    if (!visit) {
      CHECK(callbacks.begin_sync_needed());
      return;
    }

    // The accumulators, and beside them the place of each.
    Tensor acc = partition_fragment_C(mma, take<0, 2>(Tile{}));
    Tensor place = make_tensor_like<int32_t>(acc);
    const Tensor acc_places =
        mma.get_slice(thread).partition_C(make_identity_tensor(take<0, 2>(Tile{})));
    for (int i = 0; i < size(acc); ++i) {
      const int row = get<0>(acc_places(i)), column = get<1>(acc_places(i));
      place(i) = row * kTileN + column;
      const int64_t at = offset(tile_m * kTileM + row, tile_n * kTileN + column);
      acc(i) = at < 0 ? 0 : block_.acc[size_t(at)];
    }
    const Tensor acc_by_fragment = recast<cutlass::Array<int32_t, kFragment>>(copy.retile_S(acc));
    const Tensor place_by_fragment =
        recast<cutlass::Array<int32_t, kFragment>>(copy.retile_S(place));
    const Tensor places =
        copy.partition_S(flat_divide(make_identity_tensor(take<0, 2>(Tile{})), Piece{}));
    const int mma_n = kTileN / int(size<2>(copy.retile_S(acc)));
    static_assert(kPieceM == 128 || kPieceM == 64, "one tile of wgmma along M");
    const int fragments = int(size(added)) / kFragment;
    for (int n = 0; n < kTileN / kPieceN; ++n) {
      for (int m = 0; m < kTileM / kPieceM; ++m) {
        callbacks.begin_loop(m, n);
        for (int v = 0; v < fragments; ++v) {
          const int at = n % (mma_n / kPieceN) * fragments + v;
          const auto sums = acc_by_fragment(_, m, n * kPieceN / mma_n)(at);
          const auto from = place_by_fragment(_, m, n * kPieceN / mma_n)(at);
          int64_t to[kFragment];
          for (int i = 0; i < kFragment; ++i) {
            const auto stored = places(_, _, _, m, n)(v * kFragment + i);
            const int row = get<0>(stored), column = get<1>(stored);
            places_agree_ = places_agree_ && from[i] == row * kTileN + column;
            to[i] = offset(tile_m * kTileM + row, tile_n * kTileN + column);
            added(v * kFragment + i) = to[i] < 0 ? Out(0) : block_.residual[size_t(to[i])];
          }
          const auto out = callbacks.visit(sums, v, m, n);
          for (int i = 0; i < kFragment; ++i) {
            if (to[i] < 0) continue;
            got_[size_t(to[i])] = out[i];
            ++visits_[size_t(to[i])];
          }
        }
      }
    }
  }

  Case c_;
  Block<Out> block_;
  std::vector<Out> got_;
  std::vector<int> visits_;
  bool places_agree_ = true;
};

template <class Gemm, class Out, bool kSwapped = false>
void check_epilogue() {
  int i = 0;
  const std::pair<int, int> sizes[] = {{128, 256}, {1, 16}, {129, 264}, {200, 512}, {300, 40}};
  for (const auto& [m, n] : sizes) {
    for (int options = 0; options < 4; ++options, ++i) {
      const DType dtype = sizeof(Out) == 4 ? DType::f32 : i % 2 == 0 ? DType::bf16 : DType::f16;
      Epilogue<Gemm, Out, kSwapped>(
          {m, n, Activation(i % cpu::kActivationCount), dtype, options % 2 == 1, options >= 2});
    }
  }
}

// Reads 2:4 weights back by CUTLASS's layouts, whose offsets count elements of the dense weight.
void check_sp24() {
  using Config = typename cuda::Sp24Gemm<float>::Config;
  Random random(1);
  for (int i = 0; i < 60; ++i) {
    const int n = 1 + int(random.below(300)), k = 64 * (1 + int(random.below(12)));
    std::vector<int8_t> w(size_t(n * k));
    for (size_t group = 0; group < w.size(); group += 4) {
      for (int j = 0; j < 2; ++j) w[group + size_t(random.below(4))] = random.byte();
    }
    std::vector<int8_t> values(size_t(cutlass_sp24_values_bytes(n, k)));
    std::vector<uint8_t> metadata(size_t(cutlass_sp24_metadata_bytes(n, k)));
    CHECK(cutlass_sp24(w.data(), n, k, values.data(), metadata.data()));
    const auto problem = cute::make_shape(n, 1, k, 1);
    const auto value_at = Config::fill_layoutA(problem);
    const auto metadata_at = Config::fill_layoutE(problem);
    CHECK(int64_t(cute::cosize(value_at)) / 2 == int64_t(values.size()));
    CHECK(int64_t(cute::cosize(metadata_at)) / 8 == int64_t(metadata.size()));
    bool equal = true;
    for (int row = 0; row < n; ++row) {
      for (int column = 0; column < k; column += 4) {
        const int64_t at = metadata_at(row, column, 0);
        const int places = metadata[size_t(at / 8)] >> at % 8 & 15;
        int8_t group[4] = {};
        group[places & 3] = values[size_t(value_at(row, column, 0) / 2)];
        group[places >> 2] = values[size_t(value_at(row, column + 2, 0) / 2)];
        equal = equal && std::memcmp(group, &w[size_t(row * k + column)], 4) == 0;
      }
    }
    CHECK(equal);
  }
}

// Hands stream-K's work out as the blocks of a grid take it: every step of K of every tile once,
// and every tile finished once.
void check_stream_k() {
  using Gemm =
      cuda::Cooperative<CutlassTile::m128n128_stream_k, float, cutlass::gemm::StreamKScheduler>;
  using Scheduler = typename Gemm::Kernel::TileScheduler;
  constexpr auto shape = Gemm::shape;
  Random random(2);
  int cut = 0;
  for (int i = 0; i < 500; ++i) {
    cuda::GemmS8S8S32 p{};
    p.m = 1 + random.below(i % 2 == 0 ? 600 : 5000);
    p.n = 16 * (1 + random.below(i % 3 == 0 ? 1800 : 256));
    p.k_pad = 64 * (1 + random.below(i % 5 == 0 ? 400 : 64));
    const int multiprocessors = i % 4 == 0 ? 78 : 132;
    const auto call = Gemm::arguments(p, {CutlassTile::m128n128_stream_k, 1, multiprocessors});
    const auto params = Scheduler::to_underlying_arguments(
        call.problem_shape, typename Gemm::Tile{}, typename Gemm::Cluster{}, call.hw_info,
        call.scheduler, nullptr);
    const dim3 grid =
        Scheduler::get_grid_shape(params, call.problem_shape, typename Gemm::Tile{},
                                  typename Gemm::Cluster{}, call.hw_info, call.scheduler);
    CHECK(int(grid.x * grid.y) <= multiprocessors);
    const int64_t tiles_m = (p.m + shape.m - 1) / shape.m, tiles_n = (p.n + shape.n - 1) / shape.n;
    const int64_t steps = (p.k_pad + cuda::kCutlassStepK - 1) / cuda::kCutlassStepK;
    std::vector<int> multiplied(size_t(tiles_m * tiles_n * steps));
    std::vector<int> finished(size_t(tiles_m * tiles_n));
    bool whole = true;
    for (uint32_t block = 0; block < grid.x * grid.y; ++block) {
      const uint32_t x = block % grid.x, y = block / grid.x;
      const bool along_n = params.raster_order_ == Scheduler::RasterOrder::AlongN;
      uint64_t index = along_n ? x + uint64_t(y) * grid.x : uint64_t(x) * grid.y + y;
      const dim3 in_cluster(x % shape.cluster_m, y % shape.cluster_n, 0);
      uint32_t first = 0;
      for (;; index += grid.x * grid.y) {
        auto work = Scheduler::get_current_work_for_linear_idx(first, index, in_cluster, params);
        if (!work.is_valid()) break;
        do {
          if (work.M_idx >= tiles_m || work.N_idx >= tiles_n) continue;
          const int64_t tile = work.M_idx * tiles_n + work.N_idx;
          whole = whole && int64_t(work.k_tile_count) == steps;
          for (uint32_t k = 0; k < work.k_tile_count; ++k) {
            ++multiplied.at(size_t(tile * steps + work.K_idx + k));
          }
          finished[size_t(tile)] += Scheduler::compute_epilogue(work, params);
        } while (Scheduler::continue_current_work_for_linear_idx(index, first, in_cluster, work,
                                                                 params));
      }
    }
    cut += !whole;
    bool once = true;
    for (int count : multiplied) once = once && count == 1;
    for (int count : finished) once = once && count == 1;
    CHECK(once);
  }
  CHECK(cut > 100 && cut < 500);
}

}  // namespace
}  // namespace fastinfer::test

int main() {
  using namespace fastinfer::test;
  using namespace fastinfer::cuda;
  using StreamK = cutlass::gemm::StreamKScheduler;
  constexpr auto kStreamK = CutlassTile::m128n128_stream_k;
  group("epilogue 128x256 16-bit",
        check_epilogue<Cooperative<CutlassTile::m128n256, uint16_t>, uint16_t>);
  group("epilogue 128x256 32-bit",
        check_epilogue<Cooperative<CutlassTile::m128n256, float>, float>);
  group("epilogue 128x128 16-bit",
        check_epilogue<Pingpong<CutlassTile::m128n128, uint16_t>, uint16_t>);
  group("epilogue 128x128 32-bit", check_epilogue<Pingpong<CutlassTile::m128n128, float>, float>);
  group("epilogue stream-K 16-bit",
        check_epilogue<Cooperative<kStreamK, uint16_t, StreamK>, uint16_t>);
  group("epilogue stream-K 32-bit", check_epilogue<Cooperative<kStreamK, float, StreamK>, float>);
  group("epilogue 2:4 16-bit", check_epilogue<Sp24Gemm<uint16_t>, uint16_t, true>);
  group("epilogue 2:4 32-bit", check_epilogue<Sp24Gemm<float>, float, true>);
  group("layouts of 2:4 weights", check_sp24);
  group("work of stream-K", check_stream_k);
  const Results& r = results();
  std::printf("%d passed, %d failed\n", r.groups_passed, r.groups_failed);
  return r.groups_failed == 0 ? 0 : 1;
}
