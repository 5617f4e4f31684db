// The int8 matmul on the emulated GPU gives the bits of the CPU's reference kernel.
#include <string>
#include <vector>

#include "cuda/gemm_s8s8s32/launch.h"
#include "cuda/gemm_s8s8s32/pack.h"
#include "gemm_case.h"

namespace fastinfer::test {

namespace {

using Case = GemmCase;

void check(const Case& c, const cuda::GemmPlan& plan) {
  const auto at = cuda::packed_offsets(c.n, c.k);
  const Guarded packed(at.bytes, Side::end);
  const Guarded counters(plan.tiles * 4, Side::end), partials(plan.partial_bytes, Side::end);
  check_gemm(c, [&](cuda::GemmS8S8S32 p, const std::vector<int8_t>& w) {
    cuda::pack_w8(w.data(), c.n, c.k, packed.as<uint8_t>());
    std::memset(counters.as<void>(), 0, size_t(plan.tiles * 4));
    p.w = packed.as<int8_t>() + at.rows;
    p.compensation = reinterpret_cast<const int32_t*>(packed.as<char>() + at.compensation);
    const cuda::GemmWorkspace workspace{counters.as<int32_t>(), partials.as<int32_t>()};
    CHECK(cuda::launch_gemm_s8s8s32(p, plan, workspace, false, nullptr) == cudaSuccess);
  });
}

// A plan that the heuristics might make: this tile, this many splits.
cuda::GemmPlan tile_plan(int tile, int64_t m, int64_t n, int64_t k, int64_t splits) {
  const auto& shape = cuda::kTileShapes[tile];
  const int64_t steps = (k + cuda::kBlockK - 1) / cuda::kBlockK;
  cuda::GemmPlan plan{};
  plan.tile = tile;
  plan.k_per_split = (steps + splits - 1) / splits * cuda::kBlockK;
  plan.splits = int((k + plan.k_per_split - 1) / plan.k_per_split);
  if (plan.splits > 1) {
    plan.tiles =
        (m + shape.block_m - 1) / shape.block_m * ((n + shape.block_n - 1) / shape.block_n);
    plan.partial_bytes = plan.tiles * plan.splits * shape.block_m * shape.block_n * 4;
  }
  return plan;
}

void test_plans() {
  for (const int sms : {1, 46, 132}) {
    for (int64_t m = 1; m <= 300; m += m < 70 ? 1 : 23) {
      for (const int64_t n : {1, 16, 100, 768, 4096, 28672}) {
        for (const int64_t k : {0, 64, 128, 768, 8192, 28672}) {
          const auto plan = cuda::plan_gemm(m, n, k, sms);
          if (plan.gemv) {
            CHECK(m <= cuda::kGemvMostM && cuda::kGemvWarps % plan.warps_per_row == 0);
            CHECK(plan.tiles == 0 && plan.partial_bytes == 0);
            continue;
          }
          const auto& shape = cuda::kTileShapes[plan.tile];
          const int64_t tiles_m = (m + shape.block_m - 1) / shape.block_m;
          const int64_t tiles_n = (n + shape.block_n - 1) / shape.block_n;
          CHECK(plan.k_per_split % cuda::kBlockK == 0);
          CHECK(plan.splits >= 1 && plan.splits * plan.k_per_split >= k);
          CHECK(plan.splits == 1 || (plan.splits - 1) * plan.k_per_split < k);  // none is empty
          CHECK(shape.shared_bytes() <= 99 * 1024 && shape.threads() <= 1024);
          CHECK(tiles_m <= 65535 && plan.splits <= 65535);
          CHECK((plan.splits > 1) == (plan.tiles == tiles_m * tiles_n));
          CHECK((plan.splits > 1) == (plan.partial_bytes > 0));
          CHECK(m > 16 || tiles_m == 1);
        }
      }
    }
  }
}

}  // namespace

void test_cuda_gemm() {
  group("cuda gemm plans", test_plans);
  for (int64_t m = 1; m <= cuda::kGemvMostM; ++m) {
    group("cuda gemv M " + std::to_string(m), [&] {
      for (const int warps : {1, 2, 4}) {
        cuda::GemmPlan plan{};
        plan.gemv = true;
        plan.warps_per_row = warps;
        for (const int64_t n : {1, 4, 15, 33}) {
          for (const int64_t k : {1, 64, 500, 1100, 4200}) check(plain(m, n, k), plan);
        }
      }
    });
  }
  for (int tile = 0; tile < cuda::kTileShapeCount; ++tile) {
    group("cuda tiles " + std::to_string(tile), [&] {
      const auto& shape = cuda::kTileShapes[tile];
      for (const int64_t m : {1, shape.block_m, shape.block_m + 1}) {
        for (const int64_t n : {3, shape.block_n + 19}) {
          for (const int64_t k : {5, 128, 900}) {
            for (const int64_t splits : {1, 3}) {
              check(plain(m, n, k), tile_plan(tile, m, n, (k + 63) / 64 * 64, splits));
            }
          }
        }
      }
    });
  }
  group("cuda gemm epilogues", [] {
    for (int i = 0; i < cpu::kActivationCount; ++i) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        Case c{3, 37, 130, Activation(i), dtype, i % 2 == 0, i % 3 == 0, i % 3 != 1, false};
        check(c, cuda::plan_gemm(c.m, c.n, 192, 4));
        c.m = 19;
        check(c, cuda::plan_gemm(c.m, c.n, 192, 4));
      }
    }
  });
  group("cuda gemm extremes", [] {  // sums near the ends of int32
    Case c = plain(2, 5, 20000);
    c.extremes = true;
    check(c, cuda::plan_gemm(c.m, c.n, 20032, 4));
    c.m = 9;
    check(c, cuda::plan_gemm(c.m, c.n, 20032, 4));
  });
}

}  // namespace fastinfer::test
