"""Fixtures that every test file may use."""

import builtins
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastinfer import _C, entry

ISAS = [row["name"] for row in _C.isas() if row["supported"]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread unless a test sets another number; what it set does not outlive it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as on a wide terminal, wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(autouse=True)
def _seed_torch(request: pytest.FixtureRequest) -> None:
    """The weights that torch's own layers start with, fixed for each test."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ from test to test and repeat from run to run."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def randn(rng: np.random.Generator) -> Callable[..., torch.Tensor]:
    """``randn(*shape)``: float32 standard normal numbers from ``rng``."""
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@pytest.fixture
def force_isa() -> Iterator[Callable[[str], None]]:
    """``force_isa(name)`` caps selection; the cap in force before comes back at the end."""
    before = _C.isa_cap()
    yield _C.force_isa
    _C.force_isa(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, force_isa: Callable[[str], None]) -> str:
    """Runs the test once under every instruction set of this machine."""
    force_isa(request.param)
    return request.param


@pytest.fixture
def fresh_inference() -> Iterator[None]:
    """Inference mode, and nothing left of what torch.compile made before."""
    torch._dynamo.reset()
    with torch.inference_mode():
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry each time that a fused model asks its guards."""
    calls, find = list[int](), entry.CompiledCode.find

    def counted(self: Any, args: Any, kwargs: Any) -> Any:
        calls.append(1)
        return find(self, args, kwargs)

    monkeypatch.setattr(entry.CompiledCode, "find", counted)
    return calls


@pytest.fixture
def hide_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``hide_matplotlib()``: from now on importing it fails, as where it is not installed."""
    real_import = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    return lambda: monkeypatch.setattr(builtins, "__import__", without_matplotlib)
