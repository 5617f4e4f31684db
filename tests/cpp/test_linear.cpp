// The driver linear_w8a8: right against double, and the same bits on every ISA, thread count and
// split of the batch, also when several threads call it at once.
#include <cmath>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/gemm_s8s8s32/linear.h"
#include "guard.h"
#include "parallel.h"
#include "plan.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Linear {
  int64_t m, n, k;
  DType dtype;
  std::vector<uint8_t> x, residual;
  std::vector<int8_t> w;
  std::vector<float> w_scale, bias;
  std::vector<uint8_t> packed;

  Linear(uint64_t seed, int64_t m_, int64_t n_, int64_t k_, DType dtype_)
      : m(m_), n(n_), k(k_), dtype(dtype_), w(size_t(n * k)), packed(size_t(packed_bytes(n, k))) {
    Random random(seed);
    x = random_elements(random, m * k, dtype);
    residual = random_elements(random, m * n, dtype);
    for (int8_t& v : w) v = random.byte();
    for (int64_t i = 0; i < n; ++i) w_scale.push_back((random.unit() + 1.5f) * 0x1p-7f);
    for (int64_t i = 0; i < n; ++i) bias.push_back(random.unit());
    pack_w8(w.data(), n, k, packed.data());
  }

  // Rows [begin, end) of the output.
  std::vector<uint8_t> run(int threads, ParallelFor parallel_for, int64_t begin, int64_t end,
                           Activation activation, bool with_residual) const {
    const int64_t size = size_of(dtype);
    std::vector<uint8_t> out(size_t((end - begin) * n * size));
    LinearW8A8 p{};
    p.x = x.data() + begin * k * size;
    p.x_dtype = p.out_dtype = dtype;
    p.ldx_bytes = k * size;
    p.m = end - begin;
    LinearWeight weight{{}, w_scale.data(), bias.data()};
    CHECK(open_packed(packed.data(), int64_t(packed.size()), &weight.packed) == nullptr);
    p.weights = &weight;
    p.weight_count = 1;
    p.activation = activation;
    p.residual = with_residual ? residual.data() + begin * n * size : nullptr;
    p.residual_ld_bytes = p.out_ld_bytes = n * size;
    p.out = out.data();
    CHECK(linear_w8a8(p, threads, parallel_for));
    return out;
  }
  std::vector<uint8_t> run(int threads, ParallelFor parallel_for) const {
    return run(threads, parallel_for, 0, m, Activation::gelu, true);
  }
};

// Without activation or residual the float path rounds float(acc) and its product with b_scale, the
// float sum of a column of weights and its product with b_scale, and two fused multiply-adds: at
// most 2^-24 each of the value it makes.
void check_against_double() {
  for (int64_t m : {1, 7, 40}) {
    const Linear linear(uint64_t(m), m, 33, 150, DType::f32);
    const auto out = linear.run(1, serial, 0, m, Activation::none, false);
    bool close = true;
    for (int64_t i = 0; i < m; ++i) {
      const float* x = reinterpret_cast<const float*>(linear.x.data()) + i * linear.k;
      const float low = *std::min_element(x, x + linear.k);
      const float high = *std::max_element(x, x + linear.k);
      const float middle = high * 0.5f + low * 0.5f;
      const float most = std::max({high - middle, middle - low, 0x1p-118f});
      for (int64_t c = 0; c < linear.n; ++c) {
        int64_t sum = 0, weights = 0;
        for (int64_t j = 0; j < linear.k; ++j) {
          const int64_t w = linear.w[size_t(c * linear.k + j)];
          sum += int64_t(std::nearbyint((x[j] - middle) * (127.0f / most))) * w;
          weights += w;
        }
        const double scale = linear.w_scale[size_t(c)];
        const double product = double(sum) * double(most / 127.0f) * scale;
        const double shift = double(weights) * double(middle) * scale;
        const double inner = shift + linear.bias[size_t(c)];
        const double want = product + inner;
        const double got = reinterpret_cast<const float*>(out.data())[i * linear.n + c];
        const double bound =
            2 * std::fabs(product) + 2 * std::fabs(shift) + std::fabs(inner) + std::fabs(want);
        close = close && std::fabs(got - want) <= 0x1p-24 * (1 + 0x1p-20) * bound;
      }
    }
    CHECK(close);
  }
}

void check_same_bits() {
  const std::string before = isa_cap();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int64_t m : {1, 2, 9, 33, 70}) {
      for (int64_t n : {16, 49, 130}) {
        const Linear linear(uint64_t(m * n), m, n, 100, dtype);
        set_isa_cap("generic");
        const auto want = linear.run(1, serial);
        for (int i = 0; i < kIsaCount; ++i) {
          set_isa_cap(before.c_str());
          if (!isa_allowed(Isa(i))) continue;
          set_isa_cap(isa_name(Isa(i)));
          results().context = std::string("linear: ") + isa_name(Isa(i)) +
                              " m=" + std::to_string(m) + " n=" + std::to_string(n);
          CHECK(linear.run(1, serial) == want);
          CHECK(linear.run(3, serial) == want);
          CHECK(linear.run(2, threaded) == want);
          CHECK(linear.run(8, threaded) == want);
          std::vector<uint8_t> parts;
          for (int64_t begin = 0; begin < m; begin += 5) {
            const auto part =
                linear.run(2, serial, begin, std::min(m, begin + 5), Activation::gelu, true);
            parts.insert(parts.end(), part.begin(), part.end());
          }
          CHECK(parts == want);
        }
      }
    }
  }
  set_isa_cap(before.c_str());
}

// Many columns, so that tasks share them; long rows, so that a task takes them chunk by chunk.
void check_many_tasks(int64_t m, int64_t n, int64_t k) {
  const Linear linear(8, m, n, k, DType::f32);
  const auto run = [&](int threads, ParallelFor parallel_for) {
    return linear.run(threads, parallel_for, 0, m, Activation::none, false);
  };
  const auto want = run(1, serial);
  for (int threads : {2, 3, 8}) CHECK(run(threads, threaded) == want);
  std::vector<std::thread> callers;
  std::vector<std::vector<uint8_t>> got(4);
  for (auto& out : got) callers.emplace_back([&out, &run] { out = run(2, threaded); });
  for (std::thread& caller : callers) caller.join();
  for (const auto& out : got) CHECK(out == want);
}

// Tasks of whole rows, the last chunk of each cut along N. unequal: of two tasks the first has more
// chunks. (Products of `generic` take so long that its plan may be another one.)
void check_last_chunks(int64_t m, int64_t n, int64_t k, bool unequal) {
  const std::string before = isa_cap();
  const Linear linear(11, m, n, k, DType::f32);
  const auto want = linear.run(1, serial);
  const int64_t columns = round_up(n, kPanelColumns), k_pad = round_up(k, kBlockK);
  for (int i = 0; i < kIsaCount; ++i) {
    set_isa_cap(before.c_str());
    if (!isa_allowed(Isa(i))) continue;
    set_isa_cap(isa_name(Isa(i)));
    results().context = std::string("linear, last chunks: ") + isa_name(Isa(i));
    const int64_t mc = plan_linear(m, columns, k_pad, 2).mc;
    const int64_t first = round_up(ceil_div(m, 2), kPanelColumns);
    const bool slow = Isa(i) == Isa::generic;
    CHECK(slow || (ceil_div(first, mc) > ceil_div(m - first, mc)) == unequal);
    for (int threads : {2, 4}) {
      CHECK(slow || threads > 2 || cuts_last_chunks(m, columns, columns, k, threads));
      for (ParallelFor order : {serial, backward, two_by_two, threaded}) {
        CHECK(linear.run(threads, order) == want);
      }
    }
  }
  set_isa_cap(before.c_str());
}

// So few rows, so long, that they are quantised once for all tasks.
void check_shared_rows() {
  constexpr int64_t kM = 97, kN = 310, kK = 2000;
  const std::string before = isa_cap();
  const Linear linear(10, kM, kN, kK, DType::f32);
  const auto want = linear.run(1, serial);
  for (int i = 0; i < kIsaCount; ++i) {
    set_isa_cap(before.c_str());
    if (!isa_allowed(Isa(i))) continue;
    set_isa_cap(isa_name(Isa(i)));
    results().context = std::string("linear, shared rows: ") + isa_name(Isa(i));
    for (int threads : {2, 5}) {
      CHECK(
          plan_linear(kM, round_up(kN, kPanelColumns), round_up(kK, kBlockK), threads).share_rows);
      CHECK(linear.run(threads, serial) == want);
      CHECK(linear.run(threads, threaded) == want);
    }
  }
  set_isa_cap(before.c_str());
}

void check_empty() {
  const Linear linear(9, 4, 8, 0, DType::f32);
  const auto out = linear.run(2, threaded, 0, 4, Activation::none, false);
  bool bias = true;
  for (size_t i = 0; i < 32; ++i) {
    bias = bias && reinterpret_cast<const float*>(out.data())[i] == linear.bias[i % 8];
  }
  CHECK(bias);  // K = 0: the bias
  CHECK(linear.run(2, threaded, 0, 0, Activation::none, false).empty());
}

}  // namespace

void test_linear() {
  group("linear: against double", check_against_double);
  group("linear: same bits on every ISA, thread count and split", check_same_bits);
  group("linear: many tasks, several callers", [] {
    check_many_tasks(150, 700, 100);
    check_many_tasks(290, 33, 4000);
  });
  group("linear: last chunks cut along N", [] {
    check_last_chunks(509, 425, 70, false);
    check_last_chunks(590, 201, 70, true);
  });
  group("linear: rows shared by tasks", check_shared_rows);
  group("linear: K = 0, M = 0", check_empty);
}

}  // namespace fastinfer::test
