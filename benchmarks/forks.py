"""What forks cost a process that keeps code in execmem, beside processes that do not. Writes results/forks.json.

    python benchmarks/forks.py [--out benchmarks/results/forks.json] [--live 1000 10000 100000] [--rounds 11]

``forks.c`` measures, and says what each figure is; this takes medians over its rounds, in which the subjects take
turns. Half a minute. ``run.py --table`` draws the tables of docs/fork.md from it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import building
import machine

Row = dict[str, Any]

SOURCE = "benchmarks/forks.c"
LIVES = (1_000, 10_000, 100_000)
KEYS = ("live", "subject")
NOTE = (
    "Medians over rounds in which the subjects take turns. Times in us pass by the clock; cycles, free and give_back "
    "are CPU time. plain has as much anonymous memory on 4 KB pages as syscall "
    "has resident with its bookkeeping; bare has none."
)


def gather(samples: list[Row]) -> list[Row]:
    """Return a row for each subject at each population: the median of every figure."""
    kept: dict[tuple[object, ...], dict[str, list[float]]] = {}
    for sample in samples:
        figures = kept.setdefault(tuple(sample[key] for key in KEYS), {})
        for name, value in sample.items():
            if name not in {*KEYS, "what"}:
                figures.setdefault(name, []).append(value)
    return [
        dict(zip(KEYS, keys, strict=True))
        | {name: round(statistics.median(values), 3) for name, values in figures.items()}
        for keys, figures in kept.items()
    ]


def measure(lives: list[int], rounds: int) -> tuple[list[Row], dict[str, str]]:
    """Run the program for each population; return rows and the compiler."""
    program, compilers = building.build_program(SOURCE)
    samples: list[Row] = []
    for live in lives:
        samples += building.driver_lines([str(program), "--live", str(live), "--rounds", str(rounds)])
    return gather(samples), compilers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What forks cost.")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--live", nargs="+", type=int, default=LIVES, help="blocks (default: 1000 10000 100000)")
    parser.add_argument("--rounds", type=int, default=11, help="of each case (default: 11)")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    rows, compilers = measure(list(options.live), options.rounds)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out:
        more = {"options": {"rounds": options.rounds}, "seconds": round(time.monotonic() - start)}
        machine.write(options.out, "forks", NOTE, compilers, rows, **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
