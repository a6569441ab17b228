"""bench_cli: ``execmem bench``: what placing and freeing code costs here, in every write mode and beside others.

    options --> plan --> Crew, round by round --> rows of figures --> text, JSON, or how they differ from an earlier run

Nothing of the repository is needed: the loops are machine code that ships. The larger comparison is ``benchmarks/``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import execmem
from execmem import bench_crew, bench_loops, map_cli
from execmem.bench_crew import Crew, Cycles, FromPython, Pace
from execmem.bench_loops import MODES, PEERS, PeerError, read_text, write_script
from execmem.demo import Progress, to_count
from execmem.demo_code import DemoError
from execmem.draw import Paint, clean, columns, tell_version, text_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from execmem.bench_loops import Peer, Script

    Row = dict[str, Any]

SCHEMA, VERSION = "execmem-bench", 1
LIVES: Final = (1_000, 10_000, 100_000)
LIVE_MOST: Final = 2_000_000
OPS_MOST: Final = 400_000
ENDLESS: Final = 1e12  # no figure of an earlier run is as large, and no ratio as small as its inverse
ROUNDS_LEAST: Final = 3  # of each run: what one or two rounds say differs by chance
USAGE: Final = 2
MEMORY_SHARE: Final = 0.6  # of what is available, for all populations that live at the same time
OVERHEAD: Final = 1.5  # bytes a peer takes for a live byte, at most, and not by pages
PAGE, CHILD_BYTES = 4096, 24 << 20
LEFT_OUT: Final = ("page",)  # unless asked for


@dataclass(frozen=True)
class Effort:
    """How much is measured: populations, sets of fresh processes for each, and rounds in each."""

    lives: tuple[int, ...]
    runs: tuple[int, ...]  # of each
    rounds: int
    pace: Pace


class BenchError(Exception):
    """Nothing can be measured or compared: the text says why and what to do."""


class UsageError(BenchError):
    """What was asked for makes no sense."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem bench``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"peers: {', '.join(peer.name for peer in PEERS if peer.mode is None)}\n"
        "examples:\n"
        "  execmem bench --quick                         a few seconds\n"
        "  execmem bench --json > before.json            half a minute\n"
        "  execmem bench --against before.json           the same again, and what differs\n"
        "  execmem bench --live 10,000 --mode alias --peers floor glibc\n"
        "exit code: 0 measured; 1 nothing could be measured, or not what was named, or a\n"
        "block lost its bytes; 2 wrong usage; 130 Ctrl-C"
    )
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 blocks, few and short rounds")
    parser.add_argument("--live", type=to_live, nargs="+", metavar="N", help="live blocks (1,000 10,000 100,000)")
    modes = f"{', '.join(MODES)} (all that work here)"
    parser.add_argument("--mode", choices=MODES, nargs="+", metavar="MODE", help=modes)
    parser.add_argument("--peers", nargs="*", metavar="PEER", help="others to measure (all that are found here)")
    parser.add_argument("--base", metavar="PEER", help="what ratios are to (the first write mode measured)")
    parser.add_argument(
        "--runs", type=to_count, metavar="N", help="sets of fresh processes (3; 2 beyond 10,000 blocks)"
    )
    parser.add_argument("--rounds", type=to_count, metavar="N", help="rounds in each (5)")
    parser.add_argument("--round-ms", type=to_amount, metavar="MS", help="CPU time of a round (15)")
    parser.add_argument(
        "--budget", type=to_amount, default=1.0, metavar="S", help="CPU seconds to grow a population (1)"
    )
    parser.add_argument("--seed", type=map_cli.to_number, default=1, help="of sizes and sequence (1)")
    parser.add_argument("--no-python", action="store_true", help="leave out what is measured from Python")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with what --json printed earlier")
    parser.add_argument(
        "--code", choices=("auto", "compile", "shipped"), default="auto", help="where the loops come from"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of the tables")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def to_live(text: str) -> int:
    """Return a population, for argparse."""
    count = to_count(text)
    if count > LIVE_MOST:
        message = f"{count:,} blocks are more than {LIVE_MOST:,}"
        raise argparse.ArgumentTypeError(message)
    return count


def to_amount(text: str) -> float:
    """Return a positive number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        message = f"{text!r} is not a positive number"
        raise argparse.ArgumentTypeError(message)
    return value


def run(options: argparse.Namespace) -> int:
    """Measure, and print tables or JSON."""
    progress = Progress(sys.stderr, quiet=options.quiet)
    try:
        earlier = None if options.against is None else read_report(options.against)
        bench = Bench(options, progress)
        if earlier is not None:
            refuse_other_base(earlier, bench.base, options.against)
        report = bench.run()
    except KeyboardInterrupt:
        progress.finish()
        raise
    except UsageError as error:
        sys.stderr.write(f"execmem bench: {error}\n")
        return USAGE
    except (BenchError, DemoError) as error:
        sys.stderr.write(f"execmem bench: {error}\n")
        return 1
    if earlier is not None:
        report["against"] = compare(earlier, report)
    if options.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        sys.stdout.write(Tables(report, Paint.of(sys.stdout), text_width()).text())
    return 0 if is_good(report, options) else 1


def is_good(report: Row, options: argparse.Namespace) -> bool:
    """Tell whether no block lost its bytes, and something was measured: all that was asked for by name."""
    measured = {row["peer"] for row in report["cycles"] if "cpu_ns" in row}
    asked = {f"execmem-{mode}" for mode in options.mode or ()} | set(options.peers or ())
    return bool(measured) and asked <= measured and not any(row.get("wrong_blocks") for row in report["cycles"])


# ---- figures ----


def sum_up(values: Sequence[float]) -> Row:
    """Return the median of some figures, their quartiles and their ends.

    >>> sum_up([3.0, 1.0, 2.0])
    {'median': 2.0, 'low': 1.5, 'high': 2.5, 'least': 1.0, 'most': 3.0, 'count': 3}
    """
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    ends = {"least": min(values), "most": max(values)}
    named = {"median": statistics.median(values), "low": quartiles[0], "high": quartiles[2], **ends}
    return {name: float(f"{value:.5g}") for name, value in named.items()} | {"count": len(values)}


Figures = dict[tuple[int, int], float]  # by run and round: what was measured side by side


def divide(figures: Figures, base: Figures) -> list[float]:
    """Return ratios of what was measured in the same round."""
    return [value / base[key] for key, value in figures.items() if base.get(key, 0) > 0]


# ---- measuring ----


class Bench:
    """One run of the command: its plan, and the rows it fills."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        """Make the plan; UsageError when it makes no sense, DemoError when there are no loops for this CPU."""
        self.options, self.progress = options, progress
        self.peers = choose_peers(options)
        self.effort = choose_effort(options)
        self.base = choose_base(options, self.peers)
        loops = bench_loops.choose_code(options.code, platform.machine())
        self.code, self.origin = loops.functions[bench_loops.NAME], loops.origin
        self.cpu = find_cpu()
        self.rows: list[Row] = []
        self.python: list[Row] = []

    def run(self) -> Row:
        """Measure everything, one population after the other."""
        start = time.monotonic()
        for live, runs in zip(self.effort.lives, self.effort.runs, strict=True):
            self._measure_live(live, runs)
        if not self.options.no_python:
            self._measure_python()
        self.progress.finish()
        effort = self.effort
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "machine": describe_machine(),
            "loops": self.origin,
            "cpu_number": self.cpu,
            "base": self.base,
            "options": {
                "seed": self.options.seed,
                "live": list(effort.lives),
                "runs": list(effort.runs),
                "rounds": effort.rounds,
                "round_ms": effort.pace.round_ms,
                "budget_s": effort.pace.budget,
            },
            "seconds": round(time.monotonic() - start, 1),
            "cycles": self.rows,
            "python": self.python,
        }

    def _measure_live(self, live: int, runs: int) -> None:
        effort, tallies = self.effort, {peer.name: Tally(peer, live) for peer in self.peers}
        fit_memory(list(tallies.values()), live)
        script = write_script(live, min(max(4 * live, 50_000), OPS_MOST), self.options.seed)
        total = runs * (effort.rounds + 1) * len(tallies)
        with self.progress.step(f"{live:,} live", total) as clock:
            done = 0
            for number in range(runs):
                with Crew(self.cpu) as crew:
                    for _ in self._measure_run(crew, number, [t for t in tallies.values() if not t.failed], script):
                        done += 1
                        clock.advance(done)
        base = tallies.get(self.base)
        self.rows += [tally.row(base) for tally in tallies.values()]

    def _measure_run(self, crew: Crew, number: int, tallies: list[Tally], script: Script) -> Iterator[None]:
        """Let each peer grow a population, then do rounds in turns; give after each step, to show progress."""
        for tally in tallies:
            tally.begin(crew, Cycles(tally.peer, script, self.code, self.effort.pace), number)
            yield
        for turn in range(self.effort.rounds):
            first = turn % max(len(tallies), 1)  # nobody always follows the same
            for tally in tallies[first:] + tallies[:first]:
                tally.take("round", (number, turn))
                yield
        for tally in tallies:
            tally.take("finish", (number, 0))

    def _measure_python(self) -> None:
        ours = {peer.name: peer for peer in self.peers if peer.mode is not None}
        peer = ours.get(self.base) or next(iter(ours.values()), None)
        figures: dict[str, Figures] = {}
        failed: dict[str, str] = {}
        if peer is None:
            failed = dict.fromkeys(bench_crew.ROWS, "no write mode of execmem was asked for")
        else:
            script = write_script(bench_crew.PYTHON_LIVE, OPS_MOST // 4, self.options.seed)
            runs = max(self.effort.runs)
            with self.progress.step("from Python", runs * self.effort.rounds) as clock:
                for number in range(runs):
                    with Crew(self.cpu) as crew:
                        subject = FromPython(peer, script, self.code, self.effort.pace)
                        failed |= self._measure_python_run(crew, subject, number, figures)
                    clock.advance((number + 1) * self.effort.rounds)
        self.python = [self._python_row(what, peer, figures, failed) for what in bench_crew.ROWS]

    def _measure_python_run(
        self, crew: Crew, subject: FromPython, number: int, figures: dict[str, Figures]
    ) -> dict[str, str]:
        """Do the rounds of a new child; return what failed, and why."""
        try:
            child = crew.start("Python", subject)
            failed: dict[str, str] = child.tell("open")["failed"]
            for turn in range(self.effort.rounds):
                for what, ns in child.tell("round").items():
                    figures.setdefault(what, {})[number, turn] = ns
            wrong = child.tell("finish")["wrong_blocks"]
        except PeerError as error:
            return dict.fromkeys(bench_crew.ROWS, str(error))
        return failed | ({bench_crew.FROM_C: f"{wrong:,} blocks lost their bytes"} if wrong else {})

    def _python_row(self, what: str, peer: Peer | None, figures: dict[str, Figures], failed: dict[str, str]) -> Row:
        base = bench_crew.ROWS[what]
        row: Row = {"what": what, "base": base, "mode": peer.mode if peer else None}
        if what in failed or what not in figures:
            return row | {"failed": failed.get(what, "it was not measured")}
        row["cpu_ns"] = sum_up(list(figures[what].values()))
        ratios = divide(figures[what], figures.get(base, {}))
        return row | ({"ratio": sum_up(ratios)} if ratios else {})


class Tally:
    """The figures of a peer at a population."""

    KINDS = ("cpu_ns", "wall_ns", "call_ns", "ramp_up_ns", "drain_ns", "first_ramp_up_ns")

    def __init__(self, peer: Peer, live: int) -> None:
        """Begin with none."""
        self.peer, self.live = peer, live
        self.failed = ""
        self.wrong = 0
        self.figures: dict[str, Figures] = {kind: {} for kind in self.KINDS}
        self.opened: Row = {}
        self.child: bench_crew.Child | None = None

    def begin(self, crew: Crew, subject: Cycles, number: int) -> None:
        """Have a new child open the peer."""
        try:
            self.child = crew.start(self.peer.name, subject)
        except PeerError as error:
            self.failed = str(error)
        told = self.take("open", (number, 0))
        self.opened = {name: told[name] for name in ("aged", "cycles") if name in told} or self.opened

    def take(self, what: str, key: tuple[int, int]) -> Row:
        """Have the child do something and keep its figures; after a failure nothing is asked."""
        if self.failed or self.child is None:
            return {}
        try:
            told = self.child.tell(what)
        except PeerError as error:
            self.failed = str(error)
            return {}
        for kind, figures in self.figures.items():
            if kind in told:
                figures[key] = told[kind]
        self.wrong += told.get("wrong_blocks", 0)
        return told

    def row(self, base: Tally | None) -> Row:
        """Return what JSON has of it."""
        peer = self.peer
        row: Row = {"peer": peer.name, "live": self.live, "about": peer.about, "executable": peer.executable}
        if self.failed and not self.wrong:
            return row | {"failed": self.failed}
        row |= {"verified": peer.holds, "wrong_blocks": self.wrong, **self.opened}
        row |= {kind: sum_up(list(values.values())) for kind, values in self.figures.items() if values}
        if base is not None and not base.failed:
            for kind, name in RATIOS.items():
                ratios = divide(self.figures[kind], base.figures[kind])
                row |= {name: sum_up(ratios)} if ratios else {}
        return row


RATIOS: Final = {"cpu_ns": "ratio", "ramp_up_ns": "ramp_up_ratio", "drain_ns": "drain_ratio", "call_ns": "call_ratio"}


# ---- the plan ----


def choose_peers(options: argparse.Namespace) -> list[Peer]:
    """Return the peers that were asked for, in the order of the table."""
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in options.peers or () if name not in known]
    if unknown:
        message = f"there is no peer {clean(unknown[0])!r}: there are {', '.join(known)}"
        raise UsageError(message)
    modes = options.mode or MODES
    others = [name for name in known if name not in LEFT_OUT] if options.peers is None else options.peers
    return [
        peer
        for peer in PEERS
        if (peer.mode in modes if peer.mode else peer.name in others)
        or (peer.name in others and options.peers is not None)
    ]


def choose_effort(options: argparse.Namespace) -> Effort:
    """Return how much is measured."""
    quick = options.quick
    lives = tuple(dict.fromkeys(options.live or LIVES[: 2 if quick else 3]))
    pace = Pace(options.round_ms or (4 if quick else 15), options.budget)
    runs = tuple(options.runs or (1 if quick else 3 if live <= LIVES[1] else 2) for live in lives)  # ageing takes time
    return Effort(lives, runs, options.rounds or (3 if quick else 5), pace)


def choose_base(options: argparse.Namespace, peers: list[Peer]) -> str:
    """Return whose time the ratios are to: the one asked for, else the first that works here, write modes first."""
    if options.base is not None:
        if options.base not in {peer.name for peer in peers}:
            message = f"--base {clean(options.base)}: it is not measured, {', '.join(p.name for p in peers)} are"
            raise UsageError(message)
        return str(options.base)
    return next((peer.name for peer in peers if peer.mode is None or works(peer.mode)), peers[0].name)


def works(mode: str) -> bool:
    """Tell whether a write mode works here."""
    return execmem.probe()[mode].works


def fit_memory(tallies: list[Tally], live: int) -> None:
    """Leave out peers whose populations do not fit in memory beside the others, and say so."""
    found = re.search(r"MemAvailable: (\d+)", read_text("/proc/meminfo"))
    left = int(found[1]) * 1024 * MEMORY_SHARE if found else math.inf
    for tally in tallies:
        mean = bench_loops.MEAN
        need = CHILD_BYTES + live * (mean + PAGE if tally.peer.page_a_block else mean * OVERHEAD)
        if need > left:
            tally.failed = (
                f"its population would need {need / 1e6:,.0f} MB, and beside the others {left / 1e6:,.0f} are left"
            )
        else:
            left -= need


def find_cpu() -> int | None:
    """Return the CPU that everything is measured on: the last that this process may use; None: it may not choose."""
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:
        return None
    return max(cpus)


def describe_machine() -> Row:
    """Return what the figures are of; what cannot be read is "not available"."""
    cpu = read_text("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*?) (?:stepping|microcode|cpu MHz)\s*:", cpu)
    memory = re.search(r"MemTotal: (\d+)", read_text("/proc/meminfo"))
    thp = "/sys/kernel/mm/transparent_hugepage"
    return {
        "cpu": model[1] if model else "not available",
        "cpus": os.cpu_count(),
        "virtual": " hypervisor " in cpu,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "memory_kb": int(memory[1]) if memory else None,
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": {name: read_text(f"{thp}/{name}") for name in ("enabled", "shmem_enabled")},
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "execmem": tell_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# ---- an earlier run ----


def read_report(path: Path) -> Row:
    """Read what ``--json`` printed; BenchError when it is not that, or of another version."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{clean(str(path))} cannot be read: {error.strerror}"
        raise BenchError(message) from error
    except (ValueError, RecursionError) as error:
        message = f"{clean(str(path))} is not a whole JSON file: {clean(str(error))}"
        raise BenchError(message) from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        message = f"{clean(str(path))} is not of `execmem bench --json`"
        raise BenchError(message)
    if report.get("version") != VERSION:
        message = f"{clean(str(path))} is of version {clean(str(report.get('version')))}, and this is version {VERSION}"
        raise BenchError(message)
    parts = {"cycles": "peer", "python": "what"}
    if not all(is_row(row, name) for part, name in parts.items() for row in as_list(report.get(part))):
        message = f"{clean(str(path))} is damaged: its rows are not those of `execmem bench --json`"
        raise BenchError(message)
    return report


def as_list(value: object) -> list[object]:
    """Return a list, or one whose only row is none."""
    return value if isinstance(value, list) else [None]


def is_row(row: object, name: str) -> bool:
    """Tell whether a row of a file is one: a name, and ratios of positive numbers in order."""
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        return False
    if name == "peer" and not isinstance(row.get("live"), int):
        return False
    for figures in (row[kind] for kind in ("ratio", "cpu_ns") if kind in row):
        values: list[Any] = (
            [figures.get(end) for end in ("least", "median", "most")] if isinstance(figures, dict) else []
        )
        if not values or not all(isinstance(each, int | float) and 1 / ENDLESS < each < ENDLESS for each in values):
            return False
        if values != sorted(values) or not isinstance(figures.get("count", 0), int):
            return False
    return True


def refuse_other_base(earlier: Row, base: str, path: Path) -> None:
    """Refuse ratios that are to something else."""
    if earlier.get("base") != base:
        was = clean(str(earlier.get("base")))
        message = f"{clean(str(path))} has ratios to {was}, and this run would have them to {base}: give --base {was}"
        raise UsageError(message)


def keyed(report: Row) -> dict[tuple[str, int], Row]:
    """Return the rows of a report by name and population (0: from Python)."""
    cycles = {(row["peer"], row["live"]): row for row in report["cycles"]}
    return cycles | {(row["what"], 0): row for row in report["python"]}


# What two runs should have in common.
ALIKE: Final = {
    "machine": ("cpu", "architecture", "kernel", "execmem", "python", "libc", "governor"),
    "options": ("seed", "rounds", "round_ms", "budget_s"),
}


def as_dict(value: object) -> Row:
    """Return a dict, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def compare(earlier: Row, report: Row) -> Row:
    """Return how the ratios changed. They differ only where no round of one run was within those of the other.

    One of each would always differ: of so few rounds nothing is said.
    """
    before, rows = keyed(earlier), []
    for (name, live), row in keyed(report).items():
        old = before.get((name, live), {})
        one: Row = {"what": name, "live": live or None}
        if "ratio" not in row or "ratio" not in old:
            if "ratio" not in row and "ratio" not in old:
                continue
            missing = "now" if "ratio" not in row else "then"
            rows.append(one | {"failed": f"not measured {missing}"})
            continue
        now, then = row["ratio"], old["ratio"]
        if name == report["base"] or row.get("base") == name:  # the ratio is 1, then and now
            continue
        changed = {"median": now["median"] / then["median"], "least": now["least"] / then["most"]}
        changed["most"] = now["most"] / then["least"]
        few = min(then.get("count", ROUNDS_LEAST), now.get("count", ROUNDS_LEAST)) < ROUNDS_LEAST
        differs = not few and (changed["least"] > 1 or changed["most"] < 1)
        change = {end: float(f"{value:.4g}") for end, value in changed.items()}
        one |= {"then": then["median"], "now": now["median"], "change": change, "differs": differs}
        rows.append(one | ({"few_rounds": True} if few else {}))
    told = as_dict(earlier.get("machine"))
    other: dict[str, list[object]] = {}
    for part, names in ALIKE.items():
        then, now = as_dict(earlier.get(part)), report[part]
        other |= {name: [then.get(name), now[name]] for name in names if then.get(name) != now[name]}
    return {"date": told.get("date"), "other": other, "rows": rows}


# ---- text ----

PEER_WIDTH, WHAT_WIDTH = 16, 37
CYCLE_WIDTHS: Final = (PEER_WIDTH, -9, -7, -17, -6, -8, -7)
PYTHON_WIDTHS: Final = (WHAT_WIDTH, -9, -7, -17)
AGAINST_WIDTHS: Final = (36, -7, -7, -15)
BAR_FROM, BAR_AT, BAR_CELLS = 104, 79, 22
HUNDRED, TEN = 100, 10


def tell_ns(value: float) -> str:
    """Return nanoseconds as a table has them.

    >>> tell_ns(9.54), tell_ns(158.4), tell_ns(24141.1)
    ('9.5', '158', '24,141')
    """
    return f"{value:,.0f}" if value >= TEN else f"{value:.1f}"


def tell_ratio(value: float) -> str:
    """Return a ratio in three digits.

    >>> tell_ratio(0.3912), tell_ratio(11.52), tell_ratio(152.4), tell_ratio(2345.6)
    ('0.391', '11.5', '152', '2,346')
    """
    if value >= HUNDRED:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= TEN else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def tell_spread(figures: Row) -> str:
    """Return the least and the most of ratios."""
    return f"{tell_ratio(figures['least'])} .. {tell_ratio(figures['most'])}"


def tell_median(row: Row, kind: str) -> str:
    """Return the median of a kind of figure in nanoseconds, or a dash for none."""
    return tell_ns(row[kind]["median"]) if kind in row else "-"


class Tables:
    """A report as text."""

    def __init__(self, report: Row, paint: Paint, width: int) -> None:
        """Take what is told, and how wide."""
        self.report, self.paint, self.width = report, paint, width

    def text(self) -> str:
        """Return all of it."""
        lines = self._head()
        for live in dict.fromkeys(row["live"] for row in self.report["cycles"]):
            lines += ["", *self._cycles(live)]
        if self.report["python"]:
            lines += ["", *self._python()]
        lines += ["", *self._missing(), *self._foot()]
        if "against" in self.report:
            lines += ["", *self._against(self.report["against"])]
        return "\n".join(lines).rstrip() + "\n"

    def _wrap(self, text: str, indent: str = "") -> list[str]:
        return textwrap.wrap(clean(text), self.width, initial_indent=indent, subsequent_indent=indent + "  ")

    def _head(self) -> list[str]:
        machine, options = self.report["machine"], self.report["options"]
        where = f"{machine['cpu']}{', virtual' if machine['virtual'] else ''}, Linux {machine['kernel']}"
        on = "any CPU" if self.report["cpu_number"] is None else f"CPU {self.report['cpu_number']}"
        how = f"on {on}, rounds of {options['round_ms']:g} ms, seed {options['seed']}, {self.report['seconds']:.0f} s"
        title = f"execmem bench {machine['execmem']}"
        return [self.paint.head(title), *self._wrap(where), *self._wrap(how), self.paint.rule(self.width)]

    def _cycles(self, live: int) -> list[str]:
        rows = [row for row in self.report["cycles"] if row["live"] == live and "failed" not in row]
        base = self.report["base"]
        names = ("peer", "ns/cycle", "times", "least .. most", "call", "ramp up", "drain")
        options = self.report["options"]
        runs = options["runs"][options["live"].index(live)]
        rounds = self.paint.dim(f"   {runs} x {options['rounds']} rounds; times: {base} is 1")
        lines = [
            self.paint.head(f"{live:,} live blocks") + rounds,
            columns(names, CYCLE_WIDTHS),
        ]
        shares = dict(self._shares(rows))
        for row in rows:
            ratio = row.get("ratio")
            times = ("1" if row["peer"] == base else tell_ratio(ratio["median"])) if ratio else "-"
            spread = tell_spread(ratio) if ratio and row["peer"] != base else ""
            more = [tell_median(row, kind) for kind in ("call_ns", "ramp_up_ns", "drain_ns")]
            line = columns((row["peer"], tell_median(row, "cpu_ns"), times, spread, *more), CYCLE_WIDTHS)
            if self.width >= BAR_FROM:
                line = f"{line:<{BAR_AT}}{self.paint.bar(shares[row['peer']], BAR_CELLS)}"
            lines.append(line.rstrip())
        return lines if rows else [*lines[:1], "nothing was measured"]

    def _shares(self, rows: list[Row]) -> Iterator[tuple[str, float]]:
        """Give the length of each bar: the logarithm of the time, from half the shortest to the longest."""
        times = {row["peer"]: row["cpu_ns"]["median"] for row in rows}
        low, high = (min(times.values()) / 2, max(times.values())) if times else (1, 2)
        for peer, ns in times.items():
            yield peer, math.log(ns / low) / math.log(high / low)

    def _python(self) -> list[str]:
        rows = self.report["python"]
        mode = next((row["mode"] for row in rows if row["mode"]), None)
        title = self.paint.head("from Python, and not") + self.paint.dim(
            f"   mode {mode}, {bench_crew.PYTHON_LIVE:,} live"
        )
        lines = [title, columns(("what", "ns", "times", "least .. most"), PYTHON_WIDTHS)]
        for row in rows:
            if "failed" in row:
                continue
            ratio, is_base = row.get("ratio"), row["what"] == row["base"]
            times = "1" if is_base else tell_ratio(ratio["median"]) if ratio else "-"
            spread = tell_spread(ratio) if ratio and not is_base else ""
            lines.append(columns((row["what"], tell_median(row, "cpu_ns"), times, spread), PYTHON_WIDTHS))
        return lines

    def _missing(self) -> Iterable[str]:
        """Return what was not measured and why; the same reason at several populations once."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in self.report["cycles"] + self.report["python"]:
            if "failed" in row:
                name = row.get("peer", row.get("what"))
                reasons.setdefault((name, row["failed"]), []).append(f"{row['live']:,}" if "live" in row else "")
            elif row.get("wrong_blocks"):
                text = f"WRONG: {row['peer']}: {row['wrong_blocks']:,} of {row['live']:,} blocks lost their bytes"
                yield self.paint.bad(text)
        populations = len({row["live"] for row in self.report["cycles"]})
        if reasons:
            yield self.paint.head("not measured")
        for (name, why), lives in reasons.items():
            at = f" at {', '.join(lives)}" if 0 < len([live for live in lives if live]) < populations else ""
            yield from self._wrap(f"{name}{at}: {why}", "  ")
        if reasons:
            yield ""

    def _foot(self) -> list[str]:
        notes = (
            "ns: CPU time, medians over all rounds. A cycle frees a random block and places another, of lognormal size"
            " (median 500 B). times: ratios within a round, where all took turns. call: of a random block. ramp up,"
            " drain: a block, when all are placed, and freed in random order."
        ) + (" Bars: the logarithm of a cycle's time." if self.width >= BAR_FROM else "")
        return [self.paint.dim(line) for line in self._wrap(notes)]

    def _against(self, against: Row) -> list[str]:
        lines = [
            self.paint.head("against an earlier run")
            + self.paint.dim(f"   of {clean(str(against['date']))}, ratios then and now")
        ]
        for name, (then, now) in against["other"].items():
            lines += self._wrap(f"another {name}: then {then}, now {now}", "  ")
        lines.append(columns(("what", "then", "now", "now/then"), AGAINST_WIDTHS))
        for row in against["rows"]:
            name = row["what"] if row["live"] is None else f"{row['what']}, {row['live']:,} live"
            if "failed" in row:
                lines.append(f"{clean(name):<{AGAINST_WIDTHS[0]}} {clean(row['failed'])}")
                continue
            dearer = row["change"]["median"] > 1
            words = "few rounds" if row.get("few_rounds") else "same"
            if row["differs"]:
                words = self.paint.verdict("dearer" if dearer else "cheaper", good=not dearer)
            cells = (clean(name), tell_ratio(row["then"]), tell_ratio(row["now"]), tell_spread(row["change"]))
            lines.append(f"{columns(cells, AGAINST_WIDTHS)} {words}")
        differing = sum(row.get("differs", False) for row in against["rows"])
        lines += self._wrap(
            f"{differing} of {len(against['rows'])} differ (dearer, cheaper): no round of one run was within the rounds"
            " of the other."
        )
        return lines
