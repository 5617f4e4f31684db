// What of the CUTLASS kernels runs without a GPU: their epilogue, to the bits of the CPU's; what
// what they take; how a plan is chosen; and the layout of 2:4 weights.
#include <algorithm>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/scalar.h"
#include "cuda/gemm_s8s8s32/cutlass_epilogue.h"
#include "cuda/gemm_s8s8s32/cutlass_heuristics.h"
#include "cutlass_sp24_layout.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::Activation;
using cpu::ScalarVec;

namespace {

// A block of sums and all that the epilogue may take beside them; the first rows and columns hold
// what is not an ordinary number.
struct Block {
  static constexpr int64_t m = 37, n = 80;
  std::vector<int32_t> acc, compensation;
  std::vector<float> a_scale, a_offset, w_scale, bias;

  explicit Block(Random& random) {
    const float special[] = {0.0f,   -0.0f, INFINITY, -INFINITY, float_of_bits(0x7fc00000u),
                             1e-40f, 3e38f, -3e38f};
    const int64_t count = int64_t(sizeof special / sizeof *special);
    const auto floats = [&](int64_t size, float scale) {
      std::vector<float> v;
      for (int64_t i = 0; i < size; ++i) {
        v.push_back(i < count ? special[i] : random.unit() * scale);
      }
      return v;
    };
    for (int64_t i = 0; i < m * n; ++i) {
      acc.push_back(int32_t(random.bits()) >> random.below(31));
    }
    acc[size_t(m * n - 1)] = std::numeric_limits<int32_t>::max();
    acc[size_t(m * n - 2)] = std::numeric_limits<int32_t>::min();
    for (int64_t i = 0; i < n; ++i) compensation.push_back(int32_t(random.bits()) & ~127);
    a_scale = floats(m, 0x1p-10f);
    a_offset = floats(m, 2);
    w_scale = floats(n, 0x1p-10f);
    bias = floats(n, 4);
  }
};

// The outputs by finish_fragment, kCount at a time; those of a fragment lie anywhere in the block.
template <class Out>
void finish_block(const Block& block, const cuda::FragmentEpilogue& e, bool with_bias,
                  const Out* residual, Out* out) {
  constexpr int kCount = 16;
  constexpr int64_t size = Block::m * Block::n;
  static_assert(size % kCount == 0, "whole fragments");
  for (int64_t first = 0; first < size / kCount; ++first) {
    int32_t acc[kCount];
    float w_scale[kCount], compensation[kCount], bias[kCount], a_scale[kCount], a_offset[kCount];
    Out added[kCount], result[kCount];
    for (int i = 0; i < kCount; ++i) {
      const int64_t at = first + i * (size / kCount);
      const size_t row = size_t(at / Block::n), column = size_t(at % Block::n);
      acc[i] = block.acc[size_t(at)];
      w_scale[i] = block.w_scale[column];
      compensation[i] = float(block.compensation[column]);
      bias[i] = with_bias ? block.bias[column] : 0.0f;
      a_scale[i] = block.a_scale[row];
      a_offset[i] = block.a_offset[row];
      added[i] = residual[at];
    }
    cuda::finish_fragment<ScalarVec, kCount>(e, acc, w_scale, compensation, bias, a_scale, a_offset,
                                             added, result);
    for (int i = 0; i < kCount; ++i) out[first + i * (size / kCount)] = result[i];
  }
}

void check_epilogue(Activation activation, DType out_dtype, bool with_bias, bool with_residual) {
  Random random(uint64_t(activation) * 16 + uint64_t(out_dtype) * 4 + with_bias * 2 +
                with_residual);
  const Block block(random);
  const int64_t size = Block::m * Block::n, bytes = cpu::size_of(out_dtype);
  std::vector<uint8_t> residual = random_elements(random, size, out_dtype);
  std::vector<uint8_t> got(size_t(size * bytes)), want(size_t(size * bytes));

  cpu::GemmS8S8S32 p{};
  p.m = Block::m;
  p.n = Block::n;
  p.a_scale = block.a_scale.data();
  p.a_offset = block.a_offset.data();
  p.compensation = block.compensation.data();
  p.b_scale = block.w_scale.data();
  p.bias = with_bias ? block.bias.data() : nullptr;
  p.activation = activation;
  p.residual = with_residual ? residual.data() : nullptr;
  p.residual_ld_bytes = p.out_ld_bytes = Block::n * bytes;
  p.out = want.data();
  p.out_dtype = out_dtype;
  cpu::select_epilogue<ScalarVec>(p)(p, block.acc.data(), Block::n, 0, Block::m, 0, Block::n);

  const cuda::FragmentEpilogue e{activation, out_dtype, with_residual};
  if (out_dtype == DType::f32) {
    finish_block(block, e, with_bias, reinterpret_cast<const float*>(residual.data()),
                 reinterpret_cast<float*>(got.data()));
  } else {
    finish_block(block, e, with_bias, reinterpret_cast<const uint16_t*>(residual.data()),
                 reinterpret_cast<uint16_t*>(got.data()));
  }
  CHECK(same_elements(got.data(), want.data(), size, out_dtype));
}

// Operands that fit; each change of one must not.
void check_fits() {
  alignas(16) static char memory[64];
  const auto at = [](int offset) { return reinterpret_cast<int8_t*>(memory + offset); };
  cuda::GemmS8S8S32 p{};
  p.m = 100;
  p.n = 24;
  p.k_pad = 192;
  p.a = p.w = at(0);
  p.out = at(16);
  p.ld_out = 32;
  p.out_dtype = DType::bf16;
  CHECK(cuda::cutlass_fits(p));
  const auto changed = [&p](auto&& change) {
    cuda::GemmS8S8S32 q = p;
    change(q);
    return cuda::cutlass_fits(q);
  };
  using Call = cuda::GemmS8S8S32;
  CHECK(!changed([](Call& q) { q.m = 0; }));
  CHECK(!changed([](Call& q) { q.n = 0; }));
  CHECK(!changed([](Call& q) { q.k_pad = 0; }));
  CHECK(!changed([](Call& q) { q.k_pad = 96; }));
  CHECK(!changed([](Call& q) { q.m = int64_t(1) << 31; }));
  CHECK(!changed([&](Call& q) { q.a = at(8); }));
  CHECK(!changed([&](Call& q) { q.w = at(8); }));
  CHECK(!changed([&](Call& q) { q.out = at(8); }));
  CHECK(!changed([](Call& q) { q.n = 20; }));
  CHECK(!changed([](Call& q) { q.ld_out = 28; }));
  CHECK(!changed([](Call& q) { q.ld_out = 16; }));  // less than n
  CHECK(!changed([](Call& q) { q.out_dtype = DType::s32; }));
  const float factor = 1;
  CHECK(!changed([&](Call& q) { q.multiplier = &factor; }));
  // Four floats are 16 bytes, eight halves are.
  CHECK(changed([](Call& q) { q.out_dtype = DType::f32, q.n = 20, q.ld_out = 28; }));
  CHECK(!changed([](Call& q) { q.out_dtype = DType::f16, q.ld_out = 28; }));
  // ld_residual says nothing without a residual.
  CHECK(changed([](Call& q) { q.ld_residual = 3; }));
  CHECK(changed([&](Call& q) { q.residual = at(32), q.ld_residual = 24; }));
  CHECK(!changed([&](Call& q) { q.residual = at(40), q.ld_residual = 24; }));
  CHECK(!changed([&](Call& q) { q.residual = at(32), q.ld_residual = 28; }));
  CHECK(!changed([&](Call& q) { q.residual = at(32), q.ld_residual = 16; }));
}

constexpr int kH200 = 132;

// Waves of tiles, by handing them out one by one; as CUTLASS, in whole clusters and squares.
int64_t waves_of(const cuda::CutlassPlan& plan, int64_t m, int64_t n) {
  const cuda::CutlassTileShape& shape = cuda::kCutlassTileShapes[int(plan.tile)];
  int64_t rows = 0, columns = 0;
  while (rows * shape.m < m || rows % (shape.cluster_m * plan.swizzle) != 0) ++rows;
  while (columns * shape.n < n || columns % (shape.cluster_n * plan.swizzle) != 0) ++columns;
  const int64_t blocks = plan.multiprocessors - plan.multiprocessors % shape.cluster();
  int64_t waves = 0;
  for (int64_t left = rows * columns; left > 0; left -= blocks) ++waves;
  return waves;
}

void check_plans() {
  using cuda::CutlassTile;
  const auto tile = [](int64_t m, int64_t n, int64_t k) {
    return cuda::plan_cutlass(m, n, k, kH200).tile;
  };
  // Large: the largest tile. One row of tiles on a deep K: cut along K. A shallow K: the epilogue
  // is to be hidden.
  CHECK(tile(4096, 4096, 4096) == CutlassTile::m128n256);
  CHECK(tile(8192, 8192, 8192) == CutlassTile::m128n256);
  CHECK(tile(128, 4096, 4096) == CutlassTile::m128n128_stream_k);
  CHECK(tile(128, 4096, 14336) == CutlassTile::m128n128_stream_k);
  CHECK(tile(8192, 3072, 768) == CutlassTile::m128n128);
  // K too short to be cut.
  CHECK(tile(128, 4096, 1024) != CutlassTile::m128n128_stream_k);

  // By hand: 2 x 66 tiles are one wave; 32 steps of (128 + 256 / 2) * 128 bytes at 26 a cycle, more
  // than the 1024 cycles of their multiply-adds; 128 * 256 outputs at 0.2.
  CHECK(std::fabs(cuda::cutlass_cycles(CutlassTile::m128n256, 256, 66 * 256, 4096, kH200) -
                  (2000 + 32 * 32768 / 26.0 + 6553.6)) < 1e-6);
  // One column more is one more tile, and a second wave.
  CHECK(std::fabs(cuda::cutlass_cycles(CutlassTile::m128n256, 256, 66 * 256 + 1, 4096, kH200) -
                  (2000 + 2 * (32 * 32768 / 26.0 + 6553.6))) < 1e-6);

  Random random(3);
  int chosen[cuda::kCutlassTileCount] = {};
  bool least = true, swizzle = true, growing = true;
  for (int i = 0; i < 4000; ++i) {
    const int64_t m = 1 + random.below(1 << (1 + random.below(14)));
    const int64_t n = 1 + random.below(1 << (1 + random.below(15)));
    const int64_t k_pad = 64 * (1 + random.below(1 << random.below(9)));
    const int multiprocessors = 2 + int(random.below(140));
    const cuda::CutlassPlan plan = cuda::plan_cutlass(m, n, k_pad, multiprocessors);
    ++chosen[int(plan.tile)];
    const double cycles = cuda::cutlass_cycles(plan.tile, m, n, k_pad, multiprocessors);
    for (int t = 0; t < cuda::kCutlassTileCount; ++t) {
      const double other = cuda::cutlass_cycles(CutlassTile(t), m, n, k_pad, multiprocessors);
      least = least && cycles > 0 && cycles <= other;
      // A longer K can be cut into more pieces, and be faster for it.
      growing = growing &&
                (CutlassTile(t) == CutlassTile::m128n128_stream_k ||
                 other < cuda::cutlass_cycles(CutlassTile(t), m, n, k_pad + 8192, multiprocessors));
    }
    cuda::CutlassPlan plain = plan;
    plain.swizzle = 1;
    swizzle = swizzle && plan.multiprocessors == multiprocessors &&
              waves_of(plan, m, n) == waves_of(plain, m, n) &&
              (plan.swizzle == 1 || plan.tile != CutlassTile::m128n128_stream_k);
  }
  CHECK(least);
  CHECK(growing);
  CHECK(swizzle);
  for (int count : chosen) CHECK(count > 0);
  CHECK(cuda::plan_cutlass(8192, 8192, 8192, kH200).swizzle == 8);
  // 9 rows of tiles become 10 for clusters of two and 12 for squares of two: still three waves of
  // 32 columns. Squares of four would make them 16, and four waves.
  const cuda::CutlassPlan odd = cuda::plan_cutlass(9 * 128, 8192, 4096, kH200);
  CHECK(odd.tile == CutlassTile::m128n256 && odd.swizzle == 2);
}

// Reads a weight back by the formulas of cutlass_sp24_layout.h.
void check_sp24(int64_t n, int64_t k_pad, int most) {
  Random random(uint64_t(n * 1000 + k_pad + most));
  std::vector<int8_t> w(size_t(n * k_pad));
  for (size_t group = 0; group < w.size(); group += 4) {
    for (int i = 0; i < most; ++i) {
      w[group + size_t(random.below(4))] = int8_t(random.byte() | 1);  // may fall on one place
    }
  }
  const Guarded values(cutlass_sp24_values_bytes(n, k_pad), Side::end);
  const Guarded metadata(cutlass_sp24_metadata_bytes(n, k_pad), Side::end);
  CHECK(cutlass_sp24(w.data(), n, k_pad, values.as<int8_t>(), metadata.as<uint8_t>()));
  const int64_t n_pad = (n + 63) / 64 * 64, steps = (k_pad + 127) / 128;
  CHECK(metadata.bytes() == n_pad * steps * 16 && values.bytes() == n * k_pad / 2);
  bool ordered = true, equal = true, padding = true;
  for (int64_t row = 0; row < n_pad; ++row) {
    for (int64_t k = 0; k < steps * 128; k += 4) {
      const uint8_t byte = metadata.as<uint8_t>()[(k / 128 * n_pad + row) * 16 + k % 128 / 8];
      const int places = k % 8 == 0 ? byte & 15 : byte >> 4;
      const int first = places & 3, second = places >> 2;
      ordered = ordered && first < second;
      if (row >= n || k >= k_pad) {
        padding = padding && places == 4;
        continue;
      }
      int8_t group[4] = {};
      const int8_t* kept = values.as<int8_t>() + row * k_pad / 2 + k / 2;
      group[first] = kept[0];
      group[second] = kept[1];
      equal = equal && std::memcmp(group, w.data() + row * k_pad + k, 4) == 0;
    }
  }
  CHECK(ordered);
  CHECK(equal);
  CHECK(padding);
  w[w.size() - 4] = w[w.size() - 2] = w[w.size() - 1] = 1;  // three in the last group
  CHECK(!cutlass_sp24(w.data(), n, k_pad, values.as<int8_t>(), metadata.as<uint8_t>()));
}

}  // namespace

void test_cutlass() {
  group("cutlass epilogue", [] {
    for (int activation = 0; activation < cpu::kActivationCount; ++activation) {
      for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (int options = 0; options < 4; ++options) {
          check_epilogue(Activation(activation), dtype, options % 2 == 1, options >= 2);
        }
      }
    }
  });
  group("cutlass operands", check_fits);
  group("cutlass plans", check_plans);
  group("cutlass 2:4 weights", [] {
    for (int64_t n : {1, 63, 64, 65, 131}) {
      for (int64_t k_pad : {64, 128, 192, 320}) {
        for (int most : {0, 1, 2}) check_sp24(n, k_pad, most);
      }
    }
  });
}

}  // namespace fastinfer::test
