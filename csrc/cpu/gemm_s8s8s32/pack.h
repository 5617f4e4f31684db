// Packed int8 weights: one self-describing, position-independent block of bytes, the same for
// every CPU, that can be stored, memory-mapped and shared between processes as it is.
//
//   offset 0                    PackedHeader, 64 bytes, little-endian
//   offset 64                   compensation: int32[N_pad], -128 * sum_k w[n,k]
//   offset 64 + 4 N_pad (% 64)  the weight, in one of four layouts
//
// N_pad = N rounded up to 16, K_pad = K rounded up to 64, zero-filled. A panel is 16 columns (n), a
// slice 64 of K of a panel: 1024 bytes in the order [K / 4][16][4] of gemm_s8s8s32.h.
//
//   dense    panels: int8[N_pad / 16][K_pad / 64] slices
//   sp24     slices of pairs: 2 bytes kept of every 4 along K, 640 bytes a slice; kReadAhead bytes
//            of zeros at the end
//   bitmask  int64[N_pad / 16 + 1]: where each panel begins, and the last ends, from the end of
//            this table padded to 64 on; masked slices; kReadAhead bytes of zeros
//   bsr      int32[N_pad / 16 + 1]: the first tile of each panel, and their number; int32[tiles]:
//            which slice of its panel a tile is; padded to 64; the slices that are not all zero
//
// A masked slice: uint64[16], bit i of word j stands for byte 64 j + i of the slice, then the bytes
// whose bits are set, in order.
//
// A slice of pairs: what is kept of 8 of K, eight times over; zeros where there is less to keep.
//   uint8[8][16]     column c, at 4 (c % 4) + c / 4: bits 0-1 and 2-3 say which two of the first 4
//                    of K, 4-5 and 6-7 which two of the other 4, each pair ascending
//   int8[8][16][4]   [c]: the two values of the first 4, the two of the other 4
// So 16 bytes broadcast to 32-bit lanes need but a shift of each to hold what its column keeps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {

enum class WeightLayout : int { dense, sp24, bitmask, bsr };
constexpr int kWeightLayoutCount = 4;
// Whether slices leave zeros out.
constexpr bool is_masked(WeightLayout layout) {
  return layout == WeightLayout::sp24 || layout == WeightLayout::bitmask;
}

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

constexpr uint32_t kLayoutVersion = 1;
// Version 1 of sp24 had masked slices.
constexpr uint32_t layout_version(WeightLayout layout) {
  return layout == WeightLayout::sp24 ? 2 : kLayoutVersion;
}

constexpr int64_t kSliceBytes = 1024;
constexpr int64_t kMaskBytes = kSliceBytes / 8;
// Of a slice of pairs, whose values begin at kPairsIndexBytes: eight times 16 and 64 bytes.
constexpr int64_t kPairsIndexBytes = 128, kPairsSliceBytes = kPairsIndexBytes + kSliceBytes / 2;
// From a slice that begins inside the data no kernel reads further, whatever its masks are: a whole
// slice and a vector.
constexpr int64_t kReadAhead = kMaskBytes + kSliceBytes + 64;

struct PackedWeight {
  WeightLayout layout;
  int64_t n, k, k_pad;
  const int32_t* compensation;
  const int8_t* panels;       // dense: the panels; bsr: the tiles
  const uint8_t* masked;      // sp24, bitmask: the first slice
  const uint8_t* masked_end;  // where the last may begin at the latest
  const uint8_t* index;       // bitmask, bsr
  int64_t tiles;              // bsr

  // Bytes of the weight itself, all that a product with few rows must read.
  int64_t stored_bytes() const;
};

// Tiles [begin, end) of a panel of a bsr weight.
struct TileRange {
  int64_t begin, end;
};

namespace {  // files of instruction sets have their own

inline int64_t panels_of(const PackedWeight& w) { return round_up(w.n, kPanelColumns) / 16; }

// The first slice of a panel of an sp24 or bitmask weight; inside the data whatever the index says.
inline const uint8_t* masked_panel(const PackedWeight& w, int64_t panel) {
  if (w.layout == WeightLayout::sp24) {
    return w.masked + panel * (w.k_pad / kBlockK) * kPairsSliceBytes;
  }
  int64_t offset;
  std::memcpy(&offset, w.index + panel * 8, 8);
  return w.masked + std::clamp<int64_t>(offset, 0, w.masked_end - w.masked);
}

// Within the tiles whatever the index says.
inline TileRange panel_tiles(const PackedWeight& w, int64_t panel) {
  int32_t ends[2];
  std::memcpy(ends, w.index + panel * 4, 8);
  const int64_t begin = std::clamp<int64_t>(ends[0], 0, w.tiles);
  return {begin, std::clamp<int64_t>(ends[1], begin, w.tiles)};
}
// The slice, below K_pad / 64, that a tile of a bsr weight is.
inline int64_t tile_slice(const PackedWeight& w, int64_t tile) {
  uint32_t slice;
  std::memcpy(&slice, w.index + (panels_of(w) + 1 + tile) * 4, 4);
  return std::min<int64_t>(slice, w.k_pad / kBlockK - 1);
}

}  // namespace

FASTINFER_API const char* weight_layout_name(WeightLayout layout);  // "dense", "sp24", ...
// Returns false if no layout has this name.
FASTINFER_API bool parse_weight_layout(const char* name, WeightLayout* layout);

// Of a dense weight.
FASTINFER_API int64_t packed_bytes(int64_t n, int64_t k);

// Of any layout. w: row-major [n, k]. Returns -1 if w has not the zeros that sp24 asks for; `row`
// and `column` then say where the first group of 4 is that keeps more than 2.
FASTINFER_API int64_t packed_bytes(const int8_t* w, int64_t n, int64_t k, WeightLayout layout,
                                   int64_t* row, int64_t* column);

// w: row-major [n, k], any alignment; packed: packed_bytes(...) bytes.
FASTINFER_API void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed,
                           WeightLayout layout = WeightLayout::dense);

// The inverse, lossless. `packed` must have passed open_packed.
FASTINFER_API void unpack_w8(const PackedWeight& packed, int8_t* w);

// Checks the header and the size. Returns null and fills `weight`, or a sentence on what is wrong.
FASTINFER_API const char* open_packed(const void* packed, int64_t bytes, PackedWeight* weight);

}  // namespace fastinfer::cpu
