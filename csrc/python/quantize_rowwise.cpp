// fastinfer._C: the family quantize_rowwise on numpy arrays.
#include "cpu/quantize_rowwise/quantize_rowwise.h"

#include <cmath>

#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::tuple run_quantize_rowwise(const std::string& name, const py::array& x,
                               const std::string& dtype, bool symmetric, float static_scale,
                               float static_offset) {
  int count;
  const auto* all = quantize_rowwise_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  QuantizeRowwise p{};
  p.x_dtype = parse_dtype(dtype);
  check_matrix("x", x, p.x_dtype, -1, -1);
  p.rows = x.shape(0);
  p.k = p.k_store = x.shape(1);
  p.ldx_bytes = p.k * size_of(p.x_dtype);
  p.x = x.data();
  p.tile_rows = 1;
  Array<int8_t> q({p.rows, p.k});
  Array<float> scale(p.rows);
  p.q = q.mutable_data();
  p.scale = scale.mutable_data();
  Array<float> offset(symmetric ? 0 : p.rows);
  if (!symmetric) p.offset = offset.mutable_data();
  if (static_scale != 0.0f && !(static_scale >= 0x1p-126f && std::isfinite(static_scale))) {
    throw py::value_error("static_scale: want a finite number >= 2^-126, or 0");
  }
  if (!std::isfinite(static_offset)) throw py::value_error("static_offset: want a finite number");
  p.static_scale = static_scale;
  p.static_offset = static_offset;
  {
    py::gil_scoped_release release;
    kernel.run(p);
  }
  if (symmetric) return py::make_tuple(q, scale);
  return py::make_tuple(q, scale, offset);
}

}  // namespace

void bind_quantize_rowwise(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = quantize_rowwise_kernels(&count);
  list_kernels("quantize_rowwise", table, count, kernels);
  m.def("quantize_rowwise", &run_quantize_rowwise, py::arg("kernel"), py::arg("x"),
        py::arg("dtype") = "f32", py::arg("symmetric") = true, py::arg("static_scale") = 0.0f,
        py::arg("static_offset") = 0.0f,
        "Runs a quantize_rowwise kernel by name: x [M, K] (bf16, f16 as uint16 bits) -> int8 "
        "[M, K], float32 scales [M], and unless symmetric float32 offsets [M]. static_scale 0: "
        "dynamic.");
}

}  // namespace fastinfer::python
