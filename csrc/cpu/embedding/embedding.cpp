#include "cpu/embedding/embedding.h"

#include <algorithm>

#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void embedding_row(const PackedWeight& w, int64_t row, float scale, void* out, DType dtype) {
  const int8_t* four =
      w.panels + row / kPanelColumns * kPanelColumns * w.k_pad + row % kPanelColumns * 4;
  char* to = static_cast<char*>(out);
  for (int64_t k = 0; k < w.k; k += 4, four += 4 * kPanelColumns) {
    for (int64_t i = 0; i < std::min<int64_t>(4, w.k - k); ++i, to += size_of(dtype)) {
      ScalarVec::store(to, dtype, float(four[i]) * scale);
    }
  }
}

}  // namespace fastinfer::cpu
