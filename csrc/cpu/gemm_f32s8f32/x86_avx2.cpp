// gemm_f32s8f32 on AVX2 and FMA. Formula: gemm_f32s8f32.h; loops: tiles.h.
//
// Tile: up to 6 rows by 1 panel (2 ymm), 12 sums, 2 registers of weights, 1 of x; 1 row takes 4
// panels, 2 rows 2. Expanding 32 bytes, 4 of K x 8 columns: vpsrld once, then vpand, vpxor, vsubps
// four times each. A step of many rows is 2 loads, 6 broadcasting loads and 12 vfmadd231ps.
// Measured on a Zen 4 core held down to it, peak 118 GFLOP/s: K = 768, N = 3072, M = 128: 0.81 of
// the peak; 4096 x 4096 from memory, M = 1: 17 GB/s.
#include "cpu/vec/avx2.h"

#include "cpu/gemm_f32s8f32/tiles.h"

namespace fastinfer::cpu {

namespace {

struct Tile : Avx2Vec {
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  static constexpr bool kPairs = false;

  static F multiply_add(F x, F w, F sum) { return fma(x, w, sum); }
  using W = __m256i;
  static W load_weights(const int8_t* w) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  }
  static W upper(W w) { return _mm256_srli_epi32(w, 16); }
  // As in x86_avx512.h.
  static F expand(W two, int i) {
    return i == 0 ? difference(two, 0xff00, 0x47008000, 0x1p15f + 128)
                  : difference(two, 0xff, 0x4b000080, 0x1p23f + 128);
  }
  static F difference(W two, int mask, int magic, float base) {
    const __m256i bits =
        _mm256_xor_si256(_mm256_and_si256(two, _mm256_set1_epi32(mask)), _mm256_set1_epi32(magic));
    return _mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(base));
  }
};

}  // namespace

void gemm_f32s8f32_avx2(const GemmF32S8F32& p) { gemm_tiles<Tile>(p); }

}  // namespace fastinfer::cpu
