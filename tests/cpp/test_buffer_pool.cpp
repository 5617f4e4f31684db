// The pool of output buffers: sizes, reuse, its bound, many threads at once.
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/buffer_pool.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

void check_sizes() {
  Random random(1);
  for (int i = 0; i < 2000; ++i) {
    const int64_t bytes = kPoolLeastBytes + random.below(int64_t(1) << (18 + i % 20));
    const int64_t buffer = pool_buffer_bytes(bytes);
    CHECK(buffer >= bytes && buffer <= bytes + bytes / 8);
    CHECK(pool_buffer_bytes(buffer) == buffer);
  }
}

// A freed buffer serves the next call of its size, and nobody gets one that is in use.
void check_reuse() {
  constexpr int64_t kBytes = 300000;
  void* first = pool_acquire(kBytes);
  void* second = pool_acquire(kBytes);
  CHECK(first != nullptr && second != nullptr && first != second);
  CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0);
  std::memset(first, 1, size_t(pool_buffer_bytes(kBytes)));
  std::memset(second, 2, size_t(pool_buffer_bytes(kBytes)));
  pool_release(first, kBytes);
  CHECK(pool_acquire(kBytes - 1) == first);
  void* other = pool_acquire(2 * kBytes);
  CHECK(other != first && other != second);
  pool_release(other, 2 * kBytes);
  pool_release(second, kBytes);
  pool_release(first, kBytes);
}

// Far more is freed than the pool keeps; under a sanitizer this also shows that nothing is freed
// twice or used after.
void check_bound() {
  std::vector<void*> buffers;
  constexpr int64_t kBytes = kPoolBytes / 16;
  for (int i = 0; i < 40; ++i) {
    buffers.push_back(pool_acquire(kBytes));
    std::memset(buffers.back(), i, 4096);
  }
  for (int i = 0; i < 40; ++i) {
    CHECK(*static_cast<uint8_t*>(buffers[size_t(i)]) == i);
    pool_release(buffers[size_t(i)], kBytes);
  }
  void* larger = pool_acquire(kPoolBytes + 1);
  CHECK(larger != nullptr);
  pool_release(larger, kPoolBytes + 1);
}

void check_threads() {
  const auto work = [](uint64_t seed) {
    Random random(seed);
    struct Held {
      uint8_t* data;
      int64_t bytes;
      uint8_t mark;
    };
    std::vector<Held> held;
    bool intact = true;
    for (int i = 0; i < 3000; ++i) {
      if (held.size() < 8 && random.below(2) == 0) {
        const int64_t bytes = kPoolLeastBytes + random.below(8) * 50000;
        auto* data = static_cast<uint8_t*>(pool_acquire(bytes));
        const uint8_t mark = uint8_t(random.bits());
        data[0] = data[bytes - 1] = mark;
        held.push_back({data, bytes, mark});
      } else if (!held.empty()) {
        const Held h = held.back();
        held.pop_back();
        intact = intact && h.data[0] == h.mark && h.data[h.bytes - 1] == h.mark;
        pool_release(h.data, h.bytes);
      }
    }
    for (const Held& h : held) pool_release(h.data, h.bytes);
    CHECK(intact);
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void test_buffer_pool() {
  group("buffer pool: sizes", check_sizes);
  group("buffer pool: reuse", check_reuse);
  group("buffer pool: bound", check_bound);
  group("buffer pool: threads", check_threads);
}

}  // namespace fastinfer::test
