// Packed weights: layout, round trip, and headers that lie.
#include <string>
#include <vector>

#include "check.h"
#include "cpu/embedding/embedding.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/vec/scalar.h"
#include "guard.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

std::vector<int8_t> random_weight(Random& random, int64_t n, int64_t k) {
  std::vector<int8_t> w(size_t(n * k));
  for (int8_t& v : w) v = random.byte();
  return w;
}

// Single rows; products with a power of two are exact in every dtype.
void check_rows(const PackedWeight& weight, const std::vector<int8_t>& w) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const int64_t size = size_of(dtype);
    bool same = true;
    for (int64_t row = 0; row < weight.n; ++row) {
      const Guarded out(weight.k * size, Side::end);
      embedding_row(weight, row, 0.5f, out.as<void>(), dtype);
      for (int64_t i = 0; i < weight.k; ++i) {
        const float got = ScalarVec::load(out.as<char>() + i * size, dtype);
        same = same && got == 0.5f * float(w[size_t(row * weight.k + i)]);
      }
    }
    CHECK(same);
  }
}

void check_round_trip() {
  Random random(6);
  for (int64_t n : {0, 1, 15, 16, 17, 50}) {
    for (int64_t k : {0, 1, 3, 4, 63, 64, 65, 131}) {
      results().context = "pack: n=" + std::to_string(n) + " k=" + std::to_string(k);
      const auto w = random_weight(random, n, k);
      const Guarded packed(packed_bytes(n, k), Side::end);
      pack_w8(w.data(), n, k, packed.as<uint8_t>());
      PackedWeight weight;
      if (!CHECK(open_packed(packed.as<void>(), packed.bytes(), &weight) == nullptr)) continue;
      const int64_t n_pad = (n + 15) / 16 * 16, k_pad = (k + 63) / 64 * 64;
      CHECK(weight.n == n && weight.k == k && weight.k_pad == k_pad);
      bool layout = true, sums = true;
      for (int64_t row = 0; row < n_pad; ++row) {
        int32_t sum = 0, compensation;
        for (int64_t i = 0; i < k_pad; ++i) {
          const int8_t want = row < n && i < k ? w[size_t(row * k + i)] : int8_t(0);
          const int64_t at = row / 16 * 16 * k_pad + i / 4 * 64 + row % 16 * 4 + i % 4;
          layout = layout && weight.panels[at] == want;
          sum += want;
        }
        std::memcpy(&compensation, reinterpret_cast<const char*>(weight.compensation) + row * 4, 4);
        sums = sums && compensation == -128 * sum;
      }
      CHECK(layout);
      CHECK(sums);
      const Guarded back(n * k, Side::end);
      unpack_w8(weight, back.as<int8_t>());
      CHECK(w.empty() || std::memcmp(back.as<char>(), w.data(), w.size()) == 0);
      check_rows(weight, w);
    }
  }
}

// A block that open_packed takes must hold what its header says; nothing may read outside it.
void check_mutations() {
  Random random(7);
  const int64_t n = 20, k = 70;
  const auto w = random_weight(random, n, k);
  std::vector<uint8_t> good(size_t(packed_bytes(n, k)));
  pack_w8(w.data(), n, k, good.data());
  const int64_t interesting[] = {0,
                                 -1,
                                 1,
                                 16,
                                 INT64_MAX,
                                 INT64_MIN,
                                 int64_t(1) << 32,
                                 int64_t(1) << 40,
                                 kMaxK,
                                 kMaxK + 1,
                                 INT64_MAX - 15};
  int refused = 0, taken = 0;
  bool consistent = true;
  for (int i = 0; i < 5000; ++i) {
    auto bytes = good;
    switch (random.below(4)) {
      case 0:
        for (int64_t j = random.below(8); j >= 0; --j) {
          bytes[size_t(random.below(64))] = uint8_t(random.bits());
        }
        break;
      case 1:
        std::memcpy(&bytes[size_t(32 + 8 * random.below(2))],
                    &interesting[random.below(int64_t(std::size(interesting)))], 8);
        break;
      case 2: bytes.resize(size_t(random.below(int64_t(bytes.size()) + 200))); break;
      default: bytes[size_t(64 + random.below(int64_t(bytes.size()) - 64))] ^= 1; break;
    }
    const Guarded block(bytes.data(), int64_t(bytes.size()), Side::end);
    PackedWeight weight = {};
    if (open_packed(block.as<void>(), block.bytes(), &weight) != nullptr) {
      ++refused;
      continue;
    }
    ++taken;
    consistent =
        consistent && weight.n >= 0 && weight.k >= 0 && weight.k <= kMaxK &&
        packed_bytes(weight.n, weight.k) == block.bytes() &&
        weight.panels + round_up(weight.n, 16) * weight.k_pad == block.as<int8_t>() + block.bytes();
    std::vector<int8_t> out(size_t(weight.n * weight.k) + 1);
    unpack_w8(weight, out.data());
  }
  CHECK(consistent);
  CHECK(refused > 1000);
  CHECK(taken > 500);
}

}  // namespace

void test_pack() {
  group("pack: layout, sums, round trip", check_round_trip);
  group("pack: corrupted blocks", check_mutations);
}

}  // namespace fastinfer::test
