// Scalar reference of gemm_s8s8s32: the formula of gemm_s8s8s32.h and nothing else. Every other
// kernel must give these bits. Runs on any CPU; bound by scalar multiplies.
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void gemm_s8s8s32_1x16x4_generic(const GemmS8S8S32& p) {
  const EpilogueFn epilogue = select_epilogue<ScalarVec>(p);
  for (int64_t m = 0; m < p.m; ++m) {
    const int8_t* a = p.a + m * p.k_pad;
    for (int64_t n = 0; n < p.n; n += kPanelColumns) {
      const int8_t* b = p.panels + n * p.k_pad;
      int32_t acc[kPanelColumns] = {};
      for (int64_t k = 0; k < p.k_pad; k += 4, b += 64) {
        for (int64_t c = 0; c < kPanelColumns; ++c) {
          for (int64_t i = 0; i < 4; ++i) acc[c] += int32_t(a[k + i]) * b[c * 4 + i];
        }
      }
      const int64_t left = p.n - n;
      epilogue(p, acc, kPanelColumns, m, 1, n, left < kPanelColumns ? left : kPanelColumns);
    }
  }
}

}  // namespace fastinfer::cpu
