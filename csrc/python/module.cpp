// fastinfer._C: the native library as Python sees it without torch: CPU features, the ISA in use,
// every kernel by name on numpy arrays, and what selection takes for a shape.
#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::list isas() {
  py::list rows;
  for (int i = 0; i < kIsaCount; ++i) {
    rows.append(py::dict("name"_a = isa_name(Isa(i)), "supported"_a = isa_supported(Isa(i)),
                         "allowed"_a = isa_allowed(Isa(i)), "reason"_a = isa_reason(Isa(i))));
  }
  return rows;
}

void force_isa(const std::string& name) {
  if (!set_isa_cap(name.c_str())) {
    throw py::value_error("isa: got \"" + name + "\", want one of " + isa_known_names() +
                          ", or \"\" for no cap");
  }
}

}  // namespace
}  // namespace fastinfer::python

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace fastinfer::python;
  if (*isa_env_error() != '\0') throw py::value_error(isa_env_error());
  m.doc() = "The native library of fastinfer: CPU features, kernels by name, selection.";
  m.def("isas", &isas, "Every instruction set: name, supported, allowed under the cap, reason.");
  m.def("isa_in_use", [] { return isa_name(isa_in_use()); }, "The best ISA selection may use.");
  m.def("isa_cap", [] { return isa_cap(); }, "The cap in force (FASTINFER_ISA), \"\" if none.");
  m.def("force_isa", &force_isa, py::arg("name"), "Caps selection at an ISA; \"\" lifts the cap.");
  py::list kernels;
  bind_act_mul(m, kernels);
  bind_attention(m, kernels);
  bind_gemm_f32s8f32(m, kernels);
  bind_gemm_s8s8s32(m, kernels);
  bind_norm(m, kernels);
  bind_quantize_rowwise(m, kernels);
  bind_rope(m, kernels);
  bind_sparse(m, kernels);
  bind_places(m);
  bind_signature(m);
  m.def(
      "kernels", [rows = py::tuple(kernels)] { return py::list(rows); },
      "Every kernel of this architecture, one dict each.");
  m.def(
      "build_info",
      [] {
        return py::dict("compiler"_a = FASTINFER_COMPILER, "build_type"_a = FASTINFER_BUILD_TYPE,
                        "sanitize"_a = FASTINFER_SANITIZE);
      },
      "Compiler, build type and sanitizers of the native library.");
}
