// attention on NEON. Formula: attention.h; layouts: layout.h; loops: rows.h.
//
// Tile: 6 rows by 4 q registers (16 keys, or 16 elements of d), 24 sums, 4 registers of k or v, 1
// of q or p. A step is 4 loads, 6 broadcasting loads and 24 fmla. Not measured: this row has run
// under emulation alone.
#include "cpu/vec/neon.h"

#include "cpu/attention/rows.h"

namespace fastinfer::cpu {

namespace {

struct Tile : NeonVec {
  static constexpr int kUnits = 1;
  static constexpr bool kPairs = false;

  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static float reduce_max(F a) { return vmaxvq_f32(a); }
  static F from_bool(const void* p, int n) {
    uint32_t bytes = 0;
    std::memcpy(&bytes, p, size_t(n));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes)))));
  }
  static void transpose(F (&r)[4]) {
    const auto pair = [](F v) { return vreinterpretq_f64_f32(v); };
    const auto lanes = [](float64x2_t v) { return vreinterpretq_f32_f64(v); };
    const F t[4] = {vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]), vtrn1q_f32(r[2], r[3]),
                    vtrn2q_f32(r[2], r[3])};
    r[0] = lanes(vtrn1q_f64(pair(t[0]), pair(t[2])));
    r[1] = lanes(vtrn1q_f64(pair(t[1]), pair(t[3])));
    r[2] = lanes(vtrn2q_f64(pair(t[0]), pair(t[2])));
    r[3] = lanes(vtrn2q_f64(pair(t[1]), pair(t[3])));
  }
};

}  // namespace

void attention_neon(const Attention& p, const AttentionTask& t) { attention_rows<Tile>(p, t); }

}  // namespace fastinfer::cpu
