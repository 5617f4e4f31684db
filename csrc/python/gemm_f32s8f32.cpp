// fastinfer._C: the family gemm_f32s8f32 on numpy arrays.
#include "cpu/gemm_f32s8f32/gemm_f32s8f32.h"

#include "cpu/gemm_s8s8s32/pack.h"
#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::array run_gemm_f32s8f32(const std::string& name, const py::array& x, const Array<int8_t>& w,
                            const Array<float>& w_scale, const std::optional<Array<float>>& bias,
                            int activation, const std::optional<py::array>& residual,
                            const std::string& dtype, const std::string& out_dtype) {
  int count;
  const auto* all = gemm_f32s8f32_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  GemmF32S8F32 p{};
  p.x_dtype = parse_dtype(dtype);
  p.out_dtype = parse_dtype(out_dtype);
  if (p.x_dtype == DType::s32 || p.out_dtype == DType::s32) {
    throw py::value_error("dtype, out_dtype: want f32, bf16 or f16");
  }
  check_matrix("x", x, p.x_dtype, -1, -1);
  if (w.ndim() != 2 || x.shape(1) != w.shape(1) || w.shape(1) > kMaxK) {
    throw py::value_error("x, w: want [M, K] and int8 [N, K] with K <= 131071");
  }
  p.m = x.shape(0);
  p.n = w.shape(0);
  p.k = w.shape(1);
  if (w_scale.size() != p.n || (bias && bias->size() != p.n)) {
    throw py::value_error("w_scale, bias: want [N]");
  }
  if (activation < 0 || activation >= kActivationCount) {
    throw py::value_error("activation: want 0 to " + std::to_string(kActivationCount - 1));
  }
  const Buffer packed = allocate(packed_bytes(p.n, p.k));
  pack_w8(w.data(), p.n, p.k, static_cast<uint8_t*>(packed.get()));
  PackedWeight weight;
  open_packed(packed.get(), packed_bytes(p.n, p.k), &weight);
  const Buffer scratch = allocate(gemm_f32s8f32_scratch_bytes(p.m, p.k));

  p.x = x.data();
  p.ldx_bytes = p.k * size_of(p.x_dtype);
  p.panels = weight.panels;
  p.b_scale = w_scale.data();
  p.bias = bias ? bias->data() : nullptr;
  p.activation = Activation(activation);
  p.out_ld_bytes = p.residual_ld_bytes = p.n * size_of(p.out_dtype);
  py::array out = new_array(p.out_dtype, {p.m, p.n});
  if (residual) {
    check_matrix("residual", *residual, p.out_dtype, p.m, p.n);
    p.residual = residual->data();
  }
  p.out = out.mutable_data();
  p.scratch = scratch.get();
  {
    py::gil_scoped_release release;
    if (p.m > 0 && p.n > 0) kernel.run(p);
  }
  return out;
}

}  // namespace

void bind_gemm_f32s8f32(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = gemm_f32s8f32_kernels(&count);
  for (int i = 0; i < count; ++i) {
    kernels.append(py::dict("name"_a = table[i].name, "family"_a = "gemm_f32s8f32",
                            "isa"_a = isa_name(table[i].isa), "mr"_a = table[i].mr,
                            "nr"_a = table[i].nr, "supported"_a = isa_supported(table[i].isa)));
  }
  m.def("gemm_f32s8f32", &run_gemm_f32s8f32, py::arg("kernel"), py::arg("x"), py::arg("w"),
        py::arg("w_scale"), py::arg("bias") = py::none(), py::arg("activation") = 0,
        py::arg("residual") = py::none(), py::arg("dtype") = "f32", py::arg("out_dtype") = "f32",
        "Runs a gemm_f32s8f32 kernel by name: float x [M, K], int8 w [N, K] -> [M, N].");
}

}  // namespace fastinfer::python
