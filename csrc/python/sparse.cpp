// fastinfer._C: the families of sparse weights, expand_s8, gemm_masked_s8s8s32 and
// gemm_bsr_s8s8s32, on numpy arrays.
#include <algorithm>

#include "cpu/expand_s8/expand_s8.h"
#include "cpu/gemm_bsr_s8s8s32/gemm_bsr_s8s8s32.h"
#include "cpu/gemm_masked_s8s8s32/gemm_masked_s8s8s32.h"
#include "python/bind.h"

namespace fastinfer::python {
namespace {

struct Packed {
  Buffer bytes;
  PackedWeight weight;
};

Packed pack(const Array<int8_t>& w, WeightLayout layout) {
  if (w.ndim() != 2 || w.shape(1) > kMaxK) {
    throw py::value_error("w: want int8 [N, K] with K <= 131071");
  }
  int64_t row, column;
  const int64_t bytes = packed_bytes(w.data(), w.shape(0), w.shape(1), layout, &row, &column);
  if (bytes < 0) throw py::value_error("w: want at most 2 of 4 weights along K for sp24");
  Packed packed{allocate(bytes), {}};
  pack_w8(w.data(), w.shape(0), w.shape(1), static_cast<uint8_t*>(packed.bytes.get()), layout);
  open_packed(packed.bytes.get(), bytes, &packed.weight);
  return packed;
}

Packed pack_masked(const Array<int8_t>& w, const std::string& name) {
  WeightLayout layout;
  if (!parse_weight_layout(name.c_str(), &layout) || !is_masked(layout)) {
    throw py::value_error("layout: got \"" + name + "\", want sp24 or bitmask");
  }
  return pack(w, layout);
}

// The sums of int8 a [M, K] with a packed weight: run(gemm) fills in the rest and calls a kernel.
template <class Run>
py::array sums(const Array<int8_t>& a, const PackedWeight& weight, int64_t tile_rows, uint8_t flip,
               Run&& run) {
  if (a.ndim() != 2 || a.shape(1) != weight.k) {
    throw py::value_error("a: want int8 [M, K] with the K of w");
  }
  const int64_t m = a.shape(0), n = weight.n;
  const Buffer rows = layout_a(tile_rows, flip, a.data(), m, weight.k);
  const std::vector<float> ones(size_t(std::max(m, n)), 1.0f);
  py::array out = new_array(DType::s32, {m, n});
  GemmS8S8S32 gemm{};
  gemm.m = m;
  gemm.n = n;
  gemm.k_pad = weight.k_pad;
  gemm.a = static_cast<const int8_t*>(rows.get());
  gemm.a_scale = gemm.a_offset = gemm.b_scale = ones.data();
  gemm.compensation = weight.compensation;
  gemm.out = out.mutable_data();
  gemm.out_ld_bytes = n * 4;
  gemm.out_dtype = DType::s32;
  gemm.zen4 = is_zen4();
  if (m > 0 && n > 0) run(gemm);
  return out;
}

py::array run_expand_s8(const std::string& name, const Array<int8_t>& w,
                        const std::string& layout) {
  int count;
  const auto* all = expand_s8_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  const Packed packed = pack_masked(w, layout);
  const PackedWeight& weight = packed.weight;
  const int64_t slices = weight.k_pad / kBlockK, bytes = slices * kSliceBytes;
  // What the kernel writes is 64-byte aligned, which an array need not be.
  const Buffer panel = allocate(bytes);
  py::array_t<int8_t> out(std::vector<py::ssize_t>{panels_of(weight), weight.k_pad / 4, 16, 4});
  for (int64_t i = 0; i < panels_of(weight); ++i) {
    kernel.run({masked_panel(weight, i), weight.masked_end, slices,
                weight.layout == WeightLayout::sp24, static_cast<int8_t*>(panel.get())});
    std::copy_n(static_cast<const int8_t*>(panel.get()), bytes, out.mutable_data() + i * bytes);
  }
  return std::move(out);
}

py::array run_gemm_masked(const std::string& name, const Array<int8_t>& a, const Array<int8_t>& w,
                          const std::string& layout) {
  int count;
  const auto* all = gemm_masked_s8s8s32_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  const auto* dense = gemm_s8s8s32_kernels(&count);
  const auto* companion = std::find_if(
      dense, dense + count, [&](const auto& row) { return row.isa == kernel.companion; });
  if (a.ndim() == 2 && a.shape(0) % kernel.row_step != 0) {
    throw py::value_error("a: want a multiple of " + std::to_string(kernel.row_step) +
                          " rows for this kernel");
  }
  const Packed packed = pack_masked(w, layout);
  return sums(a, packed.weight, companion->tile_rows, companion->flip, [&](const auto& gemm) {
    const Buffer scratch = allocate(masked_scratch_bytes(gemm.m, gemm.k_pad));
    kernel.run(
        {gemm, &packed.weight, 0, static_cast<int8_t*>(scratch.get()), select_expand_s8().run});
  });
}

py::array run_gemm_bsr(const std::string& name, const Array<int8_t>& a, const Array<int8_t>& w) {
  int count;
  const auto* all = gemm_bsr_s8s8s32_kernels(&count);
  const auto& kernel = find_kernel(all, count, name);
  const Packed packed = pack(w, WeightLayout::bsr);
  return sums(a, packed.weight, kernel.tile_rows, kernel.flip,
              [&](const auto& gemm) { kernel.run({gemm, &packed.weight, 0}); });
}

}  // namespace

void bind_sparse(py::module_& m, py::list& kernels) {
  int count;
  const auto* expand = expand_s8_kernels(&count);
  list_kernels("expand_s8", expand, count, kernels);
  const auto* bsr = gemm_bsr_s8s8s32_kernels(&count);
  list_kernels("gemm_bsr_s8s8s32", bsr, count, kernels);
  const auto* masked = gemm_masked_s8s8s32_kernels(&count);
  list_kernels("gemm_masked_s8s8s32", masked, count, kernels);
  m.def("expand_s8", &run_expand_s8, py::arg("kernel"), py::arg("w"), py::arg("layout"),
        "Packs int8 w [N, K] as sp24 or bitmask and expands it: dense panels, [N / 16, K / 4, 16, "
        "4] padded.");
  m.def("gemm_masked_s8s8s32", &run_gemm_masked, py::arg("kernel"), py::arg("a"), py::arg("w"),
        py::arg("layout"),
        "Runs a gemm_masked_s8s8s32 kernel by name: int8 a [M, K], w [N, K] -> int32 [M, N].");
  m.def("gemm_bsr_s8s8s32", &run_gemm_bsr, py::arg("kernel"), py::arg("a"), py::arg("w"),
        "Runs a gemm_bsr_s8s8s32 kernel by name: int8 a [M, K], w [N, K] -> int32 [M, N].");
}

}  // namespace fastinfer::python
