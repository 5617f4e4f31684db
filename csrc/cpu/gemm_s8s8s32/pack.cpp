#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cpu {

namespace {
constexpr char kMagic[8] = {'F', 'A', 'S', 'T', 'I', 'N', 'F', 'R'};
// By WeightLayout.
constexpr char kTags[kWeightLayoutCount][16] = {"s8_n16k4", "s8_sp24_n16k4", "s8_bits_n16k4",
                                                "s8_bsr_n16k64"};
constexpr const char* kNames[kWeightLayoutCount] = {"dense", "sp24", "bitmask", "bsr"};
// So that no size computed from a header overflows.
constexpr int64_t kMaxN = int64_t(1) << 40;

// One slice in the order of gemm_s8s8s32.h, from rows 16 p to 16 p + 15 of w, zero-filled.
struct Slice {
  int8_t bytes[kSliceBytes] = {};

  Slice(const int8_t* w, int64_t n, int64_t k, int64_t panel, int64_t slice) {
    for (int64_t row = panel * 16; row < std::min(n, panel * 16 + 16); ++row) {
      for (int64_t i = slice * kBlockK; i < std::min(k, slice * kBlockK + kBlockK); ++i) {
        bytes[at(row, i)] = w[row * k + i];
      }
    }
  }
  static int64_t at(int64_t row, int64_t i) { return i % kBlockK / 4 * 64 + row % 16 * 4 + i % 4; }
  bool zero() const {
    return std::all_of(bytes, bytes + kSliceBytes, [](int8_t v) { return v == 0; });
  }
  // Which bytes of word j are not zero.
  uint64_t mask(int64_t j) const {
    uint64_t mask = 0;
    for (int64_t i = 0; i < 64; ++i) mask |= uint64_t(bytes[j * 64 + i] != 0) << i;
    return mask;
  }
};

int64_t nonzeros(const int8_t* w, int64_t count) {
  return count - std::count(w, w + count, int8_t(0));
}

// Bytes between the compensation and the slices.
int64_t index_bytes(WeightLayout layout, int64_t panels, int64_t tiles) {
  if (layout == WeightLayout::bitmask) return round_up((panels + 1) * 8, 64);
  if (layout == WeightLayout::bsr) return round_up((panels + 1 + tiles) * 4, 64);
  return 0;
}

// `data`: of all slices.
int64_t total_bytes(WeightLayout layout, int64_t n, int64_t data, int64_t tiles) {
  const int64_t n_pad = round_up(n, kPanelColumns);
  return int64_t(sizeof(PackedHeader)) + n_pad * 4 + index_bytes(layout, n_pad / 16, tiles) + data +
         (is_masked(layout) ? kReadAhead : 0);
}

int64_t count_tiles(const int8_t* w, int64_t n, int64_t k) {
  int64_t tiles = 0;
  for (int64_t panel = 0; panel * kPanelColumns < n; ++panel) {
    for (int64_t slice = 0; slice * kBlockK < k; ++slice) {
      tiles += !Slice(w, n, k, panel, slice).zero();
    }
  }
  return tiles;
}

// Appends a masked slice to `to` and returns its end.
uint8_t* put_masked(const Slice& slice, uint8_t* to) {
  uint8_t* value = to + kMaskBytes;
  for (int64_t j = 0; j < kSliceBytes / 64; ++j) {
    const uint64_t mask = slice.mask(j);
    std::memcpy(to + j * 8, &mask, 8);
    for (uint64_t left = mask; left != 0; left &= left - 1) {
      *value++ = uint8_t(slice.bytes[j * 64 + __builtin_ctzll(left)]);
    }
  }
  return value;
}

// Where a step of 8 of K has what it keeps of 4, `half` of them, of a column: the byte of the index
// and its first bit, and the first of two values.
struct Pair {
  int64_t index, shift, values;

  Pair(int64_t step, int64_t column, int64_t half)
      : index(step * 16 + column % 4 * 4 + column / 4),
        shift(half * 4),
        values(kPairsIndexBytes + step * 64 + column * 4 + half * 2) {}
};

// for_each_pair(run): run(pair, where its four bytes begin in the slice).
template <class Run>
void for_each_pair(Run&& run) {
  for (int64_t i = 0; i < kSliceBytes / 4; ++i) run(Pair(i / 32, i % 16, i / 16 % 2), i * 4);
}

// Appends a slice of pairs to `to` and returns its end.
uint8_t* put_pairs(const Slice& slice, uint8_t* to) {
  std::memset(to, 0, size_t(kPairsSliceBytes));
  for_each_pair([&](const Pair& pair, int64_t at) {
    const int8_t* four = slice.bytes + at;
    // The two that are not zero, or zeros to make up two.
    int first = 0, second = 3;
    while (first < 2 && four[first] == 0) ++first;
    while (second > first + 1 && four[second] == 0) --second;
    to[pair.index] |= uint8_t((first | second << 2) << pair.shift);
    to[pair.values] = uint8_t(four[first]);
    to[pair.values + 1] = uint8_t(four[second]);
  });
  return to + kPairsSliceBytes;
}

void take_pairs(const uint8_t* pairs, int8_t* slice) {
  for_each_pair([&](const Pair& pair, int64_t at) {
    const int kept = pairs[pair.index] >> pair.shift;
    std::memset(slice + at, 0, 4);
    slice[at + (kept & 3)] = int8_t(pairs[pair.values]);
    slice[at + (kept >> 2 & 3)] = int8_t(pairs[pair.values + 1]);
  });
}

void unmask(const uint8_t* masked, int8_t* slice, const uint8_t** end) {
  const uint8_t* value = masked + kMaskBytes;
  for (int64_t j = 0; j < kSliceBytes / 64; ++j) {
    uint64_t mask;
    std::memcpy(&mask, masked + j * 8, 8);
    for (int64_t i = 0; i < 64; ++i) {
      slice[j * 64 + i] = mask >> i & 1 ? int8_t(*value++) : int8_t(0);
    }
  }
  *end = value;
}
}  // namespace

const char* weight_layout_name(WeightLayout layout) { return kNames[int(layout)]; }

bool parse_weight_layout(const char* name, WeightLayout* layout) {
  for (int i = 0; i < kWeightLayoutCount; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    *layout = WeightLayout(i);
    return true;
  }
  return false;
}

int64_t PackedWeight::stored_bytes() const {
  const int64_t dense = panels_of(*this) * 16 * k_pad;
  switch (layout) {
    case WeightLayout::sp24: return dense / kSliceBytes * kPairsSliceBytes;
    case WeightLayout::bitmask: return masked_end - masked;
    case WeightLayout::bsr: return tiles * kSliceBytes;
    case WeightLayout::dense: break;
  }
  return dense;
}

int64_t packed_bytes(int64_t n, int64_t k) {
  return total_bytes(WeightLayout::dense, n, round_up(n, kPanelColumns) * round_up(k, kBlockK), 0);
}

int64_t packed_bytes(const int8_t* w, int64_t n, int64_t k, WeightLayout layout, int64_t* row,
                     int64_t* column) {
  const int64_t slices = round_up(n, kPanelColumns) / 16 * (round_up(k, kBlockK) / kBlockK);
  switch (layout) {
    case WeightLayout::dense: break;
    case WeightLayout::sp24:
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t i = 0; i < k; i += 4) {
          if (nonzeros(w + r * k + i, std::min<int64_t>(4, k - i)) <= 2) continue;
          *row = r;
          *column = i;
          return -1;
        }
      }
      return total_bytes(layout, n, slices * kPairsSliceBytes, 0);
    case WeightLayout::bitmask:
      return total_bytes(layout, n, slices * kMaskBytes + nonzeros(w, n * k), 0);
    case WeightLayout::bsr: {
      const int64_t tiles = count_tiles(w, n, k);
      return total_bytes(layout, n, tiles * kSliceBytes, tiles);
    }
  }
  return packed_bytes(n, k);
}

void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed, WeightLayout layout) {
  const int64_t panels = round_up(n, kPanelColumns) / 16, slices = round_up(k, kBlockK) / kBlockK;
  const int64_t tiles = layout == WeightLayout::bsr ? count_tiles(w, n, k) : 0;
  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.layout, kTags[int(layout)], sizeof header.layout);
  header.version = layout_version(layout);
  header.n = n;
  header.k = k;
  std::memcpy(packed, &header, sizeof header);
  uint8_t* compensation = packed + sizeof header;
  for (int64_t row = 0; row < panels * 16; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; row < n && i < k; ++i) sum += w[row * k + i];
    sum *= -128;
    std::memcpy(compensation + row * 4, &sum, 4);
  }
  uint8_t* const index = compensation + panels * 64;
  uint8_t* const data = index + index_bytes(layout, panels, tiles);
  if (index != data) std::memset(index, 0, size_t(data - index));
  uint8_t* to = data;
  int32_t tile = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t s = 0; s < slices; ++s) {
      const Slice slice(w, n, k, panel, s);
      switch (layout) {
        case WeightLayout::bsr: {
          if (slice.zero()) continue;
          const int32_t at = int32_t(s);
          std::memcpy(index + (panels + 1 + tile++) * 4, &at, 4);
          [[fallthrough]];
        }
        case WeightLayout::dense:
          std::memcpy(to, slice.bytes, kSliceBytes);
          to += kSliceBytes;
          break;
        case WeightLayout::sp24: to = put_pairs(slice, to); break;
        case WeightLayout::bitmask: to = put_masked(slice, to); break;
      }
    }
    const int64_t end = to - data;
    if (layout == WeightLayout::bitmask) std::memcpy(index + (panel + 1) * 8, &end, 8);
    if (layout == WeightLayout::bsr) std::memcpy(index + (panel + 1) * 4, &tile, 4);
  }
  if (is_masked(layout)) {
    std::memset(to, 0, size_t(kReadAhead));
  }
}

void unpack_w8(const PackedWeight& w, int8_t* out) {
  const int64_t slices = w.k_pad / kBlockK;
  int8_t bytes[kSliceBytes];
  for (int64_t panel = 0; panel < panels_of(w); ++panel) {
    const uint8_t* masked = is_masked(w.layout) ? masked_panel(w, panel) : nullptr;
    TileRange tile = w.layout == WeightLayout::bsr ? panel_tiles(w, panel) : TileRange{};
    for (int64_t s = 0; s < slices; ++s) {
      switch (w.layout) {
        case WeightLayout::dense:
          std::memcpy(bytes, w.panels + (panel * slices + s) * kSliceBytes, kSliceBytes);
          break;
        case WeightLayout::sp24: take_pairs(masked + s * kPairsSliceBytes, bytes); break;
        case WeightLayout::bitmask: unmask(std::min(masked, w.masked_end), bytes, &masked); break;
        case WeightLayout::bsr:
          std::memset(bytes, 0, kSliceBytes);
          if (tile.begin < tile.end && tile_slice(w, tile.begin) == s) {
            std::memcpy(bytes, w.panels + tile.begin++ * kSliceBytes, kSliceBytes);
          }
          break;
      }
      for (int64_t row = panel * 16; row < std::min(w.n, panel * 16 + 16); ++row) {
        for (int64_t i = s * kBlockK; i < std::min(w.k, s * kBlockK + kBlockK); ++i) {
          out[row * w.k + i] = bytes[Slice::at(row, i)];
        }
      }
    }
  }
}

const char* open_packed(const void* packed, int64_t bytes, PackedWeight* weight) {
  constexpr const char* kWrongSize = "its size does not match the shape in its header";
  PackedHeader header;
  if (bytes < int64_t(sizeof header)) return "it is too short to hold a packed weight";
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return "it is not a packed weight";
  int tag = 0;
  while (tag < kWeightLayoutCount &&
         std::memcmp(header.layout, kTags[tag], sizeof header.layout) != 0) {
    ++tag;
  }
  if (std::strncmp(header.layout, "s8_rows_cuda", sizeof header.layout) == 0 ||
      std::strncmp(header.layout, "s8_sp24_cuda", sizeof header.layout) == 0) {
    return "it is packed for CUDA, not for CPUs (repack_w8 makes it one for them)";
  }
  if (tag == kWeightLayoutCount) return "its layout tag is none of the int8 layouts of CPUs";
  if (header.version != layout_version(WeightLayout(tag))) {
    return "its layout version is not the one that this build reads (pack the weight again)";
  }
  if (header.n < 0 || header.n > kMaxN || header.k < 0 || header.k > kMaxK) return kWrongSize;
  const char* base = static_cast<const char*>(packed);
  PackedWeight w{};
  w.layout = WeightLayout(tag);
  w.n = header.n;
  w.k = header.k;
  w.k_pad = round_up(header.k, kBlockK);
  w.compensation = reinterpret_cast<const int32_t*>(base + sizeof header);
  const int64_t panels = panels_of(w), slices = panels * (w.k_pad / kBlockK);
  const int64_t index_at = int64_t(sizeof header) + panels * 64;
  int64_t data = slices * kSliceBytes;
  if (w.layout == WeightLayout::sp24) data = slices * kPairsSliceBytes;
  if (w.layout == WeightLayout::bitmask || w.layout == WeightLayout::bsr) {
    w.index = reinterpret_cast<const uint8_t*>(base + index_at);
    if (bytes < index_at + index_bytes(w.layout, panels, 0)) return kWrongSize;
    if (w.layout == WeightLayout::bitmask) {
      std::memcpy(&data, w.index + panels * 8, 8);
      if (data < slices * kMaskBytes || data > slices * (kMaskBytes + kSliceBytes)) {
        return kWrongSize;
      }
    } else {
      int32_t tiles;
      std::memcpy(&tiles, w.index + panels * 4, 4);
      if (tiles < 0 || tiles > slices) return kWrongSize;
      w.tiles = tiles;
      data = tiles * kSliceBytes;
    }
  }
  if (bytes != total_bytes(w.layout, w.n, data, w.tiles)) return kWrongSize;
  const char* begin = base + index_at + index_bytes(w.layout, panels, w.tiles);
  if (is_masked(w.layout)) {
    w.masked = reinterpret_cast<const uint8_t*>(begin);
    w.masked_end = w.masked + data;
  } else {
    w.panels = reinterpret_cast<const int8_t*>(begin);
  }
  *weight = w;
  return nullptr;
}

}  // namespace fastinfer::cpu
