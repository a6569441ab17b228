"""Measure all peers in one run, write the figures down, and draw from them.

    python benchmarks/run.py            the whole, a quarter of an hour: results/cycle.json, with the machine described
    python benchmarks/run.py --quick    seconds; prints and keeps nothing, like any run that names peers, mixes or live
    python benchmarks/run.py --table    draws the tables of README.md and docs/ from results/; --check: do they agree?
    python benchmarks/run.py --goals    says which goals hold, by the figures in results/
    python benchmarks/run.py --regress  a short run; fails when a ratio to a peer is 15 % worse than in results/
    python benchmarks/run.py --design   the bookkeeping designs of pack_design.c; docs/allocator.md is written from that

The C harness (``benchmarks/harness``) is built with the system's compiler; what it measures, its files say.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import building
import machine
import python_layer
import report

Row = dict[str, Any]

RESULTS = building.HERE / "results"
PAGES = ("README.md", "docs/performance.md", "docs/fork.md", "docs/lockdown.md", "docs/patching.md")
FILES = (
    "cycle",
    "python",
    "forks",
    "hardening",
    "poke",
    "patching",
)  # in results/, what tables and goals are drawn from
MILLION = 1_000_000
PAGE = 4096
GAP = 2048  # bytes at most before each block of the peer that has gaps
MEMORY_SHARE = 0.7  # of the memory that is available, all populations of one run together
OVERHEAD = 1.4  # resident bytes for each live one, generously
NOTE = (
    "Medians over rounds; peers take turns. ns is CPU time, in threads time that passes. A round of a slow peer has "
    "fewer cycles, and its population had less time to age: see cycles and aged (blocks replaced) in its rows."
)
SHIFT = "hotspot then libbpf-tools"  # designs only: large blocks give way to small ones

FAST = ("execmem-alias", "asmjit", "floor", "progpack", "execmem-syscall", "glibc", "mimalloc", "mimalloc-twin")
USUAL = (*FAST, "asmjit-dual-pools", "page")
CHECKED = ("execmem-alias", *report.CHECK_PEERS)
SHARERS = ("execmem-alias", "execmem-syscall", "asmjit", "mimalloc", "mimalloc-twin", "glibc", "floor")


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of the driver: peers (None: all) with a mix at a population."""

    mix: str
    live: int
    peers: tuple[str, ...] | None = None
    rounds: int = 11
    round_ms: float = 20
    age_ms: float = 5000  # the CPU time a peer may take to age its population: what it reached is told
    budget_ms: float = 3000  # the time one more workload may take
    loads: bool = False
    tails: bool = True
    threads: int = 1

    def command(self, driver: Path, peers: list[str], seed: int) -> list[str]:
        """Return how the driver is called."""
        words = [str(driver), "--peers", ",".join(peers), "--mix", self.mix, "--live", str(self.live)]
        words += ["--rounds", str(self.rounds), "--round-ms", str(self.round_ms), "--seed", str(seed)]
        words += ["--age-ms", str(self.age_ms), "--budget-ms", str(self.budget_ms), "--threads", str(self.threads)]
        return [*words, *["--tails"] * self.tails, *["--loads"] * self.loads]

    def names(self, peer: str) -> Row:
        """Return what a peer's row begins with."""
        return {"peer": peer, "mix": self.mix, "live": self.live}


def whole(mixes: list[str]) -> list[Part]:
    """Return what a full run is made of. Slow peers do fewer cycles in a round and age less; the rows tell."""
    parts = [Part(report.MIX, live, age_ms=10_000, loads=True) for live in report.LIVES[:3]]
    million = (*FAST, "asmjit-dual-pools")
    parts.append(Part(report.MIX, MILLION, million, rounds=9, age_ms=60_000, loads=True))
    for mix in mixes:
        if mix != report.MIX:
            more = ("libffi", "tcc") if mix == "constant" else ()
            parts += [Part(mix, live, (*USUAL, *more), age_ms=3000, rounds=9) for live in report.LIVES[:3]]
    for live in report.LIVES[:3]:
        peers = SHARERS if live == report.LIVES[2] else (*SHARERS, "progpack", "page")
        parts.append(Part(report.MIX, live, peers, age_ms=1000, threads=2, round_ms=30))
    return parts


# ---- running ----


class Runner:
    """Builds the harness, knows what it has, and runs parts."""

    def __init__(self, seed: int) -> None:
        """Build what is not up to date."""
        self.harness = building.build()
        self.seed = seed
        listed = building.driver_lines([str(self.harness.driver), "--list"])
        self.peers: dict[str, Row] = {str(row["peer"]): row for row in listed if "peer" in row}
        self.mixes: dict[str, Row] = {str(row["mix"]): row for row in listed if "mix" in row}

    def run(self, part: Part) -> list[Row]:
        """Run a part; a peer that is left out has a row that says why."""
        wanted = [peer for peer in part.peers or self.peers if peer in self.peers]
        if part.threads > len(os.sched_getaffinity(0)):
            return [dict(part.names(peer), failed="two threads need two CPUs") for peer in wanted]
        kept, out = fit_memory(wanted, self.mixes[part.mix]["mean_bytes"] * part.threads, part.live)
        rows: list[Row] = [dict(part.names(peer), failed=why) for peer, why in out]
        # With threads a peer has several processes, compared with each other alone: one peer at a time.
        groups = [[peer] for peer in kept] if part.threads > 1 else [kept]
        for group in filter(None, groups):
            rows += building.driver_lines(part.command(self.harness.driver, group, self.seed))
        return add_ratios(rows)

    def run_all(self, parts: list[Part]) -> tuple[list[Row], list[Row]]:
        """Run parts; return rows of one thread and of two."""
        one: list[Row] = []
        two: list[Row] = []
        for part in parts:
            start = time.monotonic()
            what = f"{part.mix}, {part.live:,} live, {part.threads} thread(s)"
            (two if part.threads > 1 else one).extend(self.run(part))
            print(f"{what}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return one, two


def bytes_needed(peer: str, mean: float, live: int) -> float:
    if peer in {"mmap", "page"}:
        return live * (mean + PAGE)
    return live * (mean + (GAP if peer == "execmem-alias-gap" else 0)) * OVERHEAD


def fit_memory(peers: list[str], mean: float, live: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Split peers into those whose populations fit in memory together and those that do not, with the reason."""
    left = machine.memory_available() * MEMORY_SHARE
    kept, out = [], []
    for peer in sorted(peers, key=lambda peer: USUAL.index(peer) if peer in USUAL else len(USUAL)):
        need = bytes_needed(peer, mean, live)
        if need <= left:
            left -= need
            kept.append(peer)
        else:
            out.append((peer, f"its population would need {need / 1e9:.1f} GB beside the others"))
    return kept, out


def add_ratios(rows: list[Row]) -> list[Row]:
    """Give each row its time over that of mode alias in the same run."""
    base = report.find(rows, peer=report.ALIAS).get("ns")
    for row in rows:
        if base and "ns" in row and "mode" not in row:
            row["ratio"] = round(row["ns"] / base, 3)
    return rows


def measure_designs(runner: Runner, options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for mix in options.mixes or [*runner.mixes, SHIFT]:
        first, _, then = mix.partition(" then ")
        for live in options.live or report.LIVES[:3]:
            if runner.mixes[first]["mean_bytes"] * live <= 3e9:
                command = [str(runner.harness.pack_design), "--mix", first, "--then", then or first]
                rows += building.driver_lines([*command, "--live", str(live), "--rounds", str(options.rounds)])
    return rows


# ---- telling ----


def cell(row: Row) -> str:
    if "failed" in row or not row:
        return "left out" if row else "-"
    if "ns_per_pair" in row:
        return f"{row['ns_per_pair']:,.0f} ({row['packs_per_live']:.2f})"
    return f"{row['ns']:,.0f}" + (f" ({row['ratio']:.3g}x)" if "ratio" in row else "")


def tell(rows: list[Row], key: str) -> None:
    """Print a table for each mix, and what was left out or wrong."""
    for mix in dict.fromkeys(row["mix"] for row in rows):
        mine = [row for row in rows if row["mix"] == mix]
        lives = sorted({row["live"] for row in mine})
        unit = (
            "ns a cycle (times mode alias)" if key == "peer" else "ns a free+alloc pair (bytes of packs / live bytes)"
        )
        print(f"\n{mix}: {unit}\n")
        names = list(dict.fromkeys(row[key] for row in mine))
        lines = ([name, *(cell(report.find(mine, live=live, **{key: name})) for live in lives)] for name in names)
        print("\n".join(report.grid([key, *(f"{live:,} live" for live in lives)], lines)))
    for row in rows:
        where = f"{row[key]}, {row['mix']}, {row['live']:,} live"
        if "failed" in row:
            print(f"left out: {where}: {row['failed']}")
        elif row.get("wrong_blocks"):
            print(f"WRONG: {where}: {row['wrong_blocks']} blocks lost their bytes")


def result(runner: Runner, what: str, seconds: float) -> Row:
    return {
        "schema": 2,
        "what": what,
        "note": NOTE,
        "machine": machine.describe(runner.harness.compilers),
        "options": {"seed": runner.seed},
        "seconds": round(seconds),
        "missing": runner.harness.missing,
        "peers": runner.peers,
        "mixes": runner.mixes,
    }


# ---- the verbs ----


def load() -> dict[str, Row]:
    """Return what results/ holds, by name; {} for a file that is not there."""
    found = {}
    for name in FILES:
        path = RESULTS / f"{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def draw_tables(*, check: bool) -> int:
    """Write the tables into the pages, or tell which pages would change."""
    data, stale = load(), []
    for name in PAGES:
        path = building.ROOT / name
        old = path.read_text(encoding="utf-8")
        new = report.rewrite(old, data)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'not as results/ has it' if check else 'written'}: {', '.join(stale)}")
    return 1 if stale and check else 0


def show_goals() -> int:
    data = load()
    print("\n".join(report.table_goals(data)))
    met = [goal.holds for goal in report.goals(data)]
    print(f"\n{met.count(True)} hold, {met.count(False)} do not, {met.count(None)} were not measured")
    return 0


def check_once(runner: Runner, doubtful: set[str]) -> dict[str, float]:
    """Measure what the doubtful ratios need; return ratios."""
    parts = [
        Part(report.MIX, live, CHECKED, age_ms=5000, tails=False, rounds=9)
        for live in report.CHECK_LIVES
        if any(f"cycle at {live:,} /" in what for what in doubtful)
    ]
    if any("two threads" in what for what in doubtful):
        parts.append(Part(report.MIX, report.CHECK_THREADS, (report.ALIAS,), threads=2, age_ms=1000, round_ms=30))
    one, two = runner.run_all(parts)
    data: dict[str, Row] = {"cycle": {"results": one, "threads": two}, "python": {}}
    if any("Python" in what for what in doubtful):
        data["python"] = python_layer.measure(9, only=("place + free, alias", python_layer.CTYPES))
    return report.check_ratios(data)


def regress(seed: int, tries: int = 3) -> int:
    """Compare with results/; a ratio that looks worse is measured again and its best counts: machines are noisy."""
    committed = report.check_ratios(load())
    if not committed:
        print("nothing to compare with: results/cycle.json holds no figures; run benchmarks/run.py", file=sys.stderr)
        return 2
    runner, runs, doubtful = Runner(seed), [], set(committed)
    changes: list[report.Change] = []
    for _ in range(tries):
        runs.append(check_once(runner, doubtful))
        changes = report.compare(committed, runs)
        doubtful = {change.what for change in changes if change.worse}
        if not doubtful:
            break
    print("\n".join(report.change_table(changes)))
    unseen = sorted(set(committed) - {change.what for change in changes})
    print(f"\n{len(doubtful)} worse by more than 15 %" + (f"; not measured: {', '.join(unseen)}" if unseen else ""))
    return 1 if doubtful else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure execmem and its peers in one run, and draw from the figures.")
    verb = parser.add_mutually_exclusive_group()
    verb.add_argument("--table", action="store_true", help="draw the tables of README.md and docs/")
    verb.add_argument("--goals", action="store_true", help="say which goals hold")
    verb.add_argument("--regress", action="store_true", help="a short run; 15 %% worse than results/ fails")
    verb.add_argument("--design", action="store_true", help="bookkeeping designs instead of peers")
    verb.add_argument("--quick", action="store_true", help="one mix, small populations, few rounds")
    parser.add_argument("--check", action="store_true", help="with --table: change nothing, fail if they differ")
    parser.add_argument("--out", type=Path, help="where the JSON goes (the whole: benchmarks/results/cycle.json)")
    parser.add_argument("--peers", nargs="+", help="only these")
    parser.add_argument("--mixes", nargs="+", help="only these size mixes")
    parser.add_argument("--live", nargs="+", type=int, help="only these populations")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1, help="with peers, mixes or live")
    parser.add_argument("--loads", action="store_true", help="with peers, mixes or live: all workloads")
    parser.add_argument("--rounds", type=int, default=11, help="with peers, mixes or live (default: 11)")
    parser.add_argument("--round-ms", type=float, default=20, help="with peers, mixes or live (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of all random numbers (default: 1)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.mixes, options.live = options.mixes or [report.MIX], options.live or [1_000, 10_000]
        options.rounds = 5
    return options


def chosen_parts(options: argparse.Namespace, runner: Runner) -> list[Part]:
    """Return the parts that the options name, or the whole."""
    if not (options.peers or options.mixes or options.live):
        return whole(list(runner.mixes))
    peers = tuple(options.peers) if options.peers else None
    more: Row = {"rounds": options.rounds, "round_ms": options.round_ms}
    more |= {"threads": options.threads, "loads": options.loads}
    lives = options.live or report.LIVES[:3]
    return [Part(mix, live, peers, **more) for mix in options.mixes or runner.mixes for live in lives]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.table or options.goals:
        return draw_tables(check=options.check) if options.table else show_goals()
    if options.regress:
        return regress(options.seed)
    start, runner = time.monotonic(), Runner(options.seed)
    for name, why in runner.harness.missing.items():
        print(f"left out: {name}: {why}")
    unknown = (set(options.peers or ()) - set(runner.peers)) | (set(options.mixes or ()) - set(runner.mixes) - {SHIFT})
    if unknown:
        print(f"not known or not built: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    two: list[Row] = []
    if options.design:
        rows = measure_designs(runner, options)
    else:
        rows, two = runner.run_all(chosen_parts(options, runner))
    tell(rows, "design" if options.design else "peer")
    what = "ns a free+alloc pair of bookkeeping" if options.design else "ns a cycle: free a random block, place another"
    data = result(runner, what, time.monotonic() - start) | {"results": rows, "threads": two}
    if two:
        print("\n" + "\n".join(report.table_threads({"cycle": data})))
    is_whole = not (options.design or options.peers or options.mixes or options.live)
    out = options.out or (RESULTS / "cycle.json" if is_whole else None)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {out}")
    return 1 if any(row.get("wrong_blocks") for row in [*rows, *two]) else 0


if __name__ == "__main__":
    sys.exit(main())
