// gemm_masked_s8s8s32_8x32x4_avx512vbmi2. Contract: gemm_masked_s8s8s32.h; A as x86_vnni.h has it,
// q + 128, tile_rows 1.
//
// A step takes 4 of K: for each panel 8 bytes of mask and 64 of values are loaded, vpexpandb makes
// the vpdpbusd operand of them, and each row's 4 bytes are broadcast from memory. The next values
// begin where these end: 32 bytes on with sp24, a count of bits on with a bitmask, where the chain
// of count and addition is what a panel waits for; NP panels are on their way at once, and they are
// NP streams from memory.
// Registers: MR x NP sums, NP expanded, 1 broadcast. Overflow: none, as in gemm_s8s8s32.h.
#include <immintrin.h>

#include <algorithm>

#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {

constexpr int kMaxRows = int(kMostMaskedRows);
constexpr int panels(int mr) { return mr <= 4 ? 4 : 2; }

template <int MR, int NP, bool kPairs>
void masked_tile(const GemmMaskedS8S8S32& g, EpilogueFn epilogue, int64_t panel) {
  const GemmS8S8S32& p = g.gemm;
  const int64_t column = (panel - g.panel) * kPanelColumns;
  const uint8_t* last = g.weight->masked_end;
  const uint8_t* masked[NP];
  __m512i acc_s32[MR][NP];
#pragma GCC unroll 8
  for (int j = 0; j < NP; ++j) {
    masked[j] = masked_panel(*g.weight, panel + j);
    const __m512i start = _mm512_loadu_si512(p.compensation + column + j * kPanelColumns);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) acc_s32[i][j] = start;
  }
  const int8_t* a = p.a;
  for (int64_t k = 0; k < p.k_pad; k += kBlockK) {
    const uint8_t* value[NP];
#pragma GCC unroll 8
    for (int j = 0; j < NP; ++j) {
      if constexpr (!kPairs) masked[j] = std::min(masked[j], last);
      value[j] = masked[j] + kMaskBytes;
    }
#pragma GCC unroll 2
    for (int64_t step = 0; step < kBlockK / 4; ++step, a += 4) {
      __m512i b_s8[NP];
#pragma GCC unroll 8
      for (int j = 0; j < NP; ++j) {
        uint64_t mask;
        std::memcpy(&mask, masked[j] + step * 8, 8);
        b_s8[j] = _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(value[j]));
        value[j] += kPairs ? 32 : __builtin_popcountll(mask);
      }
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        int32_t four;
        std::memcpy(&four, a + i * p.k_pad, 4);
        const __m512i a_u8 = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int j = 0; j < NP; ++j) {
          // In assembly: GCC 12 copies each sum around the intrinsic.
          __asm__("vpdpbusd %2, %1, %0" : "+v"(acc_s32[i][j]) : "v"(a_u8), "v"(b_s8[j]));
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < NP; ++j) masked[j] = value[j];
  }
  alignas(64) int32_t sums[MR * NP * kPanelColumns];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NP; ++j) {
      _mm512_store_si512(sums + (i * NP + j) * kPanelColumns, acc_s32[i][j]);
    }
  }
  constexpr int64_t kColumns = NP * kPanelColumns;
  epilogue(p, sums, kColumns, 0, MR, column, std::min(kColumns, p.n - column));
}

template <int MR, int NP, bool kPairs>
void masked_panels(const GemmMaskedS8S8S32& g, EpilogueFn epilogue, int64_t panel, int64_t end) {
  for (; panel + NP <= end; panel += NP) masked_tile<MR, NP, kPairs>(g, epilogue, panel);
  if constexpr (NP > 1) {
    if (panel < end) masked_panels<MR, NP / 2, kPairs>(g, epilogue, panel, end);
  }
}

template <int MR>
void masked_rows(const GemmMaskedS8S8S32& g) {
  if (g.gemm.m == MR) {
    const EpilogueFn epilogue = select_epilogue<Avx512Vec>(g.gemm);
    const int64_t end = g.panel + round_up(g.gemm.n, kPanelColumns) / kPanelColumns;
    if (g.weight->layout == WeightLayout::sp24) {
      masked_panels<MR, panels(MR), true>(g, epilogue, g.panel, end);
    } else {
      masked_panels<MR, panels(MR), false>(g, epilogue, g.panel, end);
    }
  } else if constexpr (MR > 1) {
    masked_rows<MR - 1>(g);
  }
}

}  // namespace

void gemm_masked_s8s8s32_8x32x4_avx512vbmi2(const GemmMaskedS8S8S32& g) {
  masked_rows<kMaxRows>(g);
}

}  // namespace fastinfer::cpu
