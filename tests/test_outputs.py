"""Large outputs come from a pool of reused buffers: they must behave like any other tensor."""

import copy
import gc
import io
import threading

import numpy as np
import pytest
import torch

from fastinfer import ops
from test_ops import same_bits, weights

M, N, K = 300, 200, 64  # an output of 240 kB


@pytest.fixture
def linear(rng, randn):
    _, packed, scale, bias = weights(rng, N, K)
    return lambda x: ops.linear_w8a8(x, packed, scale, bias)


def test_live_outputs_share_no_memory(linear, randn):
    xs = [randn(M, K) for _ in range(6)]
    wants = [linear(x).clone() for x in xs]
    ys = [linear(x) for x in xs]
    assert len({y.data_ptr() for y in ys}) == len(ys)
    assert all(same_bits(y, want) for y, want in zip(ys, wants, strict=True))


def test_views_keep_the_buffer(linear, randn):
    x = randn(M, K)
    want = linear(x).clone()
    row, array = linear(x)[7], linear(x).numpy()
    for _ in range(20):
        linear(randn(M, K))
    assert same_bits(row, want[7])
    np.testing.assert_array_equal(array, want.numpy())


def test_a_freed_buffer_is_used_again(linear, randn):
    seen = set()
    for _ in range(10):
        seen.add(linear(randn(M, K)).data_ptr())
        gc.collect()
    assert len(seen) <= 2


def test_in_place_copies_and_files(linear, randn):
    y = linear(randn(M, K))
    want = y.clone()
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert same_bits(torch.load(file, weights_only=True), want)
    assert same_bits(copy.deepcopy(y), want)
    assert same_bits(y.clone().share_memory_(), want)
    y.add_(1).relu_()
    assert torch.equal(y, (want + 1).relu())
    y.resize_(10, 10)
    assert y.shape == (10, 10)


def test_freed_by_another_thread(linear, randn):
    x = randn(M, K)
    want = linear(x).clone()
    wrong = []

    def work():
        for _ in range(50):
            if not same_bits(linear(x), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
