// gemm_s8s8s32_6x16x16_neondot. Contract and layouts: gemm_s8s8s32.h; walk: arm_tiles.h.
//
//   sums[i][c] = sum_k a[i,k] * b[c,k]          i < MR, c < 16 NP
//
// sdot (by element) multiplies 16 signed bytes of B, 4 columns x 4 of K, by one 4-byte group of A
// and adds four products to each of 4 int32 lanes: 16 multiply-adds an instruction, exact.
//
// Tile: 6 rows x 1 panel = 24 accumulators of 4 columns, 6 registers for 16 bytes of each row of
// A, 1-2 for B: the 32 of the machine. Fewer rows take more panels, so that at least 12
// accumulators hide the latency of sdot (4 cycles, 2 a cycle).
// A step of 16 along K is 96 sdot against 16 loads of B and 6 of A: bound by sdot at 6 rows; at
// 1 row by reading B, 16 bytes an sdot. No fraction of either bound has been measured: these rows
// have run under emulation alone.
// int32 sums cannot overflow for K <= kMaxK. Slow case: a last group of few columns costs a panel.
#include "cpu/gemm_s8s8s32/arm_tiles.h"

namespace fastinfer::cpu {

namespace {

struct Dot {
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int mr) { return mr == 1 ? 4 : mr == 2 ? 2 : 1; }

  // K group G of the 16 bytes of A in every row: one 64-byte group of each panel.
  template <int G, int MR, int Regs>
  static void step(const int8x16_t (&a_s8)[MR], const int8_t* b, int64_t panel_bytes,
                   int32x4_t (&acc_s32)[MR][Regs]) {
    for (int j = 0; j < Regs; ++j) {
      const int8x16_t b_s8 = vld1q_s8(b + j / 4 * panel_bytes + G * 64 + j % 4 * 16);
      for (int i = 0; i < MR; ++i) {
        acc_s32[i][j] = vdotq_laneq_s32(acc_s32[i][j], b_s8, a_s8[i], G);
      }
    }
  }

  template <int MR, int NP>
  static void sums(const int8_t* a, const int8_t* b, int64_t k_pad, int32_t* sums) {
    int32x4_t acc_s32[MR][NP * 4];
    for (auto& row : acc_s32) {
      for (auto& acc : row) acc = vdupq_n_s32(0);
    }
    const int64_t panel_bytes = kPanelColumns * k_pad;
    for (int64_t k = 0; k < k_pad; k += 16, a += 16, b += 256) {
      int8x16_t a_s8[MR];
      for (int i = 0; i < MR; ++i) a_s8[i] = vld1q_s8(a + i * k_pad);
      step<0>(a_s8, b, panel_bytes, acc_s32);
      step<1>(a_s8, b, panel_bytes, acc_s32);
      step<2>(a_s8, b, panel_bytes, acc_s32);
      step<3>(a_s8, b, panel_bytes, acc_s32);
    }
    for (const auto& row : acc_s32) {
      for (const auto& acc : row) {
        vst1q_s32(sums, acc);
        sums += 4;
      }
    }
  }
};

}  // namespace

void gemm_s8s8s32_6x16x16_neondot(const GemmS8S8S32& p) { arm_gemm<Dot>(p); }

}  // namespace fastinfer::cpu
