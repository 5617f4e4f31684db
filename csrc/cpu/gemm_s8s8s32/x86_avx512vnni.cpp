// gemm_s8s8s32_8x48x4_avx512vnni: method and layouts in x86_vnni.h.
//
// Registers: 8 rows x 3 panels = 24 accumulators, 3 for B, 1 for the broadcast. A step of 4 along
// K is 24 vpdpbusd (12 cycles at 2 a cycle, 64 multiply-adds each) against 11 loads (5.5 cycles):
// bound by vpdpbusd. Fewer rows take more panels, so that at least 8 sums are in flight and the
// loop is bound by reading B.
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"

namespace fastinfer::cpu {

void gemm_s8s8s32_8x48x4_avx512vnni(const GemmS8S8S32& p) { vnni_gemm<Zmm>(p); }

}  // namespace fastinfer::cpu
