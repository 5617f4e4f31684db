"""Where a fused model's time goes: what is left beside matmul and attention, and what one small
layer costs in Python and dispatch.

python bench/layers.py                   # a minute; writes results/layers.csv
"""

import argparse
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

import machine
import records
import zoo
from contenders import fuse_int8
from records import OURS, Record
from timing import Candidate, interleave
from verdict import Row, verdict_table

RESULTS = Path(__file__).parent / "results" / "layers.csv"
SIZE = zoo.Size(8, zoo.LENGTH)
CALLS = 5  # of the profiled model
# What an operator is, by how its name begins, the first that fits; the rest is "other". Attention
# spelled out is two batched products with a softmax between.
KINDS = (
    ("fastinfer::linear", "matmul"),
    ("fastinfer::attention", "attention"),
    ("aten::addmm", "matmul"),
    ("aten::mm", "matmul"),
    ("mkldnn::_linear", "matmul"),
    ("quantized::linear", "matmul"),
    ("aten::bmm", "attention"),
    ("aten::baddbmm", "attention"),
    ("aten::_softmax", "attention"),
    ("aten::_scaled_dot_product", "attention"),
)


def kind_of(operator: str) -> str:
    """ "matmul", "attention" or "other"."""
    return next((kind for start, kind in KINDS if operator.startswith(start)), "other")


def shares(wall_us: float, operators: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of the wall time, the part in each kind of operator, from the microseconds that each spent
    itself; "python" is the part in none."""
    found = dict.fromkeys(("matmul", "attention", "other"), 0.0)
    for name, us in operators:
        found[kind_of(name)] += us / wall_us
    return found | {"python": 1 - sum(found.values())}


@torch.inference_mode()
def profile_shares(module: nn.Module, inputs: zoo.Inputs, calls: int = CALLS) -> dict[str, float]:
    """`shares` of the median call, each profiled alone after two that warm up."""
    module(**inputs)
    module(**inputs)
    found = []
    for _ in range(calls):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            start = perf_counter()
            module(**inputs)
            wall = (perf_counter() - start) * 1e6
        operators = [(e.key, e.self_cpu_time_total) for e in profiled.key_averages()]
        found.append((wall, shares(wall, operators)))
    return sorted(found, key=lambda call: call[0])[calls // 2][1]


def tiny_layer() -> nn.Module:
    """An encoder layer of BERT so narrow that its kernels cost next to nothing."""
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(zoo.SEED)
    config = BertConfig(
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=128,
        attn_implementation="sdpa",
    )
    return nn.Sequential(BertLayer(config)).eval()


def outside(report) -> list[Record]:  # type: ignore[no-untyped-def]
    """The shares of BERT-base, torch fp32 and fused int8."""
    model, found = zoo.MODELS["BERT-base"], []
    inputs = model.draw(SIZE, 1, 0)[0]
    where = {"threads": torch.get_num_threads(), "m": SIZE.batch}
    for name, kind, change in CHANGES:
        module = change(model.build("sdpa"))
        part = profile_shares(module, inputs)
        line = ", ".join(f"{what} {100 * share:.1f} %" for what, share in part.items())
        report(f"outside  {model.name} {SIZE}, {name}: {line}")
        value = part["other"] + part["python"]
        found.append(Record("outside", name, kind, **where, value=value))
        found += [
            Record(f"share {what}", name, kind, **where, value=share)
            for what, share in part.items()
        ]
    return found


@torch.inference_mode()
def dispatch(report, seconds: float) -> list[Record]:  # type: ignore[no-untyped-def]
    """One tiny layer on one token, in turns, on one thread."""
    machine.set_threads(1)
    x, modules, kinds = torch.randn(1, 1, 64), {}, {}
    for name, kind, change in CHANGES:
        with torch.inference_mode(False):
            modules[name] = change(tiny_layer())
        kinds[name] = kind
    timings = interleave(
        {name: Candidate(partial(module, x), "openmp") for name, module in modules.items()},
        seconds=seconds,
        least_samples=51,
        hopeless=math.inf,
    )
    found = []
    for name, timing in timings.items():
        report(f"dispatch one encoder layer, one token, {name}: {timing.median * 1e6:.1f} us")
        found.append(
            Record(
                "dispatch",
                name,
                kinds[name],
                threads=1,
                m=1,
                median_us=timing.median * 1e6,
                min_us=timing.minimum * 1e6,
                samples=timing.samples,
            )
        )
    return found


CHANGES = (("torch_fp32", "fp32", nn.Module.eval), (OURS, "ours", fuse_int8))


def numbers(found: Iterable[Record]) -> list[Row]:
    ours = [r for r in found if r.candidate == OURS]
    share = tuple((r.value, f"BERT-base {SIZE}") for r in ours if r.section == "outside")
    call = tuple((r.median_us, "hidden 64") for r in ours if r.section == "dispatch")
    return [
        Row("outside matmul and attention, share", 0.25, 0.12, False, share),
        Row("one encoder layer, one token, us", 60, 30, False, call),
    ]


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of the profiled model")
    parser.add_argument("--seconds", type=float, default=3.0, help="of turns of the tiny layer")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    console, here = Console(highlight=False, soft_wrap=True), machine.describe()
    machine.set_threads(given.threads)
    found = outside(console.print) + dispatch(console.print, given.seconds)
    console.print(verdict_table(numbers(found)))
    records.write_csv(given.csv, found, here)
    console.print(f"{len(found)} records in {given.csv}")
    return found


if __name__ == "__main__":
    main()
