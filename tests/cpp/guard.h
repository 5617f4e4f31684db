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

namespace fastinfer::test {

inline int guard_protection() {
  static const char* guards = std::getenv("FASTINFER_TEST_GUARDS");
  static const bool off = guards != nullptr && std::strcmp(guards, "off") == 0;
  return off ? PROT_READ : PROT_NONE;
}

enum class Side { end, begin };  // which end of the buffer touches its guard page

class Guarded {
 public:
  explicit Guarded(int64_t bytes, Side side, uint8_t fill = 0xa5) : bytes_(bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t inner = (bytes + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, size_t(mapped_), guard_protection(), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED ||
        (inner > 0 && mprotect(base_ + page, size_t(inner), PROT_READ | PROT_WRITE) != 0)) {
      std::abort();
    }
    data_ = base_ + page + (side == Side::end ? inner - bytes : 0);
    std::memset(data_, fill, size_t(bytes));
  }
  Guarded(const void* from, int64_t bytes, Side side) : Guarded(bytes, side) {
    if (bytes > 0) std::memcpy(data_, from, size_t(bytes));
  }
  ~Guarded() { munmap(base_, size_t(mapped_)); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  uint8_t* data_;
  int64_t bytes_, mapped_;
};

}  // namespace fastinfer::test
