// fastinfer._C: the rows of the family attention.
#include "cpu/attention/attention.h"

#include "python/bind.h"

namespace fastinfer::python {

void bind_attention(py::module_& m, py::list& kernels) {
  int count;
  const auto* table = attention_kernels(&count);
  list_kernels("attention", table, count, kernels);
  m.def(
      "attention_in_pairs", [] { return cpu::select_attention().pairs; },
      "Whether selection takes a row of attention that multiplies bfloat16 two at a time.");
}

}  // namespace fastinfer::python
