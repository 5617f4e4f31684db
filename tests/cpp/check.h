// The few lines of test framework that the C++ tests need: they also run under emulators and
// sanitizers, where a framework of someone else's would have to be cross-built first.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <string>

namespace fastinfer::test {

// Counts checks and failures of the whole program; names the case at hand in failures.
struct Results {
  std::atomic<int64_t> checks{0}, failed{0};  // tests of threads check from several
  int groups_passed = 0, groups_failed = 0;
  std::string context;
};
inline Results& results() {
  static Results r;
  return r;
}

inline bool check(bool ok, const char* expression, const char* file, int line) {
  Results& r = results();
  ++r.checks;
  if (!ok && ++r.failed <= 20) {
    std::printf("%s:%d: not true: %s  [%s]\n", file, line, expression, r.context.c_str());
  }
  return ok;
}
#define CHECK(expression) \
  ::fastinfer::test::check(static_cast<bool>(expression), #expression, __FILE__, __LINE__)

// Runs one group of cases and prints one line about it.
template <class Body>
void group(const std::string& name, Body&& body) {
  Results& r = results();
  const int64_t checks = r.checks, failed = r.failed;
  r.context = name;
  body();
  const bool ok = r.failed == failed && r.checks > checks;
  std::printf("%s %s (%lld checks)\n", ok ? "pass" : "FAIL", name.c_str(),
              static_cast<long long>(r.checks - checks));
  std::fflush(stdout);
  ++(ok ? r.groups_passed : r.groups_failed);
}

// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere, unlike std's distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(bits() % uint64_t(n)); }
  int8_t byte() { return int8_t(bits()); }
  // Uniform in [-1, 1).
  float unit() { return float(int64_t(bits() >> 40) - (1 << 23)) * 0x1p-23f; }

 private:
  uint64_t state_;
};

void test_amx();
void test_arch();
void test_buffer_pool();
void test_vec();
void test_gemm_f32s8f32();
void test_gemm_s8s8s32();
void test_norm();
void test_quantize_rowwise();
void test_rope();
void test_act_mul();
void test_pack();
void test_pieces();
void test_linear();
void test_attention();
void test_linear_forms();
void test_sparse();
void test_cutlass();

}  // namespace fastinfer::test
