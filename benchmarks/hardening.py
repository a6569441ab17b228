"""What hardening costs: sealing a domain, opening one, and the memory that a quarantine and random gaps take.

    python benchmarks/hardening.py [--out results/hardening.json] [--blocks 10000] [--rounds 9]

What a cycle costs with a quarantine or with gaps is measured beside all other peers by ``run.py``: the peers
``execmem-alias-quarantine`` and ``execmem-alias-gap``. A sealed domain cannot be closed, so each that is measured here
stays until the process ends: every case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]

MODES = ("syscall", "alias", "procmem", "flip")
WISHES: dict[str, Row] = {  # the last two are those of run.py's peers
    "none": {},
    "quarantine 1 MB": {"quarantine": "1M"},
    "gap 2 KB": {"gap": "2K"},
}
MEDIAN, SIGMA, LARGEST = 500, 1.0, 32 << 10  # of the sizes, lognormal as in run.py


def draw_codes(count: int, seed: int = 1) -> list[bytes]:
    """Return pieces of code of lognormal sizes."""
    random = np.random.default_rng(seed)
    sizes = np.clip(random.lognormal(np.log(MEDIAN), SIGMA, count), 64, LARGEST).astype(int)
    return [b"\xc3" * size for size in sizes.tolist()]


def us_since(start: int) -> float:
    return (time.perf_counter_ns() - start) / 1000


def measure_seal(mode: str, blocks: int, rounds: int) -> Row:
    """Measure opening a domain and sealing one that holds some blocks."""
    opened, sealed, kept = [], [], []
    codes = draw_codes(blocks)
    for _ in range(rounds):
        start = time.perf_counter_ns()
        domain = execmem.Domain("bench", write_mode=mode, window="256M")
        opened.append(us_since(start))
        batch = domain.place_many(codes)
        start = time.perf_counter_ns()
        domain.seal()
        sealed.append(us_since(start))
        kept.append((domain, batch))
    stats = kept[-1][0].stats()
    return {
        "case": "seal",
        "mode": mode,
        "blocks": blocks,
        "packs": stats.packs,
        "sealed": stats.sealed,
        "open_us": round(statistics.median(opened), 1),
        "seal_us": round(statistics.median(sealed), 1),
    }


def measure_memory(wish: str, blocks: int, rounds: int) -> Row:
    """Measure what is resident and idle after each block was replaced some times, in random order."""
    random = np.random.default_rng(2)
    codes = draw_codes(blocks)
    with execmem.Domain("bench", write_mode="alias", window="4G", **WISHES[wish]) as domain:
        kept = [domain.place(code) for code in codes]
        for _ in range(rounds):
            for place, source in zip(random.permutation(blocks), random.permutation(blocks), strict=True):
                kept[place].free()
                kept[place] = domain.place(codes[source])
        stats = domain.stats()
        return {
            "case": "memory",
            "wish": wish,
            "blocks": blocks,
            "used_bytes": stats.used_bytes,
            "idle_bytes": stats.idle_bytes,
            "quarantined_bytes": stats.quarantined_bytes,
            "resident_bytes": stats.resident_bytes,
            "vmas": stats.vmas,
            "idle_per_used": round(stats.idle_bytes / stats.used_bytes, 3),
        }


def measure(blocks: int, rounds: int) -> list[Row]:
    """Run each case in a process of its own."""
    cases: list[tuple[Callable[[str, int, int], Row], str, int, int]] = [
        (measure_seal, mode, blocks, rounds) for mode in MODES
    ]
    cases += [(measure_memory, wish, blocks, rounds) for wish in WISHES]
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    for call, *arguments in cases:
        with context.Pool(1) as pool:
            rows.append(pool.apply(call, arguments))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What hardening costs.")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--blocks", type=int, default=10_000, help="in each domain (default: 10000)")
    parser.add_argument("--rounds", type=int, default=9, help="of each case (default: 9)")
    options = parser.parse_args(arguments)
    rows = measure(options.blocks, options.rounds)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.out:
        note = "Medians over rounds, by the clock. Memory is that of one domain of mode alias, after all was replaced."
        machine.write(options.out, "hardening", note, {}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
