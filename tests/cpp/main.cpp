// Runs the C++ tests. Lines for scripts:
//   isa <name> in use                          the best instruction set that selection may take
//   isa <name> supported | not supported: why
//   row <kernel> <isa> ran | skipped: why
//   row <kernel> <isa> emulated | not emulated: why
// Arguments run those of the parts below.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "check.h"
#include "cpu/arch.h"

int main(int argc, char** argv) {
  using namespace fastinfer;
  if (*cpu::isa_env_error() != '\0') {
    std::fprintf(stderr, "%s\n", cpu::isa_env_error());
    return 2;
  }
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const auto isa = cpu::Isa(i);
    const char* reason = cpu::isa_reason(isa);
    std::printf("isa %s %s%s\n", cpu::isa_name(isa),
                cpu::isa_supported(isa) ? "supported" : "not supported: ", reason);
  }
  std::printf("isa %s in use\n", cpu::isa_name(cpu::isa_in_use()));

  const struct {
    const char* name;
    void (*run)();
  } parts[] = {{"arch", test::test_arch},
               {"pieces", test::test_pieces},
               {"vec", test::test_vec},
               {"gemm", test::test_gemm_s8s8s32},
               {"quantize", test::test_quantize_rowwise},
               {"pack", test::test_pack},
               {"linear", test::test_linear},
               {"forms", test::test_linear_forms},
               {"norm", test::test_norm},
               {"attention", test::test_attention},
               {"pool", test::test_buffer_pool},
               {"rope", test::test_rope},
               {"act_mul", test::test_act_mul},
               {"sparse", test::test_sparse},
               {"weight_only", test::test_gemm_f32s8f32},
               {"cutlass", test::test_cutlass},
               {"amx", test::test_amx}};
  const auto names = [](const char* argument, const auto& part) {
    return std::strcmp(argument, part.name) == 0;
  };
  const char* const* unknown = std::find_if_not(argv + 1, argv + argc, [&](const char* argument) {
    return std::any_of(std::begin(parts), std::end(parts),
                       [&](const auto& part) { return names(argument, part); });
  });
  if (unknown != argv + argc) {
    std::fprintf(stderr, "part: got \"%s\", want some of", *unknown);
    for (const auto& part : parts) std::fprintf(stderr, " %s", part.name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  for (const auto& part : parts) {
    const bool asked = std::any_of(argv + 1, argv + argc,
                                   [&](const char* argument) { return names(argument, part); });
    if (asked || argc < 2) part.run();
  }
  const test::Results& r = test::results();
  std::printf("%d passed, %d failed\n", r.groups_passed, r.groups_failed);
  return r.groups_failed == 0 ? 0 : 1;
}
