"""demo: real machine code in 2 MB packs, placed, called, checked against Python, and freed.

    code (demo_code) + sizes of a real program --place_many--> 100,000 blocks --function()--> a thousand calls
         free a random half --> call survivors --> free the rest

Every block is code first, then traps up to its drawn size. A watcher reads ``/proc/self/maps`` all the while: a mapping
that is writable and executable at once fails the demo, as does any result that is not Python's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import textwrap
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import numpy as np

import execmem
from execmem.demo_code import (
    EXAMPLES,
    FUNCTIONS,
    MACHINES,
    SHIPPED,
    DemoError,
    Example,
    choose_code,
    regenerate,
)
from execmem.draw import Paint, columns, tell_bytes, tell_time, text_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

BATCH = 2000  # blocks placed in one crossing; small enough for the progress bar to move
PACK_BYTES = 2 << 20
WINDOW_BYTES = 2 << 30  # what a domain takes when it is told nothing
MODES = ("syscall", "alias", "procmem", "flip", "pkey")
MODES_WITH_VIEWS = ("alias", "pkey")  # that have writable views of code
MODE_NOTES = {
    "syscall": "no writable view of code exists, ever",
    "alias": "a second, writable view at an unrelated address",
    "procmem": "private pages, written through /proc/self/mem",
    "flip": "a pack is never executable while it is written",
    "pkey": "a second view that only the writing thread can reach, while it writes",
}


# ---- sizes: what real programs generate ----

# Bytes of machine code at p50, p90, p99 and the largest, as measured in the wild.
SIZE_MIXES: dict[str, tuple[int, int, int, int]] = {
    "libbpf-tools": (213, 876, 2974, 3317),
    "v8": (148, 1620, 8400, 64 << 10),
    "hotspot": (576, 2936, 15 << 10, 128 << 10),
    "wasmtime": (199, 987, 6840, 64 << 10),
}
MIXES = (*SIZE_MIXES, "mixed")
_Z50, _Z90, _Z99, _ZLOW = 0.0, 1.2815515655446004, 2.3263478740408408, -3.0


def draw_sizes(mix: str, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` block sizes in bytes from one of MIXES.

    Each mix is a lognormal curve in pieces through its p50, p90 and p99; the last piece goes on to the largest size and
    the first goes below the median as steeply as above it. "mixed" takes every block from one of the four in turn.

    >>> sizes = draw_sizes("wasmtime", 10_000, np.random.default_rng(1))
    >>> bool(180 < np.median(sizes) < 220)
    True
    """
    if mix == "mixed":
        which = rng.integers(0, len(SIZE_MIXES), count)
        every = np.stack([draw_sizes(name, count, rng) for name in SIZE_MIXES])
        return np.asarray(every[which, np.arange(count)], dtype=np.int64)
    p50, p90, p99, largest = np.log(SIZE_MIXES[mix])
    low_slope = (p90 - p50) / (_Z90 - _Z50)
    tail_slope = (p99 - p90) / (_Z99 - _Z90)
    z = rng.standard_normal(count)
    logs = np.where(z > _Z99, p99 + (z - _Z99) * tail_slope, np.interp(z, (_Z50, _Z90, _Z99), (p50, p90, p99)))
    logs = np.where(z < _Z50, p50 + np.maximum(z, _ZLOW) * low_slope, logs)
    sizes: NDArray[np.int64] = np.rint(np.exp(np.minimum(logs, largest))).astype(np.int64)
    return np.maximum(sizes, 1, out=sizes)


# ---- what the kernel shows: mappings ----


def read_maps() -> list[str] | None:
    """Return the lines of ``/proc/self/maps``, or None where there is no such file."""
    try:
        return Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None


def writable_and_executable(lines: Sequence[str]) -> list[str]:
    """Return the lines whose mapping is writable and executable.

    >>> writable_and_executable(["1000-2000 r-xp 0 00:01 7 /lib", "2000-3000 rwxp 0 00:00 0"])
    ['2000-3000 rwxp 0 00:00 0']
    """
    return [line for line in lines if {"w", "x"} <= set(line.split(maxsplit=2)[1])]


def writable_views(lines: Sequence[str]) -> int:
    """Count writable mappings of file pages that another mapping can execute: second views of code.

    >>> writable_views(["1000-2000 r-xs 0 00:01 7 /memfd:a", "9000-a000 rw-s 0 00:01 7 /memfd:a"])
    1
    """
    ranges: dict[str, list[tuple[str, tuple[str, str], int, int]]] = {"x": [], "w": []}
    for line in lines:
        span, rights, offset, device, inode = line.split(maxsplit=5)[:5]
        for right in ranges.keys() & set(rights):
            if inode != "0" and rights.endswith("s"):  # a private mapping writes to a copy
                low, high = (int(end, 16) for end in span.split("-"))
                ranges[right].append((span, (device, inode), int(offset, 16), int(offset, 16) + high - low))
    return sum(
        any(file == other and low < end and start < high for _, other, start, end in ranges["x"])
        for _, file, low, high in ranges["w"]
    )


class Watcher(threading.Thread):
    """A thread that reads ``/proc/self/maps`` over and over and keeps what should never be there."""

    def __init__(self, interval: float = 0.003) -> None:
        """Look every `interval` seconds."""
        super().__init__(name="execmem-demo-watcher", daemon=True)
        self.interval = interval
        self.looks = 0
        self.bad: list[str] = []
        self.views = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Look until asked to stop."""
        while not self._stop_asked.wait(self.interval):
            self.look()

    def look(self) -> None:
        """Look once."""
        lines = read_maps()
        if lines is not None:
            self.looks += 1
            self.bad = self.bad or writable_and_executable(lines)
            self.views = max(self.views, writable_views(lines))

    def __enter__(self) -> Self:
        """Start."""
        self.look()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, after a last look."""
        self._stop_asked.set()
        self.join()
        self.look()


# ---- steps: time and progress ----


@dataclass(frozen=True)
class Step:
    """One step of the demo: what, how many items, how long."""

    name: str
    items: int
    seconds: float


class Clock:
    """Times one step and shows how far it is; what is done aside is timed on its own."""

    def __init__(self, progress: Progress, name: str, items: int) -> None:
        """Start."""
        self.progress = progress
        self.name = name
        self.items = items
        self.away = 0.0
        self.start = time.perf_counter()

    def advance(self, done: int) -> None:
        """Show that `done` items are done."""
        self.progress.show(self.name, done, self.items)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the time of the body out of the step."""
        start = time.perf_counter()
        yield
        self.away += time.perf_counter() - start

    def seconds(self) -> float:
        """Return the time since the start, without what was aside."""
        return time.perf_counter() - self.start - self.away


class Progress:
    """Times steps and shows them on a stream: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        """Decide by the stream, NO_COLOR and TERM how to show."""
        self.stream = stream
        self.quiet = quiet
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.interval = 0.04 if self.live else 2.0  # seconds: a moving bar, or a sign of life in a log
        self.paint = Paint.of(stream)
        self.steps: list[Step] = []
        self._shown = 0.0

    @contextlib.contextmanager
    def step(self, name: str, items: int, aside: str = "") -> Iterator[Clock]:
        """Time the body as one step; what its clock takes aside becomes a step of the name `aside`."""
        self._shown = 0.0 if self.live else time.perf_counter()
        self.show(name, 0, items)
        clock = Clock(self, name, items)
        try:
            yield clock
        except BaseException:  # Ctrl-C too: what is printed next begins a line
            if self.live and not self.quiet:
                self.stream.write("\n")
            raise
        seconds = clock.seconds()
        if aside:
            self.steps.append(Step(aside, items, clock.away))
        self.steps.append(Step(name, items, seconds))
        self._write(f"{self.paint.good(f'{name:<16}')} {items:>9,} in {tell_time(seconds + clock.away)}\n")

    def show(self, name: str, done: int, items: int) -> None:
        """Draw the bar again, or write a line, unless that was done a moment ago."""
        now = time.perf_counter()
        if now - self._shown < self.interval:
            return
        self._shown = now
        line = f"{done:>9,} of {items:,}"
        if self.live:
            cells = max(10, min(40, shutil.get_terminal_size().columns - 44))
            self._write(f"{name:<16} {self.paint.bar(done / items, cells, trough=True)} {line}")
        else:
            self._write(f"{name:<16} {line}\n")

    def finish(self) -> None:
        """Set what follows apart from the steps."""
        if self.live:
            self._write("\n")

    def _write(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(f"\r\x1b[K{text}" if self.live else text)
            self.stream.flush()


# ---- the run ----


@dataclass(frozen=True)
class Snapshot:
    """The memory of the domain at one moment, and the mappings of the process (None: not available)."""

    moment: str
    mappings: int | None
    stats: execmem.Stats | None  # None before the domain is opened

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {"mappings": self.mappings, "stats": None if self.stats is None else self.stats.as_dict()}


@dataclass
class Tally:
    """How often one example was placed and called, and how many calls gave Python's result."""

    example: Example
    code_bytes: int
    copies: int = 0
    calls: int = 0
    matched: int = 0


@dataclass
class Report:
    """Everything the demo found out."""

    arch: str
    count: int
    mix: str
    seed: int
    origin: str
    write_mode: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    looks: int = 0
    bad_mappings: list[str] = field(default_factory=list)
    writable_views: int = 0

    @property
    def calls(self) -> int:
        """How many calls were made."""
        return sum(tally.calls for tally in self.tallies)

    @property
    def matched(self) -> int:
        """How many of them gave Python's result."""
        return sum(tally.matched for tally in self.tallies)

    @property
    def ok(self) -> bool:
        """Whether every result matched and no mapping broke a promise of the write mode."""
        views_allowed = self.write_mode in MODES_WITH_VIEWS
        return self.calls == self.matched and not self.bad_mappings and (views_allowed or not self.writable_views)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON; times in seconds, sizes in bytes."""
        plain = {
            key: getattr(self, key) for key in ("ok", "arch", "count", "mix", "seed", "origin", "write_mode", "sizes")
        }
        return {
            **plain,
            "functions": [
                {"name": t.example.name, "signature": t.example.signature, "code_bytes": t.code_bytes}
                | {"copies": t.copies, "calls": t.calls, "matched": t.matched}
                for t in self.tallies
            ],
            "memory": {snapshot.moment: snapshot.as_dict() for snapshot in self.snapshots},
            "steps": [asdict(step) for step in self.steps],
            "watcher": {"looks": self.looks, "bad": self.bad_mappings, "writable_views": self.writable_views},
        }


class Demo:
    """One run: the plan drawn from the seed, the domain, and the blocks that live in it."""

    def __init__(self, options: argparse.Namespace, progress: Progress) -> None:
        """Get the machine code and draw what goes where."""
        self.options = options
        self.progress = progress
        arch = platform.machine()
        with progress.step("compile", len(FUNCTIONS)):
            code = choose_code(options.code, arch)
        self.trap = MACHINES[arch].trap
        self.bodies = [code.functions[example.name] for example in FUNCTIONS]
        self.rng = np.random.default_rng(options.seed)
        count = options.count
        self.which = self.rng.integers(0, len(self.bodies), count)
        own = np.array([len(body) for body in self.bodies])[self.which]
        self.sizes = np.maximum(draw_sizes(options.mix, count, self.rng), own)
        self.batches: list[execmem.Blocks] = []
        self.report = Report(arch, count, options.mix, options.seed, code.origin)
        p50, p90, p99 = (int(p) for p in np.percentile(self.sizes, (50, 90, 99)))
        self.report.sizes = {"p50": p50, "p90": p90, "p99": p99, "largest": int(self.sizes.max())}
        copies = np.bincount(self.which, minlength=len(self.bodies))
        self.report.tallies = [
            Tally(example, len(body), int(number))
            for example, body, number in zip(FUNCTIONS, self.bodies, copies, strict=True)
        ]

    def window(self) -> int | None:
        """Return bytes of address space that hold the plan with room to spare; None when the default does."""
        need = -(-(int(self.sizes.sum()) + 64 * len(self.sizes)) * 5 // 4 // PACK_BYTES) * PACK_BYTES
        return None if need <= WINDOW_BYTES else need

    def run(self) -> Report:
        """Place, call, free half, call again, free the rest."""
        report = self.report
        with Watcher() as watcher:
            self.snap("before", None)
            with execmem.Domain("demo", write_mode=self.options.mode, window=self.window()) as domain:
                report.write_mode = domain.write_mode
                self.place(domain)
                self.snap("placed", domain)
                self.call("make and call", np.arange(report.count))
                survivors = self.free_half()
                self.snap("half freed", domain)
                self.call("call survivors", survivors)
                self.free_rest()
                self.snap("all freed", domain)
        report.looks, report.bad_mappings, report.writable_views = watcher.looks, watcher.bad, watcher.views
        report.steps = self.progress.steps
        return report

    def snap(self, moment: str, domain: execmem.Domain | None) -> None:
        """Remember the memory of this moment."""
        lines = read_maps()
        stats = None if domain is None else domain.stats()
        self.report.snapshots.append(Snapshot(moment, None if lines is None else len(lines), stats))

    def place(self, domain: execmem.Domain) -> None:
        """Place every block, code first and traps up to its size, under its own name."""
        count = self.report.count
        with self.progress.step("place", count, aside="generate") as clock:
            for start in range(0, count, BATCH):
                end = min(start + BATCH, count)
                with clock.aside():
                    codes, names = self.generate(start, end)
                self.batches.append(domain.place_many(codes, names))
                clock.advance(end)

    def generate(self, start: int, end: int) -> tuple[list[bytes], list[str]]:
        """Return code and names of the blocks from number `start` up to `end`."""
        plan = zip(self.which[start:end].tolist(), self.sizes[start:end].tolist(), strict=True)
        codes = [self.bodies[which] + self.trap * (size - len(self.bodies[which])) for which, size in plan]
        names = [f"{FUNCTIONS[self.which[i]].name}_{i:06}" for i in range(start, end)]
        return codes, names

    def call(self, step: str, among: NDArray[np.int64]) -> None:
        """Call a random choice of blocks and compare each result with Python's."""
        chosen = self.rng.choice(among, size=min(self.options.calls, len(among)), replace=False)
        cases = [FUNCTIONS[self.which[i]].make_case(self.rng) for i in chosen]
        with self.progress.step(step, len(chosen)) as clock:
            for done, (i, case) in enumerate(zip(chosen.tolist(), cases, strict=True), 1):
                tally = self.report.tallies[self.which[i]]
                function = self.batches[i // BATCH][i % BATCH].function(tally.example.signature)
                tally.calls += 1
                tally.matched += case.holds(function)
                clock.advance(done)

    def free_half(self) -> NDArray[np.int64]:
        """Free a random half; return the numbers of the survivors."""
        order = self.rng.permutation(self.report.count)
        doomed = np.zeros(self.report.count, dtype=np.bool_)
        doomed[order[: len(order) // 2]] = True
        with self.progress.step("free half", len(order) // 2) as clock:
            for number, batch in enumerate(self.batches):
                batch.free(doomed[number * BATCH : (number + 1) * BATCH])
                clock.advance(int(doomed[: (number + 1) * BATCH].sum()))
        return np.flatnonzero(~doomed)

    def free_rest(self) -> None:
        """Free what is left, by dropping the last reference to each batch."""
        left = self.report.count - self.report.count // 2
        with self.progress.step("free the rest", left):
            self.batches.clear()


# ---- the table ----


def tell_fill(stats: execmem.Stats | None) -> str:
    """Return the share of resident bytes that live blocks asked for."""
    if stats is None or not stats.live_bytes or not stats.resident_bytes:
        return "-"
    return f"{100 * stats.live_bytes / stats.resident_bytes:.1f} %"


def tell_count(count: int | None) -> str:
    """Return a number, or that the kernel could not be asked for it."""
    return "not available" if count is None else f"{count:,}"


def tell_mappings(snapshot: Snapshot, first: Snapshot) -> str:
    """Return the number of mappings, after the first as a difference to it."""
    if snapshot.mappings is None or first.mappings is None:
        return "not available"
    return f"{snapshot.mappings:,}" if snapshot is first else f"{snapshot.mappings - first.mappings:+,}"


class Table:
    """Turns a report into the text that is shown."""

    def __init__(self, report: Report, paint: Paint, width: int) -> None:
        """Draw `report` with `paint`, `width` columns wide."""
        self.report = report
        self.paint = paint
        self.width = width
        self.wide = width >= 104  # noqa: PLR2004 - room for notes

    def text(self) -> str:
        """Return the whole report."""
        parts = (self.title(), self.functions(), self.memory(), self.times(), self.verdicts())
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _heading(self, line: str) -> list[str]:
        return [self.paint.head(line), self.paint.rule(self.width)]

    def title(self) -> list[str]:
        """Return what was run."""
        report, sizes = self.report, self.report.sizes
        spread = ", ".join(f"{name} {value:,}" for name, value in sizes.items())
        facts = {
            "code": report.origin,
            "sizes": f"{report.mix}: {spread} bytes",
            "writes": f"{report.write_mode}: {MODE_NOTES[report.write_mode]}",
            "seed": str(report.seed),
        }
        lines = self._heading(f"execmem demo: {report.count:,} functions of machine code ({report.arch}) in 2 MB packs")
        for name, fact in facts.items():
            wrapped = textwrap.wrap(fact, self.width - 9) or [""]
            lines += [f"{label:<8} {line}" for label, line in zip([name] + [""] * len(wrapped), wrapped, strict=False)]
        return lines

    def functions(self) -> list[str]:
        """Return a line for each example."""
        widths = (9, 18, -6, -9, -7, -13, *((2, 30) if self.wide else ()))
        header = (
            "function",
            "signature",
            "bytes",
            "copies",
            "calls",
            "like Python",
            *(("", "computes") if self.wide else ()),
        )
        lines = self._heading(columns(header, widths))
        for t in self.report.tallies:
            matched = "-" if not t.calls else "all" if t.matched == t.calls else f"{t.matched:,} only"
            cells = [t.example.name, t.example.signature, f"{t.code_bytes:,}", f"{t.copies:,}", f"{t.calls:,}"]
            good = columns([*cells, ""], widths[:6]).ljust(53)
            line = good + self.paint.verdict(f"{matched:>13}", good=t.matched == t.calls)
            lines.append(line + (self.paint.dim(f"    {t.example.summary}") if self.wide else ""))
        return lines

    def memory(self) -> list[str]:
        """Return a line for each measure, a column for each moment."""
        snapshots = self.report.snapshots
        first, stats = snapshots[0], [snapshot.stats for snapshot in snapshots]

        def each(tell: Callable[[execmem.Stats], str]) -> list[str]:
            return ["-" if one is None else tell(one) for one in stats]

        rows = [
            ("live blocks", each(lambda s: f"{s.live_blocks:,}"), "each under a name of its own"),
            ("live bytes", each(lambda s: tell_bytes(s.live_bytes)), "as asked for"),
            ("packs", each(lambda s: f"{s.packs:,}"), "one spare is kept"),
            ("resident", each(lambda s: tell_bytes(s.resident_bytes)), "of packs, as the kernel tells"),
            ("fill", [tell_fill(s) for s in stats], "live / resident"),
            (
                "one 2 MB entry",
                each(lambda s: tell_count(s.huge_packs) + ("" if s.huge_packs is None else f" of {s.full_packs:,}")),
                "full packs, as the kernel tells",
            ),
            ("bookkeeping", each(lambda s: tell_bytes(s.ledger_bytes)), "the ledger, resident"),
            ("mappings", [tell_mappings(one, first) for one in snapshots], "of the process, then more or fewer"),
            ("  of the domain", each(lambda s: tell_count(s.vmas)), "guards and reserve included"),
        ]
        widths = (16, *(-(15 if self.wide else 14),) * len(snapshots))
        lines = self._heading(columns(["memory", *(one.moment for one in snapshots)], widths))
        for name, cells, note in rows:
            line = columns([name, *cells], widths)
            lines.append(line + (self.paint.dim(f"    {note}") if self.wide else ""))
        return lines

    def times(self) -> list[str]:
        """Return a line for each step, with a bar for its share of the longest."""
        longest = max(step.seconds for step in self.report.steps)
        widths = (16, -9, -10, -10)
        lines = self._heading(columns(("step", "items", "time", "each"), widths))
        for step in self.report.steps:
            each = tell_time(step.seconds / step.items) if step.items else "-"
            line = columns((step.name, f"{step.items:,}", tell_time(step.seconds), each), widths)
            lines.append(f"{line}   {self.paint.bar(step.seconds / longest, self.width - 51)}".rstrip())
        return lines

    def verdicts(self) -> list[str]:
        """Return what was promised and whether it held."""
        report = self.report
        same = report.calls == report.matched
        told = f"{report.matched:,} of {report.calls:,} calls gave exactly Python's result"
        lines: list[tuple[str, str, bool | None]] = [("results", told, same)]
        if not report.looks:
            lines.append(("W^X", "not available: /proc/self/maps cannot be read", None))
            return self._verdicts(lines)
        seen = f"no mapping was ever writable and executable ({report.looks:,} looks)"
        lines.append(
            ("W^X", f"VIOLATED: {report.bad_mappings[0]}" if report.bad_mappings else seen, not report.bad_mappings)
        )
        views = "no writable view of any code was ever mapped"
        if report.writable_views:
            views = f"{report.writable_views} writable views of code, never executable, as mode {report.write_mode} has"
        lines.append(("views", views, not report.writable_views or report.write_mode in MODES_WITH_VIEWS))
        return self._verdicts(lines)

    def _verdicts(self, lines: Sequence[tuple[str, str, bool | None]]) -> list[str]:
        """Return verdicts as lines; where nobody looked there is none."""
        marks = {True: self.paint.verdict("ok", good=True), False: self.paint.verdict("FAILED", good=False), None: "- "}
        return [f"{name:<8} {marks[good]}  {text}" for name, text, good in lines]


# ---- the command ----

COUNT_DIGITS: Final = 15  # no memory holds so many, and numpy's integers do


def to_count(text: str) -> int:
    """Return a number of at least 1, for argparse; underscores and commas are allowed."""
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or int(digits[:COUNT_DIGITS]) < 1:
        message = f"{text!r} is not a number of at least 1"
        raise argparse.ArgumentTypeError(message)
    if len(digits) > COUNT_DIGITS:
        message = f"{text!r} is more than can be counted: {COUNT_DIGITS} digits at most"
        raise argparse.ArgumentTypeError(message)
    return int(digits)


def to_seed(text: str) -> int:
    """Return a number of at least 0, for argparse."""
    if not (text.isascii() and text.isdecimal() and len(text) <= COUNT_DIGITS):
        message = f"{text!r} is not a number of at least 0 and at most {COUNT_DIGITS} digits"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem demo``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem demo                         100,000 functions, some seconds\n"
        "  execmem demo --count 1_000_000 --mix v8\n"
        "  execmem demo --mode alias --code shipped --json\n"
        "exit code: 0 all results were right; 1 not, or no code or domain is to be had\n"
        "(stderr tells why); 2 wrong usage; 130 Ctrl-C"
    )
    parser.add_argument("--count", type=to_count, default=100_000, metavar="N", help="blocks to place (100,000)")
    parser.add_argument("--calls", type=to_count, default=1_000, metavar="N", help="blocks to call each time (1,000)")
    parser.add_argument("--mode", choices=MODES, help="write mode (the first that works here)")
    parser.add_argument("--mix", choices=MIXES, default="mixed", help="whose sizes to draw (mixed)")
    parser.add_argument("--seed", type=to_seed, default=1, help="of everything random (1)")
    parser.add_argument(
        "--code", choices=("auto", "compile", "shipped"), default="auto", help="where machine code comes from"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Run the demo and print its report; 0 when every result matched and no promise was broken."""
    progress = Progress(sys.stderr, quiet=options.quiet)
    try:
        report = Demo(options, progress).run()
        progress.finish()
    except DemoError as error:
        sys.stderr.write(f"execmem demo: {error}\n")
        return 1
    paint = Paint.of(sys.stdout)
    sys.stdout.write(
        json.dumps(report.as_dict(), indent=2) + "\n" if options.json else Table(report, paint, text_width()).text()
    )
    return 0 if report.ok else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m execmem.demo``: the demo, or ``--regenerate`` of the machine code that ships."""
    parser = argparse.ArgumentParser(prog="python -m execmem.demo", description="The demo of execmem.")
    add_arguments(parser)
    parser.add_argument("--regenerate", action="store_true", help=f"write {SHIPPED} from a checkout's examples/")
    options = parser.parse_args(arguments)
    if not options.regenerate:
        return run(options)
    try:
        origin = regenerate(EXAMPLES, Path(__file__).with_name(SHIPPED), platform.machine())
    except DemoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{SHIPPED}: {origin}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
