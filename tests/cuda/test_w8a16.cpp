// The weight-only matmul on the emulated GPU against float64.
#include <cmath>
#include <string>
#include <vector>

#include "cuda/gemm_s8s8s32/pack.h"
#include "cuda/gemm_w8a16/gemm_w8a16.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::Activation;

namespace {

struct Case {
  int64_t m, n, k;
  DType x_dtype, out_dtype;
  Activation activation;
  bool bias, residual;
  int64_t extra;  // elements between rows of x
};

double activated(Activation activation, double z) {
  switch (activation) {
    case Activation::none: return z;
    case Activation::relu: return z > 0 ? z : 0;
    case Activation::gelu: return z * 0.5 * std::erfc(-z / std::sqrt(2.0));
    case Activation::gelu_tanh: {
      const double u = std::sqrt(2 / std::acos(-1.0)) * (z + 0.044715 * z * z * z);
      return 0.5 * z * (1 + std::tanh(u));
    }
    case Activation::silu: return z / (1 + std::exp(-z));
    case Activation::quick_gelu: break;
  }
  return z / (1 + std::exp(-1.702 * z));
}

// The unit roundoff.
double rounding(DType dtype) {
  return dtype == DType::f32 ? 0x1p-24 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
}

template <class Launch>
void check(const Case& c, Launch&& launch) {
  Random random(uint64_t(c.m * 7919 + c.n * 31 + c.k));
  const auto at = cuda::packed_offsets(c.n, c.k);
  std::vector<int8_t> w(size_t(c.n * c.k));
  for (auto& v : w) v = int8_t(random.below(255) - 127);
  const Guarded packed(at.bytes, Side::end);
  cuda::pack_w8(w.data(), c.n, c.k, packed.as<uint8_t>());
  const int64_t ldx = c.k + c.extra, x_size = cpu::size_of(c.x_dtype);
  auto elements = random_elements(random, c.m * ldx, c.x_dtype);
  const int64_t poisoned = c.m > 2 && c.k > 0 ? c.m / 2 : -1;  // a row with a NaN
  if (poisoned >= 0) {
    const uint32_t nan = c.x_dtype == DType::f32 ? 0x7fc00000u : 0x7fc0u | 0x7e00u;
    std::memcpy(&elements[size_t((poisoned * ldx + c.k - 1) * x_size)], &nan, size_t(x_size));
  }
  const Guarded x(elements.data(), ((c.m - 1) * ldx + c.k) * x_size, Side::end);
  std::vector<float> scale(size_t(c.n)), bias(size_t(c.n));
  for (auto& v : scale) v = (random.unit() + 2.0f) * 0.01f;
  for (auto& v : bias) v = random.unit();
  const auto residual = random_elements(random, c.m * c.n, c.out_dtype);
  const int64_t size = cpu::size_of(c.out_dtype);
  const Guarded out(c.m * c.n * size, Side::end);

  cuda::GemmW8A16 p{};
  p.m = c.m;
  p.n = c.n;
  p.k = c.k;
  p.k_pad = at.k_pad;
  p.x = x.as<void>();
  p.x_dtype = c.x_dtype;
  p.ldx = ldx;
  p.w = packed.as<int8_t>() + at.rows;
  p.w_scale = scale.data();
  p.bias = c.bias ? bias.data() : nullptr;
  p.activation = c.activation;
  p.residual = c.residual ? residual.data() : nullptr;
  p.ld_residual = c.n;
  p.out = out.as<void>();
  p.ld_out = c.n;
  p.out_dtype = c.out_dtype;
  in_both_orders([&] {
    std::memset(out.as<void>(), 0xa5, size_t(c.m * c.n * size));
    CHECK(launch(p) == cudaSuccess);
    for (int64_t m = 0; m < c.m; ++m) {
      for (int64_t n = 0; n < c.n; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double v = element(x.as<char>() + (m * ldx + k) * x_size, c.x_dtype);
          sum += v * w[size_t(n * c.k + k)];
          magnitude += std::fabs(v * w[size_t(n * c.k + k)]);
        }
        double want = sum * scale[size_t(n)] + (c.bias ? bias[size_t(n)] : 0.0f);
        // Of the sum (gemm_w8a16.h), of z and of the activation (cpu/vec/math.h: 4 |z| 2^-24), none
        // of which is steeper than 1.2.
        double bound =
            magnitude * scale[size_t(n)] * double(c.k + 2) * 0x1p-23 + std::fabs(want) * 0x1p-21;
        want = activated(c.activation, want);
        if (c.residual) want += element(&residual[size_t((m * c.n + n) * size)], c.out_dtype);
        bound = 1.2 * bound + std::fabs(want) * 0x1p-21 + 1e-6;
        bound += (std::fabs(want) + bound) * rounding(c.out_dtype);
        const double got = element(out.as<char>() + (m * c.n + n) * size, c.out_dtype);
        CHECK(m == poisoned ? std::isnan(got) : std::fabs(got - want) <= bound);
      }
    }
  });
}

Case plain(int64_t m, int64_t n, int64_t k, DType dtype) {
  return {m, n, k, dtype, DType::f32, Activation::none, true, false, 0};
}

void test_pad() {
  Random random(3);
  for (const int64_t k : {1, 7, 8, 13}) {
    const auto from = random_elements(random, 5 * (k + 3), DType::bf16);
    const int64_t k_pad = (k + 7) / 8 * 8;
    const Guarded to(5 * k_pad * 2, Side::end);
    CHECK(cuda::launch_pad_rows(from.data(), k + 3, 5, k, to.as<void>(), nullptr) == cudaSuccess);
    for (int64_t m = 0; m < 5; ++m) {
      for (int64_t i = 0; i < k_pad; ++i) {
        uint16_t want = 0;
        if (i < k) std::memcpy(&want, &from[size_t((m * (k + 3) + i) * 2)], 2);
        CHECK(to.as<uint16_t>()[m * k_pad + i] == want);
      }
    }
  }
}

}  // namespace

void test_cuda_w8a16() {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::string name = dtype == DType::bf16 ? "bf16" : "f16";
    group("cuda w8a16 few " + name, [&] {
      const auto launch = [](const auto& p) { return cuda::launch_w8a16_few(p, nullptr); };
      for (const int64_t m : {1, 8, 9, 16}) {
        for (const int64_t n : {1, 16, 37}) {
          for (const int64_t k : {8, 64, 200, 1096, 2120}) check(plain(m, n, k, dtype), launch);
        }
      }
    });
    group("cuda w8a16 tiles " + name, [&] {
      const auto launch = [](const auto& p) { return cuda::launch_w8a16_tiles(p, nullptr); };
      for (const int64_t m : {1, 17, 33, 65}) {
        for (const int64_t n : {5, 64, 83}) {
          for (const int64_t k : {8, 64, 520}) check(plain(m, n, k, dtype), launch);
        }
      }
    });
  }
  const auto launch = [](const auto& p) { return cuda::launch_gemm_w8a16(p, nullptr); };
  group("cuda w8a32", [&] {
    for (const int64_t k : {1, 33, 200}) {
      Case c = plain(5, 7, k, DType::f32);
      c.extra = 3;
      check(c, launch);
    }
  });
  group("cuda w8a16 epilogues", [&] {
    for (int i = 0; i < cpu::kActivationCount; ++i) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const DType x_dtype = i % 2 == 0 ? DType::bf16 : DType::f16;
        check({3, 21, 72, x_dtype, dtype, Activation(i), i % 3 != 0, i % 2 == 0, 8}, launch);
        check({18, 21, 72, x_dtype, dtype, Activation(i), i % 3 != 0, i % 2 == 0, 8}, launch);
      }
    }
  });
  group("cuda pad_rows", test_pad);
}

}  // namespace fastinfer::test
