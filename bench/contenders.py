"""fastinfer and its peers on a whole model, each as its own documentation advises.

``Contender.build(cell)`` does what a user does once (quantise, calibrate, export, compile) and
returns a callable without arguments that runs the model on ``cell.inputs`` and returns the answer.
What other runtimes need on disk is made in a process of its own, so that its memory goes with it,
and kept in the cache.
"""

import copy
import hashlib
import importlib.util
import math
import shutil
import tempfile
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from torch import nn

import exports
import machine
import peers
import zoo
from peers import NNCF, ONNX, OPENVINO, dynamic_int8, onnx_session
from records import OURS
from timing import Run


@dataclass
class Cell:
    """One model at one size: its inputs, which every contender reads in place, and its modules,
    made when first asked for and shared by the contenders that do not change them."""

    model: zoo.Model
    size: zoo.Size
    threads: int
    cache: Path
    batches: list[zoo.Inputs] = field(init=False)  # over these the answers are compared
    inputs: zoo.Inputs = field(init=False)

    def __post_init__(self) -> None:
        count = math.ceil(self.model.checked / self.size.batch)
        self.batches = self.model.draw(self.size, count, 0)
        self.inputs = {name: tensor.clone() for name, tensor in self.batches[0].items()}

    def load(self, batch: zoo.Inputs) -> None:
        """Writes a batch over the inputs."""
        for name, tensor in batch.items():
            self.inputs[name].copy_(tensor)

    @cached_property
    def fp32(self) -> nn.Module:
        return self.model.build("sdpa")

    @cached_property
    def bf16(self) -> nn.Module:
        return self.copy().bfloat16()

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.fp32)

    def artefact(self, kind: str, make: Callable[..., None], *arguments: Any) -> Path:
        """The folder that make(model, length, folder, *arguments) fills, kept in the cache."""
        source = "".join(Path(m.__file__ or "").read_text() for m in (zoo, exports, peers))
        key = hashlib.sha256((source + machine.versions()).encode()).hexdigest()[:12]
        name = f"{self.model.name}-{self.size.length}".replace("/", "_")
        folder = self.cache / f"{name}-{kind}-{key}"
        if not folder.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=self.cache))
            try:
                apart(make, self.model.name, self.size.length, unfinished, *arguments)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return folder


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass(frozen=True)
class Contender:
    """One way to run a model."""

    name: str
    kind: str  # "fp32", "bf16", "int8"; "ours" for fastinfer
    pool: str  # whose threads it uses
    build: Callable[[Cell], Run]
    needs: tuple[str, ...] = ()  # modules of the extra fastinfer[bench]

    def check(self) -> None:
        """Raises ImportError if a module it needs is not installed."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"{', '.join(missing)} not installed (pip install 'fastinfer[bench]')"
            )


def call(module: Callable[..., torch.Tensor], cell: Cell) -> Run:
    return lambda: module(**cell.inputs)


def call_bf16(module: Callable[..., torch.Tensor], cell: Cell) -> Run:
    """Floating-point inputs are cast to bf16, the answer back."""

    def run() -> torch.Tensor:
        inputs = {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in cell.inputs.items()
        }
        return module(**inputs).float()

    return run


def torch_eager(cell: Cell) -> Run:
    return call(cell.fp32, cell)


def torch_bf16(cell: Cell) -> Run:
    return call_bf16(cell.bf16, cell)


def compiled(
    module: nn.Module, backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., torch.Tensor]:
    """torch.compile, for static shapes, of a function that calls the module. What dynamo compiles
    belongs to a code object: one of its own, or it would be found again for every other contender
    that differs in options only."""

    def forward(**inputs: torch.Tensor) -> torch.Tensor:
        return module(**inputs)

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, closure=forward.__closure__
    )
    return torch.compile(own, backend=backend, dynamic=False)


def torch_compile(cell: Cell, bf16: bool, freezing: bool) -> Run:
    """Inductor in its default mode. Freezing: weights become constants, packed once."""
    forward = compiled(cell.bf16 if bf16 else cell.fp32)
    run = (call_bf16 if bf16 else call)(forward, cell)
    # Compiled at the first call; the option is read by dynamo too, so that it cannot be handed to
    # torch.compile.
    with torch._inductor.config.patch(freezing=freezing), torch.inference_mode():
        run()
    return run


def torch_ao(cell: Cell, engine: str) -> Run:
    return call(dynamic_int8(cell.copy(), engine), cell)


def onnxruntime(cell: Cell, int8: bool) -> Run:
    """Static shapes; inputs and output bound once."""
    source = cell.artefact("onnx", exports.onnx_fp32)
    if int8:
        source = cell.artefact("onnx-int8", exports.onnx_int8, source)
    overrides = {"batch": cell.size.batch}
    session = onnx_session(str(source / exports.ONNX_FILE), cell.threads, overrides=overrides)
    with torch.inference_mode():
        y = torch.empty_like(cell.fp32(**cell.inputs))
    binding = session.io_binding()
    for name, tensor in cell.inputs.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        binding.bind_input(name, "cpu", 0, kind, tuple(tensor.shape), tensor.data_ptr())
    binding.bind_output("y", "cpu", 0, "float32", tuple(y.shape), y.data_ptr())

    def run() -> torch.Tensor:
        session.run_with_iobinding(binding)
        return y

    return run


def openvino(cell: Cell, int8: bool, precision: str) -> Run:
    """Static shapes, the LATENCY hint, input tensors bound once."""
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("this CPU has no bf16 instructions: OpenVINO would run float32")
    source = cell.artefact("openvino", exports.openvino_fp32)
    if int8:
        source = cell.artefact("openvino-int8", exports.openvino_int8, source)
    model = core.read_model(source / exports.OPENVINO_FILE)
    model.reshape({name: list(tensor.shape) for name, tensor in cell.inputs.items()})
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": cell.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    for name, tensor in cell.inputs.items():
        request.set_tensor(name, openvino.Tensor(tensor.numpy(), shared_memory=True))
    y = request.get_output_tensor().data

    def run() -> Any:
        request.infer()
        return y

    return run


def fastinfer_int8(cell: Cell) -> Run:
    import fastinfer

    module = cell.copy()
    fastinfer.quantize_(module, fastinfer.Int8Dynamic())
    return call(module, cell)


def fastinfer_fuse(cell: Cell) -> Run:
    import fastinfer

    module = cell.copy()
    fastinfer.fuse_(module)
    return call(module, cell)


def fuse_int8(module: nn.Module) -> nn.Module:
    """The model as fastinfer makes it fastest: int8 and fused, in place."""
    import fastinfer

    fastinfer.quantize_(module, fastinfer.Int8Dynamic(), fuse=True)
    return module


def fastinfer_full(cell: Cell) -> Run:
    return call(fuse_int8(cell.copy()), cell)


def fastinfer_compile(cell: Cell) -> Run:
    return call(compiled(cell.copy(), backend="fastinfer"), cell)


# Contenders of one pool stand together: timing pauses where the pool changes. The first is what
# the speed-ups are over.
FP32 = "torch_fp32"
CONTENDERS = (
    Contender(FP32, "fp32", "openmp", torch_eager),
    Contender("torch_bf16", "bf16", "openmp", torch_bf16),
    *(
        Contender(
            f"torch_compile_{kind}{'_freezing' if freezing else ''}",
            kind,
            "openmp",
            partial(torch_compile, bf16=kind == "bf16", freezing=freezing),
        )
        for kind in ("fp32", "bf16")
        for freezing in (False, True)
    ),
    Contender("torch_ao_onednn", "int8", "openmp", partial(torch_ao, engine="onednn")),
    Contender("torch_ao_x86", "int8", "openmp", partial(torch_ao, engine="x86")),
    Contender("fastinfer_int8", "ours", "openmp", fastinfer_int8),
    Contender("fastinfer_fuse", "ours", "openmp", fastinfer_fuse),
    Contender("fastinfer_compile", "ours", "openmp", fastinfer_compile),
    Contender(OURS, "ours", "openmp", fastinfer_full),
    Contender("onnxruntime_fp32", "fp32", "ort_fp32", partial(onnxruntime, int8=False), ONNX),
    Contender("onnxruntime_int8", "int8", "ort_int8", partial(onnxruntime, int8=True), ONNX),
    *(
        Contender(
            f"openvino_{name}", kind, "tbb", partial(openvino, int8=int8, precision=hint), needs
        )
        for name, kind, int8, hint, needs in (
            ("fp32", "fp32", False, "f32", OPENVINO),
            ("bf16", "bf16", False, "bf16", OPENVINO),
            ("int8", "int8", True, "f32", NNCF),
            ("int8_bf16", "int8", True, "bf16", NNCF),
        )
    ),
)


def turns(model: zoo.Model, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Which of the contenders named take turns with each other: all of them or, of a large model,
    those of one runtime with torch fp32 and fastinfer."""
    if not model.large:
        return [tuple(names)]
    runtimes = dict.fromkeys(name.split("_")[0] for name in names)
    return [
        tuple(name for name in names if name.split("_")[0] == runtime or name in (FP32, OURS))
        for runtime in runtimes
    ]
