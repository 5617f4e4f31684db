// fastinfer._C: the family norm on numpy arrays.
#include "cpu/norm/norm.h"

#include "python/bind.h"

namespace fastinfer::python {
namespace {

NormKind parse_kind(const std::string& name) {
  if (name == "layer") return NormKind::layer;
  if (name == "rms") return NormKind::rms;
  throw py::value_error("kind: got \"" + name + "\", want layer or rms");
}

const float* check_parameter(const char* name, const std::optional<Array<float>>& a, int64_t k) {
  if (!a) return nullptr;
  if (a->ndim() != 1 || a->shape(0) != k) {
    throw py::value_error(std::string(name) + ": want a vector of the length of a row of x");
  }
  return a->data();
}

py::tuple run_norm(const std::string& name, const py::array& x, const std::string& kind,
                   const std::optional<Array<float>>& weight,
                   const std::optional<Array<float>>& bias, float eps,
                   const std::optional<py::array>& residual, const std::string& dtype) {
  int count;
  const auto* all = norm_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  Norm p{};
  p.kind = parse_kind(kind);
  p.dtype = parse_dtype(dtype);
  if (p.dtype == DType::s32) throw py::value_error("dtype: got \"s32\", want f32, bf16 or f16");
  check_matrix("x", x, p.dtype, -1, -1);
  p.rows = x.shape(0);
  p.k = x.shape(1);
  p.x = x.data();
  p.ldx_bytes = p.residual_ld_bytes = p.k * size_of(p.dtype);
  p.weight = check_parameter("weight", weight, p.k);
  p.bias = check_parameter("bias", bias, p.k);
  p.eps = eps;
  py::array sum = new_array(p.dtype, {residual ? p.rows : 0, p.k});
  py::array y = new_array(p.dtype, {p.rows, p.k});
  if (residual) {
    check_matrix("residual", *residual, p.dtype, p.rows, p.k);
    p.residual = residual->data();
    p.sum = sum.mutable_data();
  }
  Array<int8_t> q({p.rows, p.k});
  Array<float> scale(p.rows), offset(p.rows);
  p.y = y.mutable_data();
  p.q = q.mutable_data();
  p.scale = scale.mutable_data();
  p.offset = offset.mutable_data();
  const Buffer scratch = allocate(norm_scratch_floats(p.k) * int64_t(sizeof(float)));
  p.scratch = static_cast<float*>(scratch.get());
  {
    py::gil_scoped_release release;
    kernel.run(p);
  }
  return py::make_tuple(sum, y, q, scale, offset);
}

}  // namespace

void bind_norm(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = norm_kernels(&count);
  list_kernels("norm", table, count, kernels);
  m.def("norm", &run_norm, py::arg("kernel"), py::arg("x"), py::arg("kind"),
        py::arg("weight") = py::none(), py::arg("bias") = py::none(), py::arg("eps") = 1e-5f,
        py::arg("residual") = py::none(), py::arg("dtype") = "f32",
        "Runs a norm kernel by name: kind \"layer\" or \"rms\", x and residual [M, K] (bf16, f16 "
        "as uint16 bits) -> sum ([0, K] without a residual), y, int8 q, float32 scales, offsets.");
}

}  // namespace fastinfer::python
