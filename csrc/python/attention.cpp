// fastinfer._C: the rows of the family attention.
#include "cpu/attention/attention.h"

#include "python/bind.h"

namespace fastinfer::python {

void bind_attention(py::module_&, py::list& kernels) {
  int count;
  const auto* table = attention_kernels(&count);
  list_kernels("attention", table, count, kernels);
}

}  // namespace fastinfer::python
