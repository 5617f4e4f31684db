// What the CPU can run, and the cap on it.
#include <string>

#include "check.h"
#include "cpu/arch.h"
#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

void check_caps() {
  const std::string before = isa_cap();
  CHECK(isa_supported(Isa::generic) && isa_allowed(Isa::generic));
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = Isa(i);
    results().context = std::string("arch: ") + isa_name(isa);
    CHECK(isa_supported(isa) == (*isa_reason(isa) == '\0'));
    const bool known =
        (", " + isa_known_names() + ",").find(std::string(", ") + isa_name(isa) + ",") !=
        std::string::npos;
    CHECK(!isa_supported(isa) || known);
    const std::string cap = isa_cap();
    CHECK(set_isa_cap(isa_name(isa)) == known);
    CHECK(isa_cap() == (known ? isa_name(isa) : cap));
    if (!known) continue;
    CHECK(int(isa_in_use()) <= i && isa_allowed(isa_in_use()));
    if (isa_supported(isa)) CHECK(isa_in_use() == isa);
    for (int64_t m : {1, 4, 8, 9, 33, 1000}) {
      const LinearPlan plan = plan_linear(m, 100, 128, 2);
      CHECK(isa_allowed(plan.gemm->isa) && isa_allowed(plan.quantize->isa));
      CHECK(plan.mc > 0 && plan.tasks_m >= 1 && plan.tasks_n >= 1);
      CHECK(plan.tasks_m * plan.tasks_n <= 2);
    }
  }
  CHECK(set_isa_cap(""));
  CHECK(*isa_cap() == '\0');
  for (int i = int(isa_in_use()) + 1; i < kIsaCount; ++i) CHECK(!isa_supported(Isa(i)));
  CHECK(!set_isa_cap("sse9"));
  CHECK(!set_isa_cap("AVX2"));
  CHECK(*isa_cap() == '\0');
  CHECK(set_isa_cap(before.c_str()));
  CHECK(isa_cap() == before);
}

}  // namespace

void test_arch() { group("arch: probe, cap, selection under it", check_caps); }

}  // namespace fastinfer::test
