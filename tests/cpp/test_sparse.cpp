// Sparse weights: the layouts of pack.h there and back, blocks that lie, every row of expand_s8,
// gemm_masked_s8s8s32 and gemm_bsr_s8s8s32, and the driver, whose bits must be those of a dense
// weight with the same zeros.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_s8s8s32/linear.h"
#include "emulated_amx.h"
#include "guard.h"
#include "parallel.h"
#include "plan.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

constexpr WeightLayout kSparse[] = {WeightLayout::sp24, WeightLayout::bitmask, WeightLayout::bsr};
using Bytes = std::vector<uint8_t>;

// Random int8 [n, k] with the zeros that a layout is for; what is kept may be zero, too.
std::vector<int8_t> sparse_weight(Random& random, int64_t n, int64_t k, WeightLayout layout) {
  std::vector<int8_t> w(size_t(n * k));
  std::vector<uint8_t> tiles(size_t((n / 16 + 1) * (k / 64 + 1)));
  for (uint8_t& tile : tiles) tile = random.below(3) == 0;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      int8_t& v = w[size_t(row * k + i)];
      if (layout == WeightLayout::bsr) {
        v = tiles[size_t(row / 16 * (k / 64 + 1) + i / 64)] ? random.byte() : int8_t(0);
      } else if (layout == WeightLayout::bitmask) {
        v = random.below(10) < 3 ? random.byte() : int8_t(0);
      } else {
        v = random.byte();
        if (i % 4 != 3 && i + 1 != k) continue;
        for (int64_t first = i / 4 * 4; std::count(&w[size_t(row * k + first)], &v + 1, 0) <
                                        std::max<int64_t>(0, i + 1 - first - 2);) {
          w[size_t(row * k + first + random.below(i + 1 - first))] = 0;
        }
      }
    }
  }
  return w;
}

Bytes pack(const std::vector<int8_t>& w, int64_t n, int64_t k, WeightLayout layout) {
  int64_t row, column;
  const int64_t bytes = packed_bytes(w.data(), n, k, layout, &row, &column);
  CHECK(bytes >= 0);
  Bytes packed(size_t(bytes), uint8_t(0xee));
  pack_w8(w.data(), n, k, packed.data(), layout);
  return packed;
}

std::string named(WeightLayout layout, int64_t n, int64_t k) {
  return std::string(weight_layout_name(layout)) + " n=" + std::to_string(n) +
         " k=" + std::to_string(k);
}

void check_round_trip() {
  Random random(31);
  for (WeightLayout layout : kSparse) {
    for (int64_t n : {0, 1, 15, 16, 17, 50}) {
      for (int64_t k : {0, 1, 3, 4, 63, 64, 65, 131}) {
        results().context = named(layout, n, k);
        const auto w = sparse_weight(random, n, k, layout);
        const Bytes bytes = pack(w, n, k, layout);
        const Guarded packed(bytes.data(), int64_t(bytes.size()), Side::end);
        PackedWeight weight;
        if (!CHECK(open_packed(packed.as<void>(), packed.bytes(), &weight) == nullptr)) continue;
        CHECK(weight.layout == layout && weight.n == n && weight.k == k);
        const Guarded back(n * k, Side::end);
        unpack_w8(weight, back.as<int8_t>());
        CHECK(w.empty() || std::memcmp(back.as<char>(), w.data(), w.size()) == 0);
        bool sums = true;
        for (int64_t row = 0; row < n; ++row) {
          int32_t sum = 0, compensation;
          for (int64_t i = 0; i < k; ++i) sum += w[size_t(row * k + i)];
          std::memcpy(&compensation, reinterpret_cast<const char*>(weight.compensation) + row * 4,
                      4);
          sums = sums && compensation == -128 * sum;
        }
        CHECK(sums);
      }
    }
  }
}

// The bytes that the layouts are for.
void check_sizes() {
  Random random(32);
  const int64_t n = 64, k = 256, header = 64 + 4 * n;
  const auto pairs = sparse_weight(random, n, k, WeightLayout::sp24);
  CHECK(int64_t(pack(pairs, n, k, WeightLayout::sp24).size()) ==
        header + n * k * 5 / 8 + kReadAhead);
  const auto few = sparse_weight(random, n, k, WeightLayout::bitmask);
  const int64_t kept = n * k - std::count(few.begin(), few.end(), 0);
  CHECK(int64_t(pack(few, n, k, WeightLayout::bitmask).size()) ==
        header + 64 + n * k / 8 + kept + kReadAhead);
  std::vector<int8_t> tiles(size_t(n * k));
  tiles[size_t(17 * k + 70)] = 1;
  CHECK(int64_t(pack(tiles, n, k, WeightLayout::bsr).size()) == header + 64 + kSliceBytes);

  auto three = pairs;
  for (size_t i : {8u, 9u, 11u}) three[size_t(5 * k) + i] = 1;
  int64_t row = -1, column = -1;
  CHECK(packed_bytes(three.data(), n, k, WeightLayout::sp24, &row, &column) == -1);
  CHECK(row == 5 && column == 8);
}

// One linear with a weight in two layouts.
struct Case {
  int64_t m, n, k;
  Bytes x, residual, dense, sparse;
  std::vector<float> scale, bias;

  Case(uint64_t seed, int64_t m_, int64_t n_, int64_t k_, WeightLayout layout)
      : m(m_), n(n_), k(k_) {
    Random random(seed);
    const auto w = sparse_weight(random, n, k, layout);
    x = random_elements(random, m * k, DType::f32);
    residual = random_elements(random, m * n, DType::f32);
    for (int64_t i = 0; i < n; ++i) scale.push_back((random.unit() + 1.5f) * 0x1p-7f);
    for (int64_t i = 0; i < n; ++i) bias.push_back(random.unit());
    dense = pack(w, n, k, WeightLayout::dense);
    sparse = pack(w, n, k, layout);
  }

  LinearW8A8 problem(const LinearWeight* weights, int64_t count) const {
    LinearW8A8 p{};
    p.x = x.data();
    p.x_dtype = p.out_dtype = DType::f32;
    p.ldx_bytes = k * 4;
    p.m = m;
    p.weights = weights;
    p.weight_count = count;
    p.activation = Activation::gelu;
    return p;
  }

  // `packed` ends at a guard page and begins where it may.
  Bytes run(const Bytes& packed, int threads, ParallelFor parallel_for) const {
    const Guarded block(packed.data(), int64_t(packed.size()), Side::end);
    LinearWeight weight{{}, scale.data(), bias.data()};
    CHECK(open_packed(block.as<void>(), block.bytes(), &weight.packed) == nullptr);
    LinearW8A8 p = problem(&weight, 1);
    p.residual = residual.data();
    p.residual_ld_bytes = p.out_ld_bytes = n * 4;
    Bytes out(size_t(m * n * 4));
    p.out = out.data();
    CHECK(linear_w8a8(p, threads, parallel_for));
    return out;
  }
};

void check_linear(WeightLayout layout) {
  for (int64_t m : {1, 2, 5, 8, 9, 33, 64, 70}) {
    for (int64_t n : {16, 49, 130}) {
      for (int64_t k : {1, 64, 100, 260}) {
        results().context = named(layout, n, k) + " m=" + std::to_string(m);
        const Case c(uint64_t(m * n + k), m, n, k, layout);
        const Bytes want = c.run(c.dense, 1, serial);
        CHECK(c.run(c.sparse, 1, serial) == want);
        CHECK(c.run(c.sparse, 3, serial) == want);
        CHECK(c.run(c.sparse, 2, threaded) == want);
      }
    }
  }
}

// Tasks of whole rows, of whose last ones other threads take columns.
void check_last_chunks(WeightLayout layout) {
  const Case c(7, 509, 265, 100, layout);
  const WeightKinds kinds{double(c.sparse.size()) / double(c.dense.size()), is_masked(layout),
                          layout == WeightLayout::bsr};
  CHECK(cuts_last_chunks(c.m, 272, 272, c.k, 2, kinds));
  const Bytes want = c.run(c.dense, 1, serial);
  for (ParallelFor order : {serial, two_by_two, threaded}) {
    CHECK(c.run(c.sparse, 2, order) == want);
  }
}

// More tiles than a kernel keeps in L2 for all rows; the last rows are no whole block.
void check_chunks_of_tiles() {
  const Case c(8, 21, 1000, 2000, WeightLayout::bsr);
  CHECK(int64_t(c.sparse.size()) > 600 * kSliceBytes);
  CHECK(c.run(c.sparse, 1, serial) == c.run(c.dense, 1, serial));
}

// Rows and columns in several chunks; side by side with a dense weight; a gate and its factor.
void check_forms(WeightLayout layout) {
  const Case large(5, 150, 400, 1100, layout), wide(6, 3, 1000, 2000, layout);
  for (const Case* c : {&large, &wide}) {
    CHECK(c->run(c->sparse, 2, threaded) == c->run(c->dense, 1, serial));
  }
  for (int64_t m : {1, 7, 40, 170}) {
    const Case c(uint64_t(m), m, 401, 192, layout);
    LinearWeight weight[2] = {{{}, c.scale.data(), c.bias.data()}, {{}, c.scale.data(), nullptr}};
    const auto run = [&](const Bytes& first, const Bytes& second, bool gated) {
      CHECK(open_packed(first.data(), int64_t(first.size()), &weight[0].packed) == nullptr);
      CHECK(open_packed(second.data(), int64_t(second.size()), &weight[1].packed) == nullptr);
      LinearW8A8 p = c.problem(weight, 2);
      p.gated = gated;
      p.out_ld_bytes = c.n * (gated ? 4 : 8);
      Bytes out(size_t(m * p.out_ld_bytes));
      p.out = out.data();
      CHECK(linear_w8a8(p, 3, serial));
      return out;
    };
    for (bool gated : {false, true}) {
      const Bytes want = run(c.dense, c.dense, gated);
      CHECK(run(c.sparse, c.dense, gated) == want);
      CHECK(run(c.dense, c.sparse, gated) == want);
      CHECK(run(c.sparse, c.sparse, gated) == want);
    }
  }
}

// Bytes that open_packed takes may still be any: nothing may read outside them.
void check_mutations() {
  Random random(33);
  int taken = 0, refused = 0;
  for (WeightLayout layout : kSparse) {
    const Case c(7, 3, 50, 200, layout), many(7, 20, 50, 200, layout);
    for (int i = 0; i < 400; ++i) {
      Bytes bytes = c.sparse;
      // The first bytes are the header, the last ones are values or zeros: most hits between.
      const int64_t index = 64 + 4 * 64 + random.below(200);
      for (int64_t j = random.below(6); j >= 0; --j) {
        const int64_t anywhere = 24 + random.below(int64_t(bytes.size()) - 24);
        bytes[size_t(random.below(2) ? index + j : anywhere)] = uint8_t(random.bits());
      }
      if (random.below(8) == 0) bytes.resize(size_t(random.below(int64_t(bytes.size()) + 100)));
      const Guarded block(bytes.data(), int64_t(bytes.size()), Side::end);
      LinearWeight weight{{}, c.scale.data(), c.bias.data()};
      if (open_packed(block.as<void>(), block.bytes(), &weight.packed) != nullptr) {
        ++refused;
        continue;
      }
      ++taken;
      std::vector<int8_t> w(size_t(weight.packed.n * weight.packed.k) + 1);
      unpack_w8(weight.packed, w.data());
      if (weight.packed.n != c.n || weight.packed.k != c.k) continue;
      for (const Case* rows : {&c, &many}) {
        LinearW8A8 p = rows->problem(&weight, 1);
        Bytes out(size_t(rows->m * rows->n * 4));
        p.out = out.data();
        p.out_ld_bytes = rows->n * 4;
        CHECK(linear_w8a8(p, 1, serial));
      }
    }
  }
  CHECK(taken > 300);
  CHECK(refused > 100);
}

// Masked slices of every density, after each other, on guarded memory; masks that ask for more than
// there is stop at `last`. Slices of pairs of any values and places.
void check_expand(const ExpandS8Kernel& kernel) {
  int count;
  const ExpandS8Kernel& generic = expand_s8_kernels(&count)[0];
  Random random(34);
  for (int64_t slices : {0, 1, 2, 7}) {
    for (int density : {0, 1, 4, 8}) {
      Bytes masked;
      int64_t last = 0;
      for (int64_t s = 0; s < slices; ++s) {
        last = int64_t(masked.size());
        int64_t kept = 0;
        for (int64_t i = 0; i < kMaskBytes; ++i) {
          uint8_t mask = 0;
          for (int bit = 0; bit < 8; ++bit) mask |= uint8_t((random.below(8) < density) << bit);
          kept += __builtin_popcount(mask);
          masked.push_back(mask);
        }
        for (int64_t i = 0; i < kept; ++i) masked.push_back(uint8_t(random.byte()));
      }
      for (int64_t limit : {last, last / 2}) {
        Bytes bytes = masked;
        bytes.resize(size_t(limit + kReadAhead));
        const Guarded block(bytes.data(), int64_t(bytes.size()), Side::end);
        const uint8_t* begin = block.as<uint8_t>();
        const Guarded want(slices * kSliceBytes, Side::end), got(slices * kSliceBytes, Side::end);
        generic.run({begin, begin + limit, slices, false, want.as<int8_t>()});
        kernel.run({begin, begin + limit, slices, false, got.as<int8_t>()});
        CHECK(std::memcmp(want.as<char>(), got.as<char>(), size_t(slices * kSliceBytes)) == 0);
      }
    }
    Bytes pairs(size_t(slices * kPairsSliceBytes));
    for (uint8_t& byte : pairs) byte = uint8_t(random.byte());
    constexpr uint8_t kPlaces[] = {4, 8, 9, 12, 13, 14};  // first | second << 2, ascending
    for (int64_t i = 0; i < slices * kPairsIndexBytes; ++i) {
      const int two = kPlaces[random.below(6)] | kPlaces[random.below(6)] << 4;
      pairs[size_t(i / kPairsIndexBytes * kPairsSliceBytes + i % kPairsIndexBytes)] = uint8_t(two);
    }
    const Guarded block(pairs.data(), int64_t(pairs.size()), Side::end);
    const uint8_t *begin = block.as<uint8_t>(), *end = begin + pairs.size();
    const Guarded want(slices * kSliceBytes, Side::end), got(slices * kSliceBytes, Side::end);
    generic.run({begin, end, slices, true, want.as<int8_t>()});
    kernel.run({begin, end, slices, true, got.as<int8_t>()});
    CHECK(std::memcmp(want.as<char>(), got.as<char>(), size_t(slices * kSliceBytes)) == 0);
  }
}

template <class Kernel, class Check>
void each_row(const Kernel* kernels, int count, Check&& check) {
  for (int i = 0; i < count; ++i) {
    const Kernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] { check(kernel); });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
}

// Sums against int64, not always from the first panel on; the driver's tests see the epilogue.
// run(gemm, weight, panel) calls the kernel.
template <class Run>
void check_sums(const std::string& name, WeightLayout layout, int64_t m, int64_t tile_rows,
                uint8_t flip, Run&& run,
                std::initializer_list<int64_t> columns = {1, 16, 33, 64, 211},
                std::initializer_list<int64_t> depths = {0, 1, 64, 131, 1100}) {
  Random random(uint64_t(35 + m));
  for (int64_t n : columns) {
    for (int64_t k : depths) {
      results().context = name + " " + named(layout, n, k) + " m=" + std::to_string(m);
      const auto w = sparse_weight(random, n, k, layout);
      const Bytes bytes = pack(w, n, k, layout);
      const Guarded block(bytes.data(), int64_t(bytes.size()), Side::end);
      PackedWeight weight;
      CHECK(open_packed(block.as<void>(), block.bytes(), &weight) == nullptr);
      std::vector<int8_t> a(size_t(m * k));
      for (int8_t& v : a) v = random.byte();
      Bytes laid_out(size_t(m * weight.k_pad), flip);
      for (int64_t row = 0; row < m; ++row) {
        const int64_t first = row / tile_rows * tile_rows, height = std::min(tile_rows, m - first);
        for (int64_t i = 0; i < k; ++i) {
          const int64_t at = first * weight.k_pad + i / 64 * height * 64 + (row - first) * 64;
          laid_out[size_t(at + i % 64)] ^= uint8_t(a[size_t(row * k + i)]);
        }
      }
      const Guarded rows(laid_out.data(), int64_t(laid_out.size()), Side::end);
      const std::vector<float> ones(size_t(std::max(m, n)), 1.0f);
      const int64_t panel = n > 16;
      const Guarded out(m * n * 4, Side::end);
      GemmS8S8S32 p{};
      p.m = m;
      p.n = n - panel * 16;
      p.k_pad = weight.k_pad;
      p.a = rows.as<int8_t>();
      p.a_scale = p.a_offset = p.b_scale = ones.data();
      p.compensation = weight.compensation + panel * 16;
      p.out = out.as<char>() + panel * 64;
      p.out_ld_bytes = n * 4;
      p.out_dtype = DType::s32;
      run(p, weight, panel);
      bool same = true;
      for (int64_t row = 0; row < m; ++row) {
        for (int64_t column = panel * 16; column < n; ++column) {
          int64_t sum = 0;
          for (int64_t i = 0; i < k; ++i) {
            sum += int64_t(a[size_t(row * k + i)]) * w[size_t(column * k + i)];
          }
          same = same && out.as<int32_t>()[row * n + column] == int32_t(sum);
        }
      }
      CHECK(same);
    }
  }
}

void check_masked(const GemmMaskedS8S8S32Kernel& kernel) {
  int count;
  const GemmS8S8S32Kernel* dense = gemm_s8s8s32_kernels(&count);
  const auto* companion = std::find_if(
      dense, dense + count, [&](const auto& row) { return row.isa == kernel.companion; });
  for (WeightLayout layout : {WeightLayout::sp24, WeightLayout::bitmask}) {
    for (int64_t m :
         {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 32, 39, 96, 128, 130, 201, 288}) {
      if (m % kernel.row_step != 0) continue;
      for (bool zen4 : {false, true}) {
        check_sums(kernel.name, layout, m, companion->tile_rows, companion->flip,
                   [&](GemmS8S8S32 p, const PackedWeight& weight, int64_t panel) {
                     const Guarded scratch(masked_scratch_bytes(m, weight.k_pad), Side::end);
                     p.zen4 = zen4;
                     kernel.run({p, &weight, panel, scratch.as<int8_t>(), select_expand_s8().run});
                   });
      }
    }
  }
}

void check_bsr(const GemmBsrS8S8S32Kernel& kernel) {
  const auto run = [&](const GemmS8S8S32& p, const PackedWeight& weight, int64_t panel) {
    kernel.run({p, &weight, panel});
  };
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 39, 130}) {
    check_sums(kernel.name, WeightLayout::bsr, m, kernel.tile_rows, kernel.flip, run);
  }
  // More tiles than stay in L2 for all rows.
  check_sums(kernel.name, WeightLayout::bsr, 85, kernel.tile_rows, kernel.flip, run, {1000},
             {2000});
}

// The rows amx over the emulator, where the rest of them can run.
#ifdef FASTINFER_EMULATE_AMX
template <class Kernel, class Run, class Check>
void test_emulated(const Kernel* kernels, int count, Run run, Check&& check) {
  Kernel kernel = kernels[count - 1];
  if (!amx_emulated(kernel.name)) return;
  kernel.run = run;
  group(std::string(kernel.name) + ", emulated", [&] { check(kernel); });
  std::printf("row %s amx emulated\n", kernel.name);
}
#endif

}  // namespace

void test_sparse() {
  group("sparse: layouts, sums, round trip", check_round_trip);
  group("sparse: sizes, weights that are not 2:4", check_sizes);
  int count;
  const ExpandS8Kernel* expand = expand_s8_kernels(&count);
  each_row(expand, count, check_expand);
  const GemmMaskedS8S8S32Kernel* masked = gemm_masked_s8s8s32_kernels(&count);
  each_row(masked, count, check_masked);
  const GemmBsrS8S8S32Kernel* bsr = gemm_bsr_s8s8s32_kernels(&count);
  each_row(bsr, count, check_bsr);
#ifdef FASTINFER_EMULATE_AMX
  test_emulated(bsr, count, gemm_bsr_amx_emulated, check_bsr);
  masked = gemm_masked_s8s8s32_kernels(&count);
  test_emulated(masked, count, gemm_masked_amx_emulated, check_masked);
#endif
  const std::string before = isa_cap();
  for (int i = 0; i < kIsaCount; ++i) {
    set_isa_cap(before.c_str());
    if (!isa_allowed(Isa(i))) continue;
    set_isa_cap(isa_name(Isa(i)));
    group(std::string("sparse: the bits of the dense weight, ") + isa_name(Isa(i)), [] {
      for (WeightLayout layout : kSparse) {
        check_linear(layout);
        check_forms(layout);
        check_last_chunks(layout);
      }
      check_chunks_of_tiles();
      check_mutations();
    });
  }
  set_isa_cap(before.c_str());
}

}  // namespace fastinfer::test
