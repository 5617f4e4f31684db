// fastinfer._C: the native library as Python sees it without torch: CPU features, the ISA in use,
// every kernel by name on numpy arrays, and what selection takes for a shape.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "cpu/arch.h"
#include "cpu/gemm_s8s8s32/heuristics.h"
#include "cpu/gemm_s8s8s32/pack.h"
#include "cpu/quantize_rowwise/quantize_rowwise.h"

namespace py = pybind11;
using namespace py::literals;
using namespace fastinfer::cpu;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

DType parse_dtype(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "f16") return DType::f16;
  if (name == "s32") return DType::s32;
  throw py::value_error("dtype: got \"" + name + "\", want f32, bf16, f16 or s32");
}

// numpy has no bfloat16: bf16 travels as uint16, and so does f16.
py::array new_array(DType dtype, std::vector<py::ssize_t> shape) {
  if (dtype == DType::f32) return py::array_t<float>(shape);
  if (dtype == DType::s32) return py::array_t<int32_t>(shape);
  return py::array_t<uint16_t>(shape);
}

void check_matrix(const char* name, const py::array& a, DType dtype, py::ssize_t rows,
                  py::ssize_t columns) {
  const py::dtype want = dtype == DType::f32   ? py::dtype::of<float>()
                         : dtype == DType::s32 ? py::dtype::of<int32_t>()
                                               : py::dtype::of<uint16_t>();
  if (!a.dtype().is(want) || a.ndim() != 2 || !(a.flags() & py::array::c_style) ||
      (rows >= 0 && (a.shape(0) != rows || a.shape(1) != columns))) {
    throw py::value_error(std::string(name) + ": want a C-contiguous matrix of " +
                          std::string(py::str(want)) +
                          (rows < 0 ? "" : " of the shape of the output"));
  }
}

template <class Kernel>
const Kernel& find_kernel(const Kernel* kernels, int count, const std::string& name) {
  for (int i = 0; i < count; ++i) {
    if (name != kernels[i].name) continue;
    if (isa_supported(kernels[i].isa)) return kernels[i];
    throw py::value_error("kernel " + name + " cannot run here: " + isa_reason(kernels[i].isa));
  }
  throw py::value_error("kernel: got \"" + name + "\", which is not among kernels()");
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer allocate(int64_t bytes) {
  Buffer buffer(std::aligned_alloc(64, size_t(round_up(bytes + 1, 64))));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

py::list kernels() {
  py::list rows;
  int count;
  const auto* gemm = gemm_s8s8s32_kernels(&count);
  for (int i = 0; i < count; ++i) {
    rows.append(py::dict("name"_a = gemm[i].name, "family"_a = "gemm_s8s8s32",
                         "isa"_a = isa_name(gemm[i].isa), "mr"_a = gemm[i].mr, "nr"_a = gemm[i].nr,
                         "kr"_a = gemm[i].kr, "supported"_a = isa_supported(gemm[i].isa)));
  }
  const auto* quantize = quantize_rowwise_kernels(&count);
  for (int i = 0; i < count; ++i) {
    rows.append(py::dict("name"_a = quantize[i].name, "family"_a = "quantize_rowwise",
                         "isa"_a = isa_name(quantize[i].isa),
                         "supported"_a = isa_supported(quantize[i].isa)));
  }
  return rows;
}

py::tuple run_quantize_rowwise(const std::string& name, const py::array& x,
                               const std::string& dtype, bool symmetric) {
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
  {
    py::gil_scoped_release release;
    kernel.run(p);
  }
  if (symmetric) return py::make_tuple(q, scale);
  return py::make_tuple(q, scale, offset);
}

// The A operand of `kernel` from plain int8 rows: the layout of quantize_rowwise.h.
Buffer layout_a(const GemmS8S8S32Kernel& kernel, const int8_t* a, int64_t m, int64_t k) {
  const int64_t k_pad = round_up(k, kBlockK);
  Buffer buffer = allocate(m * k_pad);
  uint8_t* q = static_cast<uint8_t*>(buffer.get());
  for (int64_t row = 0; row < m; ++row) {
    const int64_t first = row / kernel.tile_rows * kernel.tile_rows;
    const int64_t block_rows = std::min(kernel.tile_rows, m - first);
    for (int64_t i = 0; i < k_pad; ++i) {
      const int8_t v = i < k ? a[row * k + i] : int8_t(0);
      q[first * k_pad + i / 64 * block_rows * 64 + (row - first) * 64 + i % 64] =
          uint8_t(v) ^ kernel.flip;
    }
  }
  return buffer;
}

py::array run_gemm_s8s8s32(const std::string& name, const Array<int8_t>& a, const Array<int8_t>& w,
                           const Array<float>& a_scale, const Array<float>& w_scale,
                           const std::optional<Array<float>>& bias, int activation,
                           const std::optional<py::array>& residual, const std::string& out_dtype,
                           const std::optional<Array<float>>& a_offset) {
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
  const Buffer rows = layout_a(kernel, a.data(), m, k);

  GemmS8S8S32 p{};
  p.m = m;
  p.n_end = n;
  p.k_pad = weight.k_pad;
  p.a = static_cast<const int8_t*>(rows.get());
  const std::vector<float> zeros(a_offset ? 0 : size_t(m));
  p.a_scale = a_scale.data();
  p.a_offset = a_offset ? a_offset->data() : zeros.data();
  p.panels = weight.panels;
  p.compensation = weight.compensation;
  p.b_scale = w_scale.data();
  p.bias = bias ? bias->data() : nullptr;
  p.activation = Activation(activation);
  p.out_dtype = parse_dtype(out_dtype);
  p.out_ld_bytes = p.residual_ld_bytes = n * size_of(p.out_dtype);
  py::array out = new_array(p.out_dtype, {m, n});
  if (residual) {
    check_matrix("residual", *residual, p.out_dtype, m, n);
    p.residual = residual->data();
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
  const LinearPlan plan = plan_linear(m, n, round_up(k, kBlockK), threads);
  return py::dict("gemm"_a = plan.gemm->name, "quantize"_a = plan.quantize->name, "mc"_a = plan.mc,
                  "tasks_m"_a = plan.tasks_m, "tasks_n"_a = plan.tasks_n);
}

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

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  if (*isa_env_error() != '\0') throw py::value_error(isa_env_error());
  m.doc() = "The native library of fastinfer: CPU features, kernels by name, selection.";
  m.def("isas", &isas, "Every instruction set: name, supported, allowed under the cap, reason.");
  m.def("isa_in_use", [] { return isa_name(isa_in_use()); }, "The best ISA selection may use.");
  m.def("isa_cap", [] { return isa_cap(); }, "The cap in force (FASTINFER_ISA), \"\" if none.");
  m.def("force_isa", &force_isa, py::arg("name"), "Caps selection at an ISA; \"\" lifts the cap.");
  m.def("kernels", &kernels, "Every kernel of this architecture, one dict each.");
  m.def("select", &select_kernels, py::arg("m"), py::arg("n"), py::arg("k"), py::arg("threads") = 1,
        "What linear_w8a8 takes for a shape: kernels, cache block, grid of tasks.");
  m.def("quantize_rowwise", &run_quantize_rowwise, py::arg("kernel"), py::arg("x"),
        py::arg("dtype") = "f32", py::arg("symmetric") = true,
        "Runs a quantize_rowwise kernel by name: x [M, K] (bf16, f16 as uint16 bits) -> int8 "
        "[M, K], float32 scales [M], and unless symmetric float32 offsets [M].");
  m.def("gemm_s8s8s32", &run_gemm_s8s8s32, py::arg("kernel"), py::arg("a"), py::arg("w"),
        py::arg("a_scale"), py::arg("w_scale"), py::arg("bias") = py::none(),
        py::arg("activation") = 0, py::arg("residual") = py::none(), py::arg("out_dtype") = "f32",
        py::arg("a_offset") = py::none(),
        "Runs a gemm_s8s8s32 kernel by name: int8 a [M, K], w [N, K] -> [M, N] (s32: the sums).");
  m.def(
      "build_info",
      [] {
        return py::dict("compiler"_a = FASTINFER_COMPILER, "build_type"_a = FASTINFER_BUILD_TYPE,
                        "sanitize"_a = FASTINFER_SANITIZE);
      },
      "Compiler, build type and sanitizers of the native library.");
}
