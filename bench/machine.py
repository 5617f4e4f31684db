"""Where a figure was taken: CPU, instruction set in use, compiler, versions."""

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "transformers", "numpy")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    isa: str
    compiler: str
    versions: str


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("CPU part") or "unknown CPU"
    if "model" in fields:  # a hypervisor often hides the name, not the family and model
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def versions() -> str:
    """Those of the packages whose speed or formats count."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} absent")
    return ", ".join(found)


def describe() -> Machine:
    """This machine, with the instruction set that fastinfer uses on it."""
    from fastinfer import _C

    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        isa=_C.isa_in_use(),
        compiler=_C.build_info()["compiler"],
        versions=f"fastinfer {importlib.metadata.version('fastinfer')}, {versions()}",
    )


def set_threads(threads: int) -> None:
    """The thread count of torch and of fastinfer, which runs on torch's pool."""
    torch.set_num_threads(threads)
