// The int8 matmul by 2:4 weights on the emulated GPU gives the bits of the dense one on the CPU.
#include <algorithm>
#include <string>
#include <vector>

#include "cuda/gemm_s8s8s32/pack.h"
#include "cuda/gemm_s8s8s32/sp24.cuh"
#include "cuda/gemm_s8s8s32/sp24.h"
#include "gemm_case.h"

namespace fastinfer::test {

namespace {

struct Packed {
  cuda::Sp24Offsets at;
  Guarded bytes;

  Packed(int64_t n, int64_t k) : at(cuda::sp24_offsets(n, k)), bytes(at.bytes, Side::end) {}
  cuda::Sp24Weight weight() const {
    return {bytes.as<uint8_t>() + at.masks, bytes.as<int8_t>() + at.values};
  }
  const int32_t* compensation() const {
    return reinterpret_cast<const int32_t*>(bytes.as<char>() + at.compensation);
  }
};

void check(GemmCase c, const cuda::Sp24Plan& plan) {
  c.sparse = true;
  const Packed packed(c.n, c.k);
  const Guarded dense(plan.dense_bytes, Side::end);
  const Guarded counters(plan.dense.tiles * 4, Side::end);
  const Guarded partials(plan.dense.partial_bytes, Side::end);
  check_gemm(c, [&](cuda::GemmS8S8S32 p, const std::vector<int8_t>& w) {
    cuda::pack_sp24(w.data(), c.n, c.k, packed.bytes.as<uint8_t>());
    std::memset(counters.as<void>(), 0, size_t(counters.bytes()));
    std::memset(dense.as<void>(), 0xa5, size_t(dense.bytes()));
    p.compensation = packed.compensation();
    const cuda::GemmWorkspace workspace{counters.as<int32_t>(), partials.as<int32_t>()};
    CHECK(cuda::launch_gemm_sp24(p, packed.weight(), plan, dense.as<int8_t>(), workspace, false,
                                 nullptr) == cudaSuccess);
  });
}

cuda::Sp24Plan gemv_plan(int warps_per_row) {
  cuda::Sp24Plan plan{};
  plan.gemv = true;
  plan.warps_per_row = warps_per_row;
  return plan;
}

cuda::Sp24Plan few_plan(int warps) {
  cuda::Sp24Plan plan{};
  plan.warps = warps;
  return plan;
}

// The weight that metadata and values say, by the formula of sp24.h.
void check_metadata(int64_t n, int64_t k) {
  Random random(uint64_t(n * 1000 + k));
  const Packed packed(n, k);
  std::vector<int8_t> w(size_t(n * k));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; j += 4) {
      for (int kept = 0; kept < 2; ++kept) {
        w[size_t(i * k + std::min(k - 1, j + random.below(4)))] = random.byte();
      }
    }
  }
  cuda::pack_sp24(w.data(), n, k, packed.bytes.as<uint8_t>());
  const int64_t k_pad = packed.at.k_pad, n_pad = (n + 63) / 64 * 64;
  const Guarded metadata(cuda::sp24_metadata_bytes(n, k_pad), Side::end);
  CHECK(metadata.bytes() == n_pad * ((k_pad + 127) / 128 * 128) / 8);
  in_both_orders([&] {
    std::memset(metadata.as<void>(), 0xa5, size_t(metadata.bytes()));
    CHECK(cuda::launch_sp24_metadata(packed.weight(), n, k_pad, metadata.as<uint8_t>(), false,
                                     nullptr) == cudaSuccess);
    for (int64_t row = 0; row < n_pad; ++row) {
      for (int64_t j = 0; j < (k_pad + 127) / 128 * 128; j += 4) {
        const int64_t byte = (j / 128 * n_pad + row) * 16 + j % 128 / 8;
        const int code = metadata.as<uint8_t>()[byte] >> (j % 8) & 15;
        const int first = code & 3, second = code >> 2;
        if (!CHECK(first < second)) return;
        if (row >= n || j >= k_pad) {
          CHECK(code == 4);
          continue;
        }
        int8_t group[4] = {};
        const int8_t* values = packed.weight().values + row * (k_pad / 2) + j / 2;
        group[first] = values[0];
        group[second] = values[1];
        for (int64_t i = 0; i < 4; ++i) {
          CHECK(group[i] == (j + i < k ? w[size_t(row * k + j + i)] : int8_t(0)));
        }
      }
    }
  });
}

void test_plans() {
  for (const int sms : {1, 46, 132}) {
    for (const int64_t m : {1, 4, 5, 16, 17, 64, 300}) {
      for (const int64_t n : {1, 16, 100, 768, 4096, 28672}) {
        for (const int64_t k : {64, 128, 768, 8192, 28672}) {
          const auto plan = cuda::plan_gemm_sp24(m, n, k, sms);
          CHECK(plan.gemv == (m <= cuda::kGemvMostM));
          CHECK((plan.warps > 0) == (!plan.gemv && m <= cuda::kSp24FewMostM));
          CHECK((plan.dense_bytes > 0) == (m > cuda::kSp24FewMostM));
          if (plan.gemv) CHECK(cuda::kGemvWarps % plan.warps_per_row == 0);
          CHECK(plan.warps <= cuda::kSp24MostWarps);
          if (plan.dense_bytes == 0) {
            CHECK(plan.dense.tiles == 0 && plan.dense.partial_bytes == 0);
            continue;
          }
          CHECK(plan.dense_bytes == (n + 15) / 16 * 16 * k);
          const auto dense = cuda::plan_gemm(m, n, k, sms);
          CHECK(plan.dense.tile == dense.tile && plan.dense.splits == dense.splits);
        }
      }
    }
  }
  // A warp has something to do, and many rows need no more warps a row.
  CHECK(cuda::plan_gemm_sp24(8, 64, 1024, 132).warps == 4);
  CHECK(cuda::plan_gemm_sp24(8, 64, 8192, 132).warps == 16);
  CHECK(cuda::plan_gemm_sp24(8, 28672, 8192, 132).warps == 4);
  CHECK(cuda::plan_gemm_sp24(1, 64, 1024, 132).warps_per_row == 1);
  CHECK(cuda::plan_gemm_sp24(1, 64, 28672, 132).warps_per_row == 4);
}

// Every mask at every place, by the definition of the layout.
void test_piece() {
  Random random(4);
  for (const int mask : {3, 5, 6, 9, 10, 12}) {
    for (int place = 0; place < 8; ++place) {
      cuda::Sp24Piece piece{};
      int8_t values[16], dense[32] = {}, x[32];
      for (auto& v : values) v = random.byte();
      for (auto& v : x) v = random.byte();
      for (int j = 0, next = 0; j < 8; ++j) {
        const uint32_t group = j == place ? uint32_t(mask) : 5;
        piece.masks |= group << (4 * j);
        for (int i = 0; i < 4; ++i) {
          if (group >> i & 1) dense[j * 4 + i] = values[next++];
        }
      }
      std::memcpy(&piece.values, values, 16);
      uint32_t words[8], digits[4], x_words[8];
      cuda::expand(piece, words);
      CHECK(std::memcmp(words, dense, 32) == 0);
      cuda::gather_digits(piece.masks, digits);
      std::memcpy(x_words, x, 32);
      int32_t sum = 0, want = 0;
      for (int i = 0; i < 4; ++i) {
        const uint32_t gathered =
            cuda::permute_bytes(x_words[2 * i], x_words[2 * i + 1], digits[i]);
        sum = cuda::dot4(piece.value_word(i), gathered, sum);
      }
      for (int i = 0; i < 32; ++i) want += int32_t(dense[i]) * x[i];
      CHECK(sum == want);
    }
  }
}

// Bytes that are no 2:4 weight give some result, and no access that goes astray.
void test_garbage() {
  constexpr int64_t kN = 21, kK = 320;
  Random random(5);
  const Packed packed(kN, kK);
  for (int64_t i = packed.at.masks; i < packed.at.bytes; ++i) {
    packed.bytes.as<uint8_t>()[i] = uint8_t(random.bits());
  }
  const auto scales = floats(random, kN);
  for (const int64_t m : {1, 4, 5, 16, 17}) {
    const auto plan = cuda::plan_gemm_sp24(m, kN, kK, 4);
    const Guarded a(m * kK, Side::end, 1), out(m * kN * 4, Side::end);
    const Guarded dense(plan.dense_bytes, Side::end);
    std::vector<int32_t> counters(size_t(plan.dense.tiles + 1));
    std::vector<int32_t> partials(size_t(plan.dense.partial_bytes / 4 + 1));
    cuda::GemmS8S8S32 p{};
    p.m = m;
    p.n = kN;
    p.k_pad = kK;
    p.a = a.as<int8_t>();
    p.a_scale = p.a_offset = p.w_scale = scales.data();
    p.compensation = packed.compensation();
    p.out = out.as<void>();
    p.ld_out = kN;
    p.out_dtype = DType::f32;
    CHECK(cuda::launch_gemm_sp24(p, packed.weight(), plan, dense.as<int8_t>(),
                                 {counters.data(), partials.data()}, false,
                                 nullptr) == cudaSuccess);
  }
}

}  // namespace

void test_cuda_sp24() {
  group("cuda sp24 plans", test_plans);
  group("cuda sp24 masks", test_piece);
  group("cuda sp24 metadata", [] {
    for (const int64_t n : {1, 16, 64, 70}) {
      for (const int64_t k : {3, 64, 128, 200, 330}) check_metadata(n, k);
    }
  });
  group("cuda sp24 garbage", test_garbage);
  for (int64_t m = 1; m <= cuda::kGemvMostM; ++m) {
    group("cuda sp24 gemv M " + std::to_string(m), [&] {
      for (const int warps : {1, 2, 4}) {
        for (const int64_t n : {1, 4, 15, 33}) {
          for (const int64_t k : {1, 64, 500, 1100, 4200}) check(plain(m, n, k), gemv_plan(warps));
        }
      }
      check(plain(m, 5, 9001), gemv_plan(4));
    });
  }
  for (const int warps : {4, 8, 16}) {
    group("cuda sp24 few warps " + std::to_string(warps), [&] {
      for (const int64_t m : {1, 8, 9, 16}) {
        for (const int64_t n : {1, 16, 37}) {
          for (const int64_t k : {3, 64, 130, 1100, 5000}) check(plain(m, n, k), few_plan(warps));
        }
      }
    });
  }
  group("cuda sp24 expanded", [] {
    for (const int64_t m : {17, 70}) {
      for (const int64_t n : {1, 16, 83}) {
        for (const int64_t k : {5, 128, 900}) {
          check(plain(m, n, k), cuda::plan_gemm_sp24(m, n, (k + 63) / 64 * 64, 4));
        }
      }
    }
  });
  group("cuda sp24 epilogues", [] {
    for (int i = 0; i < cpu::kActivationCount; ++i) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        GemmCase c{3, 37, 130, Activation(i), dtype, i % 2 == 0, i % 3 == 0, i % 3 != 1, false};
        for (const int64_t m : {3, 11}) {
          c.m = m;
          check(c, cuda::plan_gemm_sp24(c.m, c.n, 192, 4));
        }
      }
    }
  });
  group("cuda sp24 extremes", [] {
    GemmCase c = plain(2, 5, 131071);
    c.extremes = true;
    for (const int64_t m : {2, 9}) {
      c.m = m;
      check(c, cuda::plan_gemm_sp24(c.m, c.n, 131072, 4));
    }
  });
}

}  // namespace fastinfer::test
