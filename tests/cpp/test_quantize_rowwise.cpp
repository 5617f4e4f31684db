// Every row of quantize_rowwise/kernels.inc that runs here against the formula of
// quantize_rowwise.h, in every layout, on guarded buffers.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Case {
  DType dtype;
  int64_t rows, k, k_store, tile_rows;
  uint8_t flip;
  Side side;
  bool symmetric;
  float static_scale, static_offset;  // 0: dynamic
};

// Rows of many kinds: Gaussian-like, all zero, one outlier, halves (ties), subnormal, the largest
// finite values, NaN, Inf.
std::vector<uint8_t> rows_of(Random& random, const Case& c) {
  const int64_t size = size_of(c.dtype);
  auto bytes = random_elements(random, c.rows * c.k, c.dtype);
  const auto set = [&](int64_t row, int64_t i, uint32_t f32, uint16_t bf16, uint16_t f16) {
    const uint16_t half = c.dtype == DType::bf16 ? bf16 : f16;
    std::memcpy(&bytes[size_t((row * c.k + i) * size)],
                c.dtype == DType::f32 ? static_cast<const void*>(&f32) : &half, size_t(size));
  };
  for (int64_t row = 0; row < c.rows && c.k > 0; ++row) {
    const int64_t at = random.below(c.k);
    const uint32_t sign = uint32_t(random.below(2));
    const auto one = [&](uint32_t f32, uint16_t bf16, uint16_t f16) {
      set(row, at, f32 | sign << 31, uint16_t(bf16 | sign << 15), uint16_t(f16 | sign << 15));
    };
    switch (row % 10) {
      case 1:
        for (int64_t i = 0; i < c.k; ++i) set(row, i, 0x80000000u, 0x8000, 0x8000);  // -0
        break;
      case 2: one(0x7fc00001u, 0x7fc1, 0x7e01); break;  // NaN
      case 3: one(0x7f800000u, 0x7f80, 0x7c00); break;  // Inf
      case 4: one(0x7f7fffffu, 0x7f7f, 0x7bff); break;  // the largest
      case 5:
        for (int64_t i = 0; i < c.k; ++i) set(row, i, uint32_t(i + 1), uint16_t(i % 100 + 1), 1);
        break;
      case 6:
        // The largest is 127, so that the halves among the others are ties.
        for (int64_t i = 0; i < c.k; ++i) {
          const float v = float(random.below(508) - 254) * 0.5f;
          const uint32_t bits = bits_of_float(v);
          set(row, i, bits, uint16_t(bits >> 16), uint16_t(random.bits() & 0x83ff));
        }
        one(0x42fe0000u, 0x42fe, 0x57f0);
        break;
      case 8:  // all but one far from zero and close together
        for (int64_t i = 0; i < c.k; ++i) {
          const uint32_t step = uint32_t(random.below(2));
          set(row, i, 0x3f800000u + step, uint16_t(0x3f80 + step), uint16_t(0x3c00 + step));
        }
        break;
      case 7: one(0x7fbfffffu, 0x7fbf, 0x7dff); break;  // a signalling NaN
      default: break;
    }
  }
  return bytes;
}

void check_case(const QuantizeRowwiseKernel& kernel, const Case& c) {
  results().context =
      std::string(kernel.name) + " dtype=" + std::to_string(int(c.dtype)) +
      " rows=" + std::to_string(c.rows) + " k=" + std::to_string(c.k) +
      " k_store=" + std::to_string(c.k_store) + " tile_rows=" + std::to_string(c.tile_rows) +
      " flip=" + std::to_string(c.flip) + (c.side == Side::end ? " end" : " begin") +
      (c.symmetric ? " symmetric" : " offset") + " static=" + std::to_string(c.static_scale);
  const int64_t size = size_of(c.dtype), ldx = (c.k + 1) * size;
  Random random(uint64_t(c.rows * 7919 + c.k));
  const auto values = rows_of(random, c);
  const Guarded x((c.rows - 1) * ldx + c.k * size, c.side);
  for (int64_t row = 0; row < c.rows && c.k > 0; ++row) {
    std::memcpy(x.as<char>() + row * ldx, &values[size_t(row * c.k * size)], size_t(c.k * size));
  }
  const Guarded q(c.rows * c.k_store, c.side), scale(c.rows * 4, c.side);
  const Guarded offset(c.rows * 4, c.side);
  QuantizeRowwise p{};
  p.x = x.as<char>();
  p.x_dtype = c.dtype;
  p.ldx_bytes = ldx;
  p.rows = c.rows;
  p.k = c.k;
  p.k_store = c.k_store;
  p.tile_rows = c.tile_rows;
  p.flip = c.flip;
  p.q = q.as<int8_t>();
  p.scale = scale.as<float>();
  p.offset = c.symmetric ? nullptr : offset.as<float>();
  p.static_scale = c.static_scale;
  p.static_offset = c.static_offset;
  kernel.run(p);

  bool scales = true, offsets = true, codes = true;
  for (int64_t row = 0; row < c.rows; ++row) {
    bool finite = true;
    std::vector<float> v;
    for (int64_t i = 0; i < c.k; ++i) {
      v.push_back(float(element(x.as<char>() + row * ldx + i * size, c.dtype)));
      finite = finite && std::isfinite(v.back());
    }
    // std::minmax_element takes no NaN, and rows that hold one are not asked for their range.
    float low = 0, high = 0;
    if (finite && c.k > 0) {
      low = *std::min_element(v.begin(), v.end());
      high = *std::max_element(v.begin(), v.end());
    }
    const bool fixed = c.static_scale != 0.0f;
    const float middle = c.symmetric ? 0.0f : fixed ? c.static_offset : high * 0.5f + low * 0.5f;
    const float most = std::max({high - middle, middle - low, 0x1p-118f});
    if (!c.symmetric) {
      // +0 and never -0, whatever the signs of the zeros of the row.
      const float got = offset.as<float>()[row];
      offsets = offsets && got == (finite ? middle : 0.0f) && !(got == 0.0f && std::signbit(got));
    }
    const float want_scale = fixed ? c.static_scale : most / 127.0f;
    scales = scales &&
             (finite ? scale.as<float>()[row] == want_scale : std::isnan(scale.as<float>()[row]));
    const float inverse = fixed ? 1.0f / c.static_scale : 127.0f / most;
    const int64_t first = row / c.tile_rows * c.tile_rows;
    const int64_t block_rows = std::min(c.tile_rows, c.rows - first);
    for (int64_t i = 0; i < c.k_store; ++i) {
      int want = 0;
      if (i < c.k && finite) {
        const float q32 = std::nearbyint((v[size_t(i)] - middle) * inverse);
        want = int(std::min(127.0f, std::max(-127.0f, q32)));
      }
      const int64_t at = c.tile_rows == 1 ? row * c.k_store + i
                                          : first * c.k_store + i / 64 * block_rows * 64 +
                                                (row - first) * 64 + i % 64;
      codes = codes && (q.as<uint8_t>()[at] ^ c.flip) == uint8_t(int8_t(want));
    }
  }
  CHECK(scales);
  CHECK(offsets);
  CHECK(codes);
}

}  // namespace

void test_quantize_rowwise() {
  int count;
  const QuantizeRowwiseKernel* kernels = quantize_rowwise_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const QuantizeRowwiseKernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        for (int64_t rows : {1, 15, 16, 17, 35}) {
          for (int64_t k : {0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 131, 200}) {
            const int64_t padded = (k + 63) / 64 * 64;
            for (Side side : {Side::end, Side::begin}) {
              for (int turn = 0; turn < 4; ++turn) {
                const uint8_t flip = turn % 2 ? 0x80 : 0x00;
                const bool symmetric = turn / 2;
                const auto check_layouts = [&](float scale, float shift) {
                  check_case(kernel, {dtype, rows, k, k, 1, flip, side, symmetric, scale, shift});
                  check_case(kernel,
                             {dtype, rows, k, padded, 1, flip, side, symmetric, scale, shift});
                  check_case(kernel,
                             {dtype, rows, k, padded, 16, flip, side, symmetric, scale, shift});
                };
                check_layouts(0.0f, 0.0f);
                // A third of the elements saturate; the difference of the largest overflows.
                check_layouts(0x1.8p-7f, turn % 2 ? -0.125f : -3e38f);
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
