// gemm_s8s8s32_8x48x4_avx512vnni: method and layouts in x86_vnni.h.
//
// Registers: 8 rows x 3 panels = 24 accumulators, 3 for B, 1 for the broadcast. A step of 4 along
// K is 24 vpdpbusd (12 cycles at 2 a cycle, 64 multiply-adds each) against 11 loads (5.5 cycles):
// bound by vpdpbusd. Fewer rows take more panels, so that at least 8 sums are in flight and the
// loop is bound by reading B.
//
// On a Zen 4 one row, and two with weights that L2 cannot keep: x86_one_stream.h, bound by memory.
// K = 768, N = 3072 from memory: one row 78 us (30 GB/s) instead of 102 by eight panels at a time.
// From L2, 768 x 768: two rows 9.6 us, 8.2 by eight panels.
#include "cpu/gemm_s8s8s32/x86_one_stream.h"
#include "cpu/gemm_s8s8s32/x86_vnni.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"
#include "cpu/vec/avx512_stream.h"

namespace fastinfer::cpu {

namespace {

constexpr int64_t kStreamAhead = 8192;  // bytes to ask for: prefetchers stop at the end of a page

// kAhead: asks for the bytes ahead. With one row the prefetchers keep up without, and asking takes
// 1.2 times as long where the weight is in a cache.
template <bool kAhead>
struct DenseStream {
  const int8_t* b;
  void slice() {}
  void next(__m512i (&b_s8)[kSteps]) {
    each<kSteps>([&](auto j) FASTINFER_INLINE {
      if (kAhead) __builtin_prefetch(b + kStreamAhead + 64 * j);
      b_s8[j] = load_in_order(b + 64 * j);
    });
    b += 64 * kSteps;
  }
};

template <int MR>
void one_stream(const GemmS8S8S32& p) {
  if constexpr (MR > 1) {
    if (p.m < MR) return one_stream<MR - 1>(p);
  }
  stream_columns<MR>(p, DenseStream<(MR > 1)>{p.panels},
                     [&](int64_t k, int64_t i) { return p.a + i * p.k_pad + k; });
}

constexpr int64_t kKeptWeightBytes = 1 << 20;  // L2

}  // namespace

void gemm_s8s8s32_8x48x4_avx512vnni(const GemmS8S8S32& p) {
  const bool streamed = p.m == 1 || (p.m == 2 && p.weight_bytes > kKeptWeightBytes);
  if (p.zen4 && streamed) return one_stream<2>(p);
  vnni_gemm<Zmm>(p);
}

}  // namespace fastinfer::cpu
