// Every row of gemm_f32s8f32/kernels.inc that runs here: sums against double within the bound of
// gemm_f32s8f32.h, results against the bits of the generic row, on guarded buffers, around the
// edges of its tile; and the driver linear_w8a16.
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/gemm_f32s8f32/linear.h"
#include "guard.h"
#include "parallel.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Problem {
  int64_t m, n, k;
  DType dtype;
  std::vector<uint8_t> x;
  std::vector<int8_t> w;
  std::vector<float> scale, bias;
  std::vector<uint8_t> packed;
  PackedWeight weight;

  Problem(Random& random, int64_t m_, int64_t n_, int64_t k_, DType dtype_)
      : m(m_), n(n_), k(k_), dtype(dtype_), w(size_t(n * k)), packed(size_t(packed_bytes(n, k))) {
    x = random_elements(random, m * k, dtype);
    for (int8_t& v : w) v = random.byte();
    for (int64_t i = 0; i < n; ++i) scale.push_back((random.unit() + 1.5f) * 0x1p-7f);
    for (int64_t i = 0; i < n; ++i) bias.push_back(random.unit() * 4);
    pack_w8(w.data(), n, k, packed.data());
    open_packed(packed.data(), int64_t(packed.size()), &weight);
  }
};

struct Options {
  Activation activation = Activation::none;
  DType out_dtype = DType::f32;
  bool bias = false, residual = false;
  Side side = Side::end;
};

constexpr int64_t kGap = 3;  // elements between rows of x, residual and out

// `rows` rows of `row_bytes` bytes, kGap elements apart, none after the last.
Guarded spread(const uint8_t* from, int64_t rows, int64_t row_bytes, int64_t ld_bytes, Side side) {
  std::vector<uint8_t> bytes(size_t(std::max<int64_t>(0, (rows - 1) * ld_bytes + row_bytes)), 0xff);
  for (int64_t i = 0; i < rows && row_bytes > 0; ++i) {
    std::memcpy(&bytes[size_t(i * ld_bytes)], from + i * row_bytes, size_t(row_bytes));
  }
  return Guarded(bytes.data(), int64_t(bytes.size()), side);
}

// The rows of out, without gaps. Every buffer is guarded; what must stay untouched is checked.
std::vector<uint8_t> run(const GemmF32S8F32Kernel& kernel, const Problem& problem,
                         const Options& options, const std::vector<uint8_t>& residual_values) {
  const int64_t m = problem.m, n = problem.n, k = problem.k;
  const int64_t size = size_of(options.out_dtype), x_size = size_of(problem.dtype);
  const int64_t ld = (n + kGap) * size, ldx = (k + kGap) * x_size;
  const auto guarded = [&](const auto& v) {
    return Guarded(v.data(), int64_t(v.size() * sizeof(v[0])), options.side);
  };
  const Guarded x = spread(problem.x.data(), m, k * x_size, ldx, options.side);
  const Guarded scale = guarded(problem.scale), bias = guarded(problem.bias);
  const Guarded panels(problem.weight.panels, panels_of(problem.weight) * 16 * problem.weight.k_pad,
                       options.side);
  const Guarded scratch(gemm_f32s8f32_scratch_bytes(m, k), Side::end, 0xff);  // NaN
  const Guarded out((m - 1) * ld + n * size, options.side);
  GemmF32S8F32 p{};
  p.m = m;
  p.n = n;
  p.k = k;
  p.x = x.as<char>();
  p.x_dtype = problem.dtype;
  p.ldx_bytes = ldx;
  p.panels = panels.as<int8_t>();
  p.b_scale = scale.as<float>();
  p.bias = options.bias ? bias.as<float>() : nullptr;
  p.activation = options.activation;
  p.residual_ld_bytes = p.out_ld_bytes = ld;
  p.out = out.as<char>();
  p.out_dtype = options.out_dtype;
  p.scratch = scratch.as<char>();
  const Guarded residual =
      spread(residual_values.data(), options.residual ? m : 0, n * size, ld, options.side);
  if (options.residual) p.residual = residual.as<char>();
  kernel.run(p);

  std::vector<uint8_t> rows;
  bool gaps = true;
  for (int64_t i = 0; i < m; ++i) {
    const uint8_t* row = out.as<uint8_t>() + i * ld;
    rows.insert(rows.end(), row, row + n * size);
    for (int64_t j = n * size; i + 1 < m && j < ld; ++j) gaps = gaps && row[j] == 0xa5;
  }
  CHECK(gaps);
  return rows;
}

// float32 without bias: one rounding of the product with the scale on top of the sum's.
void check_against_double(const Problem& p, const std::vector<uint8_t>& got) {
  const int64_t size = size_of(p.dtype);
  const double roundings = double(std::min(p.k, kSumK) + (p.k + kSumK - 1) / kSumK);
  bool close = true;
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t c = 0; c < p.n; ++c) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < p.k; ++j) {
        const double product =
            element(&p.x[size_t((i * p.k + j) * size)], p.dtype) * p.w[size_t(c * p.k + j)];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double scale = p.scale[size_t(c)], want = sum * scale;
      const double y = reinterpret_cast<const float*>(got.data())[i * p.n + c];
      const double bound = 0x1p-24 * (roundings * magnitude * scale + std::fabs(want));
      close = close && std::fabs(y - want) <= bound * (1 + 0x1p-10);
    }
  }
  CHECK(close);
}

void check_shape(const GemmF32S8F32Kernel& kernel, const GemmF32S8F32Kernel& generic, int64_t m,
                 int64_t n, int64_t k) {
  int turn = int(m + n + k);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    results().context = std::string(kernel.name) + " m=" + std::to_string(m) +
                        " n=" + std::to_string(n) + " k=" + std::to_string(k) +
                        " dtype=" + std::to_string(int(dtype));
    Random random(uint64_t(m * 1000003 + n * 1009 + k));
    const Problem problem(random, m, n, k, dtype);
    for (Side side : {Side::end, Side::begin}) {
      Options options;
      options.side = side;
      const auto got = run(kernel, problem, options, {});
      check_against_double(problem, got);
      const auto want = run(generic, problem, options, {});
      CHECK(same_elements(want.data(), got.data(), m * n, DType::f32));
    }
    Options options;
    options.activation = Activation(turn % kActivationCount);
    options.out_dtype = DType(turn++ % 3);
    options.bias = turn % 2 == 0;
    options.residual = turn % 4 < 2;
    const auto residual = random_elements(random, m * n, options.out_dtype);
    const auto want = run(generic, problem, options, residual);
    const auto got = run(kernel, problem, options, residual);
    CHECK(same_elements(want.data(), got.data(), m * n, options.out_dtype));
  }
}

void check_epilogue(const GemmF32S8F32Kernel& kernel, const GemmF32S8F32Kernel& generic) {
  Random random(5);
  const Problem problem(random, kernel.mr + 1, kernel.nr + 5, 70, DType::bf16);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const auto residual = random_elements(random, problem.m * problem.n, dtype);
    for (int activation = 0; activation < kActivationCount; ++activation) {
      for (int turn = 0; turn < 4; ++turn) {
        const Options options{Activation(activation), dtype, turn % 2 == 1, turn / 2 == 1,
                              turn % 2 ? Side::begin : Side::end};
        const auto want = run(generic, problem, options, residual);
        const auto got = run(kernel, problem, options, residual);
        CHECK(same_elements(want.data(), got.data(), problem.m * problem.n, dtype));
      }
    }
  }
}

// NaN, Inf and numbers around 2^-119, where products of pairs begin to be subnormal: in single
// elements of single rows; the other rows keep their bits.
void check_special_values(const GemmF32S8F32Kernel& kernel, const GemmF32S8F32Kernel& generic) {
  const int64_t m = 2 * kernel.mr + 1, n = kernel.nr + 3, k = 300, hit = kernel.mr;
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const int64_t size = size_of(dtype);
    const uint32_t wide[] = {0x7fc00001u, 0x7f800000u, 0xff800000u, 0x7f7fffffu,
                             1u,          0x00012345u, 0x03ff0000u, 0x84000000u};
    const uint16_t f16[] = {0x7e01, 0x7c00, 0xfc00, 0x7bff, 1, 0x8001, 0x03ff, 0x0400};
    for (int i = 0; i < 8; ++i) {
      Random random(6);
      Problem problem(random, m, n, k, dtype);
      std::fill(problem.scale.begin(), problem.scale.end(), 1.0f);
      const auto before = run(kernel, problem, {}, {});
      const auto bf16 = uint16_t(wide[i] >> 16 | (i == 4));
      const void* from = dtype == DType::f32    ? static_cast<const void*>(&wide[i])
                         : dtype == DType::bf16 ? static_cast<const void*>(&bf16)
                                                : &f16[i];
      for (int64_t at : {hit * k + 5, hit * k + 6, hit * k + 299}) {
        std::memcpy(&problem.x[size_t(at * size)], from, size_t(size));
      }
      if (i >= 4) {  // a row of nothing else, whose sums are as small
        std::fill_n(problem.x.begin() + hit * k * size, 299 * size, uint8_t(0));
        std::memcpy(&problem.x[size_t((hit * k + 7) * size)], from, size_t(size));
      }
      const auto want = run(generic, problem, {}, {}), got = run(kernel, problem, {}, {});
      CHECK(same_elements(want.data(), got.data(), m * n, DType::f32));
      const auto row = [&](int64_t r) { return size_t(r * n * 4); };
      CHECK(std::equal(got.begin(), got.begin() + int64_t(row(hit)), before.begin()));
      CHECK(std::equal(got.begin() + int64_t(row(hit + 1)), got.end(),
                       before.begin() + int64_t(row(hit + 1))));
      const float first = reinterpret_cast<const float*>(got.data())[hit * n];
      CHECK(i < 3 ? !std::isfinite(first) : i < 4 || std::isfinite(first));
      // However small the number is, its product with a weight is not zero.
      if (i >= 4 && problem.w[7] != 0) CHECK(first != 0.0f);
    }
  }
}

// A packed weight read from a file may start at any byte.
void check_misaligned(const GemmF32S8F32Kernel& kernel) {
  Random random(3);
  const Problem problem(random, kernel.mr + 1, 2 * kernel.nr + 3, 131, DType::f32);
  const auto want = run(kernel, problem, {}, {});
  for (int64_t offset : {1, 2, 3, 17, 63}) {
    const Guarded blob(int64_t(problem.packed.size()) + offset, Side::end);
    std::memcpy(blob.as<char>() + offset, problem.packed.data(), problem.packed.size());
    Problem moved = problem;
    open_packed(blob.as<char>() + offset, int64_t(problem.packed.size()), &moved.weight);
    CHECK(run(kernel, moved, {}, {}) == want);
  }
}

// Rows [begin, end) of the driver's output.
std::vector<uint8_t> drive(const Problem& problem, int threads, ParallelFor parallel_for,
                           int64_t begin, int64_t end) {
  const int64_t size = size_of(problem.dtype);
  std::vector<uint8_t> out(size_t((end - begin) * problem.n * size));
  LinearW8A16 p{};
  p.x = problem.x.data() + begin * problem.k * size;
  p.x_dtype = p.out_dtype = problem.dtype;
  p.ldx_bytes = problem.k * size;
  p.m = end - begin;
  p.weight = {problem.weight, problem.scale.data(), problem.bias.data()};
  p.activation = Activation::silu;
  p.residual = problem.x.data() + begin * problem.n * size;  // any numbers will do
  p.residual_ld_bytes = p.out_ld_bytes = problem.n * size;
  p.out = out.data();
  CHECK(linear_w8a16(p, threads, parallel_for));
  return out;
}

void check_same_bits() {
  const std::string before = isa_cap();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t m : {1, 2, 9, 70, 150}) {
      for (int64_t n : {1, 49, 300}) {
        Random random(uint64_t(m * n));
        const Problem problem(random, m, n, 300, dtype);
        set_isa_cap("generic");
        const auto want = drive(problem, 1, serial, 0, m);
        for (int i = 0; i < kIsaCount; ++i) {
          set_isa_cap(before.c_str());
          if (!isa_allowed(Isa(i))) continue;
          set_isa_cap(isa_name(Isa(i)));
          results().context = std::string("linear_w8a16: ") + isa_name(Isa(i)) +
                              " m=" + std::to_string(m) + " n=" + std::to_string(n);
          CHECK(drive(problem, 1, serial, 0, m) == want);
          CHECK(drive(problem, 3, serial, 0, m) == want);
          CHECK(drive(problem, 2, threaded, 0, m) == want);
          CHECK(drive(problem, 8, threaded, 0, m) == want);
          std::vector<uint8_t> parts;
          for (int64_t begin = 0; begin < m; begin += 5) {
            const auto part = drive(problem, 2, serial, begin, std::min(m, begin + 5));
            parts.insert(parts.end(), part.begin(), part.end());
          }
          CHECK(parts == want);
        }
      }
    }
  }
  set_isa_cap(before.c_str());
}

// Large enough for a grid of tasks in both directions, from several callers at once.
void check_many_tasks() {
  Random random(8);
  const Problem problem(random, 200, 40, 700, DType::f32);
  const auto want = drive(problem, 1, serial, 0, problem.m);
  for (int threads : {2, 3, 8}) CHECK(drive(problem, threads, threaded, 0, problem.m) == want);
  std::vector<std::thread> callers;
  std::vector<std::vector<uint8_t>> got(4);
  for (auto& out : got) {
    callers.emplace_back([&] { out = drive(problem, 2, threaded, 0, problem.m); });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& out : got) CHECK(out == want);
  CHECK(drive(problem, 2, threaded, 0, 0).empty());
}

std::vector<int64_t> around(int64_t tile) {
  std::vector<int64_t> sizes = {1, tile - 1, tile, tile + 1, 2 * tile + 3};
  sizes.erase(std::remove(sizes.begin(), sizes.end(), 0), sizes.end());
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

}  // namespace

void test_gemm_f32s8f32() {
  int count;
  const GemmF32S8F32Kernel* kernels = gemm_f32s8f32_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const GemmF32S8F32Kernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (int64_t m : around(kernel.mr)) {
        for (int64_t n : around(kernel.nr)) {
          for (int64_t k : {0, 3, 67, 258}) check_shape(kernel, kernels[0], m, n, k);
        }
      }
      for (int64_t m = 1; m <= kernel.mr; ++m) {  // every height, all of its widths
        for (int64_t n : {16, 48, 144, 240}) check_shape(kernel, kernels[0], m, n, 20);
      }
      for (int64_t k : {1, 2, 63, 64, 65, 255, 256, 257}) {
        check_shape(kernel, kernels[0], 3, kernel.nr + 1, k);
      }
      check_shape(kernel, kernels[0], kRowsAtOnce + 1, 20, 70);
      check_shape(kernel, kernels[0], 2 * kRowsAtOnce + 5, 20, 70);
      check_shape(kernel, kernels[0], 3, 20, 5 * kSumK + 1);
      results().context = std::string(kernel.name) + ", a part";
      check_epilogue(kernel, kernels[0]);
      check_special_values(kernel, kernels[0]);
      check_misaligned(kernel);
    });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
  group("linear_w8a16: same bits on every ISA, thread count and split", check_same_bits);
  group("linear_w8a16: many tasks, several callers", check_many_tasks);
}

}  // namespace fastinfer::test
