// Every row of gemm_s8s8s32/kernels.inc that runs here: exact sums against int64, float results
// against the bits of the generic row, on guarded buffers, around the edges of its tile.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "emulated_amx.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Problem {
  int64_t m, n, k, k_pad, n_pad;
  std::vector<int8_t> a, b;  // [m, k], [n, k]
  std::vector<float> a_scale, a_offset, b_scale, bias;
  std::vector<float> multiplier;  // [m, n]
  std::vector<uint8_t> packed;
  PackedWeight weight;

  Problem(Random& random, int64_t m_, int64_t n_, int64_t k_, bool extremes = false)
      : m(m_),
        n(n_),
        k(k_),
        k_pad(round_up(k_, kBlockK)),
        n_pad(round_up(n_, kPanelColumns)),
        a(size_t(m * k)),
        b(size_t(n * k)),
        packed(size_t(packed_bytes(n, k))) {
    for (int8_t& v : a) v = extremes ? int8_t(-128) : random.byte();
    for (int8_t& v : b) v = extremes ? int8_t(-128) : random.byte();
    for (int64_t i = 0; i < m; ++i) a_scale.push_back((random.unit() + 1.5f) * 0x1p-8f);
    for (int64_t i = 0; i < m; ++i) a_offset.push_back(random.unit());
    for (int64_t i = 0; i < n; ++i) b_scale.push_back((random.unit() + 1.5f) * 0x1p-9f);
    for (int64_t i = 0; i < n; ++i) bias.push_back(random.unit() * 4);
    for (int64_t i = 0; i < m * n; ++i) multiplier.push_back(random.unit() * 2);
    pack_w8(b.data(), n, k, packed.data());
    open_packed(packed.data(), int64_t(packed.size()), &weight);
  }

  // A in the layout of quantize_rowwise.h.
  std::vector<uint8_t> layout_a(int64_t tile_rows, uint8_t flip) const {
    std::vector<uint8_t> q(size_t(m * k_pad));
    for (int64_t row = 0; row < m; ++row) {
      const int64_t first = row / tile_rows * tile_rows;
      const int64_t block_rows = std::min(tile_rows, m - first);
      for (int64_t i = 0; i < k_pad; ++i) {
        const int8_t v = i < k ? a[size_t(row * k + i)] : int8_t(0);
        q[size_t(first * k_pad + i / 64 * block_rows * 64 + (row - first) * 64 + i % 64)] =
            uint8_t(v) ^ flip;
      }
    }
    return q;
  }
};

struct Options {
  Activation activation = Activation::none;
  DType out_dtype = DType::s32;
  bool bias = false, multiplier = false, residual = false, zen4 = false;
  bool whole_lines = false;     // rows of out begin at a multiple of 64 bytes
  int64_t out_bytes = 0;        // the hint
  int64_t begin = 0, end = -1;  // columns; -1: all
  Side side = Side::end;
};

constexpr int64_t kGap = 3;  // elements between rows of out and residual that nobody may touch

// What the kernel prepares of the rows of p, if anything, on a guarded buffer.
struct Prepared {
  Guarded memory;

  Prepared(const GemmS8S8S32Kernel& kernel, GemmS8S8S32* p, Side side)
      : memory(kernel.prepare.bytes == nullptr ? 0 : kernel.prepare.bytes(p->m, p->k_pad), side) {
    if (kernel.prepare.run == nullptr) return;
    kernel.prepare.run(p->a, p->m, p->k_pad, memory.as<char>());
    p->prepared = memory.as<char>();
    p->prepared_rows = p->m;
  }
};

// The rows of out, without gaps. Every buffer is guarded; what must stay untouched is checked.
std::vector<uint8_t> run(const GemmS8S8S32Kernel& kernel, const Problem& problem,
                         const Options& options, const std::vector<uint8_t>& residual_values) {
  const int64_t m = problem.m, n = problem.n, size = size_of(options.out_dtype);
  const int64_t ld = round_up((n + kGap) * size, options.whole_lines ? 64 : size);
  const int64_t out_bytes = (m - 1) * ld + n * size;
  const auto layout = problem.layout_a(kernel.tile_rows, kernel.flip);
  const auto guarded = [&](const auto& v) {
    return Guarded(v.data(), int64_t(v.size() * sizeof(v[0])), options.side);
  };
  const Guarded a = guarded(layout), a_scale = guarded(problem.a_scale);
  const Guarded a_offset = guarded(problem.a_offset);
  const Guarded b_scale = guarded(problem.b_scale), bias = guarded(problem.bias);
  const Guarded compensation(problem.weight.compensation, problem.n_pad * 4, options.side);
  const Guarded panels(problem.weight.panels, problem.n_pad * problem.k_pad, options.side);
  const Guarded residual(out_bytes, options.side), out(out_bytes, options.side);
  const int64_t begin = options.begin, end = options.end < 0 ? n : options.end;
  const int64_t multiplier_ld = (n + kGap) * int64_t(sizeof(float));
  const Guarded multiplier((m - 1) * multiplier_ld + n * int64_t(sizeof(float)), options.side);
  if (options.multiplier) {
    for (int64_t i = 0; i < m; ++i) {
      std::memcpy(multiplier.as<char>() + i * multiplier_ld, &problem.multiplier[size_t(i * n)],
                  size_t(n) * sizeof(float));
    }
  }
  if (options.residual) {
    for (int64_t i = 0; i < m; ++i) {
      std::memcpy(residual.as<char>() + i * ld, residual_values.data() + i * n * size,
                  size_t(n * size));
    }
  }

  GemmS8S8S32 p{};
  p.m = m;
  p.n = end - begin;
  p.k_pad = problem.k_pad;
  p.a = a.as<int8_t>();
  p.a_scale = a_scale.as<float>();
  p.a_offset = a_offset.as<float>();
  p.panels = panels.as<int8_t>() + begin * problem.k_pad;
  p.compensation = compensation.as<int32_t>() + begin;
  p.b_scale = b_scale.as<float>() + begin;
  p.bias = options.bias ? bias.as<float>() + begin : nullptr;
  p.activation = options.activation;
  p.multiplier = options.multiplier ? multiplier.as<float>() + begin : nullptr;
  p.multiplier_ld_bytes = multiplier_ld;
  p.residual = options.residual ? residual.as<char>() + begin * size : nullptr;
  p.residual_ld_bytes = ld;
  p.out = out.as<char>() + begin * size;
  p.out_ld_bytes = ld;
  p.out_dtype = options.out_dtype;
  p.zen4 = options.zen4;
  p.n_after = problem.n - end;
  p.out_bytes = options.out_bytes;
  const Prepared prepared(kernel, &p, options.side);
  kernel.run(p);

  const auto untouched = [&](int64_t from, int64_t to) {
    return std::all_of(out.as<uint8_t>() + from, out.as<uint8_t>() + to,
                       [](uint8_t v) { return v == 0xa5; });
  };
  std::vector<uint8_t> rows;
  bool gaps = true;
  for (int64_t i = 0; i < m; ++i) {
    const uint8_t* row = out.as<uint8_t>() + i * ld;
    rows.insert(rows.end(), row, row + n * size);
    gaps = gaps && untouched(i * ld, i * ld + begin * size);
    gaps = gaps && untouched(i * ld + end * size, i + 1 < m ? (i + 1) * ld : out_bytes);
  }
  CHECK(gaps);
  return rows;
}

std::vector<int32_t> exact_sums(const Problem& p) {
  std::vector<int32_t> sums;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      int64_t sum = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        sum += int64_t(p.a[size_t(i * p.k + k)]) * p.b[size_t(j * p.k + k)];
      }
      sums.push_back(int32_t(sum));
    }
  }
  return sums;
}

bool same_sums(const std::vector<int32_t>& want, const std::vector<uint8_t>& got) {
  return want.size() * 4 == got.size() && std::memcmp(want.data(), got.data(), got.size()) == 0;
}

void check_shape(const GemmS8S8S32Kernel& kernel, const GemmS8S8S32Kernel& generic, int64_t m,
                 int64_t n, int64_t k) {
  results().context = std::string(kernel.name) + " m=" + std::to_string(m) +
                      " n=" + std::to_string(n) + " k=" + std::to_string(k);
  Random random(uint64_t(m * 1000003 + n * 1009 + k));
  const Problem problem(random, m, n, k);
  const auto sums = exact_sums(problem);
  for (Side side : {Side::end, Side::begin}) {
    Options options;
    options.side = side;
    CHECK(same_sums(sums, run(kernel, problem, options, {})));
    options.zen4 = true;
    CHECK(same_sums(sums, run(kernel, problem, options, {})));
  }
  int turn = 0;
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto residual = random_elements(random, m * n, dtype);
    for (int activation = 0; activation < kActivationCount; ++activation) {
      for (bool with_bias : {false, true}) {
        for (bool with_residual : {false, true}) {
          Options options;
          options.activation = Activation(activation);
          options.out_dtype = dtype;
          options.bias = with_bias;
          options.residual = with_residual;
          for (bool with_multiplier : {false, true}) {
            options.multiplier = with_multiplier;
            options.side = turn++ % 2 ? Side::begin : Side::end;
            options.zen4 = turn % 3 == 0;
            const auto want = run(generic, problem, options, residual);
            const auto got = run(kernel, problem, options, residual);
            CHECK(same_elements(want.data(), got.data(), m * n, dtype));
          }
        }
      }
    }
  }
}

std::vector<int64_t> around(int64_t tile, int64_t step = 1) {
  std::vector<int64_t> sizes = {1, tile - step, tile, tile + step, 2 * tile + 3};
  sizes.erase(std::remove_if(sizes.begin(), sizes.end(), [](int64_t v) { return v < 1; }),
              sizes.end());
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

// Largest sums that int32 must hold: K at its limit, every product 128 * 128.
void check_extremes(const GemmS8S8S32Kernel& kernel) {
  Random random(1);
  const Problem problem(random, kernel.mr + 1, kernel.nr + 1, kMaxK, true);
  const std::vector<int32_t> want(size_t(problem.m * problem.n), int32_t(16384 * kMaxK));
  CHECK(same_sums(want, run(kernel, problem, {}, {})));
}

// Rows close around a value, with a few far from it, neighbours among them: kernels that take such
// groups apart (x86_avx2.cpp) do it only where they are few.
void check_outliers(const GemmS8S8S32Kernel& kernel) {
  for (int center : {0, -112, 90, 127}) {
    Random random(5);
    Problem problem(random, 3 * kernel.mr + 8, kernel.nr + 5, 1172);
    for (int8_t& v : problem.a) {
      v = int8_t(std::clamp(center + v / 4, -128, 127));
      if (random.unit() > 0.97f) v = random.byte() < 0 ? -128 : 127;
    }
    CHECK(same_sums(exact_sums(problem), run(kernel, problem, {}, {})));
  }
}

// Rows prepared once and multiplied in parts, as beside a gate: more than a block of x86_avx2.cpp,
// close around a value, some far off; weights that are far off, too.
void check_row_range(const GemmS8S8S32Kernel& kernel) {
  if (kernel.tile_rows != 1) return;
  Random random(6);
  Problem problem(random, 165, 21, 837);
  for (int8_t& v : problem.a) v = random.unit() > 0.98f ? random.byte() : int8_t(v / 3);
  for (int8_t& v : problem.b) v = random.unit() > 0.95f ? int8_t(-128) : int8_t(v / 2);
  pack_w8(problem.b.data(), problem.n, problem.k, problem.packed.data());
  const auto sums = exact_sums(problem);
  const auto a = problem.layout_a(1, kernel.flip);
  std::vector<uint8_t> got(sums.size() * 4);
  GemmS8S8S32 p{};
  p.m = problem.m;
  p.n = problem.n;
  p.k_pad = problem.k_pad;
  p.a = reinterpret_cast<const int8_t*>(a.data());
  p.panels = problem.weight.panels;
  p.compensation = problem.weight.compensation;
  p.a_scale = problem.a_scale.data();
  p.a_offset = problem.a_offset.data();
  p.b_scale = problem.b_scale.data();
  p.out_ld_bytes = problem.n * 4;
  p.out_dtype = DType::s32;
  const Prepared prepared(kernel, &p, Side::end);
  const int64_t ends[] = {50, 129, 130, 165};
  for (const int64_t end : ends) {
    p.m = end - p.prepared_row;
    p.out = got.data() + p.prepared_row * p.out_ld_bytes;
    kernel.run(p);
    p.a += p.m * p.k_pad;
    p.prepared_row = end;
  }
  CHECK(same_sums(sums, got));
}

// A part of the columns, as a task of a threaded run gets them.
void check_column_range(const GemmS8S8S32Kernel& kernel) {
  Random random(2);
  const Problem problem(random, kernel.mr + 1, 3 * kernel.nr + 5, 70);
  const auto sums = exact_sums(problem);
  for (int64_t begin = 0; begin < problem.n; begin += 16) {
    for (int64_t end : {begin + 16, problem.n}) {
      Options options;
      options.begin = begin;
      options.end = std::min(problem.n, end);
      const auto got = run(kernel, problem, options, {});
      bool same = true;
      for (int64_t i = 0; i < problem.m; ++i) {
        const int64_t at = i * problem.n + begin;
        same = same && std::memcmp(&sums[size_t(at)], &got[size_t(at * 4)],
                                   size_t(options.end - begin) * 4) == 0;
      }
      CHECK(same);
    }
  }
}

// Every number of rows that some kernel takes by itself, under either hint, with groups of panels
// that end before the last, and K in one slice and in several.
void check_few_rows(const GemmS8S8S32Kernel& kernel) {
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (int64_t n : {16, 64, 77, 150}) {
      for (int64_t k : {200, 1025, 2100}) {
        Random random(uint64_t(m * 1009 + n + k));
        const Problem problem(random, m, n, k);
        const auto sums = exact_sums(problem);
        for (bool zen4 : {false, true}) {
          Options options;
          options.zen4 = zen4;
          CHECK(same_sums(sums, run(kernel, problem, options, {})));
        }
      }
    }
  }
}

// Outputs that no cache holds: in whole lines or not, lines that begin within one, columns from the
// second panel on; several blocks of rows, and more of them than wait between slices of K.
void check_many_outputs(const GemmS8S8S32Kernel& kernel, const GemmS8S8S32Kernel& generic) {
  for (int64_t m : {83, 275}) {
    Random random(7);
    const Problem problem(random, m, 83, 1100);
    for (DType dtype : {DType::f32, DType::bf16}) {
      const auto residual = random_elements(random, m * problem.n, dtype);
      for (int turn = 0; turn < 4; ++turn) {
        Options options;
        options.activation = turn % 2 == 0 ? Activation::none : Activation::gelu;
        options.out_dtype = dtype;
        options.residual = turn >= 2;
        options.begin = turn % 2 == 0 ? 0 : 16;
        const auto want = run(generic, problem, options, residual);
        options.out_bytes = int64_t(1) << 30;
        for (bool whole_lines : {false, true}) {
          options.whole_lines = whole_lines;
          for (Side side : {Side::begin, Side::end}) {
            options.side = side;
            const auto got = run(kernel, problem, options, residual);
            CHECK(same_elements(want.data(), got.data(), m * problem.n, dtype));
          }
        }
      }
      if (m > 83) break;  // takes long: floats alone
    }
  }
}

// Several blocks of rows and slices of K, under either hint, as sums and as floats.
void check_blocks(const GemmS8S8S32Kernel& kernel, const GemmS8S8S32Kernel& generic) {
  for (int64_t m : {70, 150}) {
    for (int64_t k : {700, 1100, 2500}) {
      Random random(uint64_t(m + k));
      const Problem problem(random, m, 2 * kernel.nr + 19, k);
      const auto sums = exact_sums(problem);
      for (bool zen4 : {false, true}) {
        Options options;
        options.zen4 = zen4;
        CHECK(same_sums(sums, run(kernel, problem, options, {})));
        options.bias = true;
        for (DType dtype : {DType::f32, DType::bf16}) {
          options.out_dtype = dtype;
          const auto want = run(generic, problem, options, {});
          CHECK(same_elements(want.data(), run(kernel, problem, options, {}).data(), m * problem.n,
                              dtype));
        }
      }
    }
  }
}

// A packed weight read from a file may start at any byte.
void check_misaligned(const GemmS8S8S32Kernel& kernel) {
  Random random(3);
  Problem problem(random, kernel.mr + 1, 2 * kernel.nr + 3, 131);
  const auto sums = exact_sums(problem);
  for (int64_t offset : {1, 2, 3, 17, 63}) {
    const Guarded blob(int64_t(problem.packed.size()) + offset, Side::end);
    std::memcpy(blob.as<char>() + offset, problem.packed.data(), problem.packed.size());
    PackedWeight weight;
    open_packed(blob.as<char>() + offset, int64_t(problem.packed.size()), &weight);
    const auto a = problem.layout_a(kernel.tile_rows, kernel.flip);
    std::vector<uint8_t> got(sums.size() * 4);
    GemmS8S8S32 p{};
    p.m = problem.m;
    p.n = problem.n;
    p.k_pad = problem.k_pad;
    p.a = reinterpret_cast<const int8_t*>(a.data());
    p.panels = weight.panels;
    p.compensation = weight.compensation;
    p.a_scale = problem.a_scale.data();
    p.a_offset = problem.a_offset.data();
    p.b_scale = problem.b_scale.data();
    p.out = got.data();
    p.out_ld_bytes = problem.n * 4;
    p.out_dtype = DType::s32;
    const Prepared prepared(kernel, &p, Side::end);
    kernel.run(p);
    CHECK(same_sums(sums, got));
  }
}

// Through the epilogue: every 16-bit pattern as a residual, and float patterns of every exponent
// (NaN, Inf, subnormal, halfway between two results) as a bias.
void check_special_values(const GemmS8S8S32Kernel& kernel, const GemmS8S8S32Kernel& generic) {
  constexpr int64_t kColumns = 4096;
  Random random(4);
  Problem problem(random, 16, kColumns, 1);
  std::fill(problem.a.begin(), problem.a.end(), int8_t(0));
  std::fill(problem.a_offset.begin(), problem.a_offset.end(), 0.0f);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int activation = 0; activation < kActivationCount; ++activation) {
      for (size_t i = 0; i < size_t(kColumns); ++i) {
        const uint32_t tail[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0x0fff, 0x1000, 0x1001};
        problem.bias[i] = float_of_bits(uint32_t(i % 512) << 23 |
                                        (uint32_t(random.bits()) & 0x7f0000) | tail[i / 512]);
      }
      Options options;
      options.activation = Activation(activation);
      options.out_dtype = dtype;
      options.bias = true;
      CHECK(same_elements(run(generic, problem, options, {}).data(),
                          run(kernel, problem, options, {}).data(), 16 * kColumns, dtype));
    }
    if (dtype == DType::f32) continue;
    std::vector<uint8_t> every(65536 * 2);
    for (uint32_t i = 0; i < 65536; ++i) {
      every[2 * i] = uint8_t(i);
      every[2 * i + 1] = uint8_t(i >> 8);
    }
    Options options;
    options.out_dtype = dtype;
    options.residual = true;
    const auto got = run(kernel, problem, options, every);
    // 0 + r is r, but for -0: +0.
    every[2 * 0x8000 + 1] = 0;
    CHECK(same_elements(every.data(), got.data(), 65536, dtype));
  }
}

void check_kernel(const GemmS8S8S32Kernel& kernel, const GemmS8S8S32Kernel& generic) {
  for (int64_t m : around(kernel.mr)) {
    for (int64_t n : around(kernel.nr)) {
      for (int64_t k : {0, 1, 63, 64, 65, 131}) check_shape(kernel, generic, m, n, k);
    }
  }
  results().context = std::string(kernel.name) + ", a part";
  check_few_rows(kernel);
  check_blocks(kernel, generic);
  if (kernel.isa == Isa::amx) check_many_outputs(kernel, generic);  // others read no out_bytes
  check_extremes(kernel);
  check_outliers(kernel);
  check_row_range(kernel);
  check_column_range(kernel);
  check_misaligned(kernel);
  check_special_values(kernel, generic);
}

// The row amx over the emulator, where the rest of it can run.
void test_emulated(const GemmS8S8S32Kernel* kernels, int count) {
#ifdef FASTINFER_EMULATE_AMX
  GemmS8S8S32Kernel kernel = kernels[count - 1];
  if (!amx_emulated(kernel.name)) return;
  kernel.run = gemm_amx_emulated;
  group(std::string(kernel.name) + ", emulated", [&] { check_kernel(kernel, kernels[0]); });
  std::printf("row %s amx emulated\n", kernel.name);
#else
  (void)kernels, (void)count;
#endif
}

}  // namespace

void test_gemm_s8s8s32() {
  int count;
  const GemmS8S8S32Kernel* kernels = gemm_s8s8s32_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const GemmS8S8S32Kernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] { check_kernel(kernel, kernels[0]); });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
  test_emulated(kernels, count);
}

}  // namespace fastinfer::test
