// gemm_f32s8f32 on AVX512-BF16: bfloat16 inputs by vdpbf16ps, where no element is too small for it
// (gemm_f32s8f32.h, "In pairs of bfloat16"); all else by x86_avx512.cpp. The bits are the same.
//
// Tile and loops: as in x86_avx512.cpp; a step is two of K and twice the operations. Expanding 64
// bytes takes two vpsrld, por more. On Zen 4 a vdpbf16ps is done a cycle, and one with any other
// vector instruction beside it takes 1.6, so few rows are bound by both together; one row goes the
// way of float32, which is no slower.
// Measured on Zen 4, one core, peak 236 GFLOP/s: K = 768, N = 3072, M = 128: 0.89 of the peak, M =
// 16 0.73, K = N = 4096, M = 128: 0.86; 4096 x 4096 from memory, M = 4: 0.51 of the peak, 15 GB/s.
#include "cpu/gemm_f32s8f32/x86_avx512.h"

#include "cpu/gemm_f32s8f32/tiles.h"

namespace fastinfer::cpu {

void gemm_f32s8f32_avx512(const GemmF32S8F32& p);

namespace {

struct PairTile : Avx512Tile {
  static constexpr bool kPairs = true;

  static F multiply_add(F x, F w, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
  // Eight bits fit the mantissa of a bfloat16, so the upper half of a float is all of it.
  static F expand(W two, int) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first_of(two)), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(second_of(two))));
  }
};

// Whether some x is not zero and below 2^-119 (0x0400).
bool holds_tiny(const GemmF32S8F32& p) {
  __mmask32 tiny = 0;
  for (int64_t m = 0; m < p.m; ++m) {
    const uint16_t* x =
        reinterpret_cast<const uint16_t*>(static_cast<const char*>(p.x) + m * p.ldx_bytes);
    for (int64_t k = 0; k < p.k; k += 32) {
      const __mmask32 lanes = p.k - k < 32 ? (__mmask32(1) << (p.k - k)) - 1 : ~__mmask32(0);
      const __m512i v =
          _mm512_and_si512(_mm512_maskz_loadu_epi16(lanes, x + k), _mm512_set1_epi16(0x7fff));
      tiny |= _mm512_cmplt_epu16_mask(_mm512_sub_epi16(v, _mm512_set1_epi16(1)),
                                      _mm512_set1_epi16(0x3ff));
    }
  }
  return tiny != 0;
}

}  // namespace

void gemm_f32s8f32_avx512bf16(const GemmF32S8F32& p) {
  if (p.x_dtype != DType::bf16 || p.m == 1 || holds_tiny(p)) {
    gemm_f32s8f32_avx512(p);
  } else {
    gemm_tiles<PairTile>(p);
  }
}

}  // namespace fastinfer::cpu
