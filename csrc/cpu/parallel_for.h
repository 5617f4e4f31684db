// How a driver shares its work between threads that are its caller's.
#pragma once

#include <cstdint>

namespace fastinfer::cpu {

// Runs task(context, i) for every i in [0, count), possibly at once, and returns when all are done;
// a thread that waits meanwhile runs nothing else.
using ParallelFor = void (*)(int64_t count, void (*task)(void* context, int64_t i), void* context);

}  // namespace fastinfer::cpu
