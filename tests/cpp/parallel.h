// Ways to share the tasks of a driver (cpu/parallel_for.h).
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

namespace fastinfer::test {

inline void serial(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

// The last task first.
inline void backward(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = count - 1; i >= 0; --i) task(context, i);
}

// Two threads, each with every other task, one after the other.
inline void two_by_two(int64_t count, void (*task)(void*, int64_t), void* context) {
  const auto every_other = [&](int64_t first) {
    for (int64_t i = first; i < count; i += 2) task(context, i);
  };
  std::thread odd(every_other, 1);
  every_other(0);
  odd.join();
}

inline void threaded(int64_t count, void (*task)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, context, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fastinfer::test
