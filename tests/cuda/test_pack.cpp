// The layouts "cuda" and "cuda_sp24": places, sums, round trips, damaged bytes.
#include <vector>

#include "cpu/gemm_s8s8s32/pack.h"
#include "cuda/gemm_s8s8s32/pack.h"
#include "guard.h"
#include "parts.h"

namespace fastinfer::test {

namespace {

void check_sp24(Random& random, int64_t n, int64_t k) {
  const Guarded w(n * k, Side::end, 0);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = 0; i < k; i += 4) {  // 0, 1 or 2 of each 4
      for (int kept = 0; kept < 2; ++kept) {
        const int64_t at = i + random.below(4);
        if (at < k) w.as<int8_t>()[row * k + at] = random.byte();
      }
    }
  }
  const auto at = cuda::sp24_offsets(n, k);
  CHECK(at.masks % 128 == 0 && at.values % 128 == 0 && at.bytes % 128 == 0);
  CHECK(at.compensation + at.n_pad * 4 <= at.masks);
  const Guarded packed(at.bytes, Side::end);
  cuda::pack_sp24(w.as<int8_t>(), n, k, packed.as<uint8_t>());
  CHECK(cuda::is_packed(packed.as<void>(), at.bytes));
  for (int64_t row = 0; row < at.n_pad; ++row) {
    int32_t sum = 0, compensation;
    const uint8_t* value = packed.as<uint8_t>() + at.values + row * (at.k_pad / 2);
    for (int64_t i = 0; i < at.k_pad; i += 4) {
      const int mask =
          packed.as<uint8_t>()[at.masks + row * (at.k_pad / 8) + i / 8] >> (i % 8) & 15;
      CHECK(__builtin_popcount(unsigned(mask)) == 2);
      bool made_up = false;  // zeros are, from the least k on: none is left out before one kept
      for (int64_t j = 3; j >= 0; --j) {
        const bool inside = row < n && i + j < k;
        const int8_t want = inside ? w.as<int8_t>()[row * k + i + j] : int8_t(0);
        sum += want;
        if ((mask >> j & 1) == 0) {
          CHECK(want == 0 && !made_up);
        } else {
          CHECK(int8_t(value[__builtin_popcount(unsigned(mask & ((1 << j) - 1)))]) == want);
          made_up = made_up || want == 0;
        }
      }
      value += 2;
    }
    std::memcpy(&compensation, packed.as<uint8_t>() + at.compensation + row * 4, 4);
    CHECK(compensation == -128 * sum);
  }
  const Guarded back(n * k, Side::end);
  CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes, n, k, back.as<int8_t>()) == nullptr);
  CHECK(std::memcmp(back.as<void>(), w.as<void>(), size_t(n * k)) == 0);
  CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes, n + 1, k, back.as<int8_t>()) != nullptr);
  CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes - 1, n, k, back.as<int8_t>()) != nullptr);
  cpu::PackedWeight weight;
  CHECK(cpu::open_packed(packed.as<void>(), at.bytes, &weight) != nullptr);
}

}  // namespace

void test_cuda_pack() {
  group("cuda pack", [] {
    Random random(2);
    for (const int64_t n : {0, 1, 15, 16, 17, 100}) {
      for (const int64_t k : {0, 1, 63, 64, 65, 200}) {
        const Guarded w(n * k, Side::end);
        for (int64_t i = 0; i < n * k; ++i) w.as<int8_t>()[i] = random.byte();
        const auto at = cuda::packed_offsets(n, k);
        CHECK(at.rows % 128 == 0 && at.k_pad % 64 == 0 && at.n_pad % 16 == 0);
        CHECK(at.compensation + at.n_pad * 4 <= at.rows);
        const Guarded packed(at.bytes, Side::end);
        cuda::pack_w8(w.as<int8_t>(), n, k, packed.as<uint8_t>());
        CHECK(cuda::is_packed(packed.as<void>(), at.bytes));
        for (int64_t row = 0; row < at.n_pad; ++row) {
          int32_t sum = 0, compensation;
          for (int64_t i = 0; i < at.k_pad; ++i) {
            const int8_t want = row < n && i < k ? w.as<int8_t>()[row * k + i] : int8_t(0);
            CHECK(packed.as<int8_t>()[at.rows + row * at.k_pad + i] == want);
            sum += want;
          }
          std::memcpy(&compensation, packed.as<uint8_t>() + at.compensation + row * 4, 4);
          CHECK(compensation == -128 * sum);
        }
        const Guarded back(n * k, Side::end);
        CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes, n, k, back.as<int8_t>()) == nullptr);
        CHECK(std::memcmp(back.as<void>(), w.as<void>(), size_t(n * k)) == 0);
        CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes, n + 1, k, back.as<int8_t>()) != nullptr);
        CHECK(cuda::unpack_w8(packed.as<void>(), at.bytes - 1, n, k, back.as<int8_t>()) != nullptr);
        // Neither kind of device takes the other's bytes.
        cpu::PackedWeight weight;
        CHECK(cpu::open_packed(packed.as<void>(), at.bytes, &weight) != nullptr);
        std::vector<uint8_t> dense(size_t(cpu::packed_bytes(n, k)));
        cpu::pack_w8(w.as<int8_t>(), n, k, dense.data());
        CHECK(!cuda::is_packed(dense.data(), int64_t(dense.size())));
      }
    }
  });
  group("cuda pack sp24", [] {
    Random random(3);
    for (const int64_t n : {0, 1, 15, 16, 17, 100}) {
      for (const int64_t k : {0, 1, 2, 63, 64, 65, 200}) check_sp24(random, n, k);
    }
  });
  group("cuda pack sp24 damaged", [] {
    const std::vector<int8_t> w(16 * 64, 0);
    const auto at = cuda::sp24_offsets(16, 64);
    std::vector<uint8_t> packed(size_t(at.bytes));
    std::vector<int8_t> back(w.size(), 7);
    cuda::pack_sp24(w.data(), 16, 64, packed.data());
    const auto wrong = [&] {
      return cuda::unpack_w8(packed.data(), at.bytes, 16, 64, back.data()) != nullptr &&
             back == std::vector<int8_t>(w.size(), 7);
    };
    for (const int64_t i : {at.masks, at.values - 1}) {
      const uint8_t had = packed[size_t(i)];
      for (const int mask : {0x03, 0x30, 0x73, 0x37, 0xff}) {
        packed[size_t(i)] = uint8_t(mask);
        CHECK(wrong());
      }
      packed[size_t(i)] = had;
    }
    for (const int64_t i : {0, 8, 24, 32, 40}) {  // magic, tag, version, n, k
      packed[size_t(i)] ^= 1;
      CHECK(wrong());
      packed[size_t(i)] ^= 1;
    }
    CHECK(cuda::unpack_w8(packed.data(), at.bytes, 16, 64, back.data()) == nullptr && back == w);
  });
  group("cuda pack sizes differ", [] {  // by them alone an operator tells the layouts apart
    for (int64_t n = 1; n <= 300; n += 7) {
      for (int64_t k = 1; k <= 131071; k += k < 1000 ? 1 : 1013) {
        const auto rows = cuda::packed_offsets(n, k);
        const int64_t sp24 = cuda::sp24_offsets(n, k).bytes;
        CHECK(rows.bytes - sp24 == rows.n_pad * rows.k_pad * 3 / 8 && rows.bytes > sp24);
      }
    }
  });
}

}  // namespace fastinfer::test
