// norm on the emulated GPU gives the bits of the CPU's reference: sums, float rows, int8 rows.
#include <cmath>
#include <string>
#include <vector>

#include "cpu/vec/scalar.h"
#include "cuda/norm/norm.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::NormKind;

namespace {

struct Case {
  NormKind kind;
  DType dtype;
  int64_t rows, k, extra, more;  // extra, more: from the end of a row of x, residual to the next
  Side side;                     // of what is read: end guards it, begin aligns it
  int64_t shift;                 // of the parameters, in elements
  bool residual, weight, bias, emit_fp, emit_rows;
  DType weight_dtype, bias_dtype;
};

// Rows by turns: random, NaN, Inf, constant, zero, the largest, subnormal, far from zero.
void make_special(Random& random, char* row, int64_t index, int64_t k, DType dtype) {
  const auto set = [&](int64_t i, float v) {
    cpu::ScalarVec::store(row + i * cpu::size_of(dtype), dtype, v);
  };
  const float same[] = {1234.5678f, -0.0f, dtype == DType::f16 ? 65504.0f : 3e38f, 0x1p-140f};
  const int64_t turn = index % 8;
  if (turn == 1) set(random.below(k), NAN);
  if (turn == 2) set(random.below(k), -INFINITY);
  for (int64_t i = 0; i < k && turn >= 3; ++i) {
    set(i, turn == 7 ? 100.0f + random.unit() : same[turn - 3]);
  }
}

struct Outputs {
  Guarded sum, y, q, scale, offset;
  explicit Outputs(const Case& c)
      : sum(c.rows * c.k * cpu::size_of(c.dtype), Side::end),
        y(c.rows * c.k * cpu::size_of(c.dtype), Side::end),
        q(c.rows * c.k, Side::end),
        scale(c.rows * 4, Side::end),
        offset(c.rows * 4, Side::end) {}
};

void check(const Case& c) {
  results().context = std::string(c.kind == NormKind::layer ? "layer" : "rms") +
                      " dtype=" + std::to_string(int(c.dtype)) + " rows=" + std::to_string(c.rows) +
                      " k=" + std::to_string(c.k) + " extra=" + std::to_string(c.extra) + "," +
                      std::to_string(c.more) + (c.side == Side::end ? " end" : " begin") +
                      (c.residual ? " residual" : "") + (c.emit_fp ? " fp" : "") +
                      (c.emit_rows ? " rows" : "");
  Random random(uint64_t(c.k * 31 + int(c.dtype)));
  const int64_t size = cpu::size_of(c.dtype), ldx = c.k + c.extra, ldr = c.k + c.more;
  const auto bytes = [&](int64_t ld) { return c.rows > 0 ? ((c.rows - 1) * ld + c.k) * size : 0; };
  const Guarded x(bytes(ldx), c.side), residual(bytes(ldr), c.side);
  for (int64_t m = 0; m < c.rows && c.k > 0; ++m) {
    const auto a = random_elements(random, c.k, c.dtype), b = random_elements(random, c.k, c.dtype);
    std::memcpy(x.as<char>() + m * ldx * size, a.data(), a.size());
    std::memcpy(residual.as<char>() + m * ldr * size, b.data(), b.size());
    make_special(random, x.as<char>() + m * ldx * size, m, c.k, c.dtype);
  }
  const auto w = random_elements(random, c.k + c.shift, c.weight_dtype);
  const auto b = random_elements(random, c.k + c.shift, c.bias_dtype);
  const Guarded weight(w.data(), int64_t(w.size()), c.side);
  const Guarded bias(b.data(), int64_t(b.size()), c.side);
  const void* weight_at = weight.as<char>() + c.shift * cpu::size_of(c.weight_dtype);
  const void* bias_at = bias.as<char>() + c.shift * cpu::size_of(c.bias_dtype);
  const Outputs want(c), got(c);

  cpu::Norm reference{};
  reference.kind = c.kind;
  reference.dtype = c.dtype;
  reference.x = x.as<void>();
  reference.ldx_bytes = ldx * size;
  reference.residual = c.residual ? residual.as<void>() : nullptr;
  reference.residual_ld_bytes = ldr * size;
  reference.rows = c.rows;
  reference.k = c.k;
  reference.weight = c.weight ? weight_at : nullptr;
  reference.weight_dtype = c.weight_dtype;
  reference.bias = c.bias ? bias_at : nullptr;
  reference.bias_dtype = c.bias_dtype;
  reference.eps = 1e-5f;
  reference.sum = c.residual ? want.sum.as<void>() : nullptr;
  reference.y = c.emit_fp ? want.y.as<void>() : nullptr;
  if (c.emit_rows) {
    reference.q = want.q.as<int8_t>();
    reference.scale = want.scale.as<float>();
    reference.offset = want.offset.as<float>();
  }
  std::vector<float> scratch(size_t(cpu::norm_scratch_floats(c.k)));
  reference.scratch = scratch.data();
  int count = 0;
  cpu::norm_kernels(&count)[0].run(reference);

  cuda::Norm p{};
  p.kind = c.kind;
  p.dtype = c.dtype;
  p.x = x.as<void>();
  p.ldx = ldx;
  p.residual = reference.residual;
  p.ld_residual = ldr;
  p.rows = c.rows;
  p.k = c.k;
  p.weight = reference.weight;
  p.weight_dtype = c.weight_dtype;
  p.bias = reference.bias;
  p.bias_dtype = c.bias_dtype;
  p.eps = reference.eps;
  p.sum = c.residual ? got.sum.as<void>() : nullptr;
  p.y = c.emit_fp ? got.y.as<void>() : nullptr;
  if (c.emit_rows) {
    p.q = got.q.as<int8_t>();
    p.scale = got.scale.as<float>();
    p.offset = got.offset.as<float>();
  }
  in_both_orders([&] {
    for (const Guarded* out : {&got.sum, &got.y, &got.q, &got.scale, &got.offset}) {
      std::memset(out->as<void>(), 0xa5, size_t(out->bytes()));
    }
    CHECK(cuda::launch_norm(p, nullptr) == cudaSuccess);
    const int64_t n = c.rows * c.k;
    CHECK(same_elements(got.sum.as<void>(), want.sum.as<void>(), n, c.dtype));
    CHECK(same_elements(got.y.as<void>(), want.y.as<void>(), n, c.dtype));
    CHECK(std::memcmp(got.q.as<void>(), want.q.as<void>(), size_t(n)) == 0);
    CHECK(same_elements(got.scale.as<void>(), want.scale.as<void>(), c.rows, DType::f32));
    CHECK(same_elements(got.offset.as<void>(), want.offset.as<void>(), c.rows, DType::f32));
  });
}

struct Gap {
  int64_t x, residual;
  Side side;
  int64_t shift = 0;
};
constexpr Gap kNone{0, 0, Side::end};

// Case `turn` of all that differs but for the sizes.
Case turned(NormKind kind, DType dtype, int64_t rows, int64_t k, Gap gap, int turn) {
  const bool rows_only = turn % 5 == 1, fp_only = turn % 5 == 2;
  return {kind,           dtype,
          rows,           k,
          gap.x,          gap.residual,
          gap.side,       gap.shift,
          bool(turn & 1), bool(turn & 2),
          bool(turn & 4), !rows_only,
          !fp_only,       DType(turn % 4 == 3 ? (int(dtype) + 1) % 3 : int(dtype)),
          DType(turn % 3)};
}

}  // namespace

void test_cuda_norm() {
  for (const NormKind kind : {NormKind::layer, NormKind::rms}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const std::string name = kind == NormKind::layer ? "cuda layer_norm" : "cuda rms_norm";
      group(name + " dtype " + std::to_string(int(dtype)), [&] {
        int turn = int(dtype);
        for (const int64_t k : {0, 1, 7, 8, 31, 32, 33, 64, 100, 512, 520, 1031, 2048, 4104}) {
          for (const Gap& gap :
               {kNone, Gap{8, 16, Side::end}, Gap{3, 6, Side::end}, Gap{0, 3, Side::begin},
                Gap{3, 0, Side::begin}, Gap{8 - k % 8, 8 - k % 8, Side::begin},
                Gap{0, 0, Side::begin, 1}}) {
            check(turned(kind, dtype, 9, k, gap, turn++));
          }
        }
        for (int i = 0; i < 16; ++i) check(turned(kind, dtype, 9, 72, {8, 8, Side::end}, i));
        check(turned(kind, dtype, 0, 64, kNone, 7));
        check(turned(kind, dtype, 2, 8200, kNone, 7));             // more than 16 elements a thread
        const int64_t longest = (96 << 10) / cpu::size_of(dtype);  // in shared memory
        for (const int64_t k : {longest, longest + 8, longest + 1}) {
          for (const int i : {6, 7}) check(turned(kind, dtype, 1, k, kNone, i));
        }
      });
    }
  }
}

}  // namespace fastinfer::test
