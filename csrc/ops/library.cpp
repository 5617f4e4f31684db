// Every schema of torch.ops.fastinfer, once. Implementations: <op>_cpu.cpp; shapes for tracing:
// python/fastinfer/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastinfer, m) {
  m.def(
      "linear_w8a8(Tensor x, Tensor w_packed, Tensor w_scale, Tensor? bias=None, "
      "str activation=\"none\", Tensor? residual=None, ScalarType? out_dtype=None, "
      "Tensor? x_scale=None, Tensor? x_offset=None) -> Tensor");
  m.def(
      "linear_w8a16(Tensor x, Tensor w_packed, Tensor w_scale, Tensor? bias=None, "
      "str activation=\"none\", Tensor? residual=None, ScalarType? out_dtype=None) -> Tensor");
  m.def(
      "linear_w8a8_cat(Tensor x, Tensor[] w_packed, Tensor[] w_scale, Tensor?[] bias, "
      "str activation=\"none\", ScalarType? out_dtype=None, Tensor? x_scale=None, "
      "Tensor? x_offset=None) -> Tensor");
  m.def(
      "linear_w8a8_gated(Tensor x, Tensor gate_packed, Tensor gate_scale, Tensor? gate_bias, "
      "Tensor up_packed, Tensor up_scale, Tensor? up_bias, str activation, "
      "ScalarType? out_dtype=None, Tensor? x_scale=None, Tensor? x_offset=None) -> Tensor");
  m.def(
      "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor? residual=None, "
      "bool emit_fp=True, bool emit_rows=False) -> "
      "(Tensor sum, Tensor y, Tensor q, Tensor scale, Tensor offset)");
  m.def(
      "rms_norm(Tensor x, Tensor? weight, float eps, Tensor? residual=None, bool emit_fp=True, "
      "bool emit_rows=False) -> (Tensor sum, Tensor y, Tensor q, Tensor scale, Tensor offset)");
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? mask=None, float? scale=None, "
      "bool causal=False, int window=0) -> Tensor");
  m.def("quantize_rowwise(Tensor x) -> (Tensor q, Tensor scale)");
  m.def("quantize_rows(Tensor x) -> (Tensor q, Tensor scale, Tensor offset)");
  m.def(
      "act_mul(Tensor x, Tensor? other, str activation, bool emit_fp=True, "
      "bool emit_rows=False) -> (Tensor y, Tensor q, Tensor scale, Tensor offset)");
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor");
  m.def("pack_w8(Tensor w, str layout=\"dense\") -> Tensor");
  m.def("unpack_w8(Tensor w_packed, SymInt n, SymInt k) -> Tensor");
  m.def("run_program(Tensor program, Tensor[] tensors, SymInt[] sizes) -> Tensor[]");
  m.def(
      "embedding_w8(Tensor ids, Tensor w_packed, Tensor w_scale, SymInt k, "
      "ScalarType? out_dtype=None) -> Tensor");
}
