// Scalar reference of rope: the formula of rope.h, one element at a time. Bound by its branches and
// scalar loads; it exists to be right.
#include <cstring>

#include "cpu/rope/rope.h"
#include "cpu/vec/scalar.h"

namespace fastinfer::cpu {

namespace {

using V = ScalarVec;

void rotate_head(const Rope& p, const char* x, const char* cos, const char* sin, char* out) {
  const int64_t size = size_of(p.x_dtype), table_size = size_of(p.table_dtype), half = p.r / 2;
  for (int64_t d = 0; d < p.r; ++d) {
    const bool first = p.interleaved ? d % 2 == 0 : d < half;
    const int64_t step = p.interleaved ? 1 : half;
    const int64_t partner = first ? d + step : d - step;
    const float a = V::load(x + d * size, p.x_dtype) * V::load(cos + d * table_size, p.table_dtype);
    const float b =
        V::load(x + partner * size, p.x_dtype) * V::load(sin + d * table_size, p.table_dtype);
    V::store(out + d * size, p.x_dtype, first ? a - b : a + b);
  }
  std::memcpy(out + p.r * size, x + p.r * size, size_t((p.head_size - p.r) * size));
}

}  // namespace

void rope_generic(const Rope& p) {
  char* out = static_cast<char*>(p.out);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const char* x = static_cast<const char*>(p.x) + t * p.x_token_bytes;
    const char* cos = static_cast<const char*>(p.cos) + t * p.cos_token_bytes;
    const char* sin = static_cast<const char*>(p.sin) + t * p.sin_token_bytes;
    for (int64_t h = 0; h < p.heads; ++h) {
      rotate_head(p, x + h * p.x_head_bytes, cos, sin, out);
      out += p.head_size * size_of(p.x_dtype);
    }
  }
}

}  // namespace fastinfer::cpu
