// gemm_s8s8s32_8x48x4_avx512vnni: method and layouts in x86_vnni.h.
//
// Registers: 8 rows x 3 panels = 24 accumulators, 3 for B, 1 for the broadcast. A step of 4 along
// K is 24 vpdpbusd (12 cycles at 2 a cycle, 64 multiply-adds each) against 11 loads (5.5 cycles):
// bound by vpdpbusd. Fewer rows take more panels, so that at least 8 sums are in flight and the
// loop is bound by reading B.
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {

namespace {
struct Zmm {
  using reg = __m512i;
  using Vec = Avx512Vec;
  static constexpr int kMaxRows = 8;
  static constexpr int panels(int mr) { return mr <= 2 ? 8 : mr <= 4 ? 6 : mr <= 6 ? 4 : 3; }

  static reg load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(void* p, reg v) { _mm512_storeu_si512(p, v); }
  static reg broadcast(int32_t four) { return _mm512_set1_epi32(four); }
  // In assembly: GCC 12 copies each sum around the intrinsic.
  static void dpbusd(reg& acc, reg a_u8, reg b_s8) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a_u8), "v"(b_s8));
  }
};
}  // namespace

void gemm_s8s8s32_8x48x4_avx512vnni(const GemmS8S8S32& p) { vnni_gemm<Zmm>(p); }

}  // namespace fastinfer::cpu
