// gemm_s8s8s32_6x16x8_neoni8mm. Contract and layouts: gemm_s8s8s32.h; walk: arm_tiles.h.
//
//   sums[i][c] = sum_k a[i,k] * b[c,k]          i < MR, c < 16 NP
//
// smmla multiplies 2 rows x 8 of K by 2 columns x 8 of K, signed bytes, and adds the 2 x 2
// products to 4 int32 lanes [r0c0, r0c1, r1c0, r1c1]: 32 multiply-adds an instruction, exact.
// A: 8 bytes of two rows side by side: [r0 k0-7, r1 k0-7].
// B: two groups of 4 along K, 64 bytes apart, zipped by 4 bytes: [c0 k0-7, c1 k0-7], [c2, c3].
//
// Tile: 3 pairs of rows x 8 pairs of columns = 24 accumulators, 3 registers for A, 3-4 for B. An
// odd last row is paired with itself and the second copy dropped. Fewer rows take more panels.
// A step of 8 along K is 24 smmla + 8 zips of B + 3 lane inserts of A at 6 rows: where those share
// the pipes of smmla, at most 69 % of its peak; at 1 row it is bound by reading B. No fraction of
// either bound has been measured: these rows have run under emulation alone.
// int32 sums cannot overflow for K <= kMaxK. Slow cases: odd M, a last group of few columns.
#include "cpu/gemm_s8s8s32/arm_tiles.h"

namespace fastinfer::cpu {

namespace {

inline int8x16_t zip1_s32(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
inline int8x16_t zip2_s32(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

struct MatMul {
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int mr) { return mr <= 2 ? 2 : 1; }

  template <int MR, int NP>
  static void sums(const int8_t* a, const int8_t* b, int64_t k_pad, int32_t* sums) {
    constexpr int kPairs = (MR + 1) / 2, kColumns = NP * int(kPanelColumns);
    int32x4_t acc_s32[kPairs][NP * 8];
    for (auto& pair : acc_s32) {
      for (auto& acc : pair) acc = vdupq_n_s32(0);
    }
    const int64_t panel_bytes = kPanelColumns * k_pad;
    for (int64_t k = 0; k < k_pad; k += 8, a += 8, b += 128) {
      int8x16_t a_s8[kPairs];
      for (int i = 0; i < kPairs; ++i) {
        const int8_t* r0 = a + 2 * i * k_pad;
        const int8_t* r1 = 2 * i + 1 < MR ? r0 + k_pad : r0;
        a_s8[i] = vcombine_s8(vld1_s8(r0), vld1_s8(r1));
      }
      for (int j = 0; j < NP * 4; ++j) {
        const int8_t* four_columns = b + j / 4 * panel_bytes + j % 4 * 16;
        const int8x16_t low = vld1q_s8(four_columns), high = vld1q_s8(four_columns + 64);
        const int8x16_t b01_s8 = zip1_s32(low, high), b23_s8 = zip2_s32(low, high);
        for (int i = 0; i < kPairs; ++i) {
          acc_s32[i][2 * j] = vmmlaq_s32(acc_s32[i][2 * j], a_s8[i], b01_s8);
          acc_s32[i][2 * j + 1] = vmmlaq_s32(acc_s32[i][2 * j + 1], a_s8[i], b23_s8);
        }
      }
    }
    for (int i = 0; i < kPairs; ++i) {
      int32_t* row = sums + 2 * i * kColumns;
      for (int j = 0; j < NP * 8; ++j) {
        vst1_s32(row + 2 * j, vget_low_s32(acc_s32[i][j]));
        if (2 * i + 1 < MR) vst1_s32(row + kColumns + 2 * j, vget_high_s32(acc_s32[i][j]));
      }
    }
  }
};

}  // namespace

void gemm_s8s8s32_6x16x8_neoni8mm(const GemmS8S8S32& p) { arm_gemm<MatMul>(p); }

}  // namespace fastinfer::cpu
