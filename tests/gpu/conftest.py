"""Tests that need a GPU; `make gpu-check` runs them where there is one. What of them does not ask
for CUDA itself can be tried on a CPU: FASTINFER_GPU_TESTS_ON=cpu."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

DEVICE = torch.device(os.environ.get("FASTINFER_GPU_TESTS_ON", "cuda"))


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture(autouse=True)
def fails_where_it_failed() -> Iterator[None]:
    """A kernel's fault shows at the next wait for the GPU: that is this test's own. No call to CUDA
    succeeds in that process any more: a worker of pytest-xdist ends, and another takes its place.
    """
    yield
    if DEVICE.type != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        print(f"the GPU's fault: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or DEVICE.type == "cpu":
        return
    skip = pytest.mark.skip(reason="torch sees no GPU here")
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(skip)
