// The AMX kernels over the emulator of AMX (amx_emulator.h), on x86 alone.
#pragma once

#ifdef FASTINFER_EMULATE_AMX

#include <cstdio>

#include "amx_emulator.h"
#include "cpu/arch.h"
#include "cpu/attention/attention.h"
#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace fastinfer::cpu {
void attention_amx(const Attention& p, const AttentionTask& t);
void gemm_bsr_s8s8s32_64x16x64_amx(const GemmBsrS8S8S32& g);
void gemm_masked_s8s8s32_32x32x64_amx(const GemmMaskedS8S8S32& g);
void gemm_s8s8s32_32x32x64_amx(const GemmS8S8S32& p);
bool amx_self_test();
}  // namespace fastinfer::cpu

namespace fastinfer::test {

// Whether this CPU has what the kernels use beside AMX. Prints why `row` is left out if not.
inline bool amx_emulated(const char* row) {
  constexpr auto kRest = cpu::Isa::avx512bf16;
  if (cpu::isa_allowed(kRest)) return true;
  std::printf("row %s amx not emulated: %s\n", row,
              cpu::isa_supported(kRest) ? "above the cap" : cpu::isa_reason(kRest));
  return false;
}

inline void attention_amx_emulated(const cpu::Attention& p, const cpu::AttentionTask& t) {
  cpu::attention_amx(p, t);
  amx_emulator::check_released();
}

inline void gemm_amx_emulated(const cpu::GemmS8S8S32& p) {
  cpu::gemm_s8s8s32_32x32x64_amx(p);
  amx_emulator::check_released();
}

inline void gemm_bsr_amx_emulated(const cpu::GemmBsrS8S8S32& g) {
  cpu::gemm_bsr_s8s8s32_64x16x64_amx(g);
  amx_emulator::check_released();
}

inline void gemm_masked_amx_emulated(const cpu::GemmMaskedS8S8S32& g) {
  cpu::gemm_masked_s8s8s32_32x32x64_amx(g);
  amx_emulator::check_released();
}

}  // namespace fastinfer::test

#endif
