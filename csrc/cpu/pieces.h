// Work in equal shares, one a task, cut into pieces: a task takes its own, then what is left of
// others, since cores differ in speed, those of a shared machine from moment to moment.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastinfer::cpu {

class Pieces {
 public:
  Pieces(int64_t tasks, int64_t pieces_per_task) : pieces_(pieces_per_task), next_(size_t(tasks)) {}

  // Calls body(share, piece) for pieces that no task has taken yet: of the share of `task`, then of
  // the others of tasks [first, first + count).
  template <class Body>
  void run(int64_t task, int64_t first, int64_t count, Body&& body) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t share = first + (task - first + i) % count;
      std::atomic<int64_t>& next = next_[size_t(share)].value;
      for (int64_t piece; (piece = next++) < pieces_;) body(share, piece);
    }
  }

 private:
  struct alignas(64) Next {
    std::atomic<int64_t> value{0};
  };
  int64_t pieces_;
  std::vector<Next> next_;
};

}  // namespace fastinfer::cpu
