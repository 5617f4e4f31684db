// Two ways to share the tasks of a driver (cpu/parallel_for.h).
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

namespace fastinfer::test {

inline void serial(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

inline void threaded(int64_t count, void (*task)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, context, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fastinfer::test
