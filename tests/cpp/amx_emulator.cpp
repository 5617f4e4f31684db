#include "amx_emulator.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace fastinfer::amx_emulator {

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64, kLanes = kRowBytes / 4;  // palette 1

struct Tile {
  int rows, row_bytes;
  alignas(64) uint8_t bytes[kRows][kRowBytes];
};
struct State {
  bool configured;
  Tile tiles[kTiles];
};
thread_local State state;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "AMX: %s\n", what);
  std::abort();
}

Tile& tile(int t) {
  if (!state.configured) fail("a tile is used, and none is configured");
  if (t < 0 || t >= kTiles) fail("a tile that the palette does not have");
  if (state.tiles[t].rows == 0) fail("a tile that was configured without rows");
  return state.tiles[t];
}

struct Product {
  Tile& c;
  const Tile &a, &b;
};
Product product(int c, int a, int b) {
  if (c == a || c == b || a == b) fail("one tile is two operands of a product");
  const Product p{tile(c), tile(a), tile(b)};
  if (p.c.row_bytes % 4 != 0 || p.a.row_bytes % 4 != 0 || p.b.row_bytes % 4 != 0) {
    fail("an operand of a product whose rows are no multiple of 4 bytes");
  }
  if (p.c.rows != p.a.rows) fail("C and A of a product differ in rows");
  if (p.c.row_bytes != p.b.row_bytes) fail("C and B of a product differ in columns");
  if (p.a.row_bytes / 4 != p.b.rows) fail("A of a product is not as wide as B is high");
  return p;
}

// Subnormals to zero, on the way in (DAZ) and on the way out (FTZ).
float flush(float v) {
  return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v;
}

// Element i of a row of bfloat16.
float bf16(const uint8_t* row, int i) {
  uint16_t half;
  std::memcpy(&half, row + 2 * i, 2);
  const uint32_t bits = uint32_t(half) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return flush(v);
}

}  // namespace

void load_config(const void* config) {
  uint8_t bytes[64];
  std::memcpy(bytes, config, 64);
  if (bytes[0] != 1) fail("a configuration of another palette than 1");
  if (bytes[1] != 0) fail("a configuration that starts at another row than 0");
  for (int i = 2; i < 16; ++i) {
    if (bytes[i] != 0) fail("a configuration with reserved bytes that are not 0");
  }
  state = State{};
  for (int t = 0; t < 16; ++t) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    const int rows = bytes[48 + t];
    if (t >= kTiles && (rows != 0 || row_bytes != 0)) fail("a configuration of a ninth tile");
    if (rows > kRows || row_bytes > kRowBytes) fail("a configuration of more than 16 x 64 bytes");
    if ((rows == 0) != (row_bytes == 0)) fail("a configuration of a tile of no rows or no columns");
    if (t < kTiles) {
      state.tiles[t].rows = rows;
      state.tiles[t].row_bytes = row_bytes;
    }
  }
  state.configured = true;
}

void release() { state = State{}; }

void zero(int t) { std::memset(tile(t).bytes, 0, sizeof tile(t).bytes); }

void load(int t, const void* base, int64_t stride) {
  zero(t);
  Tile& to = tile(t);
  for (int row = 0; row < to.rows; ++row) {
    std::memcpy(to.bytes[row], static_cast<const char*>(base) + row * stride, size_t(to.row_bytes));
  }
}

void store(int t, void* base, int64_t stride) {
  const Tile& from = tile(t);
  for (int row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, from.bytes[row], size_t(from.row_bytes));
  }
}

void dp_s8(int c, int a, int b) {
  const Product p = product(c, a, b);
  int16_t column[kRows][4][kLanes];
  for (int k = 0; k < p.b.rows; ++k) {
    for (int n = 0; n < kLanes; ++n) {
      for (int i = 0; i < 4; ++i) column[k][i][n] = int8_t(p.b.bytes[k][4 * n + i]);
    }
  }
  for (int m = 0; m < p.c.rows; ++m) {
    int32_t sum[kLanes];
    std::memcpy(sum, p.c.bytes[m], sizeof sum);
    for (int k = 0; k < p.b.rows; ++k) {
      for (int i = 0; i < 4; ++i) {
        const int32_t left = int8_t(p.a.bytes[m][4 * k + i]);
        // The sum wraps around where it overflows, as the CPU's does.
        for (int n = 0; n < kLanes; ++n) {
          sum[n] = int32_t(uint32_t(sum[n]) + uint32_t(left * column[k][i][n]));
        }
      }
    }
    std::memset(sum + p.c.row_bytes / 4, 0, size_t(kRowBytes - p.c.row_bytes));
    std::memcpy(p.c.bytes[m], sum, sizeof sum);
  }
}

// The SDM's order: even and odd elements in chains of fused multiply-adds from 0, then their sum,
// then that and C. Every step rounds to nearest even and flushes.
void dp_bf16(int c, int a, int b) {
  const Product p = product(c, a, b);
  float columns[kRows][2][kLanes];
  for (int k = 0; k < p.b.rows; ++k) {
    for (int n = 0; n < kLanes; ++n) {
      for (int i = 0; i < 2; ++i) columns[k][i][n] = bf16(p.b.bytes[k], 2 * n + i);
    }
  }
  for (int m = 0; m < p.c.rows; ++m) {
    float chain[2][kLanes] = {};
    for (int k = 0; k < p.b.rows; ++k) {
      for (int i = 0; i < 2; ++i) {
        const float left = bf16(p.a.bytes[m], 2 * k + i);
        for (int n = 0; n < kLanes; ++n) {
          chain[i][n] = flush(std::fma(left, columns[k][i][n], chain[i][n]));
        }
      }
    }
    float sum[kLanes];
    std::memcpy(sum, p.c.bytes[m], sizeof sum);
    for (int n = 0; n < kLanes; ++n) {
      sum[n] = flush(flush(sum[n]) + flush(chain[0][n] + chain[1][n]));
    }
    std::memset(sum + p.c.row_bytes / 4, 0, size_t(kRowBytes - p.c.row_bytes));
    std::memcpy(p.c.bytes[m], sum, sizeof sum);
  }
}

void check_released() {
  if (state.configured) fail("a kernel leaves its tiles configured");
}

}  // namespace fastinfer::amx_emulator
