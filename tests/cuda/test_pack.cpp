// The layout "cuda": places, sums, round trips, damaged bytes.
#include <vector>

#include "cpu/gemm_s8s8s32/pack.h"
#include "cuda/gemm_s8s8s32/pack.h"
#include "guard.h"
#include "parts.h"

namespace fastinfer::test {

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
}

}  // namespace fastinfer::test
