// fastinfer::pack_w8, fastinfer::unpack_w8: int8 [N, K] <-> a packed layout of CPUs or of CUDA.
#include "cpu/gemm_s8s8s32/pack.h"

#include "cpu/huge_pages.h"
#include "cuda/gemm_s8s8s32/pack.h"
#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

Tensor pack_w8(const Tensor& w, const std::string& layout_name) {
  check_cpu("pack_w8", "w", w);
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Char, "pack_w8: w has dtype ",
                  dtype_text(w.scalar_type()), ", want int8");
  STD_TORCH_CHECK(w.dim() == 2, "pack_w8: w has shape ", shape_text(w), ", want [N, K]");
  STD_TORCH_CHECK(w.size(1) <= cpu::kMaxK, "pack_w8: w has K = ", w.size(1), ", want at most ",
                  cpu::kMaxK, " (int32 sums stay exact up to there)");
  const Tensor rows = torch::stable::contiguous(w);
  const int8_t* values = static_cast<const int8_t*>(rows.const_data_ptr());
  const int64_t n = w.size(0), k = w.size(1);
  if (layout_name == "cuda") {
    Tensor packed = empty({cuda::packed_offsets(n, k).bytes}, ScalarType::Byte);
    cuda::pack_w8(values, n, k, static_cast<uint8_t*>(packed.mutable_data_ptr()));
    return packed;
  }
  const bool cuda_sp24 = layout_name == "cuda_sp24";
  cpu::WeightLayout layout = cpu::WeightLayout::sp24;
  STD_TORCH_CHECK(cuda_sp24 || cpu::parse_weight_layout(layout_name.c_str(), &layout),
                  "pack_w8: layout is \"", layout_name,
                  "\", want dense, sp24, bitmask, bsr, cuda or cuda_sp24");
  int64_t row = 0, column = 0;
  const int64_t bytes = cpu::packed_bytes(values, n, k, layout, &row, &column);
  STD_TORCH_CHECK(bytes >= 0, "pack_w8: w keeps more than 2 of 4 weights in row ", row,
                  " from column ", column, " on, want 2 for the layout ", layout_name);
  if (cuda_sp24) {
    Tensor packed = empty({cuda::sp24_offsets(n, k).bytes}, ScalarType::Byte);
    cuda::pack_sp24(values, n, k, static_cast<uint8_t*>(packed.mutable_data_ptr()));
    return packed;
  }
  Tensor packed = empty({bytes}, ScalarType::Byte);
  // Written once, read at every call: worth huge pages at any size.
  cpu::advise_huge_pages(packed.mutable_data_ptr(), packed.numel());
  cpu::pack_w8(values, n, k, static_cast<uint8_t*>(packed.mutable_data_ptr()), layout);
  return packed;
}

Tensor unpack_w8(const Tensor& w_packed, int64_t n, int64_t k) {
  check_vector("unpack_w8", "w_packed", w_packed, ScalarType::Byte, -1);
  const void* bytes = w_packed.const_data_ptr();
  if (cuda::is_packed(bytes, w_packed.numel())) {
    STD_TORCH_CHECK(n >= 0 && k >= 0, "unpack_w8: n, k are ", n, ", ", k, ", want >= 0");
    Tensor w = empty({n, k}, ScalarType::Char);
    const char* wrong =
        cuda::unpack_w8(bytes, w_packed.numel(), n, k, static_cast<int8_t*>(w.mutable_data_ptr()));
    STD_TORCH_CHECK(wrong == nullptr, "unpack_w8: w_packed ", wrong);
    return w;
  }
  cpu::PackedWeight weight;
  const char* wrong = cpu::open_packed(bytes, w_packed.numel(), &weight);
  STD_TORCH_CHECK(wrong == nullptr, "unpack_w8: w_packed: ", wrong);
  STD_TORCH_CHECK(weight.n == n && weight.k == k, "unpack_w8: w_packed holds [", weight.n, ", ",
                  weight.k, "], want [n, k] = [", n, ", ", k, "]");
  Tensor w = empty({n, k}, ScalarType::Char);
  cpu::unpack_w8(weight, static_cast<int8_t*>(w.mutable_data_ptr()));
  return w;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("pack_w8", TORCH_BOX(&pack_w8));
  m.impl("unpack_w8", TORCH_BOX(&unpack_w8));
}

}  // namespace fastinfer::ops
