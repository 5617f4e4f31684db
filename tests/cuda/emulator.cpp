#include "emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace fastinfer::cuda::emulator {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kSlotBytes = 64;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Barrier {
  int waiting = 0;
  int64_t generation = 0;
  bool any = false, result = false;  // of block_or
};

struct Fibre {
  ucontext_t context;  // of its beginning; from then on `resume`, which costs no system call
  jmp_buf resume;
  bool begun;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  Place place;
  bool done;
  alignas(16) char slot[kSlotBytes];
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

// Memory that ends at a page which nobody may touch.
class Guarded {
 public:
  char* resize(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t size = (bytes + page - 1) / page * page;
    if (size > size_) {
      release();
      size_ = size;
      base_ = static_cast<char*>(
          mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (base_ == MAP_FAILED || mprotect(base_ + size, page, PROT_NONE) != 0) fail("no memory");
    }
    return base_ + size_ - (bytes + 127) / 128 * 128;
  }
  ~Guarded() { release(); }

 private:
  void release() {
    if (size_ != 0) munmap(base_, size_ + size_t(sysconf(_SC_PAGESIZE)));
  }
  char* base_ = nullptr;
  size_t size_ = 0;
};

std::vector<std::unique_ptr<Fibre>> fibres;
std::vector<Barrier> warps;
Barrier block;
Fibre* current;
jmp_buf scheduler;
Guarded guarded;
char* shared;
int threads;
bool descending = false;
int64_t steps;  // barriers passed and fibres done: progress
const std::function<void()>* body;

void leave() {
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

void resume(Fibre* fibre) {
  current = fibre;
  if (_setjmp(scheduler) != 0) return;
  if (fibre->begun) _longjmp(fibre->resume, 1);
  fibre->begun = true;
  setcontext(&fibre->context);
}

void wait(Barrier* barrier, int members) {
  const int64_t generation = barrier->generation;
  if (++barrier->waiting == members) {
    barrier->waiting = 0;
    barrier->result = barrier->any;
    barrier->any = false;
    ++barrier->generation;
    ++steps;
    return;
  }
  while (barrier->generation == generation) leave();
}

void enter() {
  (*body)();
  current->done = true;
  ++steps;
  leave();
}

void run_block() {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = *fibres[size_t(i)];
    fibre.done = fibre.begun = false;
    fibre.open.clear();
    fibre.groups.clear();
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
  }
  for (int left = threads; left > 0;) {
    const int64_t before = steps;
    left = 0;
    for (int i = 0; i < threads; ++i) {
      Fibre* fibre = fibres[size_t(descending ? threads - 1 - i : i)].get();
      if (fibre->done) continue;
      resume(fibre);
      left += !fibre->done;
    }
    if (steps == before && left > 0) fail("threads wait at a barrier that others never reach");
  }
}

}  // namespace

const Place& place() { return current->place; }

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

void set_descending(bool value) { descending = value; }

void block_barrier() { wait(&block, threads); }

bool block_or(bool value) {
  block.any = block.any || value;
  wait(&block, threads);
  const bool result = block.result;
  wait(&block, threads);  // before another call may change it
  return result;
}

void warp_barrier() {
  const int first = int(current->place.thread.x) / 32 * 32;
  wait(&warps[size_t(first / 32)], std::min(32, threads - first));
}

void put(const void* value, size_t bytes) {
  if (bytes > kSlotBytes) fail("a slot is too small");
  std::memcpy(current->slot, value, bytes);
}

const void* of_lane(int lane) {
  return fibres[size_t(int(current->place.thread.x) / 32 * 32 + lane)]->slot;
}

void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) fail("a copy's destination is misaligned");
  if (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a copy's source is misaligned");
  current->open.push_back({to, from, valid});
}

void copy_commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void copy_wait(int groups) {
  while (current->groups.size() > size_t(groups)) {
    for (const Copy& copy : current->groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    current->groups.erase(current->groups.begin());
  }
}

char* dynamic_shared() { return shared; }

void run(dim3 grid, dim3 block_dim, int shared_bytes, const std::function<void()>& kernel) {
  if (block_dim.y != 1 || block_dim.z != 1) fail("blocks have one dimension");
  if (block_dim.x == 0 || block_dim.x > 1024) fail("a block has 1 to 1024 threads");
  if (grid.y > 65535 || grid.z > 65535) fail("the grid's y and z end at 65535");
  if (shared_bytes > 227 * 1024) fail("a block has at most 227 KiB of shared memory");
  threads = int(block_dim.x);
  while (fibres.size() < size_t(threads)) fibres.push_back(std::make_unique<Fibre>());
  warps.assign(size_t(threads + 31) / 32, {});
  block = {};
  body = &kernel;
  shared = guarded.resize(size_t(shared_bytes));
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(shared, 0xCB, size_t(shared_bytes));
        for (int i = 0; i < threads; ++i) {
          fibres[size_t(i)]->place = {dim3(unsigned(i)), dim3(x, y, z), block_dim, grid, i % 32};
        }
        run_block();
      }
    }
  }
}

}  // namespace fastinfer::cuda::emulator
