// Inlining by force, where registers must not become memory.
#pragma once

#define FASTINFER_INLINE __attribute__((always_inline))
