// Every row of attention/kernels.inc that runs here against the formula in double or the bits of
// the generic row, on guarded buffers; then the driver, for every thread count.
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/attention/attention.h"
#include "emulated_amx.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

// Where the keys that may be seen end and what the mask looks like.
enum class Mask { none, padding, per_head, additive, one_column };

// Where NaN and Inf are: in a few keys and values and a row of q, or in a few values alone.
enum class Poison { none, everywhere, values };

struct Case {
  DType dtype;
  int64_t batch, heads, kv_heads, tq, tk, d;
  bool causal;
  int64_t window;
  Mask mask;
  Side side;
};

std::string text_of(const Case& c) {
  return "dtype=" + std::to_string(int(c.dtype)) + " heads=" + std::to_string(c.heads) + "/" +
         std::to_string(c.kv_heads) + " tq=" + std::to_string(c.tq) +
         " tk=" + std::to_string(c.tk) + " d=" + std::to_string(c.d) + (c.causal ? " causal" : "") +
         " window=" + std::to_string(c.window) + " mask=" + std::to_string(int(c.mask)) +
         (c.side == Side::end ? " end" : " begin");
}

void set_element(uint8_t* at, DType dtype, uint32_t f32, uint16_t bf16, uint16_t f16) {
  const uint16_t half = dtype == DType::bf16 ? bf16 : f16;
  std::memcpy(at, dtype == DType::f32 ? static_cast<const void*>(&f32) : &half,
              size_t(size_of(dtype)));
}

// Inputs that touch unreadable pages; tokens before heads, as a projection gives them.
struct Inputs {
  Case c;
  Guarded q, k, v, mask;
  Attention p{};

  static int64_t mask_elements(const Case& c) {
    switch (c.mask) {
      case Mask::none: return 0;
      case Mask::padding: return c.batch * c.tk;
      case Mask::one_column: return c.tq;
      default: return c.batch * c.heads * c.tq * c.tk;
    }
  }
  static bool boolean(const Case& c) { return c.mask == Mask::padding || c.mask == Mask::per_head; }
  static int64_t mask_size(const Case& c) { return boolean(c) ? 1 : size_of(c.dtype); }

  explicit Inputs(const Case& c_, Poison poison = Poison::none)
      : c(c_),
        q(c.batch * c.tq * c.heads * c.d * size_of(c.dtype), c.side),
        k(c.batch * c.tk * c.kv_heads * c.d * size_of(c.dtype), c.side),
        v(c.batch * c.tk * c.kv_heads * c.d * size_of(c.dtype), c.side),
        mask(mask_elements(c) * mask_size(c), c.side) {
    Random random(uint64_t(c.tq * 7919 + c.tk * 31 + c.d));
    for (const Guarded* t : {&q, &k, &v}) {
      const auto values = random_elements(random, t->bytes() / size_of(c.dtype), c.dtype);
      if (!values.empty()) std::memcpy(t->as<uint8_t>(), values.data(), values.size());
    }
    if (poison != Poison::none) {
      const int64_t size = size_of(c.dtype), step = c.kv_heads * c.d;
      for (int64_t j = 0; j < c.tk; j += 5) {
        const Guarded& t = poison == Poison::everywhere && j % 2 ? k : v;
        uint8_t* at = t.as<uint8_t>() + (j * step + j % step) * size;
        if (j % 3) {
          set_element(at, c.dtype, 0x7fc00000u, 0x7fc0, 0x7e00);
        } else {
          set_element(at, c.dtype, 0x7f800000u, 0x7f80, 0x7c00);
        }
      }
    }
    if (poison == Poison::everywhere) {
      set_element(q.as<uint8_t>(), c.dtype, 0x7fc00000u, 0x7fc0, 0x7e00);
    }
    fill_mask(random);
    describe();
  }

  void fill_mask(Random& random) {
    const int64_t n = mask_elements(c);
    for (int64_t i = 0; i < n; ++i) {
      uint8_t* at = mask.as<uint8_t>() + i * mask_size(c);
      const int64_t key = i % std::max<int64_t>(c.tk, 1), row = i / std::max<int64_t>(c.tk, 1);
      if (c.mask == Mask::padding) {
        *at = key < c.tk * 3 / 5;
      } else if (c.mask == Mask::per_head) {  // some rows see nothing, most see half of the keys
        *at = row % 7 == 3 ? 0 : uint8_t(random.below(2));
      } else if (random.below(4) == 0 || row % 7 == 3) {
        set_element(at, c.dtype, 0xff800000u, 0xff80, 0xfc00);
      } else {
        const uint32_t bits = bits_of_float(random.unit());
        set_element(at, c.dtype, bits, uint16_t(bits >> 16), uint16_t(random.bits() & 0xbbff));
      }
    }
  }

  void describe() {
    const int64_t size = size_of(c.dtype), m = mask_size(c);
    p.dtype = p.mask_dtype = c.dtype;
    p.batch = c.batch;
    p.heads = c.heads;
    p.kv_heads = c.kv_heads;
    p.tq = c.tq;
    p.tk = c.tk;
    p.head_dim = c.d;
    p.q = q.as<void>();
    p.k = k.as<void>();
    p.v = v.as<void>();
    p.q_stride = p.out_stride = {c.tq * c.heads * c.d * size, c.d * size, c.heads * c.d * size};
    p.k_stride = p.v_stride = {c.tk * c.kv_heads * c.d * size, c.d * size, c.kv_heads * c.d * size};
    p.mask = mask.as<void>();
    p.mask_per_key = true;
    switch (c.mask) {
      case Mask::none: break;
      case Mask::padding:
        p.mask_kind = MaskKind::boolean;
        p.mask_stride = {c.tk * m, 0, 0};
        break;
      case Mask::one_column:
        p.mask_kind = MaskKind::additive;
        p.mask_stride = {0, 0, m};
        p.mask_per_key = false;
        break;
      default:
        p.mask_kind = boolean(c) ? MaskKind::boolean : MaskKind::additive;
        p.mask_stride = {c.heads * c.tq * c.tk * m, c.tq * c.tk * m, c.tk * m};
    }
    p.scale = float(1.0 / std::sqrt(double(c.d)));
    p.causal = c.causal;
    p.window = c.window;
  }

  int64_t out_bytes() const { return q.bytes(); }

  // All rows by one kernel, `rows` of a key and value head at a time.
  std::vector<uint8_t> run(const AttentionKernel& kernel, int64_t rows) const {
    const Guarded out(out_bytes(), c.side);
    Attention all = p;
    all.out = out.as<void>();
    const int64_t count = c.tq * (c.heads / c.kv_heads);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        for (int64_t r = 0; r < count; r += rows) {
          const int64_t end = std::min(count, r + rows);
          const Guarded scratch(attention_scratch_bytes(all, end - r), Side::end, 0xff);  // NaN
          kernel.run(all, {b, h, r, end, scratch.as<void>()});
        }
      }
    }
    return {out.as<uint8_t>(), out.as<uint8_t>() + out.bytes()};
  }
};

double value(const Guarded& t, const HeadStrides& s, int64_t b, int64_t h, int64_t row, int64_t d,
             DType dtype) {
  return element(t.as<char>() + b * s.batch + h * s.head + row * s.row + d * size_of(dtype), dtype);
}

bool sees(const Inputs& in, int64_t b, int64_t h, int64_t i, int64_t j, double* add) {
  const Case& c = in.c;
  *add = 0;
  if (c.causal && j > i) return false;
  if (c.window > 0 && i - j >= c.window) return false;
  if (c.mask == Mask::none) return true;
  const HeadStrides& s = in.p.mask_stride;
  const char* at = in.mask.as<char>() + b * s.batch + h * s.head + i * s.row +
                   (in.p.mask_per_key ? j : 0) * Inputs::mask_size(c);
  if (Inputs::boolean(c)) return *at != 0;
  *add = element(at, c.dtype);
  return *add != -INFINITY;
}

// The result, as far as it is finite in double, within this bound. With u = 2^-24: a score carries
// d + 1 roundings of sum |qs k| and one of the mask; exp one of its argument and 2 u of its own, or
// 4 over two blocks (the factor a); sums of n probabilities n roundings, once in l and once in o,
// each relative to a sum of terms of one sign; the reciprocal, its product and the output one each.
// In pairs, a score has d + 2, an argument 3 and exp 50 (its polynomial), and probabilities round
// to bfloat16, in the sum as well.
void check_against_double(const Inputs& in, const std::vector<uint8_t>& out, bool pairs) {
  const Case& c = in.c;
  const double unit = 0x1p-24;
  const double out_unit = c.dtype == DType::f32 ? unit : c.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
  bool close = true;
  std::vector<double> s(size_t(c.tk)), error(size_t(c.tk)), add(size_t(c.tk));
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads);
      for (int64_t i = 0; i < c.tq; ++i) {
        double most = -INFINITY, least = INFINITY;
        std::vector<int64_t> seen;
        for (int64_t j = 0; j < c.tk; ++j) {
          if (!sees(in, b, h, i, j, &add[size_t(j)])) continue;
          double sum = 0, size = 0;
          for (int64_t d = 0; d < c.d; ++d) {
            const double term = value(in.q, in.p.q_stride, b, h, i, d, c.dtype) *
                                double(in.p.scale) *
                                value(in.k, in.p.k_stride, b, kv, j, d, c.dtype);
            sum += term;
            size += std::fabs(term);
          }
          s[size_t(j)] = sum + add[size_t(j)];
          error[size_t(j)] =
              unit * (double(c.d + 1 + pairs) * size * (1 + 1e-3) + std::fabs(s[size_t(j)]));
          most = std::max(most, s[size_t(j)]);
          least = std::min(least, s[size_t(j)]);
          seen.push_back(j);
        }
        double worst = 0, total = 0;
        for (int64_t j : seen) {
          worst = std::max(worst, error[size_t(j)]);
          total += std::exp(s[size_t(j)] - most);
        }
        const double blocks = double((c.tk + kKeyBlock - 1) / kKeyBlock);
        const double n = double(seen.size());
        // Of a probability, relative; twice: in the sum and in the values.
        const double relative =
            pairs
                ? 2.01 * 0x1p-8 +
                      2 * (2 * worst + unit * (3 * (most - least) + 50 + 5 * blocks + n)) + 4 * unit
                : 2 * (2 * worst + unit * (2 * (most - least) + 4 + 5 * blocks + n + 4)) + 4 * unit;
        for (int64_t d = 0; d < c.d; ++d) {
          double want = 0, size = 0;
          for (int64_t j : seen) {
            const double term = std::exp(s[size_t(j)] - most) / total *
                                value(in.v, in.p.v_stride, b, kv, j, d, c.dtype);
            want += term;
            size += std::fabs(term);
          }
          const double got =
              element(out.data() + b * in.p.out_stride.batch + h * in.p.out_stride.head +
                          i * in.p.out_stride.row + d * size_of(c.dtype),
                      c.dtype);
          if (seen.empty()) {
            close = close && got == 0 && !std::signbit(got);
            continue;
          }
          if (!std::isfinite(want)) continue;
          const double bound = relative * size * 1.01 + out_unit * std::fabs(want) * 1.01 +
                               (c.dtype == DType::f16 ? 0x1p-25 : 1e-37);
          close = close && std::fabs(got - want) <= bound;
        }
      }
    }
  }
  CHECK(close);
}

// NaN and Inf where the generic row has them.
void check_poison(const std::vector<uint8_t>& got, const std::vector<uint8_t>& want, DType dtype) {
  bool same = true;
  for (size_t i = 0; i < want.size(); i += size_t(size_of(dtype))) {
    const double a = element(&got[i], dtype), b = element(&want[i], dtype);
    same = same && std::isnan(a) == std::isnan(b) && std::isinf(a) == std::isinf(b);
    if (std::isinf(a) && std::isinf(b)) same = same && a == b;
  }
  CHECK(same);
}

void check_case(const AttentionKernel& generic, const AttentionKernel& kernel, const Case& c) {
  results().context = std::string(kernel.name) + " " + text_of(c);
  const Inputs in(c);
  const int64_t all = std::max<int64_t>(1, c.tq * (c.heads / c.kv_heads));
  const bool pairs = kernel.pairs && c.dtype == DType::bf16;
  const Inputs poisoned(c, Poison::everywhere);
  const auto nan = poisoned.run(generic, all),
             got = poisoned.run(kernel, std::min<int64_t>(all, 20));
  const int64_t count = int64_t(nan.size()) / size_of(c.dtype);
  if (pairs) {
    const auto whole = in.run(kernel, all);
    check_against_double(in, whole, true);
    CHECK(in.run(kernel, 7) == whole);
    const auto again = poisoned.run(kernel, all);
    CHECK(same_elements(got.data(), again.data(), count, c.dtype));
    check_poison(got, nan, c.dtype);
    check_against_double(poisoned, got, true);
    const Inputs values(c, Poison::values);
    const auto with_values = values.run(kernel, 7);
    check_poison(with_values, values.run(generic, all), c.dtype);
    check_against_double(values, with_values, true);
    return;
  }
  const auto want = in.run(generic, all);
  if (kernel.run == generic.run) {
    check_against_double(in, want, false);
  } else {
    CHECK(in.run(kernel, all) == want);
    CHECK(in.run(kernel, 7) == want);
  }
  CHECK(same_elements(got.data(), nan.data(), count, c.dtype));
}

std::vector<Case> cases() {
  std::vector<Case> all;
  int turn = 0;
  for (int64_t d : {1, 15, 16, 17, 31, 32, 48, 64, 80, 96, 128, 130, 256}) {
    for (int64_t tk : {1, 15, 33, 65, 130}) {
      const DType dtype = DType(turn % 3);
      const Mask mask = Mask(turn % 5);
      const int64_t tq = std::vector<int64_t>{1, 5, 6, 7, 13, 50, 2}[size_t(turn) % 7];
      const bool causal = turn % 4 == 1;
      all.push_back({dtype, 1, turn % 2 ? 2 : 1, 1, tq, tk, d, causal,
                     causal && turn % 3 == 0 ? 9 : 0, mask,
                     turn % 8 < 4 ? Side::end : Side::begin});
      ++turn;
    }
  }
  // Several blocks of keys, of rows and of batches.
  for (Mask mask : {Mask::none, Mask::padding, Mask::per_head, Mask::additive, Mask::one_column}) {
    for (bool causal : {false, true}) {
      const DType dtype = DType(turn % 3);
      all.push_back({dtype, 2, 2, 2, 57, 300, 8, causal, causal ? 20 : 0, mask, Side::end});
      all.push_back({dtype, 1, 4, 2, 300, 277, 5, causal, 0, mask, Side::begin});
      ++turn;
    }
  }
  all.push_back({DType::f32, 1, 1, 1, 9, 1025, 3, false, 0, Mask::none, Side::end});
  all.push_back({DType::f32, 1, 1, 1, 70, 20, 4, true, 5, Mask::none, Side::end});  // rows see none
  return all;
}

#ifdef FASTINFER_EMULATE_AMX
// Around the tiles of 16 rows, 16 keys and 32 elements, and a block of keys.
std::vector<Case> cases_of_tiles() {
  std::vector<Case> all;
  int turn = 0;
  for (int64_t tq : {8, 15, 16, 17, 31, 32, 33, 49, 65}) {
    for (int64_t tk : {31, 32, 33, 64, 97, 256, 289}) {
      const int64_t d = std::vector<int64_t>{33, 64, 31, 96, 160}[size_t(turn) % 5];
      const Mask mask = Mask(turn / 3 % 5);
      const bool causal = turn % 4 == 1;
      all.push_back({DType::bf16, 1, turn % 3 == 0 ? 2 : 1, 1, tq, tk, d, causal,
                     causal && turn % 8 == 1 ? 21 : 0, mask,
                     turn % 2 == 0 ? Side::end : Side::begin});
      ++turn;
    }
  }
  return all;
}

// The row amx over the emulator, where the rest of it can run.
void test_emulated(const AttentionKernel* kernels, int count) {
  AttentionKernel kernel = kernels[count - 1];
  if (!amx_emulated(kernel.name)) return;
  kernel.run = attention_amx_emulated;
  group(std::string(kernel.name) + ", emulated", [&] {
    for (Case c : cases()) {
      check_case(kernels[0], kernel, c);
      if (c.dtype == DType::bf16) continue;
      c.dtype = DType::bf16;
      check_case(kernels[0], kernel, c);
    }
    for (const Case& c : cases_of_tiles()) check_case(kernels[0], kernel, c);
  });
  std::printf("row %s amx emulated\n", kernel.name);
}
#else
void test_emulated(const AttentionKernel*, int) {}
#endif

void serial(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

void threaded(int64_t count, void (*task)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, context, i);
  for (std::thread& thread : threads) thread.join();
}

void check_driver(const Case& c) {
  const Inputs in(c);
  const auto want = in.run(select_attention(), c.tq * (c.heads / c.kv_heads));
  const auto run = [&](int threads, ParallelFor parallel_for) {
    std::vector<uint8_t> out(size_t(in.out_bytes()));
    Attention p = in.p;
    p.out = out.data();
    CHECK(attention(p, threads, parallel_for));
    return out;
  };
  for (int threads : {1, 2, 3, 8}) {
    results().context = "attention: " + std::to_string(threads) + " threads, " + text_of(c);
    CHECK(run(threads, serial) == want);
    CHECK(run(threads, threaded) == want);
  }
  std::vector<std::thread> callers;
  std::vector<std::vector<uint8_t>> got(3);
  for (auto& out : got) callers.emplace_back([&out, &run] { out = run(2, threaded); });
  for (std::thread& caller : callers) caller.join();
  for (const auto& out : got) CHECK(out == want);
}

void check_empty() {
  const Inputs no_keys({DType::f32, 1, 2, 1, 5, 0, 6, false, 0, Mask::none, Side::end});
  std::vector<float> out(60, 1.0f);
  Attention p = no_keys.p;
  p.out = out.data();
  CHECK(attention(p, 2, threaded));
  CHECK(std::all_of(out.begin(), out.end(), [](float v) { return v == 0.0f; }));
  p.tq = 0;
  p.out = nullptr;
  CHECK(attention(p, 2, threaded));
}

}  // namespace

void test_attention() {
  int count;
  const AttentionKernel* kernels = attention_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const AttentionKernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (Case c : cases()) {
        check_case(kernels[0], kernel, c);
        if (!kernel.pairs || c.dtype == DType::bf16) continue;
        c.dtype = DType::bf16;
        check_case(kernels[0], kernel, c);
      }
    });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
  test_emulated(kernels, count);
  group("attention: same bits for every thread count", [] {
    check_driver({DType::f32, 2, 3, 3, 70, 66, 16, true, 0, Mask::padding, Side::end});
    check_driver({DType::bf16, 1, 6, 2, 220, 40, 20, true, 0, Mask::none, Side::end});
  });
  group("attention: Tk = 0, Tq = 0", check_empty);
}

}  // namespace fastinfer::test
