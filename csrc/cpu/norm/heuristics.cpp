// Tuning numbers of the family norm.
#include "cpu/norm/norm.h"

namespace fastinfer::cpu {

bool norm_streams(int64_t output_bytes) {
  // Outputs of this size are out of the last-level cache before the next operator reads them, so
  // nothing is lost by going past it, and no line is read just to be overwritten.
  constexpr int64_t kLeastBytes = 32 << 20;
  return output_bytes >= kLeastBytes;
}

}  // namespace fastinfer::cpu
