"""What static keys, static calls and hooks cost, beside code that cannot change.

    python benchmarks/patching.py [--out benchmarks/results/patching.json] [--rounds 51] [--modes alias syscall]

``patching.c`` measures and says what each figure is; this takes medians over its rounds, in which the subjects take
turns, and of what each costs against its neighbour in the same round. Some seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import building
import machine

Row = dict[str, Any]

SOURCE = "benchmarks/patching.c"
MODES = ("alias", "syscall")
# What each is compared with: the same code, made so that it cannot change.
AGAINST = {
    "a key that is off": "a nop",
    "a key that is on": "a jump",
    "a flag in memory": "a nop",
    "a site of a static call": "a direct call",
    "a static call": "a direct call of a direct jump",
    "far: a static call": "far: a call through a register",
    "a function with a hook that jumps to the original": "a function that can be hooked",
    "switching a key of 1 site": "one synchronisation",
    "switching a key of 256 sites": "one synchronisation",
    "setting a static call": "one synchronisation",
    "attaching or detaching a hook": "one synchronisation",
}
NOTE = (
    "Nanoseconds by the clock, of one question, one call, one change: medians over rounds in which the subjects take "
    "turns. A ratio is the median of those within each round. Changes are made while another thread runs the code."
)


def gather(mode: str, samples: list[Row]) -> list[Row]:
    """Return a row for each subject: its median, and that of its ratio to what it is compared with."""
    times: dict[str, list[float]] = {}
    groups: dict[str, str] = {}
    for sample in samples:
        times.setdefault(sample["name"], []).append(sample["ns"])
        groups[sample["name"]] = sample["group"]
    rows = []
    for name, values in times.items():
        row: Row = {"mode": mode, "group": groups[name], "name": name, "ns": round(statistics.median(values), 3)}
        if against := AGAINST.get(name):
            ratios = [value / other for value, other in zip(values, times[against], strict=True)]
            row |= {"against": against, "ratio": round(statistics.median(ratios), 3)}
        rows.append(row)
    return rows


def measure(modes: list[str], rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Run the program in each write mode; return rows and the compiler."""
    program, compilers = building.build_program(SOURCE)
    rows: list[Row] = []
    for mode in modes:
        rows += gather(mode, building.driver_lines([str(program), str(rounds), mode]))
    return rows, compilers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What branches that can change cost.")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=51, help="of each case (default: 51)")
    parser.add_argument("--modes", nargs="+", default=MODES, help="write modes (default: alias syscall)")
    options = parser.parse_args(arguments)
    rows, compilers = measure(list(options.modes), options.rounds)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out:
        machine.write(options.out, "patching", NOTE, compilers, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
