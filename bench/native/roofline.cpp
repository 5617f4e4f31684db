// What the machine can do at best, for the fractions that the benchmark prints: multiply-add loops
// that stay in registers, and streaming reads of buffers of a given size. C ABI, called by
// roofline.py. A loop that this CPU cannot run returns 0.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

#if defined(__x86_64__)

// n rounds of twelve independent chains, which hide a latency of 4 to 5 cycles at two operations
// a cycle. In asm, so that the compiler neither folds the loop nor spills an accumulator.
#define FASTINFER_CHAINS(name, isa, T, value, instructions)                     \
  __attribute__((target(isa))) void name(int64_t n) {                           \
    const T a = value;                                                          \
    T acc[12];                                                                  \
    for (T& v : acc) v = a;                                                     \
    for (int64_t i = 0; i < n; ++i) {                                           \
      for (T& v : acc) asm volatile(instructions : "+v"(v) : "v"(a) : "xmm15"); \
    }                                                                           \
  }

FASTINFER_CHAINS(vnni_loop, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8(3),
                 "vpdpbusd %1, %1, %0")
FASTINFER_CHAINS(fma512_loop, "avx512f", __m512, _mm512_set1_ps(0.5f), "vfmadd231ps %1, %1, %0")
FASTINFER_CHAINS(bf16_loop, "avx512f,avx512bf16", __m512, _mm512_set1_ps(0.5f),
                 "vdpbf16ps %1, %1, %0")
FASTINFER_CHAINS(fma256_loop, "avx2,fma", __m256, _mm256_set1_ps(0.5f), "vfmadd231ps %1, %1, %0")
// vpmaddwd and the add that follows it: what int8 costs where there is no VNNI.
FASTINFER_CHAINS(madd256_loop, "avx2", __m256i, _mm256_set1_epi16(3),
                 "vpmaddwd %1, %1, %%ymm15\n\tvpaddd %%ymm15, %0, %0")
#undef FASTINFER_CHAINS

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

bool amx_permitted() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Four accumulators from two A and two B tiles, as a matmul holds them, of int8 or of bfloat16.
template <bool kBf16>
__attribute__((target("amx-tile,amx-int8,amx-bf16"))) void amx_loop(int64_t n) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = 64;
    config.rows[t] = 16;
  }
  alignas(64) int8_t data[1024];
  for (int i = 0; i < 1024; ++i) data[i] = kBf16 ? 0x3f : int8_t(i * 37 % 255 - 127);
  asm volatile("" : "+m"(config), "+m"(data));
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, data, 64);
  _tile_loadd(5, data, 64);
  _tile_loadd(6, data, 64);
  _tile_loadd(7, data, 64);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (kBf16) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_release();
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const char* p, int64_t bytes) {
  __m512i acc[8];
  for (auto& v : acc) v = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 512) {
    for (int j = 0; j < 8; ++j) {
      acc[j] = _mm512_or_si512(acc[j], _mm512_load_si512(p + i + 64 * j));
    }
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm512_or_si512(acc[0], acc[j]);
  return uint64_t(_mm512_reduce_or_epi64(acc[0]));
}

// Past the caches: a copy that stores as usual reads each line of the destination first.
__attribute__((target("avx512f"))) void copy_avx512(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  }
  _mm_sfence();
}

__attribute__((target("avx2"))) void copy_avx2(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i)));
  }
  _mm_sfence();
}

__attribute__((target("avx2"))) uint64_t read_avx2(const char* p, int64_t bytes) {
  __m256i acc[8];
  for (auto& v : acc) v = _mm256_setzero_si256();
  for (int64_t i = 0; i < bytes; i += 256) {
    for (int j = 0; j < 8; ++j) {
      acc[j] = _mm256_or_si256(acc[j],
                               _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm256_or_si256(acc[0], acc[j]);
  return uint64_t(_mm256_extract_epi64(acc[0], 0));
}

#endif

uint64_t read_baseline(const char* p, int64_t bytes) {
  uint64_t acc[8] = {};
  for (int64_t i = 0; i < bytes; i += 64) {
    uint64_t words[8];
    std::memcpy(words, p + i, 64);
    for (int j = 0; j < 8; ++j) acc[j] |= words[j];
  }
  return acc[0] | acc[1] | acc[2] | acc[3] | acc[4] | acc[5] | acc[6] | acc[7];
}

using Read = uint64_t (*)(const char*, int64_t);

Read widest_read() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_baseline;
}

using Copy = void (*)(char*, const char*, int64_t);

Copy widest_copy() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return copy_avx512;
  if (__builtin_cpu_supports("avx2")) return copy_avx2;
#endif
  return [](char* to, const char* from, int64_t bytes) { std::memcpy(to, from, size_t(bytes)); };
}

}  // namespace

extern "C" {

// Runs `rounds` rounds of a loop on one core; the operations it did (a multiply-add is two), or 0
// for an unknown name or an instruction that is missing. Names: "amx_int8", "amx_bf16",
// "avx512_vnni", "avx512_bf16", "avx512_fma", "avx2_fma", "avx2_madd".
double fastinfer_run_loop(const char* name, int64_t rounds) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const struct {
    const char* name;
    bool runs;
    void (*loop)(int64_t);
    double operations;
  } loops[] = {
      {"amx_int8", amx_permitted(), amx_loop<false>, 4 * 2.0 * 16 * 16 * 64},
      {"amx_bf16", amx_permitted(), amx_loop<true>, 4 * 2.0 * 16 * 16 * 32},
      {"avx512_vnni", bool(__builtin_cpu_supports("avx512vnni")), vnni_loop, 12 * 2.0 * 64},
      {"avx512_bf16", bool(__builtin_cpu_supports("avx512bf16")), bf16_loop, 12 * 2.0 * 32},
      {"avx512_fma", bool(__builtin_cpu_supports("avx512f")), fma512_loop, 12 * 2.0 * 16},
      {"avx2_fma", avx2, fma256_loop, 12 * 2.0 * 8},
      {"avx2_madd", avx2, madd256_loop, 12 * 2.0 * 16},
  };
  for (const auto& row : loops) {
    if (std::strcmp(name, row.name) != 0 || !row.runs) continue;
    row.loop(rounds);
    return double(rounds) * row.operations;
  }
#endif
  return 0;
}

// One pass of `threads` threads over `bytes` at `data` (64-byte aligned, a multiple of
// 4096 * threads), started here: for passes of a millisecond and more.
uint64_t fastinfer_read_once(const char* data, int64_t bytes, int threads) {
  const Read read = widest_read();
  const int64_t share = bytes / threads;
  std::atomic<uint64_t> bits{0};
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) {
    team.emplace_back([&, t] { bits |= read(data + t * share, share); });
  }
  bits |= read(data, share);
  for (auto& thread : team) thread.join();
  return bits;
}

// Copies `bytes` (a multiple of 4096 * threads) between 64-byte aligned buffers with `threads`
// threads, started here.
void fastinfer_copy_once(char* to, const char* from, int64_t bytes, int threads) {
  const Copy copy = widest_copy();
  const int64_t share = bytes / threads;
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) {
    team.emplace_back([=] { copy(to + t * share, from + t * share, share); });
  }
  copy(to, from, share);
  for (auto& thread : team) thread.join();
}

// Bytes a second that `threads` threads read together, each streaming over its own share of
// `bytes` (a multiple of 4096 * threads) again and again for `seconds`. The buffer is one
// allocation of ordinary pages. 0 if it cannot be had.
double fastinfer_read_bandwidth(int64_t bytes, int threads, double seconds) {
  const Read read = widest_read();
  const int64_t share = bytes / threads / 4096 * 4096;
  char* buffer = static_cast<char*>(std::aligned_alloc(4096, size_t(share * threads)));
  if (buffer == nullptr) return 0;
  uint32_t state = 1;
  for (int64_t i = 0; i < share * threads; i += 4) {
    state = state * 1664525u + 1013904223u;
    std::memcpy(buffer + i, &state, 4);
  }
  std::atomic<int> ready{0};
  std::atomic<uint64_t> sink{0};
  std::vector<double> rate(size_t(threads), 0.0);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      const char* mine = buffer + t * share;
      uint64_t bits = read(mine, share);
      ++ready;
      while (ready < threads) {
      }
      const auto start = Clock::now();
      int64_t passes = 0;
      do {
        bits |= read(mine, share);
        ++passes;
      } while (since(start) < seconds);
      rate[size_t(t)] = double(passes) * double(share) / since(start);
      sink |= bits;
    });
  }
  for (auto& thread : team) thread.join();
  std::free(buffer);
  double total = 0;
  for (const double r : rate) total += r;
  return sink != 0 ? total : 0;
}
}
