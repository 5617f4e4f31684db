// Shares cut into pieces: each is run once, whoever runs it.
#include "cpu/pieces.h"

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

// Tasks [0, tasks), of which `absent` never begins, in groups that take from each other.
void check_pieces(int64_t tasks, int64_t pieces_per_task, int64_t group, int64_t absent) {
  Pieces pieces(tasks, pieces_per_task);
  std::vector<std::atomic<int>> runs(size_t(tasks * pieces_per_task));
  std::vector<std::thread> threads;
  for (int64_t task = 0; task < tasks; ++task) {
    if (task == absent) continue;
    threads.emplace_back([&, task] {
      const int64_t first = task / group * group;
      pieces.run(task, first, group, [&](int64_t share, int64_t piece) {
        if (share < first || share >= first + group) return;
        ++runs[size_t(share * pieces_per_task + piece)];
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  const bool left = group == 1 && absent >= 0;  // nobody takes those of a task that is alone
  for (int64_t i = 0; i < tasks * pieces_per_task; ++i) {
    CHECK(runs[size_t(i)] == (left && i / pieces_per_task == absent ? 0 : 1));
  }
}

}  // namespace

void test_pieces() {
  group("pieces", [] {
    for (int64_t group : {1, 2, 3, 6}) {
      for (int64_t pieces : {1, 4, 101}) {
        for (int64_t absent : {-1, 0, 5}) check_pieces(6, pieces, group, absent);
      }
    }
  });
}

}  // namespace fastinfer::test
