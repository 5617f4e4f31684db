// Large buffers on huge pages, where the operating system offers them.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace fastinfer::cpu {

constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages under [data, data + bytes): one page fault and one TLB entry for 512 small
// pages. Advice alone: memory that holds no whole huge page, and systems without them, stay as
// they are.
inline void advise_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t mask = uintptr_t(kHugePage) - 1;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + mask) & ~mask;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~mask;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace fastinfer::cpu
