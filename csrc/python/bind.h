// What every binding needs: numpy arrays in and out, dtypes by name, kernels by name.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/arch.h"
#include "cpu/dtype.h"
#include "cpu/gemm_s8s8s32/gemm_s8s8s32.h"

namespace py = pybind11;

namespace fastinfer::python {

using namespace fastinfer::cpu;
using namespace py::literals;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

inline DType parse_dtype(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "f16") return DType::f16;
  if (name == "s32") return DType::s32;
  throw py::value_error("dtype: got \"" + name + "\", want f32, bf16, f16 or s32");
}

// numpy has no bfloat16: bf16 travels as uint16, and so does f16.
inline py::array new_array(DType dtype, std::vector<py::ssize_t> shape) {
  if (dtype == DType::f32) return py::array_t<float>(shape);
  if (dtype == DType::s32) return py::array_t<int32_t>(shape);
  return py::array_t<uint16_t>(shape);
}

inline void check_matrix(const char* name, const py::array& a, DType dtype, py::ssize_t rows,
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

inline Buffer allocate(int64_t bytes) {
  Buffer buffer(std::aligned_alloc(64, size_t(round_up(bytes + 1, 64))));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

// The A operand of a matmul from plain int8 rows: the layout of quantize_rowwise.h.
inline Buffer layout_a(int64_t tile_rows, uint8_t flip, const int8_t* a, int64_t m, int64_t k) {
  const int64_t k_pad = round_up(k, kBlockK);
  Buffer buffer = allocate(m * k_pad);
  uint8_t* q = static_cast<uint8_t*>(buffer.get());
  for (int64_t row = 0; row < m; ++row) {
    const int64_t first = row / tile_rows * tile_rows;
    const int64_t block_rows = std::min(tile_rows, m - first);
    for (int64_t i = 0; i < k_pad; ++i) {
      const int8_t v = i < k ? a[row * k + i] : int8_t(0);
      q[first * k_pad + i / 64 * block_rows * 64 + (row - first) * 64 + i % 64] = uint8_t(v) ^ flip;
    }
  }
  return buffer;
}

// Appends the rows of a family's kernel table to the list that kernels() returns.
template <class Kernel>
void list_kernels(const char* family, const Kernel* table, int count, py::list& rows) {
  for (int i = 0; i < count; ++i) {
    rows.append(py::dict("name"_a = table[i].name, "family"_a = family,
                         "isa"_a = isa_name(table[i].isa),
                         "supported"_a = isa_supported(table[i].isa)));
  }
}

// Each family adds its rows to `kernels` and its functions to `m`: one file a family.
void bind_act_mul(py::module_& m, py::list& kernels);
void bind_attention(py::module_& m, py::list& kernels);
void bind_gemm_f32s8f32(py::module_& m, py::list& kernels);
void bind_gemm_s8s8s32(py::module_& m, py::list& kernels);
void bind_norm(py::module_& m, py::list& kernels);
void bind_quantize_rowwise(py::module_& m, py::list& kernels);
void bind_rope(py::module_& m, py::list& kernels);
void bind_sparse(py::module_& m, py::list& kernels);

// Not families: see places.cpp and signature.cpp.
void bind_places(py::module_& m);
void bind_signature(py::module_& m);

}  // namespace fastinfer::python
