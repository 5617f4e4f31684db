#include "cutlass_sp24_layout.h"

#include <cstring>

#include "cpu/ceil_div.h"

namespace fastinfer::test {

namespace {

constexpr int64_t kGroup = 4, kKept = 2;
constexpr int64_t kRows = 64, kStep = 128, kStepBytes = kStep / 8;  // of metadata
constexpr uint8_t kNone = 0x44;                                     // places 0 and 1, twice

// The places of the two that stayed; the first free ones where fewer did. False if more did.
bool kept_places(const int8_t* group, int* first, int* second) {
  int place[kGroup], count = 0;
  for (int i = 0; i < kGroup; ++i) {
    if (group[i] != 0) place[count++] = i;
  }
  if (count > kKept) return false;
  if (count == 0) place[count++] = 0;
  if (count == 1) {
    // In order: the free place after it, or, where there is none, the one before it.
    place[1] = place[0] == kGroup - 1 ? place[0] : place[0] + 1;
    if (place[0] == kGroup - 1) place[0] = kGroup - 2;
  }
  *first = place[0];
  *second = place[1];
  return true;
}

}  // namespace

int64_t cutlass_sp24_values_bytes(int64_t n, int64_t k_pad) { return n * k_pad / 2; }

int64_t cutlass_sp24_metadata_bytes(int64_t n, int64_t k_pad) {
  return round_up(n, kRows) * round_up(k_pad, kStep) / 8;
}

bool cutlass_sp24(const int8_t* w, int64_t n, int64_t k_pad, int8_t* values, uint8_t* metadata) {
  const int64_t n_pad = round_up(n, kRows);
  std::memset(metadata, kNone, size_t(cutlass_sp24_metadata_bytes(n, k_pad)));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t k = 0; k < k_pad; k += kGroup, w += kGroup, values += kKept) {
      int first, second;
      if (!kept_places(w, &first, &second)) return false;
      values[0] = w[first];
      values[1] = w[second];
      uint8_t* at = metadata + (k / kStep * n_pad + row) * kStepBytes + k % kStep / 8;
      const int shift = k % 8 == 0 ? 0 : 4;
      *at = uint8_t((*at & ~(15 << shift)) | (first | second << 2) << shift);
    }
  }
  return true;
}

}  // namespace fastinfer::test
