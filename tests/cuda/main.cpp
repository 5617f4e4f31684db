// Runs the CUDA kernels on the host (emulator.h) against the CPU's. An argument runs one part:
// emulator, pack, quantize, norm, act_mul, rope, gemm, sp24, w8a16.
#include <cstdio>
#include <cstring>

#include "parts.h"

int main(int argc, char** argv) {
  using namespace fastinfer;
  const struct {
    const char* name;
    void (*run)();
  } parts[] = {{"emulator", test::test_emulator},      {"pack", test::test_cuda_pack},
               {"quantize", test::test_cuda_quantize}, {"norm", test::test_cuda_norm},
               {"act_mul", test::test_cuda_act_mul},   {"rope", test::test_cuda_rope},
               {"gemm", test::test_cuda_gemm},         {"sp24", test::test_cuda_sp24},
               {"w8a16", test::test_cuda_w8a16}};
  bool found = argc < 2;
  for (const auto& part : parts) {
    if (argc >= 2 && std::strcmp(argv[1], part.name) != 0) continue;
    found = true;
    part.run();
  }
  if (!found) {
    std::fprintf(stderr, "part: got \"%s\", want one of", argv[1]);
    for (const auto& part : parts) std::fprintf(stderr, " %s", part.name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  const test::Results& r = test::results();
  std::printf("%d passed, %d failed\n", r.groups_passed, r.groups_failed);
  return r.groups_failed == 0 ? 0 : 1;
}
