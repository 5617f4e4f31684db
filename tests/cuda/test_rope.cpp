// rope on the emulated GPU gives the bits of the CPU's reference.
#include <string>
#include <utility>
#include <vector>

#include "cpu/rope/rope.h"
#include "cuda/rope/rope.h"
#include "guard.h"
#include "parts.h"
#include "reference.h"

namespace fastinfer::test {

namespace {

struct Case {
  DType dtype, table_dtype;
  int64_t batches, tokens, heads, head_size, r;
  bool interleaved, token_major, table_a_batch;
  int64_t extra, more;  // elements between heads of x, and between rows of the tables
  Side side;            // of what is read: end guards it, begin aligns it
};

void check(const Case& c) {
  results().context =
      "dtype=" + std::to_string(int(c.dtype)) + " table=" + std::to_string(int(c.table_dtype)) +
      " heads=" + std::to_string(c.heads) + " head_size=" + std::to_string(c.head_size) +
      " r=" + std::to_string(c.r) + (c.interleaved ? " interleaved" : " halves") +
      (c.token_major ? " tokens" : " heads") + " extra=" + std::to_string(c.extra) + "," +
      std::to_string(c.more);
  Random random(uint64_t(c.head_size * 7919 + c.r));
  const int64_t size = cpu::size_of(c.dtype), table_size = cpu::size_of(c.table_dtype);
  const int64_t step = c.head_size + c.extra, all = c.batches * c.tokens * c.heads;
  auto values = random_elements(random, all * step - c.extra, c.dtype);
  // In every head's last element a NaN with bits of its own: what is copied is copied bit for bit.
  const uint32_t nan = c.dtype == DType::f32    ? 0xffc12345u
                       : c.dtype == DType::bf16 ? 0xffd3
                                                : 0xfe57;
  for (int64_t i = 0; i < all; ++i) {
    std::memcpy(&values[size_t((i * step + c.head_size - 1) * size)], &nan, size_t(size));
  }
  const int64_t table_step = c.r + c.more, rows = (c.table_a_batch ? c.batches : 1) * c.tokens;
  const auto cosines = random_elements(random, rows * table_step - c.more, c.table_dtype);
  const auto sines = random_elements(random, rows * table_step - c.more, c.table_dtype);
  const Guarded x(values.data(), int64_t(values.size()), c.side);
  const Guarded cos(cosines.data(), int64_t(cosines.size()), c.side);
  const Guarded sin(sines.data(), int64_t(sines.size()), c.side);
  const int64_t out_bytes = all * c.head_size * size;
  const Guarded want(out_bytes, Side::end), got(out_bytes, Side::end);

  cuda::Rope p{};
  p.x = x.as<void>();
  p.x_dtype = c.dtype;
  p.x_batch = c.tokens * c.heads * step;
  p.x_token = c.token_major ? c.heads * step : step;
  p.x_head = c.token_major ? step : c.tokens * step;
  p.cos = cos.as<void>();
  p.sin = sin.as<void>();
  p.table_dtype = c.table_dtype;
  p.cos_batch = p.sin_batch = c.table_a_batch ? c.tokens * table_step : 0;
  p.cos_token = p.sin_token = table_step;
  p.batches = c.batches;
  p.tokens = c.tokens;
  p.heads = c.heads;
  p.head_size = c.head_size;
  p.r = c.r;
  p.interleaved = c.interleaved;
  p.out = got.as<void>();

  int count = 0;
  const auto& kernel = cpu::rope_kernels(&count)[0];
  for (int64_t b = 0; b < c.batches; ++b) {
    cpu::Rope r{};
    r.x = x.as<char>() + b * p.x_batch * size;
    r.x_dtype = c.dtype;
    r.x_token_bytes = p.x_token * size;
    r.x_head_bytes = p.x_head * size;
    r.cos = cos.as<char>() + b * p.cos_batch * table_size;
    r.sin = sin.as<char>() + b * p.sin_batch * table_size;
    r.table_dtype = c.table_dtype;
    r.cos_token_bytes = r.sin_token_bytes = table_step * table_size;
    r.tokens = c.tokens;
    r.heads = c.heads;
    r.head_size = c.head_size;
    r.r = c.r;
    r.interleaved = c.interleaved;
    r.out = want.as<char>() + b * (out_bytes / c.batches);
    kernel.run(r);
  }
  in_both_orders([&] {
    std::memset(got.as<void>(), 0xa5, size_t(out_bytes));
    CHECK(cuda::launch_rope(p, nullptr) == cudaSuccess);
    CHECK(same_elements(got.as<void>(), want.as<void>(), all * c.head_size, c.dtype));
    for (int64_t i = 0; i < all && c.r < c.head_size; ++i) {
      const int64_t at = (i * c.head_size + c.r) * size, rest = (c.head_size - c.r) * size;
      CHECK(std::memcmp(got.as<char>() + at, want.as<char>() + at, size_t(rest)) == 0);
    }
  });
}

}  // namespace

void test_cuda_rope() {
  const DType dtypes[][2] = {{DType::f32, DType::f32},
                             {DType::bf16, DType::bf16},
                             {DType::bf16, DType::f32},
                             {DType::f16, DType::f16},
                             {DType::f16, DType::f32}};
  for (const auto& dtype : dtypes) {
    const std::string name =
        std::to_string(int(dtype[0])) + " table " + std::to_string(int(dtype[1]));
    group("cuda rope dtype " + name, [&] {
      int turn = 0;
      for (const int64_t r : {0, 2, 6, 8, 16, 18, 32, 64, 80, 128}) {
        for (const int64_t rest : {0, 1, 16}) {
          if (r + rest == 0) continue;
          for (const bool interleaved : {false, true}) {
            for (const auto& [extra, more] : {std::pair{0, 0}, {16, 8}, {1, 1}, {0, 1}, {1, 0}}) {
              ++turn;
              check({dtype[0], dtype[1], 2, 3, 1 + turn % 3, r + rest, r, interleaved, turn % 4 < 2,
                     turn % 8 < 4, extra, more, turn % 3 == 0 ? Side::begin : Side::end});
            }
          }
        }
      }
      // More work in a token than a block has threads.
      check({dtype[0], dtype[1], 1, 2, 40, 128, 128, false, true, false, 0, 0, Side::end});
      check({dtype[0], dtype[1], 1, 2, 40, 129, 64, true, true, false, 0, 0, Side::end});
      check({dtype[0], dtype[1], 1, 0, 2, 16, 16, false, true, false, 0, 0, Side::end});
    });
  }
}

}  // namespace fastinfer::test
