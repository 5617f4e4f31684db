"""What a run needs to go on where another stopped: random state, and checkpoints on disk."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_FILE = "checkpoint.pt"


def random_state(generator: torch.Generator | None = None) -> dict[str, Any]:
    """The state of what batches and models draw random numbers from, `generator` included."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "generator": None if generator is None else generator.get_state(),
    }


def set_random_state(state: dict[str, Any], generator: torch.Generator | None = None) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if generator is not None and state["generator"] is not None:
        generator.set_state(state["generator"])


def seed_random(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def restored_random(generator: torch.Generator | None = None) -> Iterator[None]:
    """The random state comes back after."""
    state = random_state(generator)
    try:
        yield
    finally:
        set_random_state(state, generator)


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Writes a file beside the last checkpoint, then puts it in its place: one of them is whole
    whenever the process ends."""
    unfinished = directory / f".{_FILE}.unfinished"
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(directory / _FILE)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The last checkpoint, on the CPU, or None; raises ValueError on a file that is none."""
    path = directory / _FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"settings", "student", "random"} - state.keys()
    except Exception as error:  # of any kind: what a damaged file raises is not documented
        raise ValueError(f"{path}: it is no checkpoint of distill: {error}") from error
    if missing:
        raise ValueError(f"{path}: it is no checkpoint of distill: no {min(missing)} in it")
    return state
