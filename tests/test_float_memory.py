"""Float weights that leave memory with their int8 twins in place: when, and how they come back."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from fastinfer.candidates import find_layers, group_tied
from fastinfer.pairs import make_pairs
from fastinfer.spill import Stored
from fastinfer.trial import Trial, on_trial

Randn = Callable[..., Tensor]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.conv = hf.pytorch_utils.Conv1D(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.attention(x, x, x)[0].contiguous())


@contextmanager
def opened(model: nn.Module, x: Tensor) -> Iterator[Trial]:
    with on_trial(model, [x], False) as (trial, spill, _):
        trial.remember_outputs()
        trial.open()
        groups = group_tied(model, find_layers(model, None), embeddings_too=True)
        trial.pairs = make_pairs(model, groups, spill, trial.replaced)
        trial.time_pairs(trial.pairs)
        yield trial


def names(trial: Trial) -> list[str]:
    return [pair.layers[0].name for pair in trial.pairs]


def test_several_layers_of_one_parameter(randn: Randn) -> None:
    """It leaves with the last of them and comes back with the first."""
    model, x = Attention().eval(), randn(2, 3, 16)
    given, conv = model.attention, model.conv
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    with opened(model, x) as trial:
        assert names(trial) == [
            *(f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
            "conv",
        ]
        split, turned = model.attention, model.conv
        q, k, v, out, _ = trial.pairs
        for int8, is_out in (((q,), 0), ((q, v, out), 0), (trial.pairs, 1), ((k, out), 0)):
            trial.become(trial.int8_form(int8))
            assert given.in_proj_weight.numel() == (0 if is_out else 3 * 16 * 16)
            assert given.out_proj.weight.numel() == (0 if out in int8 else 16 * 16)
            assert conv.weight.numel() == (0 if is_out else 16 * 24)
            assert trial.error() < 0.05
        trial.become(trial.given)
        assert (model.attention, model.conv) == (given, conv)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, values[name])
            assert parameter.is_contiguous()
        # The views are views as before.
        packed = given.in_proj_weight
        assert split.k_proj.weight.data_ptr() == packed.data_ptr() + packed.nbytes // 3
        assert turned.weight.data_ptr() == conv.weight.data_ptr()
        assert torch.equal(turned.weight, conv.weight.T)


def test_who_holds_a_replaced_module_has_its_weights(randn: Randn) -> None:
    model, x = Attention().eval(), randn(2, 3, 16)
    held, want = model.attention, model.attention.in_proj_weight.detach().clone()
    weight = model.conv.weight
    turned_round = weight.detach().clone()
    with opened(model, x) as trial:
        trial.become(trial.int8_form(trial.pairs))
        assert not held.in_proj_weight.numel()
        trial.finish()
    assert torch.equal(held.in_proj_weight, want)
    assert torch.equal(weight, turned_round)
    held(x, x, x)


def test_what_is_not_theirs_alone_stays(randn: Randn) -> None:
    """Weights that are not all of a storage, mapped or shared, or viewed by something else."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
            part, mapped, shared, viewed, buffered = self.layers[:5]
            part.weight.data = torch.empty(2, 16, 16).normal_()[1]
            bytes_of = bytearray(randn(16, 16).numpy().tobytes())
            mapped.weight.data = torch.frombuffer(bytes_of, dtype=torch.float32).view(16, 16)
            shared.weight.share_memory_()
            self.row = nn.Parameter(viewed.weight.detach()[0])
            self.register_buffer("rows", buffered.weight.detach()[:2])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x + self.row + self.rows.sum()

    model = Model().eval()
    layers = list(model.layers)
    with opened(model, randn(3, 16)) as trial:
        for kind in ([*trial.pairs], []):
            trial.become(trial.int8_form(kind))
            here = [bool(layer.weight.numel()) for layer in layers]
            assert here == [True] * 5 + [not kind]


def test_a_full_disk_is_no_loss(randn: Randn, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: Tensor) -> None:
        raise OSError("No space left on device")

    model, x = Attention().eval(), randn(2, 3, 16)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    with opened(model, x) as trial:
        monkeypatch.setattr(trial.pairs[0].memory._spill, "store", full)
        with pytest.raises(OSError, match="No space left"):
            trial.become(trial.int8_form(trial.pairs))
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, values[name])


def fail_once(trial: Trial, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From here on the second tensor that comes back from the file raises."""
    spill = trial.pairs[0].memory._spill
    load, calls = spill.load, itertools.count(1)

    def fail(stored: Stored) -> Tensor:
        if next(calls) == 2:
            raise error
        return load(stored)

    monkeypatch.setattr(spill, "load", fail)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("finish", [True, False])
def test_no_weight_is_lost_to_another_ones_failure(
    finish: bool, error: BaseException, randn: Randn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, where weights that are held elsewhere come back, and on the way back."""
    model, x = Attention().eval(), randn(2, 3, 16)
    modules = list(model.modules())
    held = [(p, p.detach().clone()) for p in model.parameters()]
    outputs = []

    def fail() -> None:
        with opened(model, x) as trial:
            trial.become(trial.int8_form(trial.pairs))
            outputs.append(model(x))
            fail_once(trial, monkeypatch, error)
            if finish:
                trial.finish()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert all(torch.equal(p, value) for p, value in held)
    if finish:
        assert torch.equal(model(x), outputs[0])
    else:
        assert list(model.modules()) == modules


def test_nested_buffers_are_no_trouble(randn: Randn) -> None:
    model = Attention().eval()
    rows = [torch.ones(2), torch.ones(3)]
    model.register_buffer("rows", torch.nested.nested_tensor(rows, layout=torch.jagged))
    with opened(model, randn(2, 3, 16)) as trial:
        trial.become(trial.int8_form(trial.pairs))
        assert not trial.replaced[0].in_proj_weight.numel()
