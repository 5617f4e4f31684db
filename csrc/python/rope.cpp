// fastinfer._C: the family rope on numpy arrays.
#include "cpu/rope/rope.h"

#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::array run_rope(const std::string& name, const py::array& x, const py::array& cos,
                   const py::array& sin, int64_t heads, bool interleaved, const std::string& dtype,
                   const std::string& table_dtype) {
  int count;
  const auto* all = rope_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  Rope p{};
  p.x_dtype = parse_dtype(dtype);
  p.table_dtype = parse_dtype(table_dtype);
  if (p.table_dtype != DType::f32 && p.table_dtype != p.x_dtype) {
    throw py::value_error("table_dtype: got \"" + table_dtype + "\", want f32 or that of x");
  }
  check_matrix("x", x, p.x_dtype, -1, -1);
  check_matrix("cos", cos, p.table_dtype, -1, -1);
  p.tokens = x.shape(0);
  if (heads < 1 || x.shape(1) % heads != 0) {
    throw py::value_error("heads: want a divisor of the columns of x");
  }
  p.heads = heads;
  p.head_size = x.shape(1) / heads;
  p.r = cos.shape(1);
  if (cos.shape(0) != p.tokens || p.r % 2 != 0 || p.r > p.head_size) {
    throw py::value_error("cos: want [tokens, R] with an even R, at most the size of a head");
  }
  check_matrix("sin", sin, p.table_dtype, p.tokens, p.r);
  p.x = x.data();
  p.x_head_bytes = p.head_size * size_of(p.x_dtype);
  p.x_token_bytes = heads * p.x_head_bytes;
  p.cos = cos.data();
  p.sin = sin.data();
  p.cos_token_bytes = p.sin_token_bytes = p.r * size_of(p.table_dtype);
  p.interleaved = interleaved;
  py::array out = new_array(p.x_dtype, {x.shape(0), x.shape(1)});
  p.out = out.mutable_data();
  {
    py::gil_scoped_release release;
    kernel.run(p);
  }
  return out;
}

}  // namespace

void bind_rope(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = rope_kernels(&count);
  list_kernels("rope", table, count, kernels);
  m.def("rope", &run_rope, py::arg("kernel"), py::arg("x"), py::arg("cos"), py::arg("sin"),
        py::arg("heads"), py::arg("interleaved") = false, py::arg("dtype") = "f32",
        py::arg("table_dtype") = "f32",
        "Runs a rope kernel by name: x [T, heads * D], cos and sin [T, R] (bf16, f16 as uint16 "
        "bits) -> [T, heads * D].");
}

}  // namespace fastinfer::python
