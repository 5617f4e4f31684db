// The driver linear_w8a8 in its other forms, each against the plain one: several weights, a gate
// and its factor, rows that are int8 already, a static scale. On every ISA and several threads, the
// rows of x on guarded buffers.
#include <algorithm>
#include <string>
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

struct Weight {
  std::vector<uint8_t> packed;
  std::vector<float> scale, bias;
  LinearWeight linear{};

  Weight(Random& random, int64_t n, int64_t k, bool with_bias)
      : packed(size_t(packed_bytes(n, k))) {
    std::vector<int8_t> w(size_t(n * k));
    for (int8_t& v : w) v = random.byte();
    for (int64_t i = 0; i < n; ++i) scale.push_back((random.unit() + 1.5f) * 0x1p-9f);
    for (int64_t i = 0; i < n; ++i) bias.push_back(random.unit());
    pack_w8(w.data(), n, k, packed.data());
    CHECK(open_packed(packed.data(), int64_t(packed.size()), &linear.packed) == nullptr);
    linear.scale = scale.data();
    linear.bias = with_bias ? bias.data() : nullptr;
  }
};

using Floats = std::vector<float>;

// Runs `p`, complete but for its output: float32 [m, n].
Floats run(LinearW8A8 p, int64_t n, int threads, ParallelFor parallel_for) {
  Floats out(size_t(p.m * n));
  p.out = out.data();
  p.out_ld_bytes = n * int64_t(sizeof(float));
  p.out_dtype = DType::f32;
  CHECK(linear_w8a8(p, threads, parallel_for));
  return out;
}

void check_run(const LinearW8A8& p, int64_t n, const Floats& want) {
  const auto same = [&](const Floats& got) {
    return same_elements(want.data(), got.data(), p.m * n, DType::f32);
  };
  CHECK(same(run(p, n, 1, serial)));
  CHECK(same(run(p, n, 3, serial)));
  CHECK(same(run(p, n, 2, threaded)));
  CHECK(same(run(p, n, 8, threaded)));
}

LinearW8A8 float_input(const Guarded& x, int64_t m, int64_t k) {
  LinearW8A8 p{};
  p.x = x.as<float>();
  p.x_dtype = DType::f32;
  p.ldx_bytes = k * int64_t(sizeof(float));
  p.m = m;
  p.activation = Activation::silu;
  return p;
}

LinearW8A8 with_weights(LinearW8A8 p, const LinearWeight* weights, int64_t count) {
  p.weights = weights;
  p.weight_count = count;
  return p;
}

// Rows of x as int8, one after the other, as quantize_rowwise.h has them.
struct Int8Rows {
  Guarded q, scale, offset;

  Int8Rows(const LinearW8A8& p, int64_t k, Side side)
      : q(p.m * k, side), scale(p.m * 4, side), offset(p.m * 4, side) {
    int count;
    QuantizeRowwise rows{};
    rows.x = p.x;
    rows.x_dtype = p.x_dtype;
    rows.ldx_bytes = p.ldx_bytes;
    rows.rows = p.m;
    rows.k = rows.k_store = k;
    rows.tile_rows = 1;
    rows.q = q.as<int8_t>();
    rows.scale = scale.as<float>();
    rows.offset = offset.as<float>();
    if (p.x_scale != nullptr) {
      rows.static_scale = *p.x_scale;
      rows.static_offset = *p.x_offset;
    }
    quantize_rowwise_kernels(&count)[0].run(rows);
  }

  LinearW8A8 input(LinearW8A8 p, int64_t k) const {
    p.x = q.as<int8_t>();
    p.x_dtype = DType::s8;
    p.ldx_bytes = k;
    p.x_scale = scale.as<float>();
    p.x_offset = offset.as<float>();
    p.x_scale_step = 1;
    return p;
  }
};

void check_forms(int64_t m, int64_t k, const std::vector<int64_t>& widths, Side side) {
  Random random(uint64_t(m * 131 + k));
  const auto values = random_elements(random, m * k, DType::f32);
  const Guarded x(values.data(), int64_t(values.size()), side);
  const LinearW8A8 input = float_input(x, m, k);

  std::vector<Weight> weights;
  std::vector<LinearWeight> linears;
  for (int64_t n : widths) weights.emplace_back(random, n, k, n % 2 == 0);
  for (const Weight& weight : weights) linears.push_back(weight.linear);

  // Side by side.
  int64_t total = 0, column = 0;
  for (int64_t n : widths) total += n;
  Floats want(size_t(m * total));
  for (size_t i = 0; i < linears.size(); column += widths[i++]) {
    const Floats one = run(with_weights(input, &linears[i], 1), widths[i], 1, serial);
    for (int64_t row = 0; row < m; ++row) {
      std::copy_n(&one[size_t(row * widths[i])], widths[i], &want[size_t(row * total + column)]);
    }
  }
  const LinearW8A8 all = with_weights(input, linears.data(), int64_t(linears.size()));
  check_run(all, total, want);

  // int8 rows; those of a static scale have the same one each.
  const float scale = 0x1.4p-6f, offset = -0.375f;
  LinearW8A8 fixed = all;
  fixed.x_scale = &scale;
  fixed.x_offset = &offset;
  const Int8Rows rows(all, k, side), fixed_rows(fixed, k, side);
  check_run(rows.input(all, k), total, want);
  LinearW8A8 one_scale = fixed_rows.input(all, k);
  check_run(fixed, total, run(one_scale, total, 1, serial));
  one_scale.x_scale = &scale;
  one_scale.x_offset = &offset;
  one_scale.x_scale_step = 0;
  check_run(one_scale, total, run(fixed, total, 1, serial));

  // Gate and factor.
  const int64_t n = widths[0];
  const Weight factor(random, n, k, true);
  const LinearWeight pair[2] = {linears[0], factor.linear};
  LinearW8A8 up = with_weights(input, &pair[1], 1);
  up.activation = Activation::none;
  Floats product = run(with_weights(input, pair, 1), n, 1, serial);
  const Floats other = run(up, n, 1, serial);
  for (size_t i = 0; i < product.size(); ++i) product[i] *= other[i];
  LinearW8A8 gated = with_weights(input, pair, 2);
  gated.gated = true;
  check_run(gated, n, product);
  check_run(rows.input(gated, k), n, product);
}

}  // namespace

void test_linear_forms() {
  const std::string before = isa_cap();
  for (int i = 0; i < kIsaCount; ++i) {
    set_isa_cap(before.c_str());
    if (!isa_allowed(Isa(i))) continue;
    set_isa_cap(isa_name(Isa(i)));
    group(std::string("linear: several weights, gates, int8 rows, static scales, ") +
              isa_name(Isa(i)),
          [&] {
            for (Side side : {Side::end, Side::begin}) {
              for (int64_t m : {1, 5, 17, 40}) {
                for (int64_t k : {1, 64, 70, 192}) check_forms(m, k, {33, 48, 5}, side);
              }
              // Tasks that share the columns; more rows and columns than a tile of the gate.
              check_forms(3, 600, {1000, 7, 401}, side);
              check_forms(170, 64, {401, 16}, side);
            }
            // Tasks of whole rows: units of the last ones pass from one weight to the next.
            // (Products of `generic` take so long that its plan may be another one.)
            const bool slow = Isa(i) == Isa::generic;
            CHECK(slow || cuts_last_chunks(509, 544, 544, 64, 2));
            CHECK(slow || cuts_last_chunks(509, 544, 272, 64, 2));  // a gate and its factor
            check_forms(509, 64, {265, 265}, Side::end);
          });
  }
  set_isa_cap(before.c_str());
}

}  // namespace fastinfer::test
