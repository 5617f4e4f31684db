#include "cuda/gemm_s8s8s32/pack.h"

#include <algorithm>
#include <cstring>

#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cuda {

namespace {

constexpr char kMagic[8] = {'F', 'A', 'S', 'T', 'I', 'N', 'F', 'R'};
constexpr char kRowsTag[16] = "s8_rows_cuda", kSp24Tag[16] = "s8_sp24_cuda";
constexpr int64_t kCompensation = int64_t(sizeof(cpu::PackedHeader));

// At least 64 bytes of it unused: no size is that of a layout of CPUs for the same weight.
int64_t front_bytes(int64_t n_pad) { return round_up(kCompensation + n_pad * 4 + 64, 128); }

// The header and the compensation.
void pack_front(const int8_t* w, int64_t n, int64_t k, const char (&tag)[16], uint8_t* packed) {
  cpu::PackedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.layout, tag, sizeof tag);
  header.version = cpu::kLayoutVersion;
  header.n = n;
  header.k = k;
  std::memcpy(packed, &header, sizeof header);
  for (int64_t row = 0; row < n; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += w[row * k + i];
    const int32_t compensation = -128 * sum;
    std::memcpy(packed + kCompensation + row * 4, &compensation, 4);
  }
}

bool has_tag(const void* packed, int64_t bytes, const char (&tag)[16]) {
  cpu::PackedHeader header;
  if (bytes < int64_t(sizeof header)) return false;
  std::memcpy(&header, packed, sizeof header);
  return std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
         std::memcmp(header.layout, tag, sizeof tag) == 0;
}

bool keeps_two(int mask) { return __builtin_popcount(unsigned(mask)) == 2; }

}  // namespace

PackedOffsets packed_offsets(int64_t n, int64_t k) {
  PackedOffsets at{};
  at.n_pad = round_up(n, cpu::kPanelColumns);
  at.k_pad = round_up(k, cpu::kBlockK);
  at.compensation = kCompensation;
  at.rows = front_bytes(at.n_pad);
  at.bytes = at.rows + at.n_pad * at.k_pad;
  return at;
}

Sp24Offsets sp24_offsets(int64_t n, int64_t k) {
  Sp24Offsets at{};
  at.n_pad = round_up(n, cpu::kPanelColumns);
  at.k_pad = round_up(k, cpu::kBlockK);
  at.compensation = kCompensation;
  at.masks = front_bytes(at.n_pad);
  at.values = at.masks + at.n_pad * at.k_pad / 8;
  at.bytes = at.values + at.n_pad * at.k_pad / 2;
  return at;
}

void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed) {
  const PackedOffsets at = packed_offsets(n, k);
  std::memset(packed, 0, size_t(at.bytes));
  pack_front(w, n, k, kRowsTag, packed);
  for (int64_t row = 0; row < n && k > 0; ++row) {
    std::memcpy(packed + at.rows + row * at.k_pad, w + row * k, size_t(k));
  }
}

void pack_sp24(const int8_t* w, int64_t n, int64_t k, uint8_t* packed) {
  const Sp24Offsets at = sp24_offsets(n, k);
  std::memset(packed, 0, size_t(at.bytes));
  pack_front(w, n, k, kSp24Tag, packed);
  uint8_t *mask_byte = packed + at.masks, *value = packed + at.values;
  for (int64_t row = 0; row < at.n_pad; ++row) {
    for (int64_t k0 = 0; k0 < at.k_pad; k0 += 4) {
      int8_t group[4] = {};
      for (int64_t i = k0; row < n && i < std::min(k, k0 + 4); ++i) group[i - k0] = w[row * k + i];
      int mask = 0;
      for (int i = 0; i < 4; ++i) mask |= int(group[i] != 0) << i;
      for (int i = 0; !keeps_two(mask) && i < 4; ++i) mask |= 1 << i;
      *mask_byte |= uint8_t(mask << k0 % 8);
      mask_byte += k0 % 8 == 4;
      for (int i = 0; i < 4; ++i) {
        if (mask >> i & 1) *value++ = uint8_t(group[i]);
      }
    }
  }
}

bool is_packed(const void* packed, int64_t bytes) {
  return has_tag(packed, bytes, kRowsTag) || has_tag(packed, bytes, kSp24Tag);
}

const char* unpack_w8(const void* packed, int64_t bytes, int64_t n, int64_t k, int8_t* w) {
  if (!is_packed(packed, bytes)) return "is no int8 weight packed for CUDA";
  cpu::PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  if (header.version != cpu::kLayoutVersion) return "is of another version of its layout";
  if (header.n != n || header.k != k) return "holds a weight of another shape";
  const auto* base = static_cast<const uint8_t*>(packed);
  constexpr const char* kWrongSize = "is cut short or too long";
  if (has_tag(packed, bytes, kRowsTag)) {
    const PackedOffsets at = packed_offsets(n, k);
    if (bytes != at.bytes) return kWrongSize;
    for (int64_t row = 0; row < n && k > 0; ++row) {
      std::memcpy(w + row * k, base + at.rows + row * at.k_pad, size_t(k));
    }
    return nullptr;
  }
  const Sp24Offsets at = sp24_offsets(n, k);
  if (bytes != at.bytes) return kWrongSize;
  for (int64_t i = at.masks; i < at.values; ++i) {
    if (!keeps_two(base[i] & 15) || !keeps_two(base[i] >> 4)) {
      return "has a mask that does not keep 2 of 4";
    }
  }
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* masks = base + at.masks + row * at.k_pad / 8;
    const uint8_t* value = base + at.values + row * at.k_pad / 2;
    for (int64_t i = 0; i < k; ++i) {
      w[row * k + i] = masks[i / 8] >> (i % 8) & 1 ? int8_t(*value++) : int8_t(0);
    }
  }
  return nullptr;
}

}  // namespace fastinfer::cuda
