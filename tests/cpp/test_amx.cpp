// The emulator of AMX itself: its arithmetic, and the misuse that it is relied on to notice. What
// it shows of the kernels stands beside their other rows (test_attention.cpp,
// test_gemm_s8s8s32.cpp).
#include <cmath>
#include <cstring>
#include <vector>

#include "aborts.h"
#include "check.h"
#include "emulated_amx.h"
#include "guard.h"
#include "reference.h"

#ifdef FASTINFER_EMULATE_AMX

namespace fastinfer::test {

namespace {

using namespace amx_emulator;

struct Shape {
  int rows, row_bytes;
};

// A configuration of tiles 0, 1, ...
void configure(const std::vector<Shape>& tiles, int palette = 1) {
  uint8_t config[64] = {};
  config[0] = uint8_t(palette);
  for (size_t t = 0; t < tiles.size(); ++t) {
    config[16 + 2 * t] = uint8_t(tiles[t].row_bytes);
    config[48 + t] = uint8_t(tiles[t].rows);
  }
  load_config(config);
}

// C += A B of one product in bfloat16: a [m, 2 k], b [2 k, n], c [m, n], k pairs.
std::vector<float> product_bf16(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b,
                                std::vector<float> c, int m, int k, int n) {
  std::vector<uint16_t> pairs(size_t(2 * k * n));
  for (int i = 0; i < 2 * k; ++i) {
    for (int j = 0; j < n; ++j) pairs[size_t(i / 2 * 2 * n + 2 * j + i % 2)] = b[size_t(i * n + j)];
  }
  const Guarded left(a.data(), m * k * 4, Side::end), right(pairs.data(), k * n * 4, Side::begin);
  const Guarded sums(c.data(), m * n * 4, Side::end);
  configure({{m, n * 4}, {m, k * 4}, {k, n * 4}});
  load(0, sums.as<void>(), n * 4);
  load(1, left.as<void>(), k * 4);
  load(2, right.as<void>(), n * 4);
  dp_bf16(0, 1, 2);
  store(0, sums.as<void>(), n * 4);
  release();
  std::memcpy(c.data(), sums.as<void>(), c.size() * 4);
  return c;
}

uint16_t bf16(double v) { return uint16_t(bits_of_float(float(v)) >> 16); }

// One lane: c + sum of a[i] b[i].
float dot(const std::vector<double>& a, const std::vector<double>& b, float c) {
  std::vector<uint16_t> left, right;
  for (double v : a) left.push_back(bf16(v));
  for (double v : b) right.push_back(bf16(v));
  return product_bf16(left, right, {c}, 1, int(a.size() / 2), 1)[0];
}

void check_bf16() {
  for (const int m : {1, 7, 16}) {
    for (const int k : {1, 5, 16}) {
      for (const int n : {1, 9, 16}) {
        Random random(uint64_t(m * 289 + k * 17 + n));
        std::vector<uint16_t> a(size_t(m * 2 * k)), b(size_t(2 * k * n));
        for (auto& v : a) v = bf16(random.unit());
        for (auto& v : b) v = bf16(random.unit());
        std::vector<float> c(size_t(m * n));
        for (auto& v : c) v = random.unit();
        const auto got = product_bf16(a, b, c, m, k, n);
        bool close = true;
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < n; ++j) {
            double want = c[size_t(i * n + j)], size = std::fabs(want);
            for (int x = 0; x < 2 * k; ++x) {
              const double term = half_value(a[size_t(i * 2 * k + x)], 8, 7) *
                                  half_value(b[size_t(x * n + j)], 8, 7);
              want += term;
              size += std::fabs(term);
            }
            // Each term goes through at most k + 2 sums.
            close = close && std::fabs(got[size_t(i * n + j)] - want) <= (k + 2) * 0x1p-24 * size;
          }
        }
        CHECK(close);
      }
    }
  }
  // Even and odd elements apart, C last: what one chain would round away stays.
  CHECK(dot({0x1p24, 1, -0x1p24, 1}, {1, 1, 1, 1}, 0) == 2);
  CHECK(dot({1, 0x1p24, 1, -0x1p24}, {1, 1, 1, 1}, 0) == 2);
  CHECK(dot({1, 0}, {1, 0}, 0x1p24f) == 0x1p24f);                  // ties to even
  CHECK(dot({1, 1, 1, 0}, {1, 1, 1, 0}, 0x1p24f) == 0x1p24f + 4);  // 2^24 + 3
  // Subnormal: an element, a product, a sum, C.
  CHECK(dot({0x1p-127, 0}, {0x1p100, 0}, 0) == 0);
  CHECK(dot({0x1p-70, 0}, {0x1p-57, 0}, 0) == 0);
  CHECK(dot({0x1p-70, 0}, {0x1p-56, 0}, 0) == 0x1p-126f);
  CHECK(dot({0x1.8p-126, 0}, {1, 0}, -0x1p-126f) == 0);
  CHECK(dot({0, 0}, {0, 0}, 0x1p-127f) == 0);
  CHECK(std::isnan(dot({INFINITY, 0}, {0, 0}, 0)));
  CHECK(dot({INFINITY, 0}, {1, 0}, 0) == INFINITY);
}

void check_s8() {
  Random random(3);
  for (const int m : {1, 16}) {
    const int k = m == 1 ? 3 : 16, n = m == 1 ? 5 : 16;
    std::vector<int8_t> a(size_t(m * 4 * k)), b(size_t(k * 4 * n));
    for (auto& v : a) v = random.byte();
    for (auto& v : b) v = random.byte();
    std::vector<int32_t> c(size_t(m * n), m == 1 ? 0x7fffffff : 11), want = c;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        for (int x = 0; x < 4 * k; ++x) {
          int32_t& sum = want[size_t(i * n + j)];
          sum = int32_t(uint32_t(sum) + uint32_t(a[size_t(i * 4 * k + x)] *
                                                 b[size_t(x / 4 * 4 * n + 4 * j + x % 4)]));
        }
      }
    }
    configure({{m, n * 4}, {m, k * 4}, {k, n * 4}});
    load(0, c.data(), n * 4);
    load(1, a.data(), k * 4);
    load(2, b.data(), n * 4);
    dp_s8(0, 1, 2);
    store(0, c.data(), n * 4);
    release();
    CHECK(c == want);
  }
}

void check_misuse() {
  char memory[1024] = {};
  const Shape full{16, 64}, part{7, 64}, narrow{16, 32}, none{0, 0};
  const auto product = [&](const std::vector<Shape>& tiles) {
    return aborts([&] {
      configure(tiles);
      dp_bf16(0, 1, 2);
    });
  };
  CHECK(!product({full, full, full}));
  CHECK(!product({part, part, full}));
  CHECK(!product({part, {7, 28}, {7, 64}}));
  CHECK(product({part, full, full}));           // rows of C and A
  CHECK(product({full, part, full}));           // the same
  CHECK(product({narrow, full, full}));         // columns of C and B
  CHECK(product({full, narrow, full}));         // A as wide as B is high
  CHECK(product({full, full, part}));           // the same
  CHECK(product({full, full, none}));           // a tile without rows
  CHECK(product({{16, 62}, full, {16, 62}}));   // half a lane
  CHECK(aborts([] { dp_s8(0, 1, 2); }));        // no configuration
  CHECK(aborts([&] { load(0, memory, 64); }));  // the same
  CHECK(aborts([] { zero(0); }));               // the same
  CHECK(aborts([&] {                            // released
    configure({full});
    release();
    store(0, memory, 64);
  }));
  CHECK(aborts([&] {  // one tile twice
    configure({full, full, full});
    dp_s8(0, 1, 1);
  }));
  CHECK(aborts([&] {  // a ninth tile
    configure({full});
    load(8, memory, 64);
  }));
  CHECK(aborts([&] { configure({full}, 0); }));
  CHECK(aborts([&] { configure({full}, 2); }));
  CHECK(aborts([] { configure({{17, 64}}); }));
  CHECK(aborts([] { configure({{16, 68}}); }));
  CHECK(aborts([] { configure({{0, 64}}); }));
  CHECK(aborts([&] { configure(std::vector<Shape>(9, full)); }));
  CHECK(aborts([&] {  // left configured
    configure({full});
    check_released();
  }));
  CHECK(!aborts([&] {
    configure({full});
    release();
    check_released();
  }));
}

// Bytes past rows and columns are not touched.
void check_edges() {
  Guarded memory(6 * 40 + 24, Side::end);
  configure({{7, 24}, {16, 64}});
  load(0, memory.as<void>(), 40);
  std::memset(memory.as<void>(), 0, size_t(memory.bytes()));
  store(0, memory.as<void>(), 40);
  release();
  bool right = true;
  for (int64_t i = 0; i < memory.bytes(); ++i) {
    right = right && memory.as<uint8_t>()[i] == (i % 40 < 24 ? 0xa5 : 0);
  }
  CHECK(right);
}

}  // namespace

void test_amx() {
  if (!amx_emulated("amx_emulator")) return;
  group("AMX emulator: bfloat16", check_bf16);
  group("AMX emulator: int8", check_s8);
  group("AMX emulator: loads and stores", check_edges);
  group("AMX emulator: misuse", check_misuse);
  group("AMX self-test over the emulator", [] {
    CHECK(cpu::amx_self_test());
    check_released();
  });
}

}  // namespace fastinfer::test

#else

namespace fastinfer::test {
void test_amx() {}
}  // namespace fastinfer::test

#endif
