// Memory for large outputs, kept warm between calls.
//
// glibc gives large blocks back to the kernel when they are freed (M_MMAP_THRESHOLD,
// M_TRIM_THRESHOLD), so that the next call takes a page fault for every 4 KiB of its output: on a
// virtual machine about as long as the int8 product that fills it. The pool keeps up to
// kPoolBytes of freed buffers instead and hands out the last one freed of the right size.
#pragma once

#include <cstdint>

#include "cpu/export.h"

namespace fastinfer::cpu {

constexpr int64_t kPoolLeastBytes = 128 << 10;  // glibc reuses smaller blocks itself
constexpr int64_t kPoolBytes = 128 << 20;       // most that is kept idle

// The size of the buffer that serves `bytes`: at most an eighth more.
FASTINFER_API int64_t pool_buffer_bytes(int64_t bytes);

// A buffer of pool_buffer_bytes(bytes), 64-byte aligned, not cleared; null if there is no memory.
// Safe from any thread, and in a forked child whatever the parent's threads were doing.
FASTINFER_API void* pool_acquire(int64_t bytes);

// Takes back a buffer of pool_acquire(bytes).
FASTINFER_API void pool_release(void* data, int64_t bytes);

}  // namespace fastinfer::cpu
