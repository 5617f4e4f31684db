"""Prints which instruction sets the C++ tests ran on: natively, under qemu, over an emulator of
their own (AMX), or not.

Reads the logs under build/isa that `make test` and `make cross` leave. Exits 1 if this CPU has an
instruction set that no kernel row was tested on, or if a row that it can run was left out.
"""

from __future__ import annotations

import pathlib
import sys

from rich.console import Console
from rich.table import Table

from fastinfer import _C

LOGS = pathlib.Path(__file__).parents[1] / "build" / "isa"


def rows_run(log: pathlib.Path, how: str = "ran") -> dict[str, int]:
    """ISA -> how many kernel rows ran, from the lines `row <kernel> <isa> ran`; or were emulated,
    from the lines `row <kernel> <isa> emulated`."""
    run: dict[str, int] = {}
    for line in log.read_text().splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == "row" and words[3] == how:
            run[words[2]] = run.get(words[2], 0) + 1
    return run


def main() -> int:
    logs = sorted(LOGS.glob("*.log"))
    runs = {log.stem: rows_run(log) for log in logs}
    instructions = rows_run(LOGS / "native.log", "emulated") if "native" in runs else {}
    native = runs.pop("native", {})
    table = Table(title="Instruction sets that the C++ tests ran on")
    for column in ("ISA", "this CPU has it", "natively", "emulated"):
        table.add_column(column)
    missed = []
    for isa in _C.isas():
        name = isa["name"]
        rows = sum(k["isa"] == name for k in _C.kernels())
        emulated = [log for log, run in runs.items() if name in run]
        if isa["supported"] and (native.get(name, 0) == 0 or native[name] != rows):
            missed.append(name)
        table.add_row(
            name,
            "yes" if isa["supported"] else "no: " + isa["reason"],
            f"{native[name]} of {rows} kernel rows" if name in native else "not run",
            ", ".join(emulated)
            or (f"{instructions[name]} over an emulator" if name in instructions else "not run"),
        )
    Console(width=150).print(table)
    if missed:
        print(f"not exercised though this CPU has it: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
