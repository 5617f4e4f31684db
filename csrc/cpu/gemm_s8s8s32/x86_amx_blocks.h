// Blocks of 32 x 32 on AMX, one after the other, for gemm_s8s8s32/x86_amx.cpp, which describes
// them, and gemm_masked_s8s8s32/x86_amx.cpp.
#pragma once

#include <algorithm>

#include "cpu/amx.h"
#include "cpu/ceil_div.h"
#include "cpu/gemm_s8s8s32/epilogue.h"
#include "cpu/vec/avx512.h"

namespace fastinfer::cpu {
namespace {

constexpr int64_t kTile = 1024, kLine = 64;
// Of a core's outputs: they and A are more than an L2 of 2 MiB holds.
constexpr int64_t kPastCachesBytes = 3 << 19;
constexpr int64_t kBlockSums = 32 * 32;
constexpr int64_t kFewSteps = 8;  // along K: an activation takes longer than the products

// Finishes rows of a block of up to 32 columns by the epilogue of its kind.
class FinishAny {
 public:
  static constexpr bool kInLine = false;
  static constexpr bool kSpread = false;  // between the products of a step

  FinishAny(const GemmS8S8S32& p, bool /*past_caches*/)
      : p_(p), epilogue_(select_epilogue<Avx512Vec>(p)) {}

  void begin(int64_t column) {
    column_ = column;
    columns_ = std::min<int64_t>(32, p_.n - column);
  }
  void rows(const int32_t* acc, int64_t row, int64_t rows) const {
    epilogue_(p_, acc, 32, row, rows, column_, columns_);
  }

 protected:
  const GemmS8S8S32& p_;
  int64_t column_ = 0, columns_ = 0;

 private:
  EpilogueFn epilogue_;
};

// The most frequent kinds in line, with the terms of the columns at hand: few rows at a time are
// worth no call (GCC's vzeroupper, the terms: 128 x 768 x 768 takes 1.16 times as long with them).
template <Activation kActivation, DType kOut, bool kResidual>
class FinishInLine : public FinishAny {
 public:
  static constexpr bool kInLine = true;
  static constexpr bool kSpread = kActivation != Activation::none;

  // past_caches: outputs go to memory, if they are whole lines.
  FinishInLine(const GemmS8S8S32& p, bool past_caches)
      : FinishAny(p, past_caches),
        past_caches_(past_caches &&
                     (reinterpret_cast<uintptr_t>(p.out) | uintptr_t(p.out_ld_bytes)) % kLine ==
                         0) {}
  FinishInLine(const FinishInLine&) = delete;
  FinishInLine& operator=(const FinishInLine&) = delete;
  // Other threads see what was written past the caches before what is written from here on.
  ~FinishInLine() {
    if (past_caches_) V::fence();
  }

  void begin(int64_t column) {
    FinishAny::begin(column);
    if (columns_ < 32) return;
    terms_[0] = column_terms<V>(p_, column);
    terms_[1] = column_terms<V>(p_, column + V::width);
  }
  FASTINFER_INLINE void rows(const int32_t* acc, int64_t row, int64_t rows) const {
    if (columns_ < 32) return FinishAny::rows(acc, row, rows);
    const int64_t at = column_ * size_of(kOut);
    char* out = static_cast<char*>(p_.out) + row * p_.out_ld_bytes + at;
    const char* residual = nullptr;
    if constexpr (kResidual) {
      residual = static_cast<const char*>(p_.residual) + row * p_.residual_ld_bytes + at;
    }
    const ColumnTerms<V> t0 = terms_[0], t1 = terms_[1];
    const float *a_scale = p_.a_scale + row, *a_offset = p_.a_offset + row, *end = a_scale + rows;
    for (; a_scale != end; ++a_scale, ++a_offset, acc += 32, out += p_.out_ld_bytes) {
      const auto scale = V::set1(*a_scale), offset = V::set1(*a_offset);
      auto y0 = activate<V, kActivation>(t0.dequantize(V::from_s32(acc), scale, offset));
      auto y1 = activate<V, kActivation>(t1.dequantize(V::from_s32(acc + V::width), scale, offset));
      if constexpr (kResidual) {
        y0 = V::add(y0, V::load(residual, kOut));
        y1 = V::add(y1, V::load(residual + kVectorBytes, kOut));
        residual += p_.residual_ld_bytes;
      }
      if (past_caches_) {
        V::stream(out, kOut, y0);
        V::stream(out + kVectorBytes, kOut, y1);
      } else {
        V::store(out, kOut, y0);
        V::store(out + kVectorBytes, kOut, y1);
      }
    }
  }

 private:
  using V = Avx512Vec;
  static constexpr int64_t kVectorBytes = V::width * size_of(kOut);
  bool past_caches_;
  ColumnTerms<V> terms_[2];
};

// A 32 x 32 block of sums on its way to the output.
struct Block {
  int32_t* sums = nullptr;
  int64_t row = 0, rows = 0, column = 0;
  bool complete = false;  // all of K is in
};

// Where two panels, or one twice, have the first of a block's steps along K.
struct PanelPair {
  const int8_t *first = nullptr, *second = nullptr;
};

// What a block fetches into L2 meanwhile: `lines` of either panel at each step.
struct Ahead {
  PanelPair from;
  int64_t lines = 0;

  // What the blocks before this one fetch, in so many steps.
  void skip(int64_t steps) {
    from.first += steps * lines * kLine;
    from.second += steps * lines * kLine;
  }
};

// Where tile T of the sums of a block lies: rows 16 * (T / 2), columns 16 * (T % 2).
constexpr int64_t quarter(int t) { return t / 2 * 16 * 32 + t % 2 * 16; }

template <int T>
inline void next_sums(int32_t* previous, int32_t* sums, bool first_slice) {
  if (previous != nullptr) tile_store<T>(previous + quarter(T), 128);
  if (first_slice) {
    tile_zero<T>();
  } else {
    tile_load<T>(sums + quarter(T), 128);
  }
}

template <int T, bool kStream>
inline void load_operand(const int8_t* tile) {
  if constexpr (kStream) {
    tile_stream<T>(tile, 64);
  } else {
    tile_load<T>(tile, 64);
  }
}

// Blocks of 32 x 32 (or 17 to 31 rows, if the tiles are so configured), one after the other; C in
// tiles 0-3, A in 4, 5, B in 6, 7. A stays in L1 and B is streamed, or the other way around.
template <bool kKeepA, class Finish>
class Blocks2x2 {
 public:
  Blocks2x2(const GemmS8S8S32& p, bool past_caches) : p_(p), finish_(p, past_caches) {}

  // Adds `steps` tiles along K from k_begin, which `b` holds, to the sums of `block`, zero before
  // k_begin = 0. Those of the last block are stored and finished meanwhile, so that both may have
  // the same place.
  void add(const Block& block, PanelPair b, int64_t k_begin, int64_t steps, Ahead ahead) {
    const int64_t a1_step = (block.rows - 16) * 64;
    const int8_t* a0 = p_.a + block.row * p_.k_pad + k_begin * 16;
    const int8_t* a1 = p_.a + (block.row + 16) * p_.k_pad + k_begin / 64 * a1_step;
    const bool first = k_begin == 0;
    load_b<6>(b.first);
    load_a<4>(a0);
    next_sums<0>(last_.sums, block.sums, first);
    tile_dp_s8<0, 4, 6>();
    load_b<7>(b.second);
    next_sums<1>(last_.sums, block.sums, first);
    tile_dp_s8<1, 4, 7>();
    load_a<5>(a1);
    next_sums<2>(last_.sums, block.sums, first);
    tile_dp_s8<2, 5, 6>();
    next_sums<3>(last_.sums, block.sums, first);
    tile_dp_s8<3, 5, 7>();
    fetch(ahead, 0);
    const bool at_once = !Finish::kInLine && steps <= kFewSteps;
    const int64_t rows_a_step = at_once ? last_.rows : (last_.rows + steps - 1) / steps;
    for (int64_t k = 1; k < steps; ++k) {
      if constexpr (!Finish::kSpread) finish_last(rows_a_step);
      load_b<6>(b.first + k * kTile);
      load_a<4>(a0 + k * kTile);
      tile_dp_s8<0, 4, 6>();
      finish_part<0>(rows_a_step);
      load_b<7>(b.second + k * kTile);
      tile_dp_s8<1, 4, 7>();
      finish_part<1>(rows_a_step);
      load_a<5>(a1 + k * a1_step);
      tile_dp_s8<2, 5, 6>();
      finish_part<2>(rows_a_step);
      tile_dp_s8<3, 5, 7>();
      finish_part<3>(rows_a_step);
      fetch(ahead, k);
    }
    finish_last(last_.rows);
    last_ = block;
    finished_ = 0;
    finish_.begin(block.column);
  }

  // Stores and finishes the last block.
  void flush() {
    tile_store<0>(last_.sums + quarter(0), 128);
    tile_store<1>(last_.sums + quarter(1), 128);
    tile_store<2>(last_.sums + quarter(2), 128);
    tile_store<3>(last_.sums + quarter(3), 128);
    finish_last(last_.rows);
    last_ = {};
  }

 private:
  template <int T>
  static void load_a(const int8_t* tile) {
    load_operand<T, !kKeepA>(tile);
  }
  template <int T>
  static void load_b(const int8_t* tile) {
    load_operand<T, kKeepA>(tile);
  }

  FASTINFER_INLINE static void fetch(Ahead ahead, int64_t step) {
    const int64_t end = (step + 1) * ahead.lines * kLine;
    for (int64_t at = step * ahead.lines * kLine; at < end; at += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead.from.first + at), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(ahead.from.second + at), _MM_HINT_T1);
    }
  }

  // A fourth of `rows`, where finishing takes so long that a product must follow every few rows:
  // the CPU looks a few hundred instructions ahead, and no further.
  template <int kPart>
  FASTINFER_INLINE void finish_part(int64_t rows) {
    if constexpr (Finish::kSpread) finish_last((rows + 3 - kPart) / 4);
  }

  // The next rows of the last block, `most` of them.
  FASTINFER_INLINE void finish_last(int64_t most) {
    const int64_t rows = last_.complete ? std::min(most, last_.rows - finished_) : 0;
    if (rows == 0) return;
    finish_.rows(last_.sums + finished_ * 32, last_.row + finished_, rows);
    finished_ += rows;
  }

  const GemmS8S8S32& p_;
  Finish finish_;
  Block last_;
  int64_t finished_ = 0;  // rows of the last block
};

// K of a slice of at most `most`, if all are as long.
inline int64_t slice_k(int64_t k_pad, int64_t most) {
  return round_up(ceil_div(k_pad, ceil_div(k_pad, most)), kBlockK);
}

// select(Finishing<F>()) of the class F that finishes outputs of this kind.
template <class F>
struct Finishing {
  using type = F;
};

template <Activation kActivation, class Select>
auto select_in_line(const GemmS8S8S32& p, const Select& select) {
  if (p.multiplier == nullptr && p.out_dtype == DType::f32) {
    return p.residual ? select(Finishing<FinishInLine<kActivation, DType::f32, true>>())
                      : select(Finishing<FinishInLine<kActivation, DType::f32, false>>());
  }
  if (p.multiplier == nullptr && p.out_dtype == DType::bf16 && p.residual == nullptr) {
    return select(Finishing<FinishInLine<kActivation, DType::bf16, false>>());
  }
  return select(Finishing<FinishAny>());
}

template <class Select>
auto select_finish(const GemmS8S8S32& p, const Select& select) {
  switch (p.activation) {
    case Activation::none: return select_in_line<Activation::none>(p, select);
    case Activation::gelu: return select_in_line<Activation::gelu>(p, select);
    default: return select(Finishing<FinishAny>());
  }
}

}  // namespace
}  // namespace fastinfer::cpu
