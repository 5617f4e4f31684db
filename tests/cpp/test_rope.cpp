// Every row of rope/kernels.inc that runs here against the formula of rope.h written a second time,
// bit for bit, on guarded buffers.
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/rope/rope.h"
#include "cpu/vec/scalar.h"
#include "guard.h"
#include "reference.h"

namespace fastinfer::test {

using namespace cpu;

namespace {

struct Case {
  DType dtype, table_dtype;
  int64_t tokens, heads, head_size, r;
  bool interleaved;
  Side side;
  bool token_major;  // x as [tokens][heads][head_size + 1], else as [heads][tokens][head_size + 1]
};

// A NaN, an infinity and the largest finite number among ordinary ones.
void poison(Random& random, std::vector<uint8_t>& bytes, DType dtype) {
  const uint32_t wide[] = {0x7fc00001u, 0xff800000u, 0x7f7fffffu};
  const uint16_t bf16[] = {0x7fc1, 0xff80, 0x7f7f}, f16[] = {0x7e01, 0xfc00, 0x7bff};
  const int64_t size = size_of(dtype), n = int64_t(bytes.size()) / size;
  for (int i = 0; i < 3 && n > 8; ++i) {
    const void* from = dtype == DType::f32    ? static_cast<const void*>(&wide[i])
                       : dtype == DType::bf16 ? static_cast<const void*>(&bf16[i])
                                              : &f16[i];
    std::memcpy(&bytes[size_t(random.below(n) * size)], from, size_t(size));
  }
}

void check_case(const RopeKernel& kernel, const Case& c) {
  results().context =
      std::string(kernel.name) + " dtype=" + std::to_string(int(c.dtype)) +
      " table=" + std::to_string(int(c.table_dtype)) + " tokens=" + std::to_string(c.tokens) +
      " heads=" + std::to_string(c.heads) + " head_size=" + std::to_string(c.head_size) +
      " r=" + std::to_string(c.r) + (c.interleaved ? " interleaved" : " halves") +
      (c.side == Side::end ? " end" : " begin") + (c.token_major ? " tokens" : " heads");
  const int64_t size = size_of(c.dtype), table_size = size_of(c.table_dtype);
  Random random(uint64_t(c.head_size * 7919 + c.r));
  // Rows of x one element apart, but none after the last: it touches the guard page.
  const int64_t step = c.head_size + 1;
  auto values = random_elements(random, c.tokens * c.heads * step - 1, c.dtype);
  poison(random, values, c.dtype);
  const auto cosines = random_elements(random, c.tokens * c.r, c.table_dtype);
  const auto sines = random_elements(random, c.tokens * c.r, c.table_dtype);
  const Guarded x(values.data(), int64_t(values.size()), c.side);
  const Guarded cos(cosines.data(), int64_t(cosines.size()), c.side);
  const Guarded sin(sines.data(), int64_t(sines.size()), c.side);
  const Guarded out(c.tokens * c.heads * c.head_size * size, c.side);
  Rope p{};
  p.x = x.as<char>();
  p.x_dtype = c.dtype;
  p.x_token_bytes = (c.token_major ? c.heads : 1) * step * size;
  p.x_head_bytes = (c.token_major ? 1 : c.tokens) * step * size;
  p.cos = cos.as<char>();
  p.sin = sin.as<char>();
  p.table_dtype = c.table_dtype;
  p.cos_token_bytes = p.sin_token_bytes = c.r * table_size;
  p.tokens = c.tokens;
  p.heads = c.heads;
  p.head_size = c.head_size;
  p.r = c.r;
  p.interleaved = c.interleaved;
  p.out = out.as<char>();
  kernel.run(p);

  std::vector<uint8_t> want(size_t(out.bytes()));
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const char* from = x.as<char>() + t * p.x_token_bytes + h * p.x_head_bytes;
      uint8_t* to = &want[size_t((t * c.heads + h) * c.head_size * size)];
      std::memcpy(to, from, size_t(c.head_size * size));
      for (int64_t pair = 0; pair < c.r / 2; ++pair) {
        const int64_t i = c.interleaved ? 2 * pair : pair;
        const int64_t j = c.interleaved ? 2 * pair + 1 : pair + c.r / 2;
        // A product or sum of two floats that is rounded to double and then to float is rounded as
        // if once (Figueroa, 1995: 53 >= 2 * 24 + 2).
        const auto product = [&](int64_t d, const Guarded& table, int64_t at) {
          return double(
              float(element(from + d * size, c.dtype) *
                    element(table.as<char>() + (t * c.r + at) * table_size, c.table_dtype)));
        };
        ScalarVec::store(to + i * size, c.dtype, float(product(i, cos, i) - product(j, sin, i)));
        ScalarVec::store(to + j * size, c.dtype, float(product(j, cos, j) + product(i, sin, j)));
      }
    }
  }
  CHECK(same_elements(out.as<char>(), want.data(), c.tokens * c.heads * c.head_size, c.dtype));
}

}  // namespace

void test_rope() {
  int count;
  const RopeKernel* kernels = rope_kernels(&count);
  const DType dtypes[][2] = {{DType::f32, DType::f32},
                             {DType::bf16, DType::bf16},
                             {DType::bf16, DType::f32},
                             {DType::f16, DType::f16},
                             {DType::f16, DType::f32}};
  for (int i = 0; i < count; ++i) {
    const RopeKernel& kernel = kernels[i];
    if (!isa_allowed(kernel.isa)) {
      std::printf("row %s %s skipped: %s\n", kernel.name, isa_name(kernel.isa),
                  isa_supported(kernel.isa) ? "above the cap" : isa_reason(kernel.isa));
      continue;
    }
    group(kernel.name, [&] {
      for (const auto& dtype : dtypes) {
        for (int64_t r : {0, 2, 4, 6, 8, 14, 16, 18, 30, 32, 34, 62, 64, 66, 128}) {
          for (int64_t rest : {0, 1, 16}) {
            if (r + rest == 0) continue;
            for (int turn = 0; turn < 8; ++turn) {
              const int64_t tokens = 1 + turn / 4, heads = 1 + turn / 4 * 2;
              check_case(kernel, {dtype[0], dtype[1], tokens, heads, r + rest, r, turn % 2 == 1,
                                  Side::end, turn / 2 % 2 == 1});
              check_case(kernel, {dtype[0], dtype[1], tokens, heads, r + rest, r, turn % 2 == 1,
                                  Side::begin, turn / 2 % 2 == 1});
            }
          }
        }
      }
    });
    std::printf("row %s %s ran\n", kernel.name, isa_name(kernel.isa));
  }
}

}  // namespace fastinfer::test
