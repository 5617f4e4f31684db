// gemm_f32s8f32 on NEON. Formula: gemm_f32s8f32.h; loops: tiles.h.
//
// Tile: 6 rows by 1 panel (4 q registers), 24 sums, 4 registers of weights, 1 of x. A step
// is 4 loads, 6 broadcasting loads and 24 fmla; expanding 16 bytes, 4 of K x 4 columns, sshr once,
// then shl, sshr, scvtf four times each. Not measured: this row has run under emulation alone.
#include "cpu/vec/neon.h"

#include "cpu/gemm_f32s8f32/tiles.h"

namespace fastinfer::cpu {

namespace {

struct Tile : NeonVec {
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  static constexpr bool kPairs = false;

  static F multiply_add(F x, F w, F sum) { return fma(x, w, sum); }
  using W = int32x4_t;
  static W load_weights(const int8_t* w) { return vreinterpretq_s32_s8(vld1q_s8(w)); }
  static W upper(W w) { return vshrq_n_s32(w, 16); }
  static F expand(W two, int i) {
    return vcvtq_f32_s32(vshrq_n_s32(i == 0 ? vshlq_n_s32(two, 16) : vshlq_n_s32(two, 24), 24));
  }
};

}  // namespace

void gemm_f32s8f32_neon(const GemmF32S8F32& p) { gemm_tiles<Tile>(p); }

}  // namespace fastinfer::cpu
