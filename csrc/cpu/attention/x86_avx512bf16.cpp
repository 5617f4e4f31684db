// attention on AVX512-BF16: bfloat16 inputs by vdpbf16ps; others by x86_avx512.cpp, since float32
// and float16 do not fit bfloat16. Formula: attention.h, "In pairs of bfloat16".
//
// vdpbf16ps(c, a, b): a lane of a and of b is two bfloat16; fma(a[0], b[0], fma(a[1], b[1], c)) to
// float32, 64 operations. It takes subnormals for zero, whatever MXCSR says (Intel SDM vol. 2;
// checked on Zen 4).
//
// Tile: as in x86_avx512.cpp, 6 rows by 4 zmm; a step is 4 loads, 6 broadcasts and 24 vdpbf16ps,
// of twice the operations of a vfmadd231ps. On Zen 4 one of either is done a cycle, so the floor is
// half of the time of float32; a softmax of 16 scores is about 9 cycles on the same ports, beside D
// of the tiles. Measured there, AVX512-BF16, 8 x 12 heads of 512 tokens, D = 64: 0.65 of the peak
// of vdpbf16ps on one core, 0.63 on two. Of the time sampled, 73 % is in the tiles and 16 % in
// softmax. Slow: few rows, as in x86_avx512.cpp.
#include "cpu/attention/x86_avx512.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

void attention_avx512(const Attention& p, const AttentionTask& t);

namespace {

struct PairTile : Avx512Tile {
  static constexpr bool kPairs = true;

  static F load_pairs(const void* p, int n) {
    return _mm512_castsi512_ps(n == 32 ? _mm512_loadu_si512(p)
                                       : _mm512_maskz_loadu_epi16((1u << n) - 1, p));
  }
  static F interleave(const void* a, int n_a, const void* b, int n_b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n_a), a));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(n_b), b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static F dot(F a, F b, F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static F keep_nonzero(F v, F a) {
    const __m512i bits = _mm512_castps_si512(a);
    return _mm512_castsi512_ps(
        _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(bits, bits), _mm512_castps_si512(v)));
  }

  // y = max((s - u) log2 e, -125), n = round(y), p = 2^n c(y - n): c is the minimax polynomial of
  // degree 4 on |y - n| <= 1/2, relative error 2.6e-6, beside 2^-8 of the rounding that follows. p
  // is never subnormal, which the instructions would take for zero.
  static F probabilities(const float* s, F minus_u, uint16_t* p, F sum) {
    const F x = _mm512_loadu_ps(s);
    const __mmask16 seen = _mm512_cmp_ps_mask(x, set1(kLeast), _CMP_NLT_UQ);  // NaN, too
    const F y = max(set1(-125.0f), mul(add(x, minus_u), set1(1.44269504f)));
    const F shifted = add(y, set1(12582912.0f));
    const F r = _mm512_sub_ps(y, _mm512_sub_ps(shifted, set1(12582912.0f)));
    F c = set1(0.009570103138685226f);
    c = fma(c, r, set1(0.05591786280274391f));
    c = fma(c, r, set1(0.240247443318367f));
    c = fma(c, r, set1(0.6931217908859253f));
    c = fma(c, r, set1(0.9999992847442627f));
    const __m256bh e = _mm512_maskz_cvtneps_pbh(seen, mul(c, pow2_shifted(shifted)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)e);
    const __m256bh ones = (__m256bh)_mm256_set1_epi16(0x3f80);
    return _mm512_insertf32x8(sum, _mm256_dpbf16_ps(_mm512_castps512_ps256(sum), e, ones), 0);
  }
};

}  // namespace

void attention_avx512bf16(const Attention& p, const AttentionTask& t) {
  if (p.dtype == DType::bf16) {
    attention_rows<PairTile>(p, t);
  } else {
    attention_avx512(p, t);
  }
}

}  // namespace fastinfer::cpu
