"""Text for the examples: the docstrings of Python's standard library and of installed packages."""

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")
SENTENCE = r"[A-Z][\w ,;:'\"`()\[\]/=*+<>-]+\."


def paragraphs(packages: Iterable[str]) -> dict[str, list[str]]:
    """The paragraphs of all docstrings by split, each different one once.

    packages: names of importable ones, or "stdlib" for the modules at the top of the standard
    library. A file's docstrings are in one split together, 8 of 10 files in the training one.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    files = [path for package in packages for path in _files(package)]
    draw = np.random.default_rng(0).permutation(len(files)) % 10
    for path, number in zip(files, draw, strict=True):
        split = "test" if number == 0 else "validation" if number == 1 else "train"
        for paragraph in _of_file(path):
            if paragraph not in seen:
                seen.add(paragraph)
                found[split].append(paragraph)
    return found


def sentences(paragraph: str) -> list[str]:
    """Its whole English sentences of 5 to 40 words, as long as nothing else is between them."""
    kept: list[str] = []
    for sentence in re.split(r"(?<=\.)\s+", " ".join(paragraph.split())):
        if not re.fullmatch(SENTENCE, sentence) or not 5 <= len(sentence.split()) <= 40:
            break
        kept.append(sentence)
    return kept


def _files(package: str) -> list[Path]:
    if package == "stdlib":
        return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f'{package} is missing: pip install "fastinfer[examples]"')
    return sorted(
        path for path in Path(spec.origin).parent.rglob("*.py") if "tests" not in path.parts
    )


def _of_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except SyntaxError:  # of a newer Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield from re.split(r"\n\s*\n", ast.get_docstring(node) or "")
