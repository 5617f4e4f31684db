"""Several Python threads at once, forked workers, spawned workers."""

import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import fastinfer
from fastinfer import ops


@pytest.fixture
def layer(randn):
    linear = nn.Linear(200, 96).requires_grad_(False)
    linear.weight.copy_(randn(96, 200))
    return fastinfer.quantize_linear(linear).eval()


def test_python_threads(isa, layer, randn):
    """Threads with batches of different sizes share no scratch memory and no tiles."""
    inputs = [randn(m, 200) for m in (1, 8, 33, 130)]
    wants = [layer(x) for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(len(inputs))

    def work(i: int) -> None:
        torch.set_num_threads(1 + i % 2)
        start.wait()
        for _ in range(50):
            if not torch.equal(layer(inputs[i]), wants[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_python_threads_quantise_and_pack(rng):
    w = [torch.from_numpy(rng.standard_normal((m, 300), dtype=np.float32)) for m in (5, 64, 131)]
    wants = [ops.pack_w8(ops.quantize_rowwise(t)[0]) for t in w]
    got: list[torch.Tensor | None] = [None] * len(w)

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = ops.pack_w8(ops.quantize_rowwise(w[i])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(w))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, wants, strict=True))


# In a process of its own: torch hangs in a child whose parent ran two or more OpenMP threads.
FORKED = """
import multiprocessing, torch, fastinfer
torch.set_num_threads(1)
layer = fastinfer.quantize_linear(torch.nn.Linear(200, 96).requires_grad_(False)).eval()
x = torch.randn(40, 200)
want = layer(x)

def work(queue):
    same = torch.equal(layer(x), want)
    torch.set_num_threads(2)
    big = torch.randn(300, 200)
    two = layer(big)
    torch.set_num_threads(1)
    queue.put((same, torch.equal(two, layer(big)), fastinfer._C.isa_in_use()))

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
workers = [context.Process(target=work, args=(queue,)) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(60)
    assert worker.exitcode == 0, worker.exitcode
    assert queue.get() == (True, True, fastinfer._C.isa_in_use())
assert torch.equal(layer(x), want)
print("ok")
"""


def test_forked_workers():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def run_in_worker(model: nn.Module, x: np.ndarray) -> np.ndarray:
    torch.set_num_threads(1)
    return model(torch.from_numpy(x)).numpy()


def test_spawned_workers(layer, randn):
    """The layer travels by pickle, its buffers through shared memory."""
    x = randn(40, 200)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(run_in_worker, [(layer, part.numpy()) for part in x.split(20)])
    assert torch.equal(torch.from_numpy(np.concatenate(parts)), layer(x))
