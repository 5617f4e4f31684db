// The walk along a row, vector by vector.
#pragma once

#include <cstdint>

namespace fastinfer::cpu {
namespace {

// body(i, n) for each vector of k elements: elements [i, i + n), n == V::width but at the end. That
// is a call of its own, so that a body which is inlined knows n elsewhere.
template <class V, class Body>
inline void for_each_vector(int64_t k, Body&& body) {
  int64_t i = 0;
  for (; i + V::width <= k; i += V::width) body(i, V::width);
  if (i < k) body(i, int(k - i));
}

}  // namespace
}  // namespace fastinfer::cpu
