"""Measure all peers in one run and write the figures down.

    python benchmarks/run.py --out benchmarks/results/NAME.json

builds the harness (``benchmarks/harness``) with the system's compiler, runs every peer on every size mix and
population, rounds interleaved, prints a table, and writes JSON with the machine described. ``--quick`` takes seconds,
the whole some minutes, ``--million`` adds a population of 1,000,000 for the peers that bear it. ``--design`` measures
the bookkeeping designs of ``pack_design.c`` instead; docs/allocator.md is written from that.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import building

BASE = "execmem-alias"  # what the ratios are against
GROWTH_OF = ("execmem-alias", "execmem-syscall", "asmjit", "floor")
LIVES = (1_000, 10_000, 100_000)
MILLION = 1_000_000
QUICK = {"mixes": ["lognormal"], "live": [1_000, 10_000], "rounds": 5}
SHIFT = "hotspot then libbpf-tools"  # designs only: large blocks give way to small ones
PAGE = 4096
FIRST = [
    "execmem-alias",
    "asmjit",
    "floor",
    "progpack",
    "execmem-syscall",
    "glibc",
    "asmjit-dual-pools",
]  # if not all fit
MEMORY_SHARE = 0.7  # of the memory that is available, all populations of one run together
OVERHEAD = 1.3  # resident bytes for each live one, generously

Row = dict[str, Any]


# ---- the machine ----


def read(path: str, default: str = "not available") -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return default


def first_match(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else "not available"


def output_of(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=building.ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "not available"
    return run.stdout.strip()


def machine(harness: building.Harness) -> Row:
    cpu = read("/proc/cpuinfo")
    thp = "/sys/kernel/mm/transparent_hugepage"
    dirty = output_of("git", "status", "--porcelain", "--untracked-files=no", "--", "csrc", "arch", "benchmarks")
    return {
        "cpu": first_match(r"^model name\s*:(.*)$", cpu),
        "cpu_family": first_match(r"^cpu family\s*:(.*)$", cpu),
        "cpu_model": first_match(r"^model\s*:(.*)$", cpu),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in cpu,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "memory_kb": int(first_match(r"^MemTotal:\s*(\d+)", read("/proc/meminfo"))),
        "thp": {name: read(f"{thp}/{name}") for name in ("enabled", "shmem_enabled", "defrag")},
        "compilers": harness.compilers,
        "libc": " ".join(platform.libc_ver()),
        "libasmjit_dev": output_of("dpkg-query", "-W", "-f", "${Version}", "libasmjit-dev"),
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": output_of("git", "rev-parse", "--verify", "-q", "HEAD"),
        "changed_since_commit": dirty not in {"", "not available"},
    }


# ---- running ----


def bytes_needed(peer: str, mean: float, live: int) -> float:
    return live * max(mean + PAGE, PAGE) if peer == "mmap" else live * mean * OVERHEAD


def fit_memory(peers: list[str], mean: float, live: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Split peers into those whose populations fit in memory together and those that do not, with the reason."""
    left = int(first_match(r"^MemAvailable:\s*(\d+)", read("/proc/meminfo"))) * 1024 * MEMORY_SHARE
    kept, out = [], []
    for peer in sorted(peers, key=lambda peer: FIRST.index(peer) if peer in FIRST else len(FIRST)):
        need = bytes_needed(peer, mean, live)
        if need <= left:
            left -= need
            kept.append(peer)
        else:
            out.append((peer, f"its population would need {need / 1e9:.1f} GB beside the others"))
    return kept, out


def measure(harness: building.Harness, options: argparse.Namespace, peers: list[str], mix: Row, live: int) -> list[Row]:
    chosen = [peer for peer in peers if live < MILLION or options.peers or peer in FIRST]
    kept, out = fit_memory(chosen, mix["mean_bytes"], live)
    rows: list[Row] = [{"peer": peer, "mix": mix["mix"], "live": live, "failed": why} for peer, why in out]
    if kept:
        command = [str(harness.driver), "--peers", ",".join(kept), "--mix", mix["mix"], "--live", str(live)]
        command += ["--rounds", str(options.rounds), "--round-ms", str(options.round_ms), "--seed", str(options.seed)]
        rows = building.driver_lines([*command, "--tails"]) + rows
    base = next((row["ns"] for row in rows if row["peer"] == BASE and "ns" in row), None)
    for row in rows:
        if base and "ns" in row:
            row["ratio"] = round(row["ns"] / base, 3)
    return rows


def measure_designs(harness: building.Harness, options: argparse.Namespace, mix: Row, live: int) -> list[Row]:
    if mix["mean_bytes"] * live > 3e9:
        return []
    first, _, then = mix["mix"].partition(" then ")
    command = [str(harness.pack_design), "--mix", first, "--then", then or first, "--live", str(live)]
    return building.driver_lines([*command, "--rounds", str(options.rounds)])


# ---- telling ----


def cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if "failed" in row:
        return "left out"
    ns = f"{row['ns']:,.0f}" if "ns" in row else f"{row['ns_per_pair']:,.0f}"
    if "ratio" in row:
        return f"{ns} ({row['ratio']:.3g}x)"
    return f"{ns} ({row['packs_per_live']:.2f})" if "packs_per_live" in row else ns


def table(rows: list[Row], key: str, mix: str) -> list[str]:
    """Draw one mix: a line for each peer or design, a column for each population, as Markdown."""
    mine = [row for row in rows if row["mix"] == mix]
    lives = sorted({row["live"] for row in mine})
    names = list(dict.fromkeys(row[key] for row in mine))
    head = [key, *(f"{live:,} live" for live in lives)]
    if key == "peer":
        head += ["resident/live", "VMAs"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in names:
        found = {row["live"]: row for row in mine if row[key] == name}
        cells = [name, *(cell(found.get(live)) for live in lives)]
        if key == "peer":
            last = next((found[n] for n in reversed(lives) if n in found and "ns" in found[n]), None)
            cells += [f"{last['resident_per_live']:.2f}", f"{last['vmas']}"] if last else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def growth(rows: list[Row]) -> list[str]:
    """Say how much dearer a cycle is at the largest population than at the smallest, in each mix."""
    lines = []
    for mix in dict.fromkeys(row["mix"] for row in rows):
        told = []
        for peer in GROWTH_OF:
            mine = sorted(
                (row["live"], row["ns"]) for row in rows if (row["mix"], row["peer"]) == (mix, peer) and "ns" in row
            )
            if len(mine) > 1:
                told.append(f"{peer} {mine[-1][1] / mine[0][1]:.2f}x from {mine[0][0]:,} to {mine[-1][0]:,}")
        if told:
            lines.append(f"growth, {mix}: {'; '.join(told)}")
    return lines


def tell(rows: list[Row], key: str) -> None:
    unit = f"ns a cycle (times {BASE})" if key == "peer" else "ns a free+alloc pair (bytes of packs / live bytes)"
    for mix in dict.fromkeys(row["mix"] for row in rows):
        print(f"\n{mix}: {unit}\n")
        print("\n".join(table(rows, key, mix)))
    print("\n" + "\n".join(growth(rows) if key == "peer" else []))
    for row in rows:
        where = f"{row[key]}, {row['mix']}, {row['live']:,} live"
        if "failed" in row:
            print(f"left out: {where}: {row['failed']}")
        elif row.get("wrong_blocks"):
            print(f"WRONG: {where}: {row['wrong_blocks']} blocks lost their bytes")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure execmem and its peers in one run.")
    parser.add_argument("--out", type=Path, help="where the JSON goes; without it only the table is printed")
    parser.add_argument("--show", type=Path, help="draw the table of an earlier run's JSON and measure nothing")
    parser.add_argument("--peers", nargs="+", help="only these (default: all that were built)")
    parser.add_argument("--mixes", nargs="+", help="only these size mixes (default: all)")
    parser.add_argument("--live", nargs="+", type=int, help=f"populations (default: {' '.join(map(str, LIVES))})")
    parser.add_argument("--million", action="store_true", help="add a population of 1,000,000")
    parser.add_argument("--rounds", type=int, default=11, help="rounds; the figure is their median (default: 11)")
    parser.add_argument("--round-ms", type=float, default=20, help="length of a round (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    parser.add_argument("--quick", action="store_true", help="one mix, small populations, few rounds")
    parser.add_argument("--design", action="store_true", help="bookkeeping designs instead of peers")
    options = parser.parse_args(arguments)
    if options.quick:
        options.mixes = options.mixes or QUICK["mixes"]
        options.live = options.live or QUICK["live"]
        options.rounds = QUICK["rounds"]
    options.live = (options.live or list(LIVES)) + ([MILLION] if options.million else [])
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    rows: list[Row]
    if options.show:
        rows = json.loads(options.show.read_text(encoding="utf-8"))["results"]
        tell(rows, "peer" if "peer" in rows[0] else "design")
        return 0
    harness = building.build()
    for name, why in harness.missing.items():
        print(f"left out: {name}: {why}")
    listed = building.driver_lines([str(harness.driver), "--list"])
    known: dict[str, Row] = {str(row["peer"]): row for row in listed if "peer" in row}
    mixes: dict[str, Row] = {str(row["mix"]): row for row in listed if "mix" in row}
    unknown = (set(options.peers or ()) - set(known)) | (set(options.mixes or ()) - set(mixes))
    if unknown:
        print(f"not known or not built: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    peers = options.peers or list(known)
    chosen = list(options.mixes or mixes)
    if options.design and not options.mixes:
        mixes |= {SHIFT: {"mix": SHIFT, "mean_bytes": mixes[SHIFT.split(maxsplit=1)[0]]["mean_bytes"]}}
        chosen.append(SHIFT)
    key = "design" if options.design else "peer"
    rows = []
    for mix in chosen:
        for live in options.live:
            print(f"{mix}, {live:,} live ...", file=sys.stderr, flush=True)
            if options.design:
                rows += measure_designs(harness, options, mixes[mix], live)
            else:
                rows += measure(harness, options, peers, mixes[mix], live)
    tell(rows, key)
    result = {
        "schema": 1,
        "what": "ns a free+alloc pair of bookkeeping"
        if options.design
        else "ns a cycle: free a random block, place another",
        "machine": machine(harness),
        "options": {"rounds": options.rounds, "round_ms": options.round_ms, "seed": options.seed},
        "missing": harness.missing,
        "peers": {} if options.design else {name: known[name] for name in peers},
        "mixes": {name: mixes[name] for name in chosen},
        "results": rows,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {options.out}")
    return 1 if any(row.get("wrong_blocks") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
