// The emulator itself: what it is relied on to notice.
#include <vector>

#include "aborts.h"
#include "cuda/device.cuh"
#include "parts.h"

namespace fastinfer::test {

using namespace cuda;

namespace {

// c = A B for one instruction, from matrices in memory.
void multiply_kernel(const int8_t* a, const int8_t* b, int32_t* c) {
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto word = [](const int8_t* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
  };
  uint32_t left[4];
  for (int i = 0; i < 4; ++i) left[i] = word(a + (g + i % 2 * 8) * 32 + i / 2 * 16 + t * 4);
  int32_t sums[4] = {};
  mma_s8(sums, left, word(b + g * 32 + t * 4), word(b + g * 32 + 16 + t * 4));
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}

void test_mma() {
  Random random(1);
  std::vector<int8_t> a(16 * 32), b(8 * 32);
  for (auto& v : a) v = random.byte();
  for (auto& v : b) v = random.byte();
  std::vector<int32_t> c(16 * 8);
  in_both_orders([&] {
    launch(multiply_kernel, LaunchShape{dim3(1), dim3(32), 0, false}, nullptr, a.data(), b.data(),
           c.data());
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        int32_t want = 0;
        for (int k = 0; k < 32; ++k) want += int32_t(a[m * 32 + k]) * b[n * 32 + k];
        CHECK(c[m * 8 + n] == want);
      }
    }
  });
}

void reverse_kernel(int* out, bool barrier) {
  int* shared = reinterpret_cast<int*>(dynamic_shared());
  shared[threadIdx.x] = int(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

bool reversed(bool barrier) {
  std::vector<int> out(64);
  launch(reverse_kernel, LaunchShape{dim3(1), dim3(64), 256, false}, nullptr, out.data(), barrier);
  for (int i = 0; i < 64; ++i) {
    if (out[size_t(i)] != 63 - i) return false;
  }
  return true;
}

void early_copy_kernel(const char* from, char* out, bool wait) {
  char* shared = dynamic_shared();
  copy_async(shared + threadIdx.x * 16, from + threadIdx.x * 16, true);
  copy_commit();
  if (wait) copy_wait<0>();
  std::memcpy(out + threadIdx.x * 16, shared + threadIdx.x * 16, 16);
}

void half_a_barrier_kernel() {
  if (threadIdx.x < 16) __syncthreads();
}

}  // namespace

void test_emulator() {
  group("emulator mma", test_mma);
  group("emulator barriers", [] {
    in_both_orders([] { CHECK(reversed(true)); });
    in_both_orders([] { CHECK(!reversed(false)); });
    CHECK(aborts(
        [] { launch(half_a_barrier_kernel, LaunchShape{dim3(1), dim3(32), 0, false}, nullptr); }));
  });
  group("emulator copies", [] {
    std::vector<char> from(512, 7), out(512);
    const LaunchShape shape{dim3(1), dim3(32), 512, false};
    launch(early_copy_kernel, shape, nullptr, from.data(), out.data(), true);
    CHECK(out == from);
    launch(early_copy_kernel, shape, nullptr, from.data(), out.data(), false);
    CHECK(out != from);
  });
}

}  // namespace fastinfer::test
