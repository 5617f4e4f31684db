#include "cpu/buffer_pool.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "cpu/huge_pages.h"

namespace fastinfer::cpu {

namespace {

struct Idle {
  void* data;
  int64_t bytes;
};

struct Pool {
  static constexpr int kMost = 64;
  std::mutex mutex;
  Idle idle[kMost];  // the oldest first
  int count = 0;
  int64_t bytes = 0;

  void remove(int i) {
    bytes -= idle[i].bytes;
    std::copy(idle + i + 1, idle + count, idle + i);
    --count;
  }
};

// Never destroyed: a tensor may outlive every static object.
Pool& pool() {
  static Pool* p = new Pool;
  return *p;
}

}  // namespace

int64_t pool_buffer_bytes(int64_t bytes) {
  int64_t step = 4096;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* pool_acquire(int64_t bytes) {
  bytes = pool_buffer_bytes(bytes);
  // A lock that is taken, perhaps for ever by a thread that a fork left behind, means a fresh
  // buffer and no waiting.
  if (std::unique_lock lock(pool().mutex, std::try_to_lock); lock) {
    for (int i = pool().count - 1; i >= 0; --i) {
      if (pool().idle[i].bytes != bytes) continue;
      void* data = pool().idle[i].data;
      pool().remove(i);
      return data;
    }
  }
  const int64_t alignment = bytes >= 2 * kHugePage ? kHugePage : 4096;
  void* data = nullptr;
  if (posix_memalign(&data, size_t(alignment), size_t(bytes)) != 0) return nullptr;
  advise_huge_pages(data, bytes);
  return data;
}

void pool_release(void* data, int64_t bytes) {
  bytes = pool_buffer_bytes(bytes);
  std::unique_lock lock(pool().mutex, std::try_to_lock);
  if (!lock || bytes > kPoolBytes) {
    std::free(data);
    return;
  }
  while (pool().count == Pool::kMost || pool().bytes + bytes > kPoolBytes) {
    std::free(pool().idle[0].data);
    pool().remove(0);
  }
  pool().idle[pool().count++] = {data, bytes};
  pool().bytes += bytes;
}

}  // namespace fastinfer::cpu
