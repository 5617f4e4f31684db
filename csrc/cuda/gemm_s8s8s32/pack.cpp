#include "cuda/gemm_s8s8s32/pack.h"

#include <cstring>

#include "cpu/gemm_s8s8s32/pack.h"

namespace fastinfer::cuda {

namespace {
constexpr cpu::PackedHeader kHeader{
    {'F', 'A', 'S', 'T', 'I', 'N', 'F', 'R'}, "s8_rows_cuda", cpu::kLayoutVersion, 0, 0, 0, {}};
}  // namespace

PackedOffsets packed_offsets(int64_t n, int64_t k) {
  PackedOffsets at{};
  at.n_pad = cpu::round_up(n, cpu::kPanelColumns);
  at.k_pad = cpu::round_up(k, cpu::kBlockK);
  at.compensation = int64_t(sizeof(cpu::PackedHeader));
  at.rows = cpu::round_up(at.compensation + at.n_pad * 4, 128);
  at.bytes = at.rows + at.n_pad * at.k_pad;
  return at;
}

void pack_w8(const int8_t* w, int64_t n, int64_t k, uint8_t* packed) {
  const PackedOffsets at = packed_offsets(n, k);
  std::memset(packed, 0, size_t(at.bytes));
  cpu::PackedHeader header = kHeader;
  header.n = n;
  header.k = k;
  std::memcpy(packed, &header, sizeof header);
  for (int64_t row = 0; row < n; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += w[row * k + i];
    const int32_t compensation = -128 * sum;
    std::memcpy(packed + at.compensation + row * 4, &compensation, 4);
    if (k > 0) std::memcpy(packed + at.rows + row * at.k_pad, w + row * k, size_t(k));
  }
}

bool is_packed(const void* packed, int64_t bytes) {
  cpu::PackedHeader header;
  if (bytes < int64_t(sizeof header)) return false;
  std::memcpy(&header, packed, sizeof header);
  return std::memcmp(header.magic, kHeader.magic, sizeof header.magic) == 0 &&
         std::memcmp(header.layout, kHeader.layout, sizeof header.layout) == 0;
}

const char* unpack_w8(const void* packed, int64_t bytes, int64_t n, int64_t k, int8_t* w) {
  if (!is_packed(packed, bytes)) return "is no int8 weight packed for CUDA";
  cpu::PackedHeader header;
  std::memcpy(&header, packed, sizeof header);
  if (header.version != cpu::kLayoutVersion) return "is of another version of its layout";
  if (header.n != n || header.k != k) return "holds a weight of another shape";
  const PackedOffsets at = packed_offsets(n, k);
  if (bytes != at.bytes) return "is cut short or too long";
  const auto* rows = static_cast<const int8_t*>(packed) + at.rows;
  for (int64_t row = 0; row < n && k > 0; ++row) {
    std::memcpy(w + row * k, rows + row * at.k_pad, size_t(k));
  }
  return nullptr;
}

}  // namespace fastinfer::cuda
