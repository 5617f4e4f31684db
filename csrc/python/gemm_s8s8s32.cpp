// fastinfer._C: the family gemm_s8s8s32 on numpy arrays, and what selection takes for a shape.
#include <algorithm>
#include <optional>

#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "python/bind.h"

namespace fastinfer::python {
namespace {

py::array run_gemm_s8s8s32(const std::string& name, const Array<int8_t>& a, const Array<int8_t>& w,
                           const Array<float>& a_scale, const Array<float>& w_scale,
                           const std::optional<Array<float>>& bias, int activation,
                           const std::optional<py::array>& residual, const std::string& out_dtype,
                           const std::optional<Array<float>>& a_offset,
                           const std::optional<Array<float>>& multiplier) {
  int count;
  const auto* all = gemm_s8s8s32_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  if (a.ndim() != 2 || w.ndim() != 2 || a.shape(1) != w.shape(1) || w.shape(1) > kMaxK) {
    throw py::value_error("a, w: want int8 [M, K] and [N, K] with K <= 131071");
  }
  const int64_t m = a.shape(0), n = w.shape(0), k = a.shape(1);
  if (a_scale.size() != m || w_scale.size() != n || (bias && bias->size() != n) ||
      (a_offset && a_offset->size() != m)) {
    throw py::value_error("a_scale, w_scale, bias, a_offset: want [M], [N], [N], [M]");
  }
  if (activation < 0 || activation >= kActivationCount) {
    throw py::value_error("activation: want 0 to " + std::to_string(kActivationCount - 1));
  }
  const Buffer packed = allocate(packed_bytes(n, k));
  pack_w8(w.data(), n, k, static_cast<uint8_t*>(packed.get()));
  PackedWeight weight;
  open_packed(packed.get(), packed_bytes(n, k), &weight);
  const Buffer rows = layout_a(kernel.tile_rows, kernel.flip, a.data(), m, k);

  GemmS8S8S32 p{};
  p.m = m;
  p.n = n;
  p.k_pad = weight.k_pad;
  p.a = static_cast<const int8_t*>(rows.get());
  Buffer prepared;
  if (kernel.prepare.run != nullptr && m > 0) {
    prepared = allocate(kernel.prepare.bytes(m, p.k_pad));
    kernel.prepare.run(p.a, m, p.k_pad, prepared.get());
    p.prepared = prepared.get();
    p.prepared_rows = m;
  }
  const std::vector<float> zeros(a_offset ? 0 : size_t(m));
  p.a_scale = a_scale.data();
  p.a_offset = a_offset ? a_offset->data() : zeros.data();
  p.panels = weight.panels;
  p.compensation = weight.compensation;
  p.b_scale = w_scale.data();
  p.bias = bias ? bias->data() : nullptr;
  p.activation = Activation(activation);
  p.zen4 = is_zen4();
  p.out_dtype = parse_dtype(out_dtype);
  p.out_ld_bytes = p.residual_ld_bytes = n * size_of(p.out_dtype);
  py::array out = new_array(p.out_dtype, {m, n});
  if (residual) {
    check_matrix("residual", *residual, p.out_dtype, m, n);
    p.residual = residual->data();
  }
  if (multiplier) {
    check_matrix("multiplier", *multiplier, DType::f32, m, n);
    p.multiplier = multiplier->data();
    p.multiplier_ld_bytes = n * int64_t(sizeof(float));
  }
  p.out = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (m > 0 && n > 0) kernel.run(p);
  }
  return out;
}

py::dict select_kernels(int64_t m, int64_t n, int64_t k, int threads) {
  if (m < 0 || n < 0 || k < 0 || threads < 1) {
    throw py::value_error("m, n, k: want >= 0; threads: want >= 1");
  }
  const LinearPlan plan = plan_linear(m, round_up(n, kPanelColumns), round_up(k, kBlockK), threads);
  return py::dict("gemm"_a = plan.gemm->name, "quantize"_a = plan.quantize->name, "mc"_a = plan.mc,
                  "tasks_m"_a = plan.tasks_m, "tasks_n"_a = plan.tasks_n);
}

}  // namespace

void bind_gemm_s8s8s32(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = gemm_s8s8s32_kernels(&count);
  for (int i = 0; i < count; ++i) {
    kernels.append(py::dict("name"_a = table[i].name, "family"_a = "gemm_s8s8s32",
                            "isa"_a = isa_name(table[i].isa), "mr"_a = table[i].mr,
                            "nr"_a = table[i].nr, "kr"_a = table[i].kr,
                            "supported"_a = isa_supported(table[i].isa)));
  }
  m.def("select", &select_kernels, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("threads") = 1,
        "What linear_w8a8 takes for a shape: kernels, cache block, grid of tasks.");
  m.def("gemm_s8s8s32", &run_gemm_s8s8s32, py::arg("kernel"), py::arg("a"), py::arg("w"),
        py::arg("a_scale"), py::arg("w_scale"), py::arg("bias") = py::none(),
        py::arg("activation") = 0, py::arg("residual") = py::none(), py::arg("out_dtype") = "f32",
        py::arg("a_offset") = py::none(), py::arg("multiplier") = py::none(),
        "Runs a gemm_s8s8s32 kernel by name: int8 a [M, K], w [N, K] -> [M, N] (s32: the sums).");
}

}  // namespace fastinfer::python
