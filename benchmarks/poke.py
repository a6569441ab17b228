"""What changing an instruction costs while other threads run, and what the usual way costs.

    python benchmarks/poke.py [--out results/poke.json] [--rounds 101]

Everything of one row is measured in turns in one process of ``poke.c``: a synchronisation of all threads, single
changes, batches of 256, and ``mprotect`` to writable, a write and ``mprotect`` back. The ratios are within the row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import building
import machine

SOURCE = "benchmarks/poke.c"
BATCH = 256
MODES = ("syscall", "alias", "procmem", "flip")
WAYS = ("as allowed", "breakpoints")


def complete(row: dict[str, Any]) -> dict[str, Any]:
    """Add what is asked of the figures."""
    site = row["batch_ns"] / BATCH
    return row | {
        "single_per_sync": round(row["single_ns"] / row["sync_ns"], 2),
        "site_above_three_syncs_ns": round((row["batch_ns"] - 3 * row["sync_ns"]) / BATCH, 1),
        "site_ns": round(site, 1),
        "mprotect_per_single": round(row["mprotect_ns"] / row["single_ns"], 2),
        "mprotect_per_site": round(row["mprotect_ns"] / site, 1),
    }


def measure(rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run each case in a process of its own; return rows and the compiler."""
    program, compilers = building.build_program(SOURCE)
    rows = []
    for mode in MODES:
        for others in range(3):
            for way in range(len(WAYS) if mode != "flip" else 1):
                count = rounds if mode != "flip" else max(1, rounds // 10)
                command = [str(program), str(count), mode, str(others), str(way)]
                rows += [complete(dict(row)) for row in building.driver_lines(command)]
    return rows, compilers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What changing an instruction costs while other threads run.")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=101, help="of each case (default: 101)")
    options = parser.parse_args(arguments)
    rows, compilers = measure(options.rounds)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out:
        note = (
            "Nanoseconds by the clock, medians over rounds. In mode flip, and without a way, all threads are stopped."
        )
        machine.write(options.out, "poke", note, compilers, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
