"""The loop of `distill`: steps, the place in the batches, checkpoints, scalars."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fastinfer.accelerated import Write
from fastinfer.distillation import Distillation
from fastinfer.features import Matcher
from fastinfer.losses import KD, FeatureMatch, logits_of
from fastinfer.observe import call, check_inputs, observed
from fastinfer.resume import (
    random_state,
    restored_random,
    save_checkpoint,
    seed_random,
    set_random_state,
)


class Training:
    """A run of `distill`: `begin`, perhaps `resume`, `run`, `result`; `close` in any case."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Iterable[Any],
        losses: Sequence[KD | FeatureMatch],
        labels: str | int,
        accelerator: Any,
        generator: torch.Generator | None,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._batches, self._labels = batches, labels
        self._accelerator, self._generator = accelerator, generator
        self._device = next(student.parameters()).device
        self._terms: dict[str, KD | Matcher] = {}
        self._matchers = nn.ModuleList()  # their parameters: the projections
        self._epoch = self._done = 0  # steps done in this epoch
        self._epoch_random: dict[str, Any] | None = None  # when it began
        self._losses: list[float] = []
        self._of_terms: dict[str, list[float]] = {}
        self._epochs: list[int] = []
        try:
            for loss in losses:
                self._add(loss)
        except BaseException:
            self.close()
            raise

    @property
    def steps(self) -> int:
        return len(self._losses)

    def begin(
        self,
        seed: int,
        optimizer: Callable[..., Any],
        lr: float,
        scheduler: Callable[[Any], Any] | None,
        settings: dict[str, Any],
    ) -> None:
        """Tries the losses on the first batch, then makes what trains."""
        seed_random(seed)
        with restored_random(self._generator), observed(self._student):
            first = next(iter(self._batches), None)
            if first is None:
                raise ValueError("batches: it is empty, want at least one batch")
            self._forward(first, "number 1", fit=True)
        trained = [*self._student.parameters(), *self._matchers.parameters()]
        self._optimizer = optimizer([p for p in trained if p.requires_grad], lr=lr)
        self._scheduler = None if scheduler is None else scheduler(self._optimizer)
        self._settings = settings

    def resume(self, checkpoint: dict[str, Any]) -> None:
        try:
            self._student.load_state_dict(checkpoint["student"])
            self._matchers.load_state_dict(checkpoint["matchers"])
            self._optimizer.load_state_dict(checkpoint["optimizer"])
            if self._scheduler is not None:
                self._scheduler.load_state_dict(checkpoint["scheduler"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint_dir: its checkpoint is of another run: {error}"
            ) from error
        self._epoch, self._done = checkpoint["epoch"], checkpoint["done"]
        self._epoch_random = checkpoint["epoch_random"]
        self._losses = checkpoint["losses"]
        self._of_terms, self._epochs = checkpoint["terms"], checkpoint["epochs"]
        set_random_state(checkpoint["random"], self._generator)

    def run(
        self,
        epochs: int | None,
        steps: int | None,
        accumulate: int,
        directory: Path | None,
        save_every: int,
        write: Write | None,
        progress: bool | None,
    ) -> None:
        console = Console(stderr=True)
        if progress is None:
            progress = console.is_terminal
        with Progress(console=console, transient=console.is_terminal, disable=not progress) as bar:
            total = self._total(epochs, steps, accumulate)
            task = bar.add_task("Distilling", total=total, completed=self.steps)
            while epochs is None or self._epoch < epochs:
                for group in self._groups(accumulate, steps):
                    loss = self._step(group, write)
                    bar.update(task, advance=1, description=f"Distilling, loss {loss:.4g}")
                    if directory is not None and self.steps % save_every == 0:
                        save_checkpoint(directory, self._state())
                if steps is not None and self.steps >= steps:
                    break
                if not self._done:
                    raise ValueError(f"batches: empty in epoch {self._epoch}")
                self._epoch, self._done, self._epoch_random = self._epoch + 1, 0, None
        if directory is not None:
            save_checkpoint(directory, self._state())

    def result(self) -> Distillation:
        terms = {name: tuple(values) for name, values in self._of_terms.items()}
        return Distillation(tuple(self._losses), terms, tuple(self._epochs))

    def close(self) -> None:
        for term in self._terms.values():
            if isinstance(term, Matcher):
                term.remove()

    def _add(self, loss: KD | FeatureMatch) -> None:
        count = sum(name.split()[0] == loss.label for name in self._terms) + 1
        name = loss.label if count == 1 else f"{loss.label} {count}"
        if isinstance(loss, FeatureMatch):
            matcher = Matcher(loss, self._student, self._teacher)
            self._matchers.append(matcher)
            self._terms[name] = matcher
        else:
            self._terms[name] = loss
        self._of_terms[name] = []

    def _groups(self, accumulate: int, steps: int | None) -> Iterator[list[Any]]:
        """The batches of each step to do in this epoch."""
        now = random_state(self._generator)
        if self._epoch_random is None:
            self._epoch_random = now
        set_random_state(self._epoch_random, self._generator)
        stream = iter(self._batches)
        if self._done:  # resumed: what was done is drawn again, as then, and not used
            for _ in islice(stream, self._done * accumulate):
                pass
            set_random_state(now, self._generator)
        while steps is None or self.steps < steps:
            group = list(islice(stream, accumulate))
            if not group:
                break
            yield group

    def _step(self, group: list[Any], write: Write | None) -> float:
        self._optimizer.zero_grad()
        sums = dict.fromkeys(self._terms, 0.0)
        for batch in group:
            where = f"in step {self.steps + 1}"
            terms = self._forward(batch, where)
            for name, term in terms.items():
                value = float(term.detach())
                if not math.isfinite(value):
                    raise RuntimeError(f"distill: the loss {name} is {value} {where}")
                sums[name] += value / len(group)
            self._accelerator.backward(torch.stack([*terms.values()]).sum() / len(group))
        self._optimizer.step()
        loss = sum(sums.values())
        if write is not None:
            write("loss", loss, self.steps)
            for name, value in sums.items():
                write(f"loss/{name}", value, self.steps)
            write("lr", float(self._optimizer.param_groups[0]["lr"]), self.steps)
        if self._scheduler is not None:
            self._scheduler.step()
        self._optimizer.zero_grad()
        for name, value in sums.items():
            self._of_terms[name].append(value)
        self._losses.append(loss)
        self._epochs.append(self._epoch)
        self._done += 1
        return loss

    def _forward(self, batch: Any, where: str, fit: bool = False) -> dict[str, Tensor]:
        """Each loss on one batch; `fit`: the projections are made for it."""
        from accelerate.utils import send_to_device

        batch = tuple(batch) if isinstance(batch, list) else batch
        check_inputs(f"batches: {where}", batch)
        inputs, labels = _split(send_to_device(batch, self._device), self._labels)
        with self._accelerator.autocast():
            with observed(self._teacher):
                theirs = call(self._teacher, inputs)
            ours = call(self._student, inputs)
        terms = {}
        for name, term in self._terms.items():
            if isinstance(term, Matcher):
                if fit:
                    term.fit()
                    continue
                terms[name] = term()
            else:
                terms[name] = term(logits_of("student", ours), logits_of("teacher", theirs), labels)
        return terms

    def _state(self) -> dict[str, Any]:
        return {
            "settings": self._settings,
            "student": self._student.state_dict(),
            "matchers": self._matchers.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "epoch": self._epoch,
            "done": self._done,
            "epoch_random": self._epoch_random,
            "random": random_state(self._generator),
            "losses": self._losses,
            "terms": self._of_terms,
            "epochs": self._epochs,
        }

    def _total(self, epochs: int | None, steps: int | None, accumulate: int) -> int | None:
        """How many steps the run has, if that is known."""
        try:
            whole = -(-len(self._batches) // accumulate)  # type: ignore[arg-type]
        except TypeError:
            return steps
        return min(n for n in (epochs and epochs * whole, steps) if n is not None)


def _split(batch: Any, labels: str | int) -> tuple[Any, Tensor | None]:
    """What the models are called with, and the hard labels."""
    if isinstance(batch, Mapping) and labels in batch:
        return {k: v for k, v in batch.items() if k != labels}, batch[labels]
    if isinstance(batch, tuple) and isinstance(labels, int) and -len(batch) <= labels < len(batch):
        place = labels % len(batch)
        return batch[:place] + batch[place + 1 :], batch[place]
    return batch, None
