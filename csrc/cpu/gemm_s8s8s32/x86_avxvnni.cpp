// gemm_s8s8s32_6x16x4_avxvnni: method and layouts in x86_vnni.h.
//
// Registers: 6 rows x 1 panel (2 ymm) = 12 accumulators, 2 for B, 1 for the broadcast. A step of 4
// along K is 12 vpdpbusd (6 cycles at 2 a cycle, 32 multiply-adds each) against 8 loads (4
// cycles): bound by vpdpbusd.
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/vec/avx2.h"

namespace fastinfer::cpu {

namespace {
struct Ymm {
  using reg = __m256i;
  using Vec = Avx2Vec;
  static constexpr int kMaxRows = 6;
  static constexpr int panels(int mr) { return mr == 1 ? 4 : mr == 2 ? 3 : mr == 3 ? 2 : 1; }

  static reg load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(void* p, reg v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static __m256 to_float(reg v) { return _mm256_cvtepi32_ps(v); }
  static reg broadcast(int32_t four) { return _mm256_set1_epi32(four); }
  // In assembly: GCC 12 copies each sum around the intrinsic.
  static void dpbusd(reg& acc, reg a_u8, reg b_s8) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a_u8), "x"(b_s8));
  }
};
}  // namespace

void gemm_s8s8s32_6x16x4_avxvnni(const GemmS8S8S32& p) { vnni_gemm<Ymm>(p); }

}  // namespace fastinfer::cpu
