"""An image classifier made smaller and faster: handwritten digits, a residual MLP.

    pip install "fastinfer[examples]"
    python examples/digits.py            # a few minutes on two cores
    python examples/digits.py --short    # seconds, hardly trained

The data are scikit-learn's bundled digits: 1797 images of 8 x 8 pixels by 43 people, a set of the
UCI repository. Half of them train, a fifth validates, the rest tests.
"""

import sys
from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastinfer
import forms
import results
import tradeoff


class Block(nn.Module):
    """x + MLP(norm(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Classifier(nn.Sequential):
    """Pixels [batch, 64] to the scores of ten digits."""

    def __init__(self, width: int, inner: int, blocks: int = 2) -> None:
        super().__init__(
            nn.Linear(64, width),
            *(Block(width, inner) for _ in range(blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, 10),
        )


def splits() -> dict[str, TensorDataset]:
    """Pixels, standardised over all of the training images, and digits."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    train, validation, test = np.split(order, [len(order) // 2, len(order) * 7 // 10])
    mean, deviation = images[train].mean(), images[train].std()
    pixels = torch.tensor((images - mean) / deviation, dtype=torch.float32)
    labels = torch.tensor(digits)
    return {
        name: TensorDataset(pixels[part], labels[part])
        for name, part in (("train", train), ("validation", validation), ("test", test))
    }


def shifted(items: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """A batch, every image moved by up to one pixel each way, so that none comes twice alike."""
    pixels, *labels = (torch.stack(column) for column in zip(*items, strict=True))
    images = nn.functional.pad(pixels.view(-1, 8, 8), (1, 1, 1, 1), value=float(pixels.min()))
    down, right = torch.randint(0, 3, (2, len(images), 1, 1))
    rows, columns = torch.arange(8).view(1, 8, 1) + down, torch.arange(8).view(1, 1, 8) + right
    moved = images[torch.arange(len(images)).view(-1, 1, 1), rows, columns]
    return [moved.reshape(-1, 64), *labels]


def train(model: Classifier, data: TensorDataset, epochs: int) -> Classifier:
    loader = DataLoader(data, 64, shuffle=True, collate_fn=shifted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    scheduler = forms.warm_up_and_cosine(optimizer, epochs * len(loader))
    for _ in range(epochs):
        for pixels, digits in loader:
            loss = nn.functional.cross_entropy(model(pixels), digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: TensorDataset) -> list[float]:
    pixels, digits = data.tensors
    return [float((model(pixels).argmax(1) == digits).float().mean())]


def main(given: list[str] | None = None) -> results.Result:
    arguments = tradeoff.arguments_of("handwritten digits", given)
    data = splits()
    torch.manual_seed(0)
    model = Classifier(128, 256) if arguments.short else Classifier(512, 1024)
    train(model, data["train"], epochs=3 if arguments.short else 60)
    judged = data["validation" if arguments.validation else "test"]
    pixels = judged.tensors[0]
    unlabelled = TensorDataset(data["train"].tensors[0])
    example = forms.Example(
        name="digits",
        title="Handwritten digits, a residual MLP",
        data=(
            f"{len(data['train'])} images of scikit-learn's digits train, {len(judged)} are judged"
        ),
        model=model,
        metrics=[forms.Metric("accuracy")],
        score=partial(accuracy, data=judged),
        inputs={"1 image": pixels[:1], "256 images": pixels[:256]},
        batches=DataLoader(
            unlabelled, 64, shuffle=True, collate_fn=shifted,
            generator=torch.Generator().manual_seed(0),
        ),
        calibration=[pixels for pixels, in DataLoader(unlabelled, 256)],
        loss=fastinfer.KD(temperature=2.0, alpha=1.0),
        steps=20 if arguments.short else 600,
        lr=5e-4,
        blocks=0.9,
        channels=0.5,
    )  # fmt: skip
    return tradeoff.run(example, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
