"""show_config and `python -m fastinfer`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import fastinfer
from fastinfer import _C, show_config


def test_states_what_is_so() -> None:
    torch.set_num_threads(2)
    config = show_config()
    assert config.fastinfer == fastinfer.__version__
    assert config.torch == torch.__version__
    assert config.threads == 2
    assert config.isa_in_use == _C.isa_in_use()
    assert [isa["name"] for isa in config.isas] == [isa["name"] for isa in _C.isas()]
    assert config.cpu
    if torch.version.cuda is None:
        assert config.cuda == f"not used: torch {torch.__version__} is built without CUDA"


def test_is_plain_data() -> None:
    data = show_config().to_dict()
    assert json.loads(json.dumps(data)) == data


def test_table_tells_in_use_above_the_cap_and_why_not(force_isa: Callable[[str], None]) -> None:
    force_isa("generic")
    config = show_config()
    assert (config.isa_in_use, config.isa_cap) == ("generic", "generic")
    text = str(config)
    assert repr(config) == text
    assert "generic, capped at generic" in text
    rows = [line.split("│")[1:4] for line in text.splitlines() if line.count("│") == 4]
    state = {name.strip(): (state.strip(), reason.strip()) for name, state, reason in rows}
    assert state["generic"][0] == "in use"
    for isa in config.isas[1:]:
        want = "above the cap" if isa["supported"] else "not supported"
        assert state[isa["name"]] == (want, isa["reason"])


@pytest.mark.parametrize("cap", ["", "generic"])
def test_module_prints_it(cap: str) -> None:
    environment = os.environ | {"FASTINFER_ISA": cap} if cap else dict(os.environ)
    run = subprocess.run(
        [sys.executable, "-m", "fastinfer"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Instruction sets" in run.stdout
    assert ("capped at generic" in run.stdout) == (cap == "generic")
