#include "cpu/arch.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace fastinfer::cpu {

#if defined(__x86_64__)
// In gemm_s8s8s32/x86_amx.cpp: multiplies tiles and compares. Call only with AMX permitted.
bool amx_self_test();
#endif

namespace {

constexpr const char* kNames[kIsaCount] = {"generic",    "avx2",        "avxvnni",
                                           "avx512vnni", "avx512vbmi2", "avx512bf16",
                                           "amx",        "neondot",     "neoni8mm"};

struct Probe {
  bool ok[kIsaCount] = {};
  const char* reason[kIsaCount] = {};

  void set(Isa isa, const char* why_not) {
    ok[int(isa)] = why_not == nullptr;
    reason[int(isa)] = why_not == nullptr ? "" : why_not;
  }
};

#if defined(__x86_64__)

struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

constexpr bool bit(unsigned word, int i) { return (word >> i) & 1u; }

// XCR0: which register states the operating system saves (Intel SDM vol. 1, 13.3).
uint64_t xcr0() {
  if (!bit(Cpuid(1, 0).c, 27)) return 0;  // OSXSAVE
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t(hi) << 32 | lo;
}

// Whether the vendor's name consists of these, in the order EBX, EDX, ECX.
bool made_by(unsigned b, unsigned d, unsigned c) {
  const Cpuid leaf0(0, 0);
  return leaf0.b == b && leaf0.d == d && leaf0.c == c;
}
bool made_by_intel() { return made_by(0x756e6547, 0x49656e69, 0x6c65746e); }  // GenuineIntel

// Zen 3 and 4 (AMD64 Architecture Programmer's Manual vol. 3, appendix E: base and extended
// family).
bool of_amd_family_25() {
  const unsigned a = Cpuid(1, 0).a;
  return made_by(0x68747541, 0x69746e65, 0x444d4163) &&  // AuthenticAMD
         (a >> 8 & 0xf) + (a >> 20 & 0xff) == 25;
}

// AMX is asked for, not assumed: CPUID bits, palette 1 of the shape the kernels use, the state
// enabled in XCR0, then the kernel's permission, then a multiplication each of int8 and of bfloat16
// that must be right. Every CPU with one has the other; where a hypervisor hides one, no AMX row
// runs. (Intel SDM vol. 1 chapter 18; Linux Documentation/arch/x86/xstate.rst.)
const char* probe_amx(uint64_t xcr) {
  const Cpuid leaf7(7, 0);
  if (!bit(leaf7.d, 22) || !bit(leaf7.d, 24) || !bit(leaf7.d, 25)) {
    return "the CPU lacks AMX-TILE, AMX-INT8 or AMX-BF16";
  }
  if ((xcr >> 17 & 3) != 3) return "the operating system has not enabled the AMX tile state";
  if (Cpuid(0x1d, 0).a < 1) return "the CPU (or its hypervisor) reports no AMX palette";
  const Cpuid palette(0x1d, 1);
  if (palette.a >> 16 != 1024 || palette.b >> 16 != 8 || (palette.b & 0xffff) != 64 ||
      (palette.c & 0xffff) != 16) {
    return "AMX palette 1 is not eight tiles of 16 rows x 64 bytes";
  }
  constexpr long kReqXcompPerm = 0x1023, kXtileData = 18;
  if (syscall(SYS_arch_prctl, kReqXcompPerm, kXtileData) != 0) {
    return errno == ENOSPC
               ? "the kernel refused AMX: a thread's sigaltstack is too small for the tile state"
               : "the kernel refused the AMX permission (arch_prctl ARCH_REQ_XCOMP_PERM)";
  }
  return amx_self_test() ? nullptr : "the AMX self-test gave a wrong product";
}

Probe probe() {
  Probe p;
  const uint64_t xcr = xcr0();
  const Cpuid leaf1(1, 0), leaf7(7, 0), leaf7_1(7, 1);
  const bool os_ymm = (xcr & 0x6) == 0x6, os_zmm = (xcr & 0xe6) == 0xe6;
  const bool avx2 = os_ymm && bit(leaf7.b, 5) && bit(leaf1.c, 12) && bit(leaf1.c, 29);
  const bool avx512 = os_zmm && bit(leaf7.b, 16) && bit(leaf7.b, 17) && bit(leaf7.b, 30) &&
                      bit(leaf7.b, 31) && bit(leaf7.c, 11);
  p.set(Isa::generic, nullptr);
  p.set(Isa::avx2, avx2 ? nullptr : "the CPU or the operating system lacks AVX2, FMA or F16C");
  p.set(Isa::avxvnni, avx2 && bit(leaf7_1.a, 4) ? nullptr : "the CPU lacks AVX-VNNI");
  p.set(Isa::avx512vnni,
        avx2 && avx512 ? nullptr
                       : "the CPU or the operating system lacks AVX-512 F, DQ, BW, VL or VNNI");
  p.set(Isa::avx512vbmi2,
        avx2 && avx512 && bit(leaf7.c, 1) && bit(leaf7.c, 6)
            ? nullptr
            : "the CPU or the operating system lacks AVX-512 VNNI, VBMI or VBMI2");
  const bool bf16 = avx2 && avx512 && bit(leaf7_1.a, 5);
  p.set(Isa::avx512bf16, bf16 ? nullptr : "the CPU lacks AVX512-BF16 or AVX-512 VNNI");
  p.set(Isa::amx, bf16 ? probe_amx(xcr) : "AMX rows need AVX512-BF16 and AVX-512 VNNI too");
  p.set(Isa::neondot, "an Arm instruction set");
  p.set(Isa::neoni8mm, "an Arm instruction set");
  return p;
}

#else

bool made_by_intel() { return false; }
bool of_amd_family_25() { return false; }

Probe probe() {
  Probe p;
  p.set(Isa::generic, nullptr);
  for (Isa isa :
       {Isa::avx2, Isa::avxvnni, Isa::avx512vnni, Isa::avx512vbmi2, Isa::avx512bf16, Isa::amx}) {
    p.set(isa, "an x86 instruction set");
  }
#if defined(__aarch64__)
  constexpr unsigned long kHwcapAsimdDp = 1ul << 20, kHwcap2I8mm = 1ul << 13;
  const bool dot = getauxval(AT_HWCAP) & kHwcapAsimdDp;
  const bool i8mm = getauxval(AT_HWCAP2) & kHwcap2I8mm;
  p.set(Isa::neondot, dot ? nullptr : "the CPU lacks the dot-product extension (asimddp)");
  p.set(Isa::neoni8mm, dot && i8mm ? nullptr : "the CPU lacks the int8 matrix extension (i8mm)");
#else
  p.set(Isa::neondot, "an Arm instruction set");
  p.set(Isa::neoni8mm, "an Arm instruction set");
#endif
  return p;
}

#endif

const Probe& probed() {
  static const Probe p = probe();
  return p;
}

// generic, then the instruction sets of the architecture that this was compiled for.
constexpr bool of_this_architecture(int i) {
#if defined(__x86_64__)
  return i <= int(Isa::amx);
#elif defined(__aarch64__)
  return i == 0 || i > int(Isa::amx);
#else
  return i == 0;
#endif
}

int find_isa(const char* name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (of_this_architecture(i) && std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

struct Cap {
  std::atomic<int> isa{kIsaCount};  // kIsaCount: no cap
  std::string error;
  Cap() {
    const char* env = std::getenv("FASTINFER_ISA");
    if (env == nullptr || *env == '\0') return;
    const int found = find_isa(env);
    if (found >= 0) {
      isa = found;
    } else {
      error = std::string("FASTINFER_ISA: got \"") + env + "\", want one of " + isa_known_names();
    }
  }
};

Cap& cap() {
  static Cap c;
  return c;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[int(isa)]; }
bool isa_supported(Isa isa) { return probed().ok[int(isa)]; }
const char* isa_reason(Isa isa) { return probed().reason[int(isa)]; }
bool isa_allowed(Isa isa) { return int(isa) <= cap().isa && isa_supported(isa); }

bool isa_pays(Isa isa) {
  static const bool slow_dpbf16 = made_by_intel();
  return isa_allowed(isa) && !(isa == Isa::avx512bf16 && slow_dpbf16);
}

bool is_zen4() {
  static const bool zen4 = of_amd_family_25();
  return zen4;
}

Isa isa_in_use() {
  for (int i = kIsaCount - 1; i > 0; --i) {
    if (isa_allowed(Isa(i))) return Isa(i);
  }
  return Isa::generic;
}

bool set_isa_cap(const char* name) {
  const int found = *name == '\0' ? kIsaCount : find_isa(name);
  if (found < 0) return false;
  cap().isa = found;
  return true;
}

const char* isa_cap() { return cap().isa == kIsaCount ? "" : kNames[cap().isa]; }
const char* isa_env_error() { return cap().error.c_str(); }

const std::string& isa_known_names() {
  static const std::string names = [] {
    std::string all;
    for (int i = 0; i < kIsaCount; ++i) {
      if (of_this_architecture(i)) all += (all.empty() ? "" : ", ") + std::string(kNames[i]);
    }
    return all;
  }();
  return names;
}

}  // namespace fastinfer::cpu
