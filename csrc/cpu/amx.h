// AMX: its instructions as functions, and the configuration of the tiles. Needs AMX-TILE, AMX-INT8
// and AMX-BF16. With FASTINFER_EMULATE_AMX the instructions are those of the emulator of tests/cpp,
// so that a kernel runs where there is no AMX.
//
// A tile is up to 16 rows of up to 64 bytes. tile_load, tile_stream and tile_store take the bytes
// from a row to the next. tile_stream is tile_load with the hint that the memory is not read again
// soon: it leaves L1 to what is.
#pragma once

#include <cstdint>

#ifdef FASTINFER_EMULATE_AMX
#include "amx_emulator.h"
#else
#include <immintrin.h>
#endif

namespace fastinfer::cpu {
namespace {

#ifdef FASTINFER_EMULATE_AMX

template <int T>
inline void tile_zero() {
  amx_emulator::zero(T);
}
template <int T>
inline void tile_load(const void* base, int64_t stride) {
  amx_emulator::load(T, base, stride);
}
template <int T>
inline void tile_stream(const void* base, int64_t stride) {
  amx_emulator::load(T, base, stride);
}
template <int T>
inline void tile_store(void* base, int64_t stride) {
  amx_emulator::store(T, base, stride);
}
template <int C, int A, int B>
inline void tile_dp_s8() {
  amx_emulator::dp_s8(C, A, B);
}
template <int C, int A, int B>
inline void tile_dp_bf16() {
  amx_emulator::dp_bf16(C, A, B);
}
inline void load_tile_config(const void* config) { amx_emulator::load_config(config); }
inline void release_tiles() { amx_emulator::release(); }

#else

template <int T>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* base, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_stream(const void* base, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* base, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
}
// C += A B: int8, four products a lane, into int32.
template <int C, int A, int B>
inline void tile_dp_s8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// C += A B: bfloat16, two products a lane, into float32.
template <int C, int A, int B>
inline void tile_dp_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
inline void load_tile_config(const void* config) { _tile_loadconfig(config); }
inline void release_tiles() { _tile_release(); }

#endif

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

// Tiles are configured while a Tiles object lives. Tile t has rows[t] rows of 64 bytes.
class Tiles {
 public:
  Tiles() = default;
  explicit Tiles(const int (&rows)[8]) { configure(rows); }
  ~Tiles() { release_tiles(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  void configure(const int (&rows)[8]) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = uint8_t(rows[t]);
      config.bytes_a_row[t] = 64;
    }
    // GCC 12's intrinsic declares that 8 bytes are read; keep the other 56.
    __asm__ volatile("" : "+m"(config));
    load_tile_config(&config);
  }
};

}  // namespace
}  // namespace fastinfer::cpu
