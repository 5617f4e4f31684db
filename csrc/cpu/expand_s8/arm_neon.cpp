// expand_s8_neon. Masked slices: bytes.h, with tbl, to which an index beyond the values gives 0.
// Pairs: as in x86_avx2.cpp, 16 bytes at a time.
#include <arm_neon.h>

#include "cpu/expand_s8/bytes.h"

namespace fastinfer::cpu {

namespace {

const uint8_t* expand_masked(const ExpandS8& p) {
  return expand_by_bytes(p, [](const uint8_t* values, const uint8_t* shuffle, int8_t* out) {
    vst1_u8(reinterpret_cast<uint8_t*>(out), vtbl1_u8(vld1_u8(values), vld1_u8(shuffle)));
  });
}

const uint8_t* expand_pairs(const ExpandS8& p) {
  constexpr uint8_t kLaneFirst[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
  const uint8x16_t lane_first = vld1q_u8(kLaneFirst), one = vdupq_n_u8(1);
  const uint8x16_t lane_byte = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100));
  const uint32x4_t three = vdupq_n_u32(3);
  const uint8_t* pairs = p.masked;
  uint8_t* out = reinterpret_cast<uint8_t*>(p.out);
  for (int64_t s = 0; s < p.slices; ++s, pairs += kPairsSliceBytes) {
    for (int step = 0; step < 8; ++step) {
      const uint32x4_t index = vreinterpretq_u32_u8(vld1q_u8(pairs + step * 16));
      const uint8_t* values = pairs + kPairsIndexBytes + step * 64;
      for (int half = 0; half < 2; ++half) {
        // In the bytes of a lane: where its first value of this half is.
        const uint8x16_t first = vaddq_u8(lane_first, vdupq_n_u8(uint8_t(2 * half)));
        for (int column = 0; column < 16; column += 4, out += 16) {
          const uint32x4_t places = vshlq_u32(index, vdupq_n_s32(-(column * 2 + half * 4)));
          const uint8x16_t value = vld1q_u8(values + column * 4);
          const auto kept = [&](uint32x4_t place, uint8x16_t value_at) {
            const uint8x16_t byte = vreinterpretq_u8_u32(vandq_u32(place, three));
            return vandq_u8(vceqq_u8(vqtbl1q_u8(byte, lane_first), lane_byte),
                            vqtbl1q_u8(value, value_at));
          };
          vst1q_u8(out, vorrq_u8(kept(places, first),
                                 kept(vshrq_n_u32(places, 2), vaddq_u8(first, one))));
        }
      }
    }
  }
  return pairs;
}

}  // namespace

const uint8_t* expand_s8_neon(const ExpandS8& p) {
  return p.pairs ? expand_pairs(p) : expand_masked(p);
}

}  // namespace fastinfer::cpu
