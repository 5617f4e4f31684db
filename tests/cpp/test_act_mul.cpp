// Every row of act_mul/kernels.inc that runs here against the formula of act_mul.h one element at a
// time, bit for bit, on guarded buffers; and the driver's int8 rows against quantize_rowwise.
#include <string>
#include <vector>

#include "check.h"
#include "cpu/act_mul/act_mul.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cpu/vec/math.h"
#include "cpu/vec/scalar.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Case {
  DType dtype;
  int64_t rows, k;
  Activation activation;
  bool gated;
  Side side;
};

float activated(Activation activation, float v) {
  switch (activation) {
    case Activation::relu: return relu<ScalarVec>(v);
    case Activation::gelu: return gelu_erf<ScalarVec>(v);
    case Activation::gelu_tanh: return gelu_tanh<ScalarVec>(v);
    case Activation::silu: return silu<ScalarVec>(v);
    case Activation::quick_gelu: return quick_gelu<ScalarVec>(v);
    default: return v;
  }
}

// Rows one element apart, but none after the last: it touches the guard page.
int64_t strided_elements(const Case& c) { return c.rows * (c.k + 1) - 1; }

ActMul arguments(const Case& c, const Guarded& x, const Guarded& other) {
  ActMul p{};
  p.x = x.as<char>();
  p.ldx_bytes = p.other_ld_bytes = (c.k + 1) * size_of(c.dtype);
  p.other = c.gated ? other.as<char>() : nullptr;
  p.dtype = c.dtype;
  p.rows = c.rows;
  p.k = c.k;
  p.activation = c.activation;
  return p;
}

void check_case(const ActMulKernel& kernel, const Case& c) {
  results().context = std::string(kernel.name) + " dtype=" + std::to_string(int(c.dtype)) +
                      " rows=" + std::to_string(c.rows) + " k=" + std::to_string(c.k) +
                      " activation=" + std::to_string(int(c.activation)) +
                      (c.gated ? " gated" : "") + (c.side == Side::end ? " end" : " begin");
  Random random(uint64_t(c.rows * 7919 + c.k));
  const int64_t size = size_of(c.dtype), n = strided_elements(c);
  const auto values = random_elements(random, n, c.dtype);
  const auto factors = random_elements(random, n, c.dtype);
  const Guarded x(values.data(), n * size, c.side), other(factors.data(), n * size, c.side);
  const Guarded y(c.rows * c.k * size, c.side);
  ActMul p = arguments(c, x, other);
  p.y = y.as<char>();
  kernel.run(p);

  std::vector<uint8_t> want(size_t(y.bytes()));
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t k = 0; k < c.k; ++k) {
      const int64_t at = (m * (c.k + 1) + k) * size;
      float v = activated(c.activation, float(element(x.as<char>() + at, c.dtype)));
      if (c.gated) v *= float(element(other.as<char>() + at, c.dtype));
      ScalarVec::store(&want[size_t((m * c.k + k) * size)], c.dtype, v);
    }
  }
  CHECK(same_elements(y.as<char>(), want.data(), c.rows * c.k, c.dtype));
}

// Rows by way of the scratch, and of y, against quantising y afterwards.
void check_rows(const Case& c) {
  results().context = "driver rows=" + std::to_string(c.rows) + " k=" + std::to_string(c.k) +
                      " dtype=" + std::to_string(int(c.dtype));
  Random random(uint64_t(c.rows * 7919 + c.k));
  const int64_t size = size_of(c.dtype), n = strided_elements(c);
  const auto values = random_elements(random, n, c.dtype);
  const Guarded x(values.data(), n * size, c.side), other(values.data(), n * size, c.side);
  const Guarded y(c.rows * c.k * size, c.side);
  ActMul p = arguments(c, x, other);
  p.y = y.as<char>();
  CHECK(act_mul(p, nullptr));
  std::vector<int8_t> q(size_t(c.rows * c.k));
  std::vector<float> scale(size_t(c.rows)), offset(size_t(c.rows));
  QuantizeRowwise quantize{};
  quantize.x = y.as<char>();
  quantize.x_dtype = c.dtype;
  quantize.ldx_bytes = c.k * size;
  quantize.rows = c.rows;
  quantize.k = quantize.k_store = c.k;
  quantize.tile_rows = 1;
  quantize.q = q.data();
  quantize.scale = scale.data();
  quantize.offset = offset.data();
  select_quantize_rowwise().run(quantize);

  for (bool emit_fp : {false, true}) {
    const Guarded out_y(c.rows * c.k * size, c.side), out_q(c.rows * c.k, c.side);
    const Guarded out_scale(c.rows * 4, c.side), out_offset(c.rows * 4, c.side);
    p.y = emit_fp ? out_y.as<char>() : nullptr;
    const ActMulRows rows{out_q.as<int8_t>(), out_scale.as<float>(), out_offset.as<float>()};
    CHECK(act_mul(p, &rows));
    if (emit_fp) CHECK(same_elements(out_y.as<char>(), y.as<char>(), c.rows * c.k, c.dtype));
    CHECK(c.k == 0 || std::memcmp(rows.q, q.data(), q.size()) == 0);
    CHECK(std::memcmp(rows.scale, scale.data(), scale.size() * 4) == 0);
    CHECK(std::memcmp(rows.offset, offset.data(), offset.size() * 4) == 0);
  }
}

}  // namespace

void test_act_mul() {
  int count;
  const ActMulKernel* kernels = act_mul_kernels(&count);
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16};
  for (int i = 0; i < count; ++i) {
    const ActMulKernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (DType dtype : dtypes) {
        for (int64_t k : {0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 65, 131}) {
          for (int activation = 0; activation < kActivationCount; ++activation) {
            for (int turn = 0; turn < 4; ++turn) {
              check_case(kernel, {dtype, 3, k, Activation(activation), turn % 2 == 1,
                                  turn / 2 == 1 ? Side::end : Side::begin});
            }
          }
        }
      }
    });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
  group("act_mul rows", [&] {
    for (DType dtype : dtypes) {
      for (int64_t k : {0, 1, 65, 1000, 5000}) {
        check_rows({dtype, 23, k, Activation::silu, true, Side::end});
      }
    }
    check_rows({DType::f32, 2, 131071, Activation::relu, true, Side::end});
  });
}

}  // namespace fastinfer::test
