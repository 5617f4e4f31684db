// gemm_s8s8s32_8x48x4_avx512vnni: method and layouts in x86_vnni.h.
//
// Registers: 8 rows x 3 panels = 24 accumulators, 3 for B, 1 for the broadcast. A step of 4 along
// K is 24 vpdpbusd (12 cycles at 2 a cycle, 64 multiply-adds each) against 11 loads (5.5 cycles):
// bound by vpdpbusd. Fewer rows take more panels, so that at least 8 sums are in flight and the
// loop is bound by reading B.
//
// On a Zen 4 one row: x86_one_stream.h, bound by memory. K = 768, N = 3072 from memory: 78 us (30
// GB/s) instead of 102 by eight panels at a time. Two rows took 1.1 times as long from memory by
// panels as by one stream where K = 768, as long where K is more, and 0.7 times from caches.
#include "cpu/gemm_s8s8s32/x86_one_stream.h"
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"
#include "cpu/vec/avx512_stream.h"

namespace fastinfer::cpu {

namespace {

// Asks for nothing: with one row the prefetchers keep up, and asking takes 1.2 times as long where
// the weight is in a cache.
struct DenseStream {
  const int8_t* b;
  void slice() {}
  void next(__m512i (&b_s8)[kSteps]) {
    each<kSteps>([&](auto j) FASTINFER_INLINE { b_s8[j] = load_in_order(b + 64 * j); });
    b += 64 * kSteps;
  }
};

}  // namespace

void gemm_s8s8s32_8x48x4_avx512vnni(const GemmS8S8S32& p) {
  if (p.m == 1 && p.zen4) {
    return stream_columns<1>(p, DenseStream{p.panels}, [&](int64_t k, int64_t) { return p.a + k; });
  }
  vnni_gemm<Zmm>(p);
}

}  // namespace fastinfer::cpu
