// fastinfer::quantize_rowwise: float [..., K] -> int8 [..., K] and one float32 scale a row [...].
#include "cpu/quantize_rowwise/quantize_rowwise.h"

#include <algorithm>
#include <tuple>

#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

std::tuple<Tensor, Tensor> quantize_rowwise(const Tensor& x) {
  check_cpu("quantize_rowwise", "x", x);
  const cpu::DType dtype = check_float("quantize_rowwise", "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() >= 1, "quantize_rowwise: x has shape [], want [..., K]");
  const std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  Tensor q = empty(shape, ScalarType::Char);
  Tensor scale = empty({shape.begin(), shape.end() - 1}, ScalarType::Float);
  const Rows rows(x);

  cpu::QuantizeRowwise all{};
  all.x = rows.data;
  all.x_dtype = dtype;
  all.ldx_bytes = rows.ld_bytes;
  all.k = all.k_store = shape.back();
  all.tile_rows = 1;
  all.q = static_cast<int8_t*>(q.mutable_data_ptr());
  all.scale = static_cast<float*>(scale.mutable_data_ptr());
  const auto& kernel = cpu::select_quantize_rowwise();
  constexpr int64_t kGrainElements = 1 << 15;  // about 5 us of work, as much as starting a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, all.k));
  torch::stable::parallel_for(0, rows.m, grain, [&](int64_t begin, int64_t end) {
    cpu::QuantizeRowwise part = all;
    part.x = static_cast<const char*>(all.x) + begin * all.ldx_bytes;
    part.q = all.q + begin * all.k;
    part.scale = all.scale + begin;
    part.rows = end - begin;
    kernel.run(part);
  });
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) {
  m.impl("quantize_rowwise", TORCH_BOX(&quantize_rowwise));
}

}  // namespace fastinfer::ops
