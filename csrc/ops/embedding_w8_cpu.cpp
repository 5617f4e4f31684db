// fastinfer::embedding_w8: rows of a packed int8 weight, by their numbers. Kernel: cpu/embedding.
#include "cpu/embedding/embedding.h"

#include <algorithm>
#include <cstring>

#include "ops/tensor.h"

namespace fastinfer::ops {
namespace {

constexpr const char* kOp = "embedding_w8";

// A contiguous vector at any byte.
template <class T>
class Vector {
 public:
  explicit Vector(const Tensor& t) : data_(static_cast<const char*>(t.const_data_ptr())) {}

  T operator[](int64_t i) const {
    T value;
    std::memcpy(&value, data_ + i * int64_t(sizeof value), sizeof value);
    return value;
  }

 private:
  const char* data_;
};

template <class T>
void look_up(Vector<T> ids, int64_t count, const cpu::PackedWeight& w, Vector<float> scale,
             cpu::DType dtype, char* out) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < w.n, kOp, ": ids holds ", ids[i],
                    ", want 0 or more and less than N = ", w.n);
  }
  const int64_t row_bytes = w.k * cpu::size_of(dtype);
  constexpr int64_t kGrainElements = 1 << 14;  // about as long as it takes to start a thread
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, w.k));
  parallel_rows(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      cpu::embedding_row(w, ids[i], scale[ids[i]], out + i * row_bytes, dtype);
    }
  });
}

Tensor embedding_w8(const Tensor& ids, const Tensor& w_packed, const Tensor& w_scale, int64_t k,
                    const std::optional<ScalarType>& out_dtype) {
  check_cpu(kOp, "ids", ids);
  const ScalarType id_type = ids.scalar_type();
  STD_TORCH_CHECK(id_type == ScalarType::Int || id_type == ScalarType::Long, kOp,
                  ": ids has dtype ", dtype_text(id_type), ", want int32 or int64");
  check_vector(kOp, "w_packed", w_packed, ScalarType::Byte, -1);
  cpu::PackedWeight w;
  const char* wrong = cpu::open_packed(w_packed.const_data_ptr(), w_packed.numel(), &w);
  STD_TORCH_CHECK(wrong == nullptr, kOp, ": w_packed: ", wrong);
  STD_TORCH_CHECK(w.layout == cpu::WeightLayout::dense, kOp, ": w_packed has the layout ",
                  cpu::weight_layout_name(w.layout), ", want dense");
  STD_TORCH_CHECK(w.k == k, kOp, ": w_packed has K = ", w.k, ", want k = ", k);
  check_vector(kOp, "w_scale", w_scale, ScalarType::Float, w.n);
  const ScalarType out_type = out_dtype.value_or(ScalarType::Float);
  const cpu::DType dtype = check_float(kOp, "out_dtype", out_type);

  const Tensor plain = torch::stable::contiguous(ids);
  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.push_back(k);
  Tensor out = empty_output(shape, out_type);
  auto* out_data = static_cast<char*>(out.mutable_data_ptr());
  const Vector<float> scale(w_scale);
  if (id_type == ScalarType::Int) {
    look_up(Vector<int32_t>(plain), plain.numel(), w, scale, dtype, out_data);
  } else {
    look_up(Vector<int64_t>(plain), plain.numel(), w, scale, dtype, out_data);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinfer, CPU, m) { m.impl("embedding_w8", TORCH_BOX(&embedding_w8)); }

}  // namespace fastinfer::ops
