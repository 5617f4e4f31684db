"""Weights moved side by side: the same answers, one weight where there was one, saved alone."""

import copy
import gc
import io
import mmap
import pickle

import pytest
import torch
from torch import nn

import fastinfer
from fastinfer.huge_pages import to_huge_pages_
from fastinfer.nn import QuantizedLinear

HUGE_PAGE = 2 << 20
pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages"
)


def layers(count: int, n: int = 700, k: int = 900) -> nn.ModuleList:
    return nn.ModuleList(fastinfer.quantize_linear(nn.Linear(k, n)) for _ in range(count))


def places(modules: nn.ModuleList) -> list[int]:
    return [module.weight_packed.data_ptr() for module in modules]


def test_side_by_side() -> None:
    modules, x = layers(5), torch.randn(3, 900)
    want = [module(x) for module in modules]
    bytes_of = [bytes(module.weight_packed.numpy()) for module in modules]
    to_huge_pages_(modules)
    at = places(modules)
    assert at[0] % HUGE_PAGE == 0
    size = -(-modules[0].weight_packed.nbytes // 64) * 64
    assert at == [at[0] + i * size for i in range(5)]
    for module, was, y in zip(modules, bytes_of, want, strict=True):
        assert bytes(module.weight_packed.numpy()) == was
        assert module.weight_packed.untyped_storage().nbytes() == len(was)
        assert torch.equal(module(x), y)


def test_less_than_a_huge_page_stays() -> None:
    modules = layers(2)
    at = places(modules)
    to_huge_pages_(modules)
    assert places(modules) == at


def test_many_come_in_several_pieces() -> None:
    modules, x = layers(12, 3000, 3000), torch.randn(1, 3000)
    want = [module(x) for module in modules]
    to_huge_pages_(modules)
    at = places(modules)
    size = -(-modules[0].weight_packed.nbytes // 64) * 64
    together = (64 << 20) // size
    assert at[together - 1] == at[0] + (together - 1) * size
    assert at[together] % HUGE_PAGE == 0
    assert all(torch.equal(module(x), y) for module, y in zip(modules, want, strict=True))


def test_shared_weight_stays_shared() -> None:
    modules = layers(5)
    modules[3].weight_packed = modules[1].weight_packed
    to_huge_pages_(modules)
    assert modules[3].weight_packed is modules[1].weight_packed
    assert len(set(places(modules))) == 4


def test_outlives_the_others_and_is_saved_alone() -> None:
    modules, x = layers(6), torch.randn(2, 900)
    to_huge_pages_(modules)
    last, want = modules[5], modules[5](x)
    del modules
    gc.collect()
    assert torch.equal(last(x), want)
    for other in (copy.deepcopy(last), pickle.loads(pickle.dumps(last))):
        assert torch.equal(other(x), want)
    file = io.BytesIO()
    torch.save(last.state_dict(), file)
    assert file.tell() < last.weight_packed.nbytes + 20_000
    fresh = QuantizedLinear(900, 700)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), want)


@pytest.mark.parametrize("sparse", [False, True])
def test_models_have_it(sparse: bool) -> None:
    model = nn.Sequential(*(nn.Linear(1100, 1100) for _ in range(4))).eval()
    x = torch.randn(2, 1100)
    if sparse:
        fastinfer.prune_(model, fastinfer.Sparse24())
        fastinfer.sparsify_(model)
    else:
        fastinfer.quantize_(model)
    at = places(nn.ModuleList(model))
    assert at[0] % HUGE_PAGE == 0
    assert max(at) - min(at) < 4 * model[0].weight_packed.nbytes
    alone = copy.deepcopy(model)
    assert torch.equal(alone(x), model(x))


def test_optimize_leaves_it_traced() -> None:
    """What is traced before the weights move is not traced again."""
    model = nn.Sequential(*(nn.Linear(1100, 1100) for _ in range(4))).eval()
    x = torch.randn(64, 1100)
    result = fastinfer.optimize(model, x, max_error=0.5, progress=False)
    model = result.model
    if not isinstance(model[0], QuantizedLinear):
        pytest.skip("int8 is no faster here")
    assert min(places(nn.ModuleList(model))) % HUGE_PAGE == 0
    torch._dynamo.utils.counters.clear()
    with torch.inference_mode():
        model(x)
    assert not torch._dynamo.utils.counters["frames"]


def test_tied_model() -> None:
    model = nn.Sequential(nn.Embedding(3000, 800), nn.Linear(800, 3000, bias=False)).eval()
    model[1].weight = model[0].weight
    fastinfer.quantize_(model)
    assert model[0].weight_packed is model[1].weight_packed
    assert model[0].weight_packed.data_ptr() % HUGE_PAGE == 0
    assert model(torch.tensor([1, 2])).shape == (2, 3000)
