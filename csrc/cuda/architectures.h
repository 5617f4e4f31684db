// Which GPUs the kernels were built for: machine code for 8.x and 9.0, PTX for what is newer.
#pragma once

namespace fastinfer::cuda {

constexpr const char* kArchitectures =
    "sm_80 (compute capability 8.x), sm_90a (9.0) and newer ones";

constexpr bool runs_on(int major, int minor) { return major * 10 + minor >= 80; }

}  // namespace fastinfer::cuda
