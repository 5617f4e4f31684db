// Memory with a PROT_NONE page on each side: one byte read or written past the chosen end is a
// fault, also by masked and tile loads, which the sanitizers do not see.
//
// FASTINFER_TEST_GUARDS=off leaves the pages readable, for emulators that are not true to the CPU:
// qemu-x86_64 7.2 loads all of the operand of vmaskmovps, masked-out lanes too.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace fastinfer::test {

inline int guard_protection() {
  static const char* guards = std::getenv("FASTINFER_TEST_GUARDS");
  static const bool off = guards != nullptr && std::strcmp(guards, "off") == 0;
  return off ? PROT_READ : PROT_NONE;
}

// Guarded mappings that are free, by bytes between their guard pages. They are kept: to map and
// unmap memory for every case took more time than the cases, natively and under emulators.
class GuardedMappings {
 public:
  static GuardedMappings& get() {
    static GuardedMappings mappings;
    return mappings;
  }

  // The first of `inner` bytes, a whole number of pages, between two guard pages.
  uint8_t* take(int64_t inner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<uint8_t*>& free = free_[inner];
    if (free.empty()) return map(inner);
    uint8_t* first = free.back();
    free.pop_back();
    return first;
  }

  void give_back(uint8_t* first, int64_t inner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_[inner].push_back(first);
  }

  const int64_t page = sysconf(_SC_PAGESIZE);

 private:
  uint8_t* map(int64_t inner) const {
    void* base = mmap(nullptr, size_t(inner + 2 * page), guard_protection(),
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    uint8_t* first = static_cast<uint8_t*>(base) + page;
    if (inner > 0 && mprotect(first, size_t(inner), PROT_READ | PROT_WRITE) != 0) std::abort();
    return first;
  }

  std::mutex mutex_;
  std::map<int64_t, std::vector<uint8_t*>> free_;
};

enum class Side { end, begin };  // which end of the buffer touches its guard page

class Guarded {
 public:
  explicit Guarded(int64_t bytes, Side side, uint8_t fill = 0xa5) : bytes_(bytes) {
    GuardedMappings& mappings = GuardedMappings::get();
    // A power of two of pages: few sizes, so that most are there already.
    for (inner_ = bytes > 0 ? mappings.page : 0; inner_ < bytes;) inner_ *= 2;
    first_ = mappings.take(inner_);
    data_ = first_ + (side == Side::end ? inner_ - bytes : 0);
    std::memset(data_, fill, size_t(bytes));
  }
  Guarded(const void* from, int64_t bytes, Side side) : Guarded(bytes, side) {
    if (bytes > 0) std::memcpy(data_, from, size_t(bytes));
  }
  ~Guarded() { GuardedMappings::get().give_back(first_, inner_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* first_;
  uint8_t* data_;
  int64_t bytes_, inner_;
};

}  // namespace fastinfer::test
