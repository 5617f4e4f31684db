// expand_s8_neon: method in bytes.h, with tbl, to which an index beyond the values gives 0.
#include <arm_neon.h>

#include "cpu/expand_s8/bytes.h"

namespace fastinfer::cpu {

void expand_s8_neon(const ExpandS8& p) {
  expand_by_bytes(p, [](const uint8_t* values, const uint8_t* shuffle, int8_t* out) {
    vst1_u8(reinterpret_cast<uint8_t*>(out), vtbl1_u8(vld1_u8(values), vld1_u8(shuffle)));
  });
}

}  // namespace fastinfer::cpu
