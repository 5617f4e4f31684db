// One product of an int8 matmul on the emulated GPU beside the CPU's reference kernel.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/gemm_s8s8s32/pack.h"
#include "cuda/gemm_s8s8s32/gemm_s8s8s32.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

using cpu::Activation;

struct GemmCase {
  int64_t m, n, k;
  Activation activation;
  DType out_dtype;
  bool bias, multiplier, residual, extremes;
  bool sparse = false;  // 2:4
};

inline std::vector<float> floats(Random& random, int64_t count) {
  std::vector<float> values(size_t(count + 1));
  for (auto& v : values) v = random.unit();
  return values;
}

// Sets two of every four along K to zero, or a few more.
inline void keep_two_of_four(Random& random, const GemmCase& c, std::vector<int8_t>* w) {
  for (int64_t n = 0; n < c.n; ++n) {
    for (int64_t k = 0; k < c.k; k += 4) {
      const int64_t first = random.below(4), second = (first + 1 + random.below(3)) % 4;
      for (int64_t i = 0; i < std::min<int64_t>(4, c.k - k); ++i) {
        if (i == first || i == second || random.below(9) == 0) (*w)[size_t(n * c.k + k + i)] = 0;
      }
    }
  }
}

// launch(p, w) multiplies; p is complete but for its weight, w is that, [n, k]. Every buffer ends
// at a guard page, and lies as aligned as torch's allocator has it.
template <class Launch>
void check_gemm(const GemmCase& c, Launch&& launch) {
  Random random(uint64_t(c.m * 7919 + c.n * 31 + c.k));
  const int64_t k_pad = (c.k + 63) / 64 * 64;
  const auto byte = [&] {
    return c.extremes ? int8_t(random.bits() % 2 ? 127 : -128) : random.byte();
  };
  std::vector<int8_t> w(size_t(c.n * c.k));
  for (auto& v : w) v = c.extremes ? int8_t(random.bits() % 2 ? 127 : -127) : random.byte();
  if (c.sparse) keep_two_of_four(random, c, &w);
  std::vector<uint8_t> dense(size_t(cpu::packed_bytes(c.n, c.k)));
  cpu::pack_w8(w.data(), c.n, c.k, dense.data());
  cpu::PackedWeight opened;
  CHECK(cpu::open_packed(dense.data(), int64_t(dense.size()), &opened) == nullptr);
  const Guarded a(c.m * k_pad, Side::end, 0);
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t k = 0; k < c.k; ++k) a.as<int8_t>()[m * k_pad + k] = byte();
  }
  const auto a_scale = floats(random, c.m), a_offset = floats(random, c.m);
  const auto w_scale = floats(random, c.n), bias = floats(random, c.n);
  const auto multiplier = floats(random, c.m * c.n);
  const auto residual = random_elements(random, c.m * (c.n + 3), c.out_dtype);
  const int64_t size = cpu::size_of(c.out_dtype), out_bytes = c.m * c.n * size;
  const Guarded want(out_bytes, Side::end), got(out_bytes, Side::end);

  cpu::GemmS8S8S32 r{};
  r.m = c.m;
  r.n = c.n;
  r.k_pad = k_pad;
  r.a = a.as<int8_t>();
  r.a_scale = a_scale.data();
  r.a_offset = a_offset.data();
  r.panels = opened.panels;
  r.compensation = opened.compensation;
  r.b_scale = w_scale.data();
  r.bias = c.bias ? bias.data() : nullptr;
  r.activation = c.activation;
  r.multiplier = c.multiplier ? multiplier.data() : nullptr;
  r.multiplier_ld_bytes = c.n * 4;
  r.residual = c.residual ? residual.data() : nullptr;
  r.residual_ld_bytes = (c.n + 3) * size;
  r.out = want.as<void>();
  r.out_ld_bytes = c.n * size;
  r.out_dtype = c.out_dtype;
  int count = 0;
  const auto& reference = cpu::gemm_s8s8s32_kernels(&count)[0];
  CHECK(reference.tile_rows == 1 && reference.flip == 0);
  reference.run(r);

  cuda::GemmS8S8S32 p{};
  p.m = c.m;
  p.n = c.n;
  p.k_pad = k_pad;
  p.a = a.as<int8_t>();
  p.a_scale = a_scale.data();
  p.a_offset = a_offset.data();
  p.compensation = opened.compensation;
  p.w_scale = w_scale.data();
  p.bias = r.bias;
  p.activation = c.activation;
  p.multiplier = r.multiplier;
  p.ld_multiplier = c.n;
  p.residual = r.residual;
  p.ld_residual = c.n + 3;
  p.out = got.as<void>();
  p.ld_out = c.n;
  p.out_dtype = c.out_dtype;
  in_both_orders([&] {
    std::memset(got.as<void>(), 0xa5, size_t(out_bytes));
    launch(p, w);
    CHECK(same_elements(got.as<void>(), want.as<void>(), c.m * c.n, c.out_dtype));
  });
}

inline GemmCase plain(int64_t m, int64_t n, int64_t k) {
  return {m, n, k, Activation::none, DType::f32, true, false, false, false};
}

}  // namespace fastinfer::test
