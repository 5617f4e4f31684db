"""distill: its losses against float64, resumption, and students of every kind."""

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastinfer import (
    KD,
    FeatureMatch,
    Magnitude,
    Sparse24,
    convert_qat_,
    distill,
    finalize_pruning_,
    prepare_qat_,
    prune_,
    sparsity_of,
)
from fastinfer.features import Matcher
from fastinfer.nn import QuantizedLinear
from linears import same_bits

Randn = Callable[..., Tensor]


def mlp(width: int = 16, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 5))


class Attending(nn.Module):
    def __init__(self, heads: int, average: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, heads, batch_first=True)
        self.average = average

    def forward(self, x: Tensor) -> Any:
        return self.inner(x, x, x, average_attn_weights=self.average)


def batches_of(randn: Randn, count: int = 6) -> list[Any]:
    return [randn(7, 12) for _ in range(count)]


def kd64(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    p = (teacher.double() / t).softmax(-1)
    q = (student.double() / t).softmax(-1)
    return t**2 * (p * (p.log() - q.log())).sum(-1).mean()


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_kd_without_labels_by_the_formula(t: float, randn: Randn) -> None:
    student, teacher = randn(3, 4, 10), randn(3, 4, 10)
    # About 40 float32 operations on numbers of up to 2 * max|logit| / t, then times t**2.
    bound = 40 * 2.0**-24 * 2 * float(torch.stack([student, teacher]).abs().max()) * max(t, 1) ** 2
    assert float(KD(t)(student, teacher)) == pytest.approx(
        float(kd64(student, teacher, t)), abs=bound / min(t, 1), rel=0
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_kd_with_labels_by_the_formula_and_ignored_positions(alpha: float, randn: Randn) -> None:
    student, teacher = randn(3, 4, 10), randn(3, 4, 10)
    labels = torch.tensor([[1, 2, -100, 3], [-100, 0, 9, 8], [-100, -100, -100, 5]])
    ours, theirs = student[labels != -100], teacher[labels != -100]
    hard = -ours.double().log_softmax(-1).gather(1, labels[labels != -100][:, None]).mean()
    want = alpha * kd64(ours, theirs, 2.0) + (1 - alpha) * hard
    got = KD(2.0, alpha)(student, teacher, labels)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    nothing = KD()(student.requires_grad_(), teacher, torch.full((3, 4), -100))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert not student.grad.any()


def test_the_gradient_of_kd_by_the_formula_and_of_a_size_that_t_does_not_change(
    randn: Randn,
) -> None:
    """T * (q - p) / positions, and its limit for large T, in centred logits of C classes,
    (student - teacher) / (C * positions): equation 4 of the paper times T**2."""
    student, teacher = (randn(6, 10) for _ in range(2))
    student, teacher = student - student.mean(1, True), teacher - teacher.mean(1, True)
    student.requires_grad_()
    for t in (1.0, 3.0, 200.0):
        student.grad = None
        KD(t)(student, teacher).backward()
        q, p = ((x.detach().double() / t).softmax(-1) for x in (student, teacher))
        # p and q are off by some 2**-24 of themselves, at most 1, and the difference takes T.
        assert torch.allclose(student.grad.double(), t * (q - p) / 6, rtol=1e-4, atol=t * 2e-8)
    limit = (student.detach() - teacher) / (10 * 6)
    # The next term of the expansion is of the order max|logit|**2 / (C * T) = 1e-2 of these.
    assert torch.allclose(student.grad, limit, rtol=0, atol=0.05 * float(limit.abs().max()))


def test_hidden_states_of_another_width_are_projected(randn: Randn) -> None:
    student, teacher, x = mlp(16), mlp(24), randn(7, 12)
    matcher = Matcher(FeatureMatch({"1": "1"}, weight=0.5), student, teacher)
    student(x), teacher(x)
    matcher.fit()
    assert matcher.projections[0].weight.shape == (24, 16)
    student(x), teacher(x)
    loss = matcher()
    ours, theirs = (m[1](m[0](x)).detach().double() for m in (student, teacher))
    projection = matcher.projections[0].weight.detach().double()
    want = 0.5 * ((ours @ projection.T - theirs) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(float(want), rel=1e-5)
    loss.backward()
    assert matcher.projections[0].weight.grad.any()
    assert student[0].weight.grad.any()
    matcher.remove()
    assert not student[1]._forward_hooks


@torch.no_grad()
def test_equal_widths_are_compared_as_they_are_over_all_pairs(randn: Randn) -> None:
    student, teacher, x = mlp(), mlp(), randn(7, 12)
    pairs = [(student[:2](x), teacher[:2](x)), (student(x), teacher(x))]
    want = sum(float(((y - z).double() ** 2).mean()) for y, z in pairs) / 2
    matcher = Matcher(FeatureMatch({"1": "1", "3": "3"}), student, teacher)
    student(x), teacher(x)
    matcher.fit()
    assert not list(matcher.parameters())
    student(x), teacher(x)
    assert float(matcher()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("average", "heads"), [(True, 4), (False, 2), (False, 4)])
@torch.no_grad()
def test_attention_maps(average: bool, heads: int, randn: Randn) -> None:
    student, teacher, x = Attending(2, average=False), Attending(heads, average), randn(3, 6, 8)
    matcher = Matcher(FeatureMatch({"inner": "inner"}, "attention"), student, teacher)
    ours, theirs = student(x)[1].double(), teacher(x)[1].double()
    if (average, heads) != (False, 2):
        ours, theirs = ours.mean(1), theirs if average else theirs.mean(1)
    assert float(matcher()) == pytest.approx(float(((ours - theirs) ** 2).mean()), rel=1e-5)


def test_a_student_learns_what_the_teacher_does(randn: Randn) -> None:
    student, teacher = mlp(8), mlp(32).train()
    teacher[3].eval()
    student[0].eval()
    before = copy.deepcopy(teacher.state_dict())
    batches = batches_of(randn)
    result = distill(
        student,
        teacher,
        batches,
        [KD(), FeatureMatch({"1": "1"}, weight=0.1)],
        epochs=30,
        lr=0.01,
    )
    assert len(result.losses) == 180
    assert result.epochs == tuple(i // 6 for i in range(180))
    assert sum(result.losses[-6:]) < 0.5 * sum(result.losses[:6])
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))
    assert [m.training for m in teacher] == [True, True, True, False]
    assert [m.training for m in student] == [False, True, True, True]
    assert not any(m._forward_hooks for m in (*student, *teacher))
    assert all(p.grad is None for p in (*student.parameters(), *teacher.parameters()))
    sums = [a + b for a, b in zip(*result.terms.values(), strict=True)]
    assert result.losses == pytest.approx(sums)
    data = result.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    text = str(result)
    assert all(word in text for word in ("Distillation", "kd", "hidden", "29"))
    assert "180 steps" in repr(result)


def test_is_plain_training_with_the_optimizer_and_schedule_asked_for(randn: Randn) -> None:
    """The same as the loop one would write, bit for bit; accumulation is the mean, a short group
    at the end of the pass its own mean."""
    student, teacher, batches = mlp(), mlp().eval(), batches_of(randn, 5)
    twin = copy.deepcopy(student)

    def decay(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    result = distill(
        student,
        teacher,
        batches,
        epochs=2,
        accumulate=2,
        optimizer=torch.optim.SGD,
        lr=0.5,
        scheduler=decay,
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    schedule, losses = decay(optimizer), []
    for group in (batches[:2], batches[2:4], batches[4:]) * 2:
        optimizer.zero_grad()
        values = [KD()(twin(x), teacher(x).detach()) for x in group]
        for value in values:
            (value / len(group)).backward()
        optimizer.step()
        schedule.step()
        losses.append(sum(float(value.detach()) / len(group) for value in values))
    assert result.losses == tuple(losses)
    assert all(map(torch.equal, student.state_dict().values(), twin.state_dict().values()))


class Interrupted:
    """The same batches, until `stop` of them were drawn."""

    def __init__(self, batches: Any, stop: int) -> None:
        self.batches, self.left = batches, stop

    @property
    def generator(self) -> Any:
        return getattr(self.batches, "generator", None)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


class Noisy:
    """Batches that draw from all three random states as they come."""

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(7):
            yield torch.randn(4, 12) * random.random() + np.random.rand()  # noqa: NPY002


def shuffled(generator: torch.Generator | None = None) -> DataLoader:
    data = torch.randn(26, 12, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(data), batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("kind", ["noisy", "shuffled", "generator"])
@pytest.mark.parametrize(("accumulate", "stop"), [(1, 4), (1, 12), (3, 7), (3, 16)])
def test_a_killed_run_resumed_is_an_uninterrupted_one(
    kind: str, accumulate: int, stop: int, tmp_path: Path
) -> None:
    """With dropout, a schedule, a projection and an optimizer with state."""

    def batches() -> Any:
        if kind == "noisy":
            return Noisy()
        return shuffled(torch.Generator().manual_seed(9) if kind == "generator" else None)

    options: dict[str, Any] = {
        "loss": [KD(), FeatureMatch({"1": "1"})],
        "epochs": 3,
        "accumulate": accumulate,
        "lr": 0.01,
        "scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        "save_every": 2,
    }
    start, teacher = mlp(8, dropout=0.3), mlp()
    student = copy.deepcopy(start)
    want = distill(student, teacher, batches(), **options)

    options |= {"checkpoint_dir": tmp_path, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        distill(copy.deepcopy(start), teacher, Interrupted(batches(), stop), **options)
    random.seed(77)
    torch.manual_seed(77)
    again = copy.deepcopy(start)
    got = distill(again, teacher, batches(), **options)
    assert got == want
    assert all(map(torch.equal, again.state_dict().values(), student.state_dict().values()))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]

    # A finished run resumed has nothing to do; with more epochs it goes on.
    done = copy.deepcopy(start)
    assert distill(done, teacher, batches(), **options) == want
    assert all(map(torch.equal, done.state_dict().values(), student.state_dict().values()))
    more = distill(copy.deepcopy(start), teacher, batches(), **options | {"epochs": 4})
    whole = copy.deepcopy(options) | {"epochs": 4, "checkpoint_dir": None, "resume": False}
    assert more == distill(copy.deepcopy(start), teacher, batches(), **whole)


def test_a_checkpoint_is_replaced_as_a_whole(
    randn: Randn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, options = batches_of(randn), {"checkpoint_dir": tmp_path, "save_every": 1}
    distill(mlp(), mlp(), batches, steps=2, **options)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    save = torch.save

    def killed(state: Any, file: Any) -> None:
        save(state, file)
        file.truncate(100)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(mlp(), mlp(), batches, steps=4, resume=True, **options)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert len(distill(mlp(), mlp(), batches, steps=4, resume=True, **options).losses) == 4


def test_the_random_states_come_back_and_the_seed_decides(randn: Randn) -> None:
    start, teacher = mlp(8, dropout=0.5), mlp()
    states = torch.get_rng_state(), random.getstate()
    results = [distill(copy.deepcopy(start), teacher, shuffled(), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert results[0] == results[1]
    assert results[0].losses != results[2].losses


def test_hard_labels_of_dicts_and_tuples(randn: Randn) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(features)}

    student, teacher, x = Named(), Named().eval(), randn(7, 12)
    labels = torch.arange(7) % 5
    want = KD(3.0, 0.25)(student(x)["logits"], teacher(x)["logits"], labels)
    soft = KD(3.0)(student(x)["logits"], teacher(x)["logits"])
    for batch, where, loss in (
        ({"features": x, "labels": labels}, "labels", want),
        ({"features": x, "y": labels}, "y", want),
        ((x, labels), 1, want),
        ([x, labels], -1, want),
        ({"features": x}, "labels", soft),
        (x, "labels", soft),
    ):
        twin = copy.deepcopy(student)
        result = distill(twin, teacher, [batch], KD(3.0, 0.25), labels=where)
        assert result.losses == pytest.approx([float(loss.detach())], rel=1e-6)


@pytest.mark.parametrize("finalized", [False, True])
def test_a_mask_is_kept_and_a_prepared_student_becomes_int8(finalized: bool, randn: Randn) -> None:
    student, teacher, batches = mlp(), mlp(), batches_of(randn)
    prune_(student, Sparse24(), Magnitude(), filter_fn=lambda module, name: name == "0")
    mask = sparsity_of(student[0]).mask
    prepare_qat_(student)
    start = student[0].weight.detach().clone()
    result = distill(student, teacher, batches, epochs=10, lr=0.01)
    assert sum(result.losses[-6:]) < sum(result.losses[:6])
    assert not student[0].weight[~mask].any()
    assert (student[0].weight != start)[mask].any()
    y = student(batches[0]).detach()
    if finalized:
        assert finalize_pruning_(student) == 1
        assert same_bits(student(batches[0]).detach(), y)
    convert_qat_(student)
    assert not student[0].weight[~mask].any()
    assert isinstance(student[0], QuantizedLinear)
    assert same_bits(student(batches[0]), y)


@pytest.mark.parametrize("lacks", [False, True])
def test_bf16_trains_float_weights(
    randn: Randn, monkeypatch: pytest.MonkeyPatch, lacks: bool
) -> None:
    monkeypatch.setattr("fastinfer.accelerated._lacks_bf16", lambda: lacks)
    seen = []

    class Looks(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return x

    student, teacher = mlp().append(Looks()), mlp()
    told = pytest.warns(UserWarning, match="no bf16 instructions") if lacks else nullcontext()
    with told as warned:
        result = distill(
            student, teacher, batches_of(randn), mixed_precision="bf16", lr=0.01, epochs=5
        )
    assert not lacks or Path(warned[0].filename) == Path(__file__)
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert sum(result.losses[-6:]) < sum(result.losses[:6])


def test_leaves_the_accelerate_of_others_alone(randn: Randn) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [s._shared_state for s in (AcceleratorState, GradientState, PartialState)]
    try:
        mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
        distill(mlp(), mlp(), batches_of(randn, 1))
        assert (mine.mixed_precision, mine.gradient_accumulation_steps) == ("bf16", 4)
    finally:
        for state in states:
            state.clear()
    distill(mlp(), mlp(), batches_of(randn, 1))
    assert states == [{}, {}, {}]


def test_writes_scalars(randn: Randn, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    match = FeatureMatch({"1": "1"})
    result = distill(mlp(), mlp(), batches_of(randn), [KD(), match, match], log_dir=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = {"loss", "loss/kd", "loss/hidden", "loss/hidden 2", "lr"}
    assert set(events.Tags()["scalars"]) == names
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == list(range(6))
    # TensorBoard keeps float32.
    assert [event.value for event in scalars] == pytest.approx(list(result.losses), rel=2**-23)


def test_progress_bar_on_request_only(randn: Randn, capfd: pytest.CaptureFixture[str]) -> None:
    distill(mlp(), mlp(), batches_of(randn))
    assert capfd.readouterr() == ("", "")
    distill(mlp(), mlp(), batches_of(randn), progress=True)
    assert "Distilling, loss" in capfd.readouterr().err


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, torch, fastinfer\n"
        "models = [torch.nn.Linear(2, 2) for _ in range(2)]\n"
        "for missing, log_dir in (('tensorboard', 'x'), ('accelerate', None)):\n"
        "    sys.modules[missing] = None\n"
        "    try:\n"
        "        fastinfer.distill(*models, [torch.ones(1, 2)], log_dir=log_dir)\n"
        "    except ImportError as error:\n"
        "        print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        f'{name} is not installed: pip install "fastinfer[distill]"'
        for name in ("tensorboard", "accelerate")
    ], done.stderr


def test_stops_before_a_step_on_a_loss_that_is_not_finite(randn: Randn) -> None:
    student, batches = mlp(), batches_of(randn, 3)
    twin = copy.deepcopy(student)
    batches[2][0, 0] = math.nan
    with pytest.raises(RuntimeError, match="kd is nan in step 3"):
        distill(student, mlp(), batches)
    assert all(p.isfinite().all() for p in student.parameters())
    assert not torch.equal(student[0].weight, twin[0].weight)
    assert not any(m._forward_hooks for m in student)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"student": 1}, TypeError, "student: got int"),
        ({"teacher": None}, TypeError, "teacher: got NoneType"),
        ({"student": mlp().requires_grad_(False)}, ValueError, "nothing to train"),
        ({"batches": torch.ones(2, 12)}, TypeError, "batches: got Tensor"),
        ({"batches": iter([])}, TypeError, "can be gone through once"),
        ({"batches": []}, ValueError, "batches: it is empty"),
        ({"batches": ["a"]}, TypeError, "batches: number 1: got str"),
        ({"loss": "kd"}, TypeError, "loss: got 'kd'"),
        ({"loss": []}, ValueError, "loss: got an empty list"),
        ({"loss": FeatureMatch({"9": "1"})}, ValueError, "names '9', which is no module of the st"),
        ({"loss": FeatureMatch({"1": "x"})}, ValueError, "names 'x', which is no module of the te"),
        ({"loss": FeatureMatch({"1": "1"}, "attention")}, ValueError, "the student's 1 has shape"),
        ({"teacher": nn.Linear(12, 6)}, ValueError, "logits have shape"),
        ({"labels": 1.5}, TypeError, "labels: got float"),
        ({"epochs": 0}, ValueError, "epochs: got 0"),
        ({"steps": "2"}, TypeError, "steps: got str"),
        ({"accumulate": 0}, ValueError, "accumulate: got 0"),
        ({"seed": None}, TypeError, "seed: got NoneType"),
        ({"lr": 0}, ValueError, "lr: got 0"),
        ({"lr": "1"}, TypeError, "lr: got str"),
        ({"optimizer": 1}, TypeError, "optimizer: got int"),
        ({"scheduler": 1}, TypeError, "scheduler: got int"),
        ({"mixed_precision": "fp8"}, ValueError, "mixed_precision: got 'fp8'"),
        ({"checkpoint_dir": "/nonexistent"}, ValueError, "is no directory"),
        ({"resume": True}, ValueError, "checkpoint_dir: got None"),
    ],
)
def test_refuses_wrong_arguments(
    changed: dict[str, Any], error: type[Exception], words: str, randn: Randn
) -> None:
    arguments = {"student": mlp(8), "teacher": mlp(), "batches": batches_of(randn, 1)} | changed
    with pytest.raises(error, match=words):
        distill(**arguments)


def test_refuses_a_checkpoint_of_another_run(randn: Randn, tmp_path: Path) -> None:
    batches = batches_of(randn, 1)
    distill(mlp(), mlp(), batches, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="want resume=True"):
        distill(mlp(), mlp(), batches, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"lr: got 0\.1, but .* had 0\.0001"):
        distill(mlp(), mlp(), batches, lr=0.1, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="of another run"):
        distill(mlp(8), mlp(), batches, checkpoint_dir=tmp_path, resume=True)
    path = tmp_path / "checkpoint.pt"
    for damaged in (b"half", path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="it is no checkpoint of distill"):
            distill(mlp(), mlp(), batches, checkpoint_dir=tmp_path, resume=True)
    torch.save(mlp().state_dict(), path)
    with pytest.raises(ValueError, match="it is no checkpoint of distill: no random in it"):
        distill(mlp(), mlp(), batches, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: KD(0), ValueError, "temperature is 0"),
        (lambda: KD(math.nan), ValueError, "temperature is nan"),
        (lambda: KD("2"), TypeError, "temperature is a str"),
        (lambda: KD(alpha=1.5), ValueError, "alpha is 1.5"),
        (lambda: FeatureMatch(["a"]), TypeError, "pairs is a list"),
        (lambda: FeatureMatch({}), ValueError, "pairs is empty"),
        (lambda: FeatureMatch({"a": "b"}, "logits"), ValueError, "kind is 'logits'"),
        (lambda: FeatureMatch({"a": "b"}, weight=-1), ValueError, "weight is -1"),
        (lambda: KD()(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), ValueError, "the labels"),
    ],
)
def test_losses_refuse_wrong_arguments(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_transformers_bert_with_hidden_states_and_attention(randn: Randn) -> None:
    transformers = pytest.importorskip("transformers")

    def bert(width: int) -> nn.Module:
        config = transformers.BertConfig(
            vocab_size=60,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=width // 8,
            intermediate_size=32,
            attn_implementation="eager",
        )
        return transformers.BertForSequenceClassification(config)

    losses = [
        KD(),
        FeatureMatch({"bert.encoder.layer.0": "bert.encoder.layer.0"}),
        FeatureMatch(
            {"bert.encoder.layer.0.attention.self": "bert.encoder.layer.0.attention.self"},
            "attention",
        ),
    ]
    batch = {"input_ids": torch.randint(0, 60, (4, 9)), "labels": torch.tensor([0, 1, 1, 0])}
    result = distill(bert(16), bert(32), [batch], losses, steps=25, lr=1e-2)
    assert list(result.terms) == ["kd", "hidden", "attention"]
    assert result.losses[-1] < 0.7 * result.losses[0]
