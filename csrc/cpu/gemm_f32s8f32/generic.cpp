// Scalar reference of gemm_f32s8f32: the formula of gemm_f32s8f32.h and nothing else. Every other
// kernel must give these bits. Runs on any CPU; bound by scalar multiply-adds, which are calls of
// fma() where the baseline has no instruction for it.
#include "cpu/gemm_f32s8f32/epilogue.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

void gemm_f32s8f32_generic(const GemmF32S8F32& p) {
  const EpilogueFn epilogue = select_epilogue<ScalarVec>(p);
  const int64_t k_pad = round_up(p.k, kBlockK), size = size_of(p.x_dtype);
  float* x = static_cast<float*>(p.scratch);
  for (int64_t m = 0; m < p.m; ++m) {
    const char* from = static_cast<const char*>(p.x) + m * p.ldx_bytes;
    for (int64_t k = 0; k < p.k; ++k) x[k] = ScalarVec::load(from + k * size, p.x_dtype);
    for (int64_t k = p.k; k % 4 != 0; ++k) x[k] = 0.0f;
    for (int64_t n = 0; n < p.n; n += kPanelColumns) {
      const int64_t columns = std::min(kPanelColumns, p.n - n);
      float sums[kPanelColumns] = {};
      for (int64_t k = 0; k < p.k; k += kSumK) {
        for (int64_t c = 0; c < kPanelColumns; ++c) {
          float sum = 0.0f;
          for (int64_t i = k; i < std::min(round_up(p.k, 4), k + kSumK); i += 4) {
            const int8_t* w = p.panels + n * k_pad + i * kPanelColumns + c * 4;
            for (int j : {1, 0, 3, 2}) sum = ScalarVec::fma(x[i + j], float(w[j]), sum);
          }
          sums[c] = k == 0 ? sum : sums[c] + sum;
        }
      }
      epilogue(p, sums, kPanelColumns, m, 1, n, columns);
    }
  }
}

}  // namespace fastinfer::cpu
