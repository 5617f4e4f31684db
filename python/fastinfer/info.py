"""What fastinfer found on this machine and what it uses."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table

from fastinfer import _C
from fastinfer.ops._common import WHY_NO_CUDA
from fastinfer.render import Printable

if TYPE_CHECKING:
    from fastinfer._C import BuildInfo, Isa


@dataclass(frozen=True)
class Config(Printable):
    """The result of `show_config`.

    `isas`: a dict per instruction set, worst first: name, supported, allowed (under the cap) and
    reason (why not). `isa_cap`: FASTINFER_ISA or what `_C.force_isa` set, "" for none. `cuda`: the
    GPUs, or why there are none to run on.
    """

    fastinfer: str
    torch: str
    python: str
    cpu: str
    cpus: int
    threads: int
    cuda: str
    isa_in_use: str
    isa_cap: str
    isas: "tuple[Isa, ...]"
    build: "BuildInfo"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for json."""
        return asdict(self) | {"isas": list(self.isas)}

    def __repr__(self) -> str:
        return str(self)  # so that `fastinfer.show_config()` at a prompt shows the table

    def __rich__(self) -> RenderableType:
        facts = Table(show_header=False, title="fastinfer", title_justify="left")
        cap = f"capped at {self.isa_cap}" if self.isa_cap else "no cap (FASTINFER_ISA is not set)"
        sanitizers = f", sanitizers: {self.build['sanitize']}" if self.build["sanitize"] else ""
        for name, value in (
            ("fastinfer", self.fastinfer),
            ("torch", self.torch),
            ("Python", self.python),
            ("CPU", self.cpu),
            ("threads", f"{self.threads} of torch, {self.cpus} CPUs allowed"),
            ("CUDA", self.cuda),
            ("instruction set", f"{self.isa_in_use}, {cap}"),
            ("build", f"{self.build['compiler']}, {self.build['build_type']}{sanitizers}"),
        ):
            facts.add_row(name, value)
        isas = Table(title="Instruction sets, slowest first", title_justify="left")
        for column in ("name", "state", "why not"):
            isas.add_column(column)
        for isa in self.isas:
            isas.add_row(isa["name"], self._state(isa), isa["reason"])
        return Group(facts, isas)

    def _state(self, isa: "Isa") -> str:
        if isa["name"] == self.isa_in_use:
            return "in use"
        if not isa["supported"]:
            return "not supported"
        return "supported" if isa["allowed"] else "above the cap"


def show_config() -> Config:
    """What runs here: versions, CPU, threads, GPUs, the state of every instruction set, the build.

    Returns a Config: it prints as a table (`print(fastinfer.show_config())`; at a Python prompt
    the bare call does) and `.to_dict()` gives plain data. `python -m fastinfer` prints it too.
    """
    return Config(
        fastinfer=version("fastinfer"),
        torch=torch.__version__,
        python=platform.python_version(),
        cpu=_cpu_name(),
        cpus=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        cuda=_gpus(),
        isa_in_use=_C.isa_in_use(),
        isa_cap=_C.isa_cap(),
        isas=tuple(_C.isas()),
        build=_C.build_info(),
    )


def _gpus() -> str:
    if WHY_NO_CUDA is not None:
        return f"not used: {WHY_NO_CUDA}"
    if not torch.cuda.is_available():
        return "not used: torch finds no GPU"
    names = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})")
    return ", ".join(names)


def _cpu_name() -> str:
    """The CPU's name as Linux gives it; Arm kernels give none, then the architecture's."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
