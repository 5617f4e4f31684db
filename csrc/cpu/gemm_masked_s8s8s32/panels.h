// What a product reads of NP panels that leave zeros out, slice by slice, with AVX-512. Included by
// x86_avx512vbmi2.cpp: PickingPanels by few_rows.h, PairsPanels by many_rows.h, MaskedPanels by
// both.
//
//   at                        where each panel goes on
//   begin_slice, end_slice    around what follows
//   next(step, part, b_s8)    the operands of vpdpbusd of the next kStepK of K (of PairsPanels 4);
//                             step says which 8 of K of the slice, part which kStepK of those
// For few_rows.h alone:
//   kStoredSliceBytes         of a slice, 0 if they differ
//   meet(row, j)              what panel j's operand is multiplied with, of kStepK bytes of a row
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/expand_s8/pairs_avx512.h"
#include "cpu/expand_s8/vpexpandb.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/gemm_s8s8s32/x86_zmm.h"
#include "cpu/inline.h"

namespace fastinfer::cpu {
namespace {

// Masked slices, put together.
template <int NP>
struct MaskedPanels {
  static constexpr int kStepK = 4;
  static constexpr int64_t kStoredSliceBytes = 0;
  const uint8_t* last;
  const uint8_t *at[NP] = {}, *mask[NP] = {}, *value[NP] = {};

  explicit MaskedPanels(const PackedWeight& w) : last(w.masked_end) {}
  FASTINFER_INLINE void begin_slice() {
    each<NP>([&](auto j) FASTINFER_INLINE {
      mask[j] = std::min(at[j], last);
      value[j] = mask[j] + kMaskBytes;
    });
  }
  FASTINFER_INLINE void next(int /*step*/, int /*part*/, __m512i (&b_s8)[NP]) {
    expand_panels<NP>(mask, value, b_s8);
  }
  FASTINFER_INLINE __m512i meet(const int8_t* row, int /*j*/) const { return broadcast_four(row); }
  FASTINFER_INLINE void end_slice() {
    each<NP>([&](auto j) FASTINFER_INLINE { at[j] = value[j]; });
  }
};

// Slices of pairs, put together.
template <int NP>
struct PairsPanels {
  PairsExpander expander;
  const uint8_t* at[NP] = {};

  explicit PairsPanels(const PackedWeight&) {}
  FASTINFER_INLINE void begin_slice() {}
  FASTINFER_INLINE void next(int step, int part, __m512i (&b_s8)[NP]) {
    each<NP>([&](auto j) FASTINFER_INLINE { b_s8[j] = expander.four(at[j], step, part); });
  }
  FASTINFER_INLINE void end_slice() {
    each<NP>([&](auto j) FASTINFER_INLINE { at[j] += kPairsSliceBytes; });
  }
};

// Slices of pairs as they are: 64 values, 8 of K of 16 columns, meet what their places pick from 8
// bytes of a row. From the 16 bytes of index vpmultishiftqb takes the two bits of each place,
// vpternlogd makes them a shuffle (vpshufb) of those bytes, which are broadcast. Two shuffles for
// 128 weights: with one row 1 to 1.3 cycles
// per 64 of them on Intel, where masks and vpexpandb take 4 with all that goes with them.
template <int NP>
class PickingPanels {
 public:
  static constexpr int kStepK = kPairsK;
  static constexpr int64_t kStoredSliceBytes = kPairsSliceBytes;
  const uint8_t* at[NP] = {};

  explicit PickingPanels(const PackedWeight&) {
    alignas(64) uint8_t bits[64], half[64];
    for (int i = 0; i < 64; ++i) {
      const int column = i / 4, value = i % 4;
      // Within the 8 bytes of index of a quadword, that of two columns: the lane of this one, its
      // byte there, two bits of that.
      bits[i] = uint8_t(column % 2 * 32 + column / 4 * 8 + value * 2);
      half[i] = uint8_t(value / 2 * 4);
    }
    bits_ = _mm512_load_si512(bits);
    half_ = _mm512_load_si512(half);
  }
  FASTINFER_INLINE void begin_slice() {}
  FASTINFER_INLINE void next(int step, int /*part*/, __m512i (&b_s8)[NP]) {
    constexpr int kAndOr = 0xea;  // (places & 3) | half
    each<NP>([&](auto j) FASTINFER_INLINE {
      const __m512i index = _mm512_broadcast_i32x4(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[j] + step * 16)));
      const __m512i places = _mm512_multishift_epi64_epi8(bits_, index);
      pick_[j] = _mm512_ternarylogic_epi32(places, _mm512_set1_epi8(3), half_, kAndOr);
      b_s8[j] = _mm512_loadu_si512(at[j] + kPairsIndexBytes + step * 64);
    });
  }
  FASTINFER_INLINE __m512i meet(const int8_t* row, int j) const {
    int64_t eight;
    std::memcpy(&eight, row, 8);
    return _mm512_shuffle_epi8(_mm512_set1_epi64(eight), pick_[j]);
  }
  FASTINFER_INLINE void end_slice() {
    each<NP>([&](auto j) FASTINFER_INLINE { at[j] += kPairsSliceBytes; });
  }

 private:
  __m512i bits_, half_, pick_[NP] = {};
};

}  // namespace
}  // namespace fastinfer::cpu
