// Every row of norm/kernels.inc that runs here against the formula of norm.h, bit for bit, on
// guarded buffers; its int8 rows against quantize_rowwise of its float rows.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/norm/norm.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cpu/vec/scalar.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Case {
  NormKind kind;
  DType dtype;
  int64_t rows, k;
  bool residual, weight, bias, emit_fp, emit_rows, stream;
  Side side;
};

float sum_of(const std::vector<float>& v, const std::vector<float>* factor) {
  constexpr size_t kPartials = 32;
  std::vector<float> part(kPartials, 0.0f);
  for (size_t i = 0; i < v.size(); ++i) {
    float& p = part[i % kPartials];
    p = factor != nullptr ? std::fma(v[i], (*factor)[i], p) : p + v[i];
  }
  for (size_t h = kPartials / 2; h > 0; h /= 2) {
    for (size_t i = 0; i < h; ++i) part[i] += part[i + h];
  }
  return part[0];
}

std::vector<float> minus(std::vector<float> v, float c) {
  for (float& e : v) e -= c;
  return v;
}

std::vector<float> norm_of(NormKind kind, std::vector<float> s, float eps) {
  const float k = float(s.size());
  float square;
  if (kind == NormKind::layer) {
    const float c = sum_of(s, nullptr) / k;
    const std::vector<float> d = minus(s, c);
    square = sum_of(d, &d) / k;
    s = minus(s, c + sum_of(d, nullptr) / k);
  } else {
    square = sum_of(s, &s) / k;
  }
  const float rstd = 1.0f / std::sqrt(square + eps);
  for (float& e : s) e *= rstd;
  return s;
}

float round_to(float v, DType dtype) {
  uint32_t bits = 0;
  ScalarVec::store(&bits, dtype, v);
  return ScalarVec::load(static_cast<const void*>(&bits), dtype);
}

// Rows of many kinds: random, NaN, Inf, constant, zero, the largest, subnormal, far from zero.
void make_special(Random& random, char* row, int64_t index, int64_t k, DType dtype) {
  const auto set = [&](int64_t i, float v) {
    ScalarVec::store(row + i * size_of(dtype), dtype, v);
  };
  const auto fill = [&](float v) {
    for (int64_t i = 0; i < k; ++i) set(i, v);
  };
  switch (index % 9) {
    case 1: set(random.below(k), NAN); break;
    case 2: set(random.below(k), -INFINITY); break;
    case 3: fill(1234.5678f); break;
    case 4: fill(-0.0f); break;
    case 5: fill(dtype == DType::f16 ? 65504.0f : 3e38f); break;
    case 6: fill(0x1p-140f); break;
    case 7:
      for (int64_t i = 0; i < k; ++i) set(i, 100.0f + random.unit());
      break;
    default: break;
  }
}

void check_case(const NormKernel& kernel, const Case& c) {
  results().context = std::string(kernel.name) + (c.kind == NormKind::layer ? " layer" : " rms") +
                      " dtype=" + std::to_string(int(c.dtype)) + " rows=" + std::to_string(c.rows) +
                      " k=" + std::to_string(c.k) + (c.residual ? " residual" : "") +
                      (c.weight ? " weight" : "") + (c.bias ? " bias" : "") +
                      (c.emit_fp ? " fp" : "") + (c.emit_rows ? " rows" : "") +
                      (c.stream ? " stream" : "") + (c.side == Side::end ? " end" : " begin");
  Random random(uint64_t(c.k * 31 + int(c.dtype)));
  const int64_t size = size_of(c.dtype), ldx = (c.k + 1) * size, ldr = (c.k + 3) * size;
  const Guarded x((c.rows - 1) * ldx + c.k * size, c.side);
  const Guarded residual((c.rows - 1) * ldr + c.k * size, c.side);
  for (int64_t m = 0; m < c.rows && c.k > 0; ++m) {
    const auto a = random_elements(random, c.k, c.dtype), b = random_elements(random, c.k, c.dtype);
    std::memcpy(x.as<char>() + m * ldx, a.data(), a.size());
    std::memcpy(residual.as<char>() + m * ldr, b.data(), b.size());
    make_special(random, x.as<char>() + m * ldx, m, c.k, c.dtype);
  }
  // The dtype of a parameter is its own.
  const DType weight_dtype = DType((int(c.dtype) + 1) % 3), bias_dtype = DType(c.k % 3);
  const auto w = random_elements(random, c.k, weight_dtype);
  const auto b = random_elements(random, c.k, bias_dtype);
  const Guarded weight(w.data(), int64_t(w.size()), c.side);
  const Guarded bias(b.data(), int64_t(b.size()), c.side);
  const Guarded sum(c.rows * c.k * size, c.side), y(c.rows * c.k * size, c.side);
  const Guarded q(c.rows * c.k, c.side), scale(c.rows * 4, c.side), offset(c.rows * 4, c.side);
  const Guarded scratch(norm_scratch_floats(c.k) * 4, c.side);
  Norm p{};
  p.kind = c.kind;
  p.dtype = c.dtype;
  p.x = x.as<char>();
  p.ldx_bytes = ldx;
  p.rows = c.rows;
  p.k = c.k;
  p.eps = 1e-5f;
  p.stream = c.stream;
  p.scratch = scratch.as<float>();
  if (c.residual) {
    p.residual = residual.as<char>();
    p.residual_ld_bytes = ldr;
    p.sum = sum.as<char>();
  }
  if (c.weight) p.weight = weight.as<char>();
  p.weight_dtype = weight_dtype;
  if (c.bias) p.bias = bias.as<char>();
  p.bias_dtype = bias_dtype;
  if (c.emit_fp) p.y = y.as<char>();
  if (c.emit_rows) {
    p.q = q.as<int8_t>();
    p.scale = scale.as<float>();
    p.offset = offset.as<float>();
  }
  kernel.run(p);

  std::vector<uint8_t> want_sum(size_t(c.rows * c.k * size)), want_y(want_sum.size());
  const auto load = [](const void* base, int64_t i, DType dtype) {
    return ScalarVec::load(static_cast<const char*>(base) + i * size_of(dtype), dtype);
  };
  for (int64_t m = 0; m < c.rows; ++m) {
    std::vector<float> s;
    for (int64_t i = 0; i < c.k; ++i) {
      const float v = load(x.as<char>() + m * ldx, i, c.dtype);
      s.push_back(
          c.residual ? round_to(v + load(residual.as<char>() + m * ldr, i, c.dtype), c.dtype) : v);
    }
    const std::vector<float> z = norm_of(c.kind, s, p.eps);
    for (int64_t i = 0; i < c.k; ++i) {
      const float g = c.weight ? load(weight.as<char>(), i, weight_dtype) : 1.0f;
      const float h = c.bias ? load(bias.as<char>(), i, bias_dtype) : 0.0f;
      const size_t at = size_t((m * c.k + i) * size);
      ScalarVec::store(&want_sum[at], c.dtype, s[size_t(i)]);
      ScalarVec::store(&want_y[at], c.dtype, std::fma(z[size_t(i)], g, h));
    }
  }
  if (c.residual) CHECK(same_elements(sum.as<char>(), want_sum.data(), c.rows * c.k, c.dtype));
  if (c.emit_fp) CHECK(same_elements(y.as<char>(), want_y.data(), c.rows * c.k, c.dtype));
  if (!c.emit_rows) return;
  std::vector<int8_t> want_q(size_t(c.rows * c.k));
  std::vector<float> want_scale(size_t(c.rows)), want_offset(size_t(c.rows));
  QuantizeRowwise r{};
  r.x = want_y.data();
  r.x_dtype = c.dtype;
  r.ldx_bytes = c.k * size;
  r.rows = c.rows;
  r.k = r.k_store = c.k;
  r.tile_rows = 1;
  r.q = want_q.data();
  r.scale = want_scale.data();
  r.offset = want_offset.data();
  int count;
  quantize_rowwise_kernels(&count)[0].run(r);
  CHECK(want_q.empty() || std::memcmp(q.as<char>(), want_q.data(), want_q.size()) == 0);
  CHECK(same_elements(scale.as<char>(), want_scale.data(), c.rows, DType::f32));
  CHECK(same_elements(offset.as<char>(), want_offset.data(), c.rows, DType::f32));
}

}  // namespace

void test_norm() {
  int count;
  const NormKernel* kernels = norm_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const NormKernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (NormKind kind : {NormKind::layer, NormKind::rms}) {
        for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
          for (int64_t k : {0,  1,  3,  4,  7,  8,  9,   15,  16,  17,  31,
                            32, 33, 47, 63, 64, 65, 128, 131, 200, 384, 1500}) {
            for (Side side : {Side::end, Side::begin}) {
              if (k == 1500 && (dtype != DType::f32 || side != Side::end)) continue;  // long
              for (int turn = 0; turn < 16; ++turn) {
                const bool residual = turn & 1, weight = turn & 2, bias = turn & 4;
                const bool stream = turn & 8, rows_only = turn % 5 == 1, fp_only = turn % 5 == 2;
                const int64_t rows[] = {1, 9, 2, 4};
                check_case(kernel, {kind, dtype, rows[turn % 4], k, residual, weight, bias,
                                    !rows_only, !fp_only, stream, side});
              }
            }
          }
        }
      }
    });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
}

}  // namespace fastinfer::test
