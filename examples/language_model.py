"""A small Llama, trained in minutes on the documentation of packages, made smaller and faster.

    pip install "fastinfer[examples]"
    python examples/language_model.py            # several minutes on two cores
    python examples/language_model.py --short    # seconds, hardly trained

The text is the docstrings of Python's standard library, numpy, scipy and scikit-learn, as they are
installed here; the vocabulary is made of the training part. Other versions of the packages give
other texts and somewhat other figures.
"""

import itertools
import os
import sys
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.table import Table
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import LlamaConfig, LlamaForCausalLM

import docstrings
import fastinfer
import forms
import results
import tradeoff

LENGTH = 128  # tokens of a text
BATCH = 16
VOCABULARY = 2048
Texts = list[dict[str, Tensor]]


def texts(packages: list[str]) -> dict[str, Texts]:
    """Pieces of LENGTH tokens by split; what a paragraph is, is not told apart."""
    found = docstrings.paragraphs(packages)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(found["train"], VOCABULARY, show_progress=False)
    pieces = {}
    for split, paragraphs in found.items():
        encoded = tokenizer.encode_batch([paragraph + "\n\n" for paragraph in paragraphs])
        ids = torch.tensor([token for one in encoded for token in one.ids])
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        pieces[split] = [{"input_ids": piece} for piece in whole]
    return pieces


def llama(width: int, blocks: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def loader(pieces: Texts) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    sampler = RandomSampler(pieces, generator=generator)
    return DataLoader(pieces, BATCH, sampler=sampler, drop_last=True, generator=generator)


def batches(pieces: Texts, count: int) -> Texts:
    """So many batches, of texts taken evenly."""
    texts = BATCH * count
    return list(DataLoader([pieces[i * len(pieces) // texts] for i in range(texts)], BATCH))


def one_by_one(batches: Texts) -> Texts:
    """A batch a text."""
    return [{"input_ids": ids[None]} for batch in batches for ids in batch["input_ids"]]


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of every token but the first, given those before it."""
    logits = model(**batch).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def train(model: nn.Module, pieces: Texts, steps: int) -> nn.Module:
    passes = itertools.chain.from_iterable(itertools.repeat(loader(pieces)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, fused=True)
    scheduler = forms.warm_up_and_cosine(optimizer, steps)
    model.train()
    for batch in itertools.islice(passes, steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=forms.has_bf16()):
            loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return model.eval()


@torch.inference_mode()
def judge(model: nn.Module, batches: Texts) -> list[float]:
    """Perplexity, and how often the likeliest token is the right one."""
    losses, hits = [], []
    for batch in batches:
        logits, wanted = model(**batch).logits[:, :-1].float(), batch["input_ids"][:, 1:]
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()))
        hits.append((logits.argmax(-1) == wanted).float().mean())
    return [float(torch.stack(losses).mean().exp()), float(torch.stack(hits).mean())]


def criteria(model: nn.Module, calibration: Texts, judged: Texts) -> dict[str, dict[str, float]]:
    """Perplexity by structure and criterion, half of all linear weights pruned, untrained since."""
    structures = {
        "2:4": fastinfer.Sparse24(),
        "single weights, 50 %": fastinfer.Unstructured(0.5),
        "16 x 64 blocks, 50 %": fastinfer.BlockSparse((16, 64), 0.5),
    }
    ways = [
        fastinfer.Random(),
        fastinfer.Magnitude(),
        fastinfer.Taylor(loss_of),
        fastinfer.Wanda(),
        fastinfer.SparseGPT(),
    ]
    found: dict[str, dict[str, float]] = {}
    for (what, structure), way in itertools.product(structures.items(), ways):
        if isinstance(way, fastinfer.SparseGPT) and isinstance(structure, fastinfer.BlockSparse):
            continue  # it makes no blocks
        singly = isinstance(way, fastinfer.Taylor)  # within a batch gradients cancel each other
        data = one_by_one(calibration) if singly else calibration
        pruned = forms.pruned(model, structure, way, data)
        found.setdefault(what, {})[way.label] = judge(pruned, judged)[0]
    return found


def show_criteria(found: dict[str, dict[str, float]], save: bool) -> None:
    names = list(next(iter(found.values())))
    header = ["half of the weights go", *names]
    rows = [
        [what, *(results.number(by_name[name]) if name in by_name else "" for name in names)]
        for what, by_name in found.items()
    ]
    table = Table(title="Perplexity after pruning alone, by criterion", title_justify="left")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    results.console.print(table)
    notes = [_verdict(what, by_name) for what, by_name in found.items()]
    for note in notes:
        results.say(note)
    if save:
        results.put_into_docs("criteria", results.markdown(header, rows), *notes)


def _verdict(what: str, by_name: dict[str, float]) -> str:
    worse = [name for name in ("Taylor", "Wanda") if by_name[name] >= by_name["magnitude"]]
    met = f"MISSED by {' and '.join(worse)}" if worse else "reached"
    return f"{what}: Taylor and Wanda must be better than magnitude, {met}."


def main(given: list[str] | None = None) -> results.Result:
    arguments = tradeoff.arguments_of("a small Llama", given)
    pieces = texts(["stdlib"] if arguments.short else ["stdlib", "numpy", "scipy", "sklearn"])
    torch.manual_seed(0)
    model = llama(128, blocks=1) if arguments.short else llama(512, blocks=2)
    steps = 20 if arguments.short else 180
    train(model, pieces["train"], steps)
    split = "validation" if arguments.validation else "test"
    judged = batches(pieces[split], count=2 if arguments.short else 10)
    calibration = batches(pieces["train"], count=2 if arguments.short else 8)
    tokens = judged[0]["input_ids"]
    perplexity = results.number(judge(model, judged)[0])
    results.say(f"The trained model, fp32: perplexity {perplexity}.")
    show_criteria(criteria(model, calibration, judged), arguments.save)
    example = forms.Example(
        name="language_model",
        title="Documentation of packages, a small Llama",
        data=(
            f"{steps * BATCH * LENGTH:,} tokens of docstrings train, "
            f"{sum(batch['input_ids'].numel() for batch in judged):,} of other files are judged"
        ),
        model=model,
        metrics=[
            forms.Metric("perplexity", lower_is_better=True),
            forms.Metric("next token right"),
        ],
        score=partial(judge, batches=judged),
        inputs={
            "1 token": {"input_ids": tokens[:1, :1]},
            f"4 x {LENGTH} tokens": {"input_ids": tokens[:4]},
        },
        batches=loader(pieces["train"]),
        calibration=calibration,
        loss=fastinfer.KD(temperature=1.0, alpha=1.0),
        steps=3 if arguments.short else 40,
        lr=3e-4,
        blocks=0.5,
        channels=0.5,
        mixed_precision="bf16",
    )
    return tradeoff.run(example, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
