// act_mul on the emulated GPU gives the bits of the CPU's reference, and of quantising its rows.
#include <string>
#include <vector>

#include "cpu/act_mul/act_mul.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cuda/act_mul/act_mul.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::Activation;

namespace {

struct Case {
  DType dtype;
  int64_t rows, k, extra, more;  // extra, more: from the end of a row of x, other to the next
  Side side;                     // of x and other: end guards them, begin aligns them
  Activation activation;
  bool gated, emit_fp, emit_rows;
};

// Rows by turns: plain, zero, holding a NaN, an Inf.
std::vector<uint8_t> rows_of(Random& random, DType dtype, int64_t rows, int64_t ld, int64_t k) {
  auto x = random_elements(random, rows * ld, dtype);
  const int64_t size = cpu::size_of(dtype);
  for (int64_t m = 0; m < rows && k > 0; ++m) {
    const uint32_t bits[] = {0x7fc00001u, 0xff800000u};
    const uint16_t bf16[] = {0x7fc1, 0xff80}, f16[] = {0x7e01, 0xfc00};
    const int64_t turn = m % 5, at = (m * ld + random.below(k)) * size;
    if (turn == 1) std::memset(&x[size_t(m * ld * size)], 0, size_t(k * size));
    if (turn < 2 || turn == 4) continue;
    const int64_t i = turn - 2;
    const void* from = dtype == DType::f32    ? static_cast<const void*>(&bits[i])
                       : dtype == DType::bf16 ? static_cast<const void*>(&bf16[i])
                                              : &f16[i];
    std::memcpy(&x[size_t(at)], from, size_t(size));
  }
  return x;
}

struct Outputs {
  Guarded y, q, scale, offset;
  explicit Outputs(const Case& c)
      : y(c.rows * c.k * cpu::size_of(c.dtype), Side::end),
        q(c.rows * c.k, Side::end),
        scale(c.rows * 4, Side::end),
        offset(c.rows * 4, Side::end) {}
};

void check(const Case& c) {
  results().context = "dtype=" + std::to_string(int(c.dtype)) + " rows=" + std::to_string(c.rows) +
                      " k=" + std::to_string(c.k) + " extra=" + std::to_string(c.extra) + "," +
                      std::to_string(c.more) + (c.side == Side::end ? " end" : " begin") +
                      " activation=" + std::to_string(int(c.activation)) +
                      (c.gated ? " gated" : "") + (c.emit_fp ? " fp" : "") +
                      (c.emit_rows ? " rows" : "");
  Random random(uint64_t(c.rows * 7919 + c.k));
  const int64_t size = cpu::size_of(c.dtype), ldx = c.k + c.extra, ldo = c.k + c.more;
  const auto bytes = [&](int64_t ld) { return c.rows > 0 ? ((c.rows - 1) * ld + c.k) * size : 0; };
  const auto values = rows_of(random, c.dtype, c.rows, ldx, c.k);
  const auto factors = random_elements(random, c.rows * ldo, c.dtype);
  const Guarded x(values.data(), bytes(ldx), c.side);
  const Guarded other(factors.data(), bytes(ldo), c.side);
  const Outputs want(c), got(c);

  cpu::ActMul reference{};
  reference.x = x.as<void>();
  reference.ldx_bytes = ldx * size;
  reference.other = c.gated ? other.as<void>() : nullptr;
  reference.other_ld_bytes = ldo * size;
  reference.dtype = c.dtype;
  reference.rows = c.rows;
  reference.k = c.k;
  reference.activation = c.activation;
  reference.y = want.y.as<void>();
  int count = 0;
  cpu::act_mul_kernels(&count)[0].run(reference);
  cpu::QuantizeRowwise quantize{};
  quantize.x = want.y.as<void>();
  quantize.x_dtype = c.dtype;
  quantize.ldx_bytes = c.k * size;
  quantize.rows = c.rows;
  quantize.k = quantize.k_store = c.k;
  quantize.tile_rows = 1;
  quantize.q = want.q.as<int8_t>();
  quantize.scale = want.scale.as<float>();
  quantize.offset = want.offset.as<float>();
  cpu::quantize_rowwise_kernels(&count)[0].run(quantize);

  cuda::ActMul p{};
  p.x = x.as<void>();
  p.ldx = ldx;
  p.other = reference.other;
  p.ld_other = ldo;
  p.dtype = c.dtype;
  p.rows = c.rows;
  p.k = c.k;
  p.activation = c.activation;
  p.y = c.emit_fp ? got.y.as<void>() : nullptr;
  if (c.emit_rows) {
    p.q = got.q.as<int8_t>();
    p.scale = got.scale.as<float>();
    p.offset = got.offset.as<float>();
  }
  in_both_orders([&] {
    for (const Guarded* out : {&got.y, &got.q, &got.scale, &got.offset}) {
      std::memset(out->as<void>(), 0xa5, size_t(out->bytes()));
    }
    CHECK(cuda::launch_act_mul(p, nullptr) == cudaSuccess);
    if (c.emit_fp) {
      CHECK(same_elements(got.y.as<void>(), want.y.as<void>(), c.rows * c.k, c.dtype));
    }
    if (!c.emit_rows) return;
    CHECK(std::memcmp(got.q.as<void>(), want.q.as<void>(), size_t(c.rows * c.k)) == 0);
    CHECK(same_elements(got.scale.as<void>(), want.scale.as<void>(), c.rows, DType::f32));
    CHECK(same_elements(got.offset.as<void>(), want.offset.as<void>(), c.rows, DType::f32));
  });
}

struct Gap {
  int64_t x, other;
  Side side;
};
constexpr Gap kNone{0, 0, Side::end};

Case turned(DType dtype, int64_t rows, int64_t k, Gap gap, int turn) {
  return {dtype,
          rows,
          k,
          gap.x,
          gap.other,
          gap.side,
          Activation(turn % cpu::kActivationCount),
          turn % 4 < 2,
          turn % 3 != 1,
          turn % 3 != 2};
}

}  // namespace

void test_cuda_act_mul() {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    group("cuda act_mul dtype " + std::to_string(int(dtype)), [&] {
      int turn = int(dtype);
      for (const int64_t k : {0, 1, 7, 8, 64, 100, 512, 520, 1031, 2048, 4104, 8200}) {
        for (const Gap& gap :
             {kNone, Gap{8, 16, Side::end}, Gap{3, 6, Side::end}, Gap{0, 3, Side::begin},
              Gap{3, 0, Side::begin}, Gap{8 - k % 8, 8 - k % 8, Side::begin}}) {
          check(turned(dtype, 5, k, gap, turn++));
        }
      }
      for (int i = 0; i < 12; ++i) check(turned(dtype, 5, 72, {8, 8, Side::end}, i));
      check(turned(dtype, 0, 64, kNone, 0));
      const int64_t longest = (96 << 10) / cpu::size_of(dtype);  // in shared memory
      for (const int64_t k : {longest, longest + 8, longest + 1}) {
        for (const int i : {0, 1, 2}) check(turned(dtype, 1, k, kNone, i));
      }
    });
  }
}

}  // namespace fastinfer::test
