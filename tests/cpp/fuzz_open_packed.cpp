// libFuzzer target: any bytes are refused by open_packed, or hold what their header says.
//   cmake --preset fuzz && cmake --build --preset fuzz && build/fuzz/tests/cpp/fuzz_open_packed
#include <cstdlib>
#include <vector>

#include "cpu/gemm_s8s8s32/pack.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fastinfer::cpu::PackedWeight weight;
  if (fastinfer::cpu::open_packed(data, int64_t(size), &weight) != nullptr) return 0;
  // A weight of no tiles may be far larger than its bytes.
  if (weight.n * weight.k > int64_t(1) << 24) return 0;
  std::vector<int8_t> w(size_t(weight.n * weight.k) + 1);
  fastinfer::cpu::unpack_w8(weight, w.data());
  // A sparse layout can hold one weight in several ways: zeros kept, tiles in disorder.
  if (weight.layout != fastinfer::cpu::WeightLayout::dense) return 0;
  std::vector<uint8_t> again(size);
  if (fastinfer::cpu::packed_bytes(weight.n, weight.k) != int64_t(size)) std::abort();
  fastinfer::cpu::pack_w8(w.data(), weight.n, weight.k, again.data());
  return 0;
}
