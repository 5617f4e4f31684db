"""Optimised models on disk: a Hugging Face directory whose linear layers are int8.

config.json, ...     as in the directory of the float model
model.safetensors    the state, and the buffers that a state dict leaves out
fastinfer.json       which layers are int8, which modules are exposed, which names share a tensor,
                     what was measured
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastinfer.config import Int8Dynamic, Int8WeightOnly
from fastinfer.expose import expose_, find_exposures
from fastinfer.fuse import fuse_
from fastinfer.huggingface import build_empty, import_transformers
from fastinfer.nn import QuantizedEmbedding, QuantizedLinear
from fastinfer.nn.packed_weight import PackedWeight
from fastinfer.optimized import Optimized
from fastinfer.swap import close_fused_paths

FORMAT = 1
_DESCRIPTION, _TENSORS = "fastinfer.json", "model.safetensors"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf"}
_LAYERS = {config.label: config.layer for config in (Int8Dynamic, Int8WeightOnly)}
_LARGEST_COPIED = 64 << 20  # bytes; a tokenizer is smaller, weights of another kind are not


def check_output(out: Path) -> None:
    """Raises ValueError unless a directory can be made at `out`."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: it exists and is not an empty directory")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: its parent is not a directory")


def save(optimized: Optimized, source: Path, out: Path) -> None:
    """Writes the optimised model of the directory `source` to `out`, as a whole or not at all.

    Raises ValueError if `out` is anything but an empty directory or nothing.
    """
    import_transformers()
    from safetensors.torch import save_file

    check_output(out)
    model = optimized.model
    tensors, shared = _distinct(_tensors(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    description = {
        "format": FORMAT,
        "fastinfer": _version(),
        "torch": torch.__version__,
        "int8": [
            {
                "name": name,
                "in_features": layer.in_features,
                "out_features": layer.out_features,
                "bias": layer.bias is not None,
                "scheme": _scheme(layer),
            }
            for name, layer in modules.items()
            if isinstance(layer, QuantizedLinear)
        ],
        "int8_embeddings": [
            {
                "name": name,
                "num_embeddings": layer.num_embeddings,
                "embedding_dim": layer.embedding_dim,
                "padding_idx": layer.padding_idx,
                "dtype": str(layer.dtype).removeprefix("torch."),
            }
            for name, layer in modules.items()
            if isinstance(layer, QuantizedEmbedding)
        ],
        "exposed": [
            exposure.name
            for exposure in find_exposures(build_empty(source))
            if exposure.name in modules
            and type(modules[exposure.name]) is not type(exposure.layer.module)
        ],
        "shared": shared,
        "fused": optimized.summary.fusion is not None,
        "optimized": optimized.to_dict(),
    }
    unfinished = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}-"))
    try:
        for path in source.iterdir():
            if _is_copied(path):
                shutil.copyfile(path, unfinished / path.name)
        save_file(tensors, unfinished / _TENSORS, {"format": "pt"})
        (unfinished / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", "utf-8")
        _open_to_others(unfinished)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def load(directory: str | os.PathLike[str]) -> nn.Module:
    """The model that `python -m fastinfer optimize` wrote to `directory`, in eval mode.

    It is built from config.json without values; the weights are memory-mapped, so that loading
    copies nothing and processes share them. Where the fused form was kept, `fuse_` is called: the
    first call under torch.inference_mode() traces the model.

    Raises ImportError without transformers (`pip install "fastinfer[transformers]"`); TypeError on
    what is not a path; ValueError if the directory is not such a one, or does not fit the model
    that transformers builds.
    """
    path = Path(directory)
    if not (path / _DESCRIPTION).is_file():
        raise ValueError(f"{path}: no {_DESCRIPTION}; want what python -m fastinfer optimize wrote")
    import_transformers()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        description = json.loads((path / _DESCRIPTION).read_text("utf-8"))
        if description["format"] != FORMAT:
            raise ValueError(f"it has format {description['format']}, want {FORMAT}")
        layers, shared, fused = (description[key] for key in ("int8", "shared", "fused"))
        model = build_empty(path)
        expose_(model, description.get("exposed", []))
        for layer in layers:
            sizes = int(layer["in_features"]), int(layer["out_features"])
            kind = _LAYERS[layer["scheme"]]
            twin = kind(*sizes, bool(layer["bias"]), device="meta")
            _replace(model, layer["name"], nn.Linear, "linear layer", twin)
        for layer in description.get("int8_embeddings", []):
            sizes = int(layer["num_embeddings"]), int(layer["embedding_dim"])
            dtype = getattr(torch, layer["dtype"])
            embedding = QuantizedEmbedding(*sizes, layer["padding_idx"], "meta", dtype)
            _replace(model, layer["name"], nn.Embedding, "embedding", embedding)
        tensors = load_file(path / _TENSORS)
        tensors |= {name: tensors[other] for name, other in shared.items()}
    except (AttributeError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _set_tensors(model, tensors, shared, path)
    close_fused_paths(model)
    if fused:
        fuse_(model)
    return model


def _replace(
    model: nn.Module, name: str, kind: type[nn.Module], described: str, twin: nn.Module
) -> None:
    if not isinstance(model.get_submodule(name), kind):
        raise ValueError(f"{name} is no {described} of the model")
    parent, attribute = _place(model, name)
    setattr(parent, attribute, twin.eval())


def _scheme(layer: QuantizedLinear) -> str:
    return next(label for label, kind in _LAYERS.items() if kind is type(layer))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state, and the buffers that are not part of it, which an empty model lacks."""
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: tensor.detach() for name, tensor in every}


def _distinct(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and for the other names of one the first."""
    names: dict[Any, str] = {}
    distinct, shared = {}, {}
    for name, t in tensors.items():
        key = (t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else name
        first = names.setdefault(key, name)
        if first == name:
            whole = t.is_contiguous() and t.untyped_storage().nbytes() == t.nbytes
            distinct[name] = t if whole else t.clone(memory_format=torch.contiguous_format)
        else:
            shared[name] = first
    return distinct, shared


def _set_tensors(
    model: nn.Module, tensors: dict[str, Tensor], shared: dict[str, str], path: Path
) -> None:
    want, state = _tensors(model), model.state_dict()
    if want.keys() != tensors.keys():
        differing = sorted(want.keys() ^ tensors.keys())
        raise ValueError(f"{path}: damaged: {differing[0]} is in the file or in the model alone")
    for name, tensor in tensors.items():
        module, attribute = _place(model, name)
        if isinstance(module, PackedWeight) and attribute == "weight_packed":
            continue  # its size is that of its layout, which the layer checks
        if tensor.shape != want[name].shape:
            shapes = f"{list(tensor.shape)}, want {list(want[name].shape)}"
            raise ValueError(f"{path}: damaged: {name} has shape {shapes}")
    try:
        model.load_state_dict({name: tensors[name] for name in state}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    for name in tensors.keys() - state.keys():
        module, attribute = _place(model, name)
        module._buffers[attribute] = tensors[name]
    for name, first in shared.items():  # tied parameters are one object again
        module, attribute = _place(model, name)
        other, other_attribute = _place(model, first)
        setattr(module, attribute, getattr(other, other_attribute))


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute


def _is_copied(path: Path) -> bool:
    weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
    return path.is_file() and not weights and path.stat().st_size <= _LARGEST_COPIED


def _open_to_others(directory: Path) -> None:
    """The permissions that files usually get, where temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    for path in directory.iterdir():
        path.chmod(0o666 & ~mask)


def _version() -> str:
    from fastinfer import __version__  # the package is complete by now

    return __version__
