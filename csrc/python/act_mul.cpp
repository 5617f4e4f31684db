// fastinfer._C: the family act_mul on numpy arrays.
#include "cpu/act_mul/act_mul.h"

#include <optional>

#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::array run_act_mul(const std::string& name, const py::array& x,
                      const std::optional<py::array>& other, int activation,
                      const std::string& dtype) {
  int count;
  const auto* all = act_mul_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  ActMul p{};
  p.dtype = parse_dtype(dtype);
  check_matrix("x", x, p.dtype, -1, -1);
  p.rows = x.shape(0);
  p.k = x.shape(1);
  p.x = x.data();
  p.ldx_bytes = p.other_ld_bytes = p.k * size_of(p.dtype);
  if (other) {
    check_matrix("other", *other, p.dtype, p.rows, p.k);
    p.other = other->data();
  }
  if (activation < 0 || activation >= kActivationCount) {
    throw py::value_error("activation: want 0 to " + std::to_string(kActivationCount - 1));
  }
  p.activation = Activation(activation);
  py::array y = new_array(p.dtype, {x.shape(0), x.shape(1)});
  p.y = y.mutable_data();
  {
    py::gil_scoped_release release;
    kernel.run(p);
  }
  return y;
}

}  // namespace

void bind_act_mul(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = act_mul_kernels(&count);
  list_kernels("act_mul", table, count, kernels);
  m.def("act_mul", &run_act_mul, py::arg("kernel"), py::arg("x"), py::arg("other") = py::none(),
        py::arg("activation") = 0, py::arg("dtype") = "f32",
        "Runs an act_mul kernel by name: x [M, K] (bf16, f16 as uint16 bits) -> [M, K].");
}

}  // namespace fastinfer::python
