"""fastinfer and its peers on one linear layer, each as its own documentation advises.

All take float32 rows and give float32 rows; quantising the activations is inside the timed call.
``Peer.prepare(weight, bias, sample)`` does what a user does once (quantise, calibrate, export)
and returns ``open(x, threads, alone=True)``, which makes a layer with a copy of the weights of its
own, bound to `x`, and returns a callable without arguments that runs it and returns the output;
`alone` says that no other copy waits for its turn.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Open = Callable[..., Callable[[], Any]]
Prepare = Callable[[Tensor, Tensor, Tensor], Open]


@dataclass(frozen=True)
class Peer:
    """One way to run a linear layer."""

    name: str
    kind: str  # "fp32", "bf16", "int8"; "ours" for fastinfer
    pool: str  # whose threads it uses
    prepare: Prepare
    needs: tuple[str, ...] = ()  # modules of the extra fastinfer[bench]
    note: str = ""
    # Brings opened layers together as those of a model are.
    gather: Callable[[Sequence[Callable[[], Any]]], None] | None = None

    def missing(self) -> list[str]:
        """The modules it needs that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def make_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """An nn.Linear that holds copies of `weight` [N, K] and `bias` [N]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return linear.eval()


def fastinfer_int8(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
    from fastinfer.nn import QuantizedLinear

    def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Tensor]:
        return partial(QuantizedLinear.from_linear(make_linear(weight, bias)), x)

    return open_layer


def to_huge_pages(opened: Sequence[Callable[[], Any]]) -> None:
    from fastinfer.huge_pages import to_huge_pages_

    to_huge_pages_([run.func for run in opened if isinstance(run, partial)])


def torch_fp32(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
    def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Tensor]:
        layer = make_linear(weight, bias)
        return lambda: layer(x)

    return open_layer


def torch_bf16(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
    def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Tensor]:
        layer = make_linear(weight, bias).bfloat16()
        return lambda: layer(x.bfloat16()).float()

    return open_layer


def dynamic_int8(module: nn.Module, engine: str) -> nn.Module:
    """The linear layers of `module`, in place, as torch's tutorial quantises them dynamically, with
    one of the two x86 engines: the engine packs the weights and stays with the packed form."""
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        return torch.ao.quantization.quantize_dynamic(
            module, {nn.Linear}, dtype=torch.qint8, inplace=True
        )


def torch_ao(engine: str) -> Prepare:
    """Dynamic quantisation by torch itself."""

    def prepare(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
        def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Tensor]:
            layer = dynamic_int8(nn.Sequential(make_linear(weight, bias)), engine)[0]
            return lambda: layer(x)

        return open_layer

    return prepare


def onnx_dynamic_int8(source: Path, target: Path, large: bool = False) -> None:
    """quantize_dynamic with int8 weights, a scale a channel; `large`: the weights beside it."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises a pre-processing for larger graphs
    quantize_dynamic(
        source,
        target,
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=large,
        # The type of what comes out of ONNX Runtime's own fused operators, unknown to onnx.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    logging.root.setLevel(level)


def onnx_session(
    model: str | bytes,
    threads: int,
    *,
    alone: bool = True,
    overrides: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """A session on `threads` threads; `overrides`: the sizes of dimensions that the model names."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for name, size in overrides.items():
        options.add_free_dimension_override_by_name(name, size)
    if not alone:
        # Each session has a pool of its own; dozens that spin between their calls would take
        # the cores from each other and from everybody else.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def onnxruntime_int8(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
    """Input and output bound once."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    n, k = weight.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="matmul"),
            helper.make_node("Add", ["product", "b"], ["y"], name="add"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [
            numpy_helper.from_array(weight.T.contiguous().numpy(), "w"),
            numpy_helper.from_array(bias.numpy(), "b"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), source)
        onnx_dynamic_int8(source, target)
        model = target.read_bytes()

    def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Any]:
        session = onnx_session(model, threads, alone=alone)
        binding = session.io_binding()
        y = torch.empty(x.shape[0], n)
        for bind, name, tensor in (
            (binding.bind_input, "x", x),
            (binding.bind_output, "y", y),
        ):
            bind(name, "cpu", 0, "float32", tuple(tensor.shape), tensor.data_ptr())

        def run() -> Tensor:
            session.run_with_iobinding(binding)
            return y

        return run

    return open_layer


def _openvino_model(weight: Tensor, bias: Tensor) -> Any:
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, weight.shape[1]], np.float32, name="x")
    product = ops.matmul(x, ops.constant(weight.numpy()), False, True)
    return openvino.Model([ops.add(product, ops.constant(bias.numpy()[None]))], [x], "linear")


def openvino_linear(scheme: str, precision: str) -> Prepare:
    """OpenVINO with static shapes and the LATENCY hint.

    scheme: "float"; "static": nncf.quantize, calibrated on the sample; "dynamic":
    nncf.compress_weights to int8, activations quantised by the plugin in groups of K, its fastest.
    precision: INFERENCE_PRECISION_HINT, "f32" or "bf16".
    """

    def prepare(weight: Tensor, bias: Tensor, sample: Tensor) -> Open:
        import openvino

        model = _openvino_model(weight, bias)
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        if scheme != "float":
            model = _nncf(model, scheme, sample)
        if scheme == "dynamic":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = weight.shape[1]
        core = openvino.Core()

        def open_layer(x: Tensor, threads: int, alone: bool = True) -> Callable[[], Any]:
            model.reshape(list(x.shape))
            compiled = core.compile_model(model, "CPU", config | {"INFERENCE_NUM_THREADS": threads})
            request = compiled.create_infer_request()
            request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
            y = request.get_output_tensor().data

            def run() -> Any:
                request.infer()
                return y

            return run

        return open_layer

    return prepare


def _nncf(model: Any, scheme: str, sample: Tensor) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scheme == "dynamic":
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        batches = nncf.Dataset([rows.numpy() for rows in sample.split(32)])
        return nncf.quantize(model, batches, model_type=nncf.ModelType.TRANSFORMER)


ONNX = ("onnx", "onnxruntime")
OPENVINO = ("openvino",)
NNCF = ("openvino", "nncf")

# Candidates of one pool stand together: timing pauses where the pool changes.
PEERS = (
    Peer("fastinfer", "ours", "openmp", fastinfer_int8, gather=to_huge_pages),
    Peer("torch_fp32", "fp32", "openmp", torch_fp32, note="nn.Linear"),
    Peer("torch_bf16", "bf16", "openmp", torch_bf16, note="bf16 weights, x cast in and y out"),
    Peer("torch_ao_onednn", "int8", "openmp", torch_ao("onednn"), note="quantize_dynamic"),
    Peer("torch_ao_x86", "int8", "openmp", torch_ao("x86"), note="quantize_dynamic"),
    Peer("onnxruntime", "int8", "onnxruntime", onnxruntime_int8, ONNX, "quantize_dynamic"),
    Peer("openvino_static", "int8", "tbb", openvino_linear("static", "f32"), NNCF),
    Peer("openvino_static_bf16", "int8", "tbb", openvino_linear("static", "bf16"), NNCF),
    Peer("openvino_dynamic", "int8", "tbb", openvino_linear("dynamic", "f32"), NNCF),
    Peer("openvino_w8_bf16", "int8", "tbb", openvino_linear("dynamic", "bf16"), NNCF),
    Peer("openvino_bf16", "bf16", "tbb", openvino_linear("float", "bf16"), OPENVINO),
)


def available(names: list[str] | None = None) -> tuple[list[Peer], list[str]]:
    """The peers that can run here, of `names` if given, and a sentence for each that cannot."""
    known = {peer.name for peer in PEERS}
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ValueError(
            f"peers: got {', '.join(unknown)}, want some of {', '.join(sorted(known))}"
        )
    chosen = [peer for peer in PEERS if not names or peer.name in names]
    skipped = [
        f"{peer.name} left out: {', '.join(peer.missing())} not installed "
        "(pip install 'fastinfer[bench]')"
        for peer in chosen
        if peer.missing()
    ]
    return [peer for peer in chosen if not peer.missing()], skipped
