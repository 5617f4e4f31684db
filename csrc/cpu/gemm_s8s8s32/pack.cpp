#include "cpu/gemm_s8s8s32/pack.h"

#include <cstring>

namespace fastinfer::cpu {

namespace {
constexpr char kMagic[8] = {'F', 'A', 'S', 'T', 'I', 'N', 'F', 'R'};
// So that no size computed from a header overflows.
constexpr int64_t kMaxN = int64_t(1) << 40;

int64_t panel_index(int64_t n, int64_t k, int64_t k_pad) {
  return n / 16 * 16 * k_pad + k / 4 * 64 + n % 16 * 4 + k % 4;
}
}  // namespace

int64_t packed_bytes(int64_t n, int64_t k) {
  const int64_t n_pad = round_up(n, kPanelColumns);
  return int64_t(sizeof(PackedHeader)) + n_pad * 4 + n_pad * round_up(k, kBlockK);
}

void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed) {
  const int64_t n_pad = round_up(n, kPanelColumns), k_pad = round_up(k, kBlockK);
  std::memset(packed, 0, size_t(packed_bytes(n, k)));
  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.layout, kLayoutS8N16K4, sizeof kLayoutS8N16K4);
  header.version = kLayoutVersion;
  header.n = n;
  header.k = k;
  std::memcpy(packed, &header, sizeof header);
  uint8_t* compensation = packed + sizeof header;
  int8_t* panels = reinterpret_cast<int8_t*>(compensation + n_pad * 4);
  for (int64_t row = 0; row < n; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int8_t v = w[row * k + i];
      sum += v;
      panels[panel_index(row, i, k_pad)] = v;
    }
    sum *= -128;
    std::memcpy(compensation + row * 4, &sum, 4);
  }
}

void unpack_w8(const PackedWeight& packed, int8_t* w) {
  for (int64_t row = 0; row < packed.n; ++row) {
    for (int64_t i = 0; i < packed.k; ++i) {
      w[row * packed.k + i] = packed.panels[panel_index(row, i, packed.k_pad)];
    }
  }
}

const char* open_packed(const void* packed, int64_t bytes, PackedWeight* weight) {
  PackedHeader header;
  if (bytes < int64_t(sizeof header)) return "it is too short to hold a packed weight";
  std::memcpy(&header, packed, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return "it is not a packed weight";
  if (std::memcmp(header.layout, kLayoutS8N16K4, sizeof kLayoutS8N16K4) != 0) {
    return "its layout tag is not s8_n16k4, the int8 layout of CPUs";
  }
  if (header.version != kLayoutVersion) return "its layout version is not 1";
  if (header.n < 0 || header.n > kMaxN || header.k < 0 || header.k > kMaxK ||
      bytes != packed_bytes(header.n, header.k)) {
    return "its size does not match the shape in its header";
  }
  const char* base = static_cast<const char*>(packed);
  const int64_t n_pad = round_up(header.n, kPanelColumns);
  weight->n = header.n;
  weight->k = header.k;
  weight->k_pad = round_up(header.k, kBlockK);
  weight->compensation = reinterpret_cast<const int32_t*>(base + sizeof header);
  weight->panels = reinterpret_cast<const int8_t*>(base + sizeof header + n_pad * 4);
  return nullptr;
}

}  // namespace fastinfer::cpu
