// What this CPU and operating system can run, and the user's cap on it.
#pragma once

#include <string>

#include "cpu/export.h"

namespace fastinfer::cpu {

// In order of preference within an architecture: a later one is faster where it is supported.
enum class Isa : int {
  generic,
  avx2,
  avxvnni,
  avx512vnni,
  avx512vbmi2,
  avx512bf16,
  amx,
  neondot,
  neoni8mm
};
constexpr int kIsaCount = 9;

FASTINFER_API const char* isa_name(Isa isa);

// Whether this process may execute `isa`. Probed once; asks the kernel for AMX at the first call.
FASTINFER_API bool isa_supported(Isa isa);

// Why `isa` is not supported, in one sentence; empty where it is.
FASTINFER_API const char* isa_reason(Isa isa);

// The best ISA that selection may use: the best supported one, or the cap that FASTINFER_ISA or
// set_isa_cap put on it.
FASTINFER_API Isa isa_in_use();

// True if selection may pick rows of `isa`: supported, of this architecture and not above the cap.
FASTINFER_API bool isa_allowed(Isa isa);

// isa_allowed(isa), and its products are no slower than those of the rows before it. Not so for
// avx512bf16 on Intel's CPUs, where a core multiplies bfloat16 fast in AMX tiles alone: vdpbf16ps
// takes 2.3 cycles on Emerald Rapids, and attention by it 1.7 times as long as in float32. On AMD's
// Zen 4 and 5 it takes 1.
FASTINFER_API bool isa_pays(Isa isa);

// Whether this is a Zen 4, AMD's family 25 with AVX-512 (a Zen 3 has none), for what was measured
// there alone: with one row it reads 33 GB/s of weights by one panel at a time, 25 to 28 by eight;
// with many it takes longer slices.
FASTINFER_API bool is_zen4();

// Caps selection at `name` ("" lifts the cap). Returns false, changing nothing, if it is unknown.
FASTINFER_API bool set_isa_cap(const char* name);

// The cap in force, "" if none.
FASTINFER_API const char* isa_cap();

// Non-empty if FASTINFER_ISA held an unknown value: the sentence to raise.
FASTINFER_API const char* isa_env_error();

// The names a cap may have on this architecture, "generic, avx2, ...", for messages.
FASTINFER_API const std::string& isa_known_names();

}  // namespace fastinfer::cpu
