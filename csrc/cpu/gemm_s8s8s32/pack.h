// Packed int8 weights: one self-describing, position-independent block of bytes, the same for
// every CPU, that can be stored, memory-mapped and shared between processes as it is.
//
//   offset 0                    PackedHeader, 64 bytes, little-endian
//   offset 64                   compensation: int32[N_pad], -128 * sum_k w[n,k]
//   offset 64 + 4 N_pad (% 64)  panels: int8[N_pad / 16][K_pad / 4][16][4], zero-filled
//
// N_pad = N rounded up to 16, K_pad = K rounded up to 64.
#pragma once

#include <cstdint>

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {

struct PackedHeader {
  char magic[8];    // "FASTINFR"
  char layout[16];  // tag of the layout, zero-padded
  uint32_t version;
  uint32_t reserved;
  int64_t n;
  int64_t k;
  uint8_t padding[16];
};
static_assert(sizeof(PackedHeader) == 64, "the header is one cache line");

constexpr char kLayoutS8N16K4[16] = "s8_n16k4";
constexpr uint32_t kLayoutVersion = 1;

struct PackedWeight {
  int64_t n, k, k_pad;
  const int32_t* compensation;
  const int8_t* panels;
};

FASTINFER_API int64_t packed_bytes(int64_t n, int64_t k);

// w: row-major [n, k], any alignment; packed: packed_bytes(n, k) bytes.
FASTINFER_API void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed);

// The inverse, lossless. `packed` must have passed open_packed.
FASTINFER_API void unpack_w8(const PackedWeight& packed, int8_t* w);

// Checks the header and the size. Returns null and fills `weight`, or a sentence on what is wrong.
FASTINFER_API const char* open_packed(const void* packed, int64_t bytes, PackedWeight* weight);

}  // namespace fastinfer::cpu
