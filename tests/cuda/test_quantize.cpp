// quantize_rowwise on the emulated GPU gives the bytes, scales and offsets of the CPU's reference.
#include <string>
#include <vector>

#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "cuda/quantize_rowwise/quantize_rowwise.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

namespace {

// Rows by turns: plain, zero, holding a NaN, an Inf, subnormal.
std::vector<uint8_t> rows_of(Random& random, DType dtype, int64_t rows, int64_t ldx, int64_t k) {
  auto x = random_elements(random, rows * ldx, dtype);
  const int64_t size = cpu::size_of(dtype);
  const auto put = [&](int64_t m, int64_t i, uint32_t f32, uint16_t bf16, uint16_t f16) {
    const uint16_t half = dtype == DType::bf16 ? bf16 : f16;
    std::memcpy(&x[size_t((m * ldx + i) * size)],
                size == 4 ? static_cast<const void*>(&f32) : &half, size_t(size));
  };
  for (int64_t m = 0; m < rows && k > 0; ++m) {
    const int64_t at = random.below(k);
    if (m % 5 == 2) put(m, at, 0x7fc00001u, 0x7fc1, 0x7e01);
    if (m % 5 == 3) put(m, at, 0xff800000u, 0xff80, 0xfc00);
    for (int64_t i = 0; i < k && m % 5 == 1; ++i) put(m, i, 0x80000000u, 0x8000, 0x8000);
    for (int64_t i = 0; i < k && m % 5 == 4; ++i) put(m, i, uint32_t(i), uint16_t(i % 90), 1);
  }
  return x;
}

struct Rows {
  Guarded q, scale, offset;
  Rows(int64_t rows, int64_t bytes)
      : q(rows * bytes, Side::end), scale(rows * 4, Side::end), offset(rows * 4, Side::end) {}
};

void check(DType dtype, int64_t m, int64_t k, int64_t extra, bool symmetric, bool fixed) {
  Random random(uint64_t(m * 1000 + k));
  const int64_t ldx = k + extra, k_pad = (k + 63) / 64 * 64, size = cpu::size_of(dtype);
  const auto rows = rows_of(random, dtype, m, ldx, k);
  const int64_t bytes = m > 0 ? ((m - 1) * ldx + k) * size : 0;
  const Guarded x(rows.data(), bytes, Side::end);
  const float given[2] = {0.01f, 0.25f};
  const Rows want(m, k_pad), got(m, k_pad);

  cpu::QuantizeRowwise reference{};
  reference.x = x.as<void>();
  reference.x_dtype = dtype;
  reference.ldx_bytes = ldx * size;
  reference.rows = m;
  reference.k = k;
  reference.k_store = k_pad;
  reference.tile_rows = 1;
  reference.q = want.q.as<int8_t>();
  reference.scale = want.scale.as<float>();
  reference.offset = symmetric ? nullptr : want.offset.as<float>();
  reference.static_scale = fixed ? given[0] : 0.0f;
  reference.static_offset = given[1];
  int count = 0;
  cpu::quantize_rowwise_kernels(&count)[0].run(reference);

  cuda::QuantizeRowwise p{};
  p.x = x.as<void>();
  p.x_dtype = dtype;
  p.ldx = ldx;
  p.rows = m;
  p.k = k;
  p.k_pad = k_pad;
  p.q = got.q.as<int8_t>();
  p.scale = got.scale.as<float>();
  p.offset = symmetric ? nullptr : got.offset.as<float>();
  if (fixed) {
    p.given_scale = &given[0];
    p.given_offset = &given[1];
  }
  std::vector<int32_t> counters(100, -1);
  p.counters = counters.data();
  p.counter_count = 70;
  in_both_orders([&] {
    CHECK(cuda::launch_quantize_rowwise(p, nullptr) == cudaSuccess);
    CHECK(std::memcmp(got.q.as<void>(), want.q.as<void>(), size_t(m * k_pad)) == 0);
    CHECK(same_elements(got.scale.as<void>(), want.scale.as<void>(), m, DType::f32));
    if (!symmetric) {
      CHECK(same_elements(got.offset.as<void>(), want.offset.as<void>(), m, DType::f32));
    }
  });
  if (m == 0) return;
  CHECK(counters[0] == 0 && counters[69] == 0 && counters[70] == -1);
}

void check_int8_rows(int64_t m, int64_t k, int64_t step) {
  Random random(uint64_t(m + k));
  const int64_t ldx = k + 3, k_pad = (k + 63) / 64 * 64;
  std::vector<int8_t> x(size_t(m * ldx));
  for (auto& v : x) v = random.byte();
  std::vector<float> scale(x.size() + 1), offset(x.size() + 1);
  for (auto& v : scale) v = random.unit();
  for (auto& v : offset) v = random.unit();
  const Rows got(m, k_pad);
  cuda::QuantizeRowwise p{};
  p.x = x.data();
  p.x_dtype = DType::s8;
  p.ldx = ldx;
  p.rows = m;
  p.k = k;
  p.k_pad = k_pad;
  p.q = got.q.as<int8_t>();
  p.scale = got.scale.as<float>();
  p.offset = got.offset.as<float>();
  p.given_scale = scale.data();
  p.given_offset = offset.data();
  p.given_step = step;
  CHECK(cuda::launch_quantize_rowwise(p, nullptr) == cudaSuccess);
  for (int64_t i = 0; i < m; ++i) {
    CHECK(got.scale.as<float>()[i] == scale[size_t(i * step)]);
    CHECK(got.offset.as<float>()[i] == offset[size_t(i * step)]);
    for (int64_t j = 0; j < k_pad; ++j) {
      CHECK(got.q.as<int8_t>()[i * k_pad + j] == (j < k ? x[size_t(i * ldx + j)] : int8_t(0)));
    }
  }
}

}  // namespace

void test_cuda_quantize() {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    group("cuda quantize_rowwise dtype " + std::to_string(int(dtype)), [&] {
      for (const int64_t k : {0, 1, 7, 64, 100, 512, 520, 1031, 2048, 2056, 8200}) {
        for (const int64_t extra : {0, 8, 3}) check(dtype, 6, k, extra, false, false);
      }
      for (const bool symmetric : {false, true}) {
        for (const bool fixed : {false, true}) check(dtype, 11, 72, 0, symmetric, fixed);
      }
      check(dtype, 0, 64, 0, false, false);
    });
  }
  group("cuda quantize_rowwise int8 rows", [] {
    for (const int64_t k : {1, 64, 100, 600}) {
      for (const int64_t step : {0, 1}) check_int8_rows(3, k, step);
    }
  });
}

}  // namespace fastinfer::test
