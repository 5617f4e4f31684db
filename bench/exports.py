"""What the other runtimes load: a model of the zoo as ONNX and as OpenVINO's format, float32 and
int8. Each function writes into a folder of its own; the batch stays free, the length is fixed."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

import zoo
from fastinfer.observe import layer_by_layer
from peers import onnx_dynamic_int8

ONNX_FILE = "model.onnx"
OPENVINO_FILE = "model.xml"


def _example(model: zoo.Model, length: int) -> zoo.Inputs:
    # Two inputs: a tracer may take a batch of one for a constant.
    return model.draw(zoo.Size(2, length), 1, 1)[0]


def onnx_fp32(name: str, length: int, folder: Path) -> None:
    """Exported with attention spelled out, the form that the transformer optimizer recognises, and
    by the exporter whose graphs it fuses; then optimized with the model's type."""
    from onnxruntime.transformers import optimizer

    model = zoo.MODELS[name]
    module, inputs = model.build("eager"), _example(model, length)
    exported = folder / ("exported.onnx" if model.onnx_type else ONNX_FILE)
    with torch.no_grad(), warnings.catch_warnings(), layer_by_layer():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            exported,
            input_names=list(inputs),
            output_names=["y"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "y")},
            opset_version=17,
            dynamo=False,
        )
    if model.onnx_type:
        optimized = optimizer.optimize_model(
            str(exported),
            model_type=model.onnx_type,
            num_heads=model.heads,
            hidden_size=model.hidden,
        )
        optimized.save_model_to_file(str(folder / ONNX_FILE), use_external_data_format=model.large)
        exported.unlink()


def onnx_int8(name: str, length: int, folder: Path, source: Path) -> None:
    """quantize_dynamic with int8 weights, a scale a channel."""
    # At most 2 GiB fit into one file; the weights of a larger model go into others beside it.
    onnx_dynamic_int8(source / ONNX_FILE, folder / ONNX_FILE, zoo.MODELS[name].large)


def openvino_fp32(name: str, length: int, folder: Path) -> None:
    import openvino

    model = zoo.MODELS[name]
    with warnings.catch_warnings(), layer_by_layer():
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(
            model.build("sdpa"), example_input=_example(model, length)
        )
    openvino.save_model(converted, folder / OPENVINO_FILE, compress_to_fp16=False)


def openvino_int8(name: str, length: int, folder: Path, source: Path) -> None:
    """nncf.quantize, calibrated on inputs that are not those of the comparison."""
    import nncf
    import openvino

    model = zoo.MODELS[name]
    loaded = openvino.Core().read_model(source / OPENVINO_FILE)
    samples: list[Any] = [
        {name: tensor.numpy() for name, tensor in inputs.items()}
        for inputs in model.draw(zoo.Size(1, length), model.calibration, 1)
    ]
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = nncf.quantize(
            loaded,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
    openvino.save_model(quantized, folder / OPENVINO_FILE, compress_to_fp16=False)
