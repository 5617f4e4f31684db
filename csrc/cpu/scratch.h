// Memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdlib>

#include "cpu/huge_pages.h"

namespace fastinfer::cpu {

// One buffer that only grows, page aligned, on huge pages where it is large. Its contents do not
// outlive a call of at_least. Meant to be `static thread_local`.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  // At least `bytes` bytes, or null if they could not be had.
  void* at_least(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      const size_t page = bytes < size_t(kHugePage) / 2 ? 4096 : size_t(kHugePage);
      const size_t size = (bytes + page - 1) / page * page;
      data_ = std::aligned_alloc(page, size);
      if (data_ != nullptr) {
        size_ = size;
        advise_huge_pages(data_, int64_t(size_));
      }
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastinfer::cpu
