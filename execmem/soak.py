"""soak: the library under load for minutes: threads, forks, every write mode, system calls that are made to fail.

    threads       place, fill, call, hand on and free blocks in two domains for each write mode that works here,
                  one of them with a quarantine, gaps or a trust class
    main thread   sets and clears failures, forks children that do the same and then seal, which lasts as long as
                  they do; checks laws, reads memory, draws a line

Every block is a function that adds a number of its own, so a wrong byte is a wrong result. What fails
because it was made to is counted; what fails otherwise, a wrong result or a broken law, makes the soak fail.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import execmem
from execmem.demo import MODES, to_count
from execmem.draw import Paint, clean, columns, tell_bytes, text_width
from execmem.picture import write_whole

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from execmem import Block, Blocks, Domain, Function

# Each is made to fail now and then; not "unview", for what cannot be unmapped would stay and hide a leak.
CALLS: Final = (
    "memfd",
    "resize",
    "discard",
    "write",
    "reserve",
    "view",
    "protect",
    "collapse",
    "populate",
    "maps",
    "stop",
)
WISHES: Final[tuple[dict[str, Any], ...]] = (  # of domains; the first has none
    {},
    {"quarantine": "64K"},
    {"gap": "2K", "trust": 5},
    {"quarantine": "512K", "gap": 200, "trust": 200},
)
HELD: Final = 400  # blocks a thread keeps at most
STEP: Final = 0.05  # seconds between two looks of the main thread
CHECKS: Final = 5  # looks between two checks of all laws
FORKS: Final = 7  # and between two forks
CHILD_SECONDS: Final = 60  # after which a child is taken to hang
if TYPE_CHECKING or find_spec("execmem._core"):
    REFUSALS: Final = (
        execmem.OutOfMemoryError,
        execmem.OutOfWindowError,
        execmem.ExecDeniedError,
        execmem.BusyError,
        execmem.SystemCallError,
        execmem.UnsupportedError,
    )
RESIDENT_SLACK: Final = 64 << 20  # bytes that Python and numpy may keep beyond the start


def adder(number: int) -> bytes:
    """Return machine code of ``long f(long x) { return x + number; }``, number below 2**31.

    >>> adder(7).hex()
    '488d8707000000c3'
    """
    return b"\x48\x8d\x87" + number.to_bytes(4, "little") + b"\xc3"


@dataclass
class Report:
    """What a soak came to."""

    seconds: float = 0.0
    threads: int = 0
    seed: int = 0
    modes: list[str] = field(default_factory=list)
    operations: int = 0
    calls: int = 0
    faults: int = 0  # system calls made to fail
    refusals: int = 0  # operations that were refused for it
    forks: int = 0  # children that did their work and ended well
    sealed: int = 0  # domains, by them
    checks: int = 0  # domains whose every law was checked
    resident: list[int | None] = field(default_factory=list)  # bytes at start, peak, end; None: could not be read
    packs: list[int] = field(default_factory=list)  # likewise, in the soak's domains
    mappings: list[int | None] = field(default_factory=list)  # of memory files of execmem, at start and end
    files: list[int | None] = field(default_factory=list)  # likewise, file descriptors
    missing: dict[str, str] = field(default_factory=dict)  # which of these three could not be read, and why
    kept: int = 0  # blocks of batches that a failure left out of use until their domain closed
    interrupted: bool = False
    wrong: list[str] = field(default_factory=list)  # what must not be

    @property
    def ok(self) -> bool:
        """Whether all held."""
        return not self.wrong


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_mappings() -> int:
    """Count the mappings of execmem's memory files."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        return sum("/memfd:execmem" in line for line in lines)


def count_files() -> int:
    """Count open file descriptors; not those that other threads read /proc through."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            target = str(entry.readlink())
            count += not target.startswith("/proc/") or target.endswith("/mem")
    return count


def set_failures(script: str | None) -> int:
    """Make chosen system calls fail from now on, None: none; return how many were made to fail before."""
    failed: int = lib.execmem_test_script(ffi.NULL if script is None else script.encode())
    return failed


# ---- one thread's work ----


class Worker(threading.Thread):
    """Places, fills, calls, hands on and frees blocks until it is told to stop."""

    def __init__(self, soak: Soak, number: int) -> None:
        """Prepare; nothing is done before ``start``."""
        super().__init__(name=f"soak-{number}", daemon=True)
        self.soak = soak
        self.random = random.Random(soak.report.seed * 1000 + number)  # noqa: S311 - it must be repeatable
        self.mine: list[tuple[Block, int]] = []
        self.batches: list[Blocks] = []
        self.operations = self.calls = self.refusals = 0

    def run(self) -> None:
        """Work; an error that nobody made is told, and ends all."""
        steps: Sequence[Callable[[], None]] = (
            *(self.place,) * 6,
            *(self.free,) * 5,
            *(self.fill, self.call, self.look, self.take_and_free) * 2,
            *(self.hand_on, self.batch, self.free_batch),
        )
        try:
            while not self.soak.stopped.is_set():
                try:
                    self.random.choice(steps)()
                except REFUSALS:
                    self.refusals += 1
                self.operations += 1
        except BaseException:  # noqa: BLE001 - told in the report, with its traceback
            self.soak.fail(f"thread {self.name}: {traceback.format_exc(limit=-3)}")

    def expect(self, block: Block, number: int) -> None:
        """See that a block holds the code it was given."""
        code = adder(number)
        if bytes(block)[: len(code)] != code:
            found = f"{bytes(block)[: len(code)].hex()} in {block.domain.write_mode}"
            self.soak.fail(f"{block!r} does not hold the code that adds {number}: {found}")

    def place(self) -> None:
        """Place a function; some are long, a few longer than the free runs of any pack but a new one."""
        if len(self.mine) >= HELD:
            self.free()
            return
        number = self.random.randrange(1 << 30)
        size = self.random.choice((8, 60, 200, 900, 4000, 4000, 64, 300_000 if number % 8 == 0 else 64))
        code = adder(number).ljust(size, b"\xcc")
        domain = self.random.choice(self.soak.domains)
        self.mine.append((domain.place(code, name=f"adds {number}" if number % 4 == 0 else None), number))

    def pick(self) -> tuple[int, Block, int] | None:
        """Choose a block of this thread's own."""
        if not self.mine:
            return None
        place = self.random.randrange(len(self.mine))
        return (place, *self.mine[place])

    def free(self) -> None:
        """Free a block; one whose free is refused is kept, unless some of it holds traps by then."""
        if chosen := self.pick():
            place, block, number = chosen
            self.expect(block, number)
            try:
                block.free()
            except REFUSALS:
                self.keep_or_leave(place)
                raise
            self.mine[place] = self.mine[-1]
            self.mine.pop()

    def keep_or_leave(self, place: int) -> None:
        """Leave a block that a refused call has made traps of to whoever frees next."""
        block, number = self.mine[place]
        if bytes(block)[:8] != adder(number):
            self.mine.pop(place)
            self.soak.board.append((block, -1))

    def fill(self) -> None:
        """Make another function of a block. When that is refused it holds the old one, or traps."""
        if chosen := self.pick():
            place, block, _ = chosen
            number = self.random.randrange(1 << 30)
            try:
                block.fill(adder(number))
            except execmem.ForkedError:  # a child may run it: it stays as it is
                self.expect(block, self.mine[place][1])
                return
            except REFUSALS:
                self.keep_or_leave(place)
                raise
            self.mine[place] = (block, number)

    def call(self) -> None:
        """Call a block as a function."""
        chosen = self.pick()
        if chosen and self.soak.callable:
            x = self.random.randrange(1 << 30)
            function = chosen[1].function("i64(i64)")
            result = function(x)
            if result != x + chosen[2]:
                self.soak.fail(f"{chosen[1]!r} gave {result}, not {x + chosen[2]}")
            self.calls += 1

    def look(self) -> None:
        """Ask what lies at a block's address."""
        if (chosen := self.pick()) and execmem.find(chosen[1].address).address != chosen[1].address:
            self.soak.fail(f"{chosen[1]!r} is not found at its address")

    def hand_on(self) -> None:
        """Leave a block for whoever comes."""
        if self.mine:
            self.soak.board.append(self.mine.pop())

    def take_and_free(self) -> None:
        """Free what another thread left."""
        try:
            block, number = self.soak.board.popleft()
        except IndexError:
            return
        if number >= 0:
            self.expect(block, number)
        try:
            block.free()
        except REFUSALS:
            self.soak.board.append((block, -1))  # it may hold traps by now
            raise

    def batch(self) -> None:
        """Place many at once."""
        first = self.random.randrange(1 << 29)
        codes = [adder(first + i).ljust(self.random.choice((8, 100, 700)), b"\xcc") for i in range(40)]
        self.batches.append(self.random.choice(self.soak.domains).place_many(codes))
        for i, address in enumerate(self.batches[-1].addresses):
            if ffi.buffer(ffi.cast("char *", int(address)), 8)[:] != adder(first + i):
                self.soak.fail(f"element {i} of a batch does not add {first + i}")
        if len(self.batches) > 4:  # noqa: PLR2004 - as many as there is no reason for more
            self.free_batch()

    def free_batch(self) -> None:
        """Free a batch; what is refused is tried again."""
        if self.batches:
            self.batches[0].free()
            self.batches.pop(0)

    def end(self) -> None:
        """Free all that is left, when nothing fails any more."""
        for block, number in self.mine:
            self.expect(block, number)
            retry(block.free)
        for batch in self.batches:
            retry(batch.free)
        self.mine.clear()
        self.batches.clear()


def retry(action: Callable[[], None]) -> None:
    """Do it; mode flip may find a thread busy a few times."""
    for attempt in range(20):
        try:
            action()
        except execmem.BlockBusyError:  # noqa: PERF203 - it is seldom more than one
            raise
        except execmem.BusyError:
            if attempt == 19:  # noqa: PLR2004 - the last of twenty
                raise
        else:
            return


# ---- all of it ----


class Soak:
    """A soak: domains, threads, and the main thread's looks."""

    def __init__(self, options: argparse.Namespace, show: Callable[[Report, float, bool], None]) -> None:
        """Prepare; nothing is opened before ``run``."""
        self.seconds: float = options.minutes * 60
        self.show = show
        self.report = Report(threads=options.threads, seed=options.seed)
        self.random = random.Random(options.seed)  # noqa: S311 - it must be repeatable
        self.callable = platform.machine() == "x86_64"
        self.stopped = threading.Event()
        self.board: deque[tuple[Block, int]] = deque()
        self.domains: list[Domain] = []
        self.anchors: list[tuple[Block, Function | None, int]] = []
        self.workers: list[Worker] = []

    def fail(self, text: str) -> None:
        """Keep what went wrong; the soak ends."""
        self.report.wrong.append(text)
        self.stopped.set()

    def _read(self, what: str, read: Callable[[], int]) -> int | None:
        """Return what a file of /proc tells; None where it does not, and keep why."""
        try:
            return read()
        except OSError as error:
            self.report.missing[what] = f"{error.filename}: {error.strerror}; it needs /proc, readable by this process"
            return None

    def run(self) -> Report:
        """Soak for the time asked for, or until Ctrl-C."""
        report = self.report
        for mode in MODES:  # once through each, so that what is made only once is there before memory is read
            with contextlib.suppress(execmem.ExecmemError), execmem.Domain("soak", write_mode=mode) as domain:
                domain.place(adder(1)).free()
                report.modes.append(mode)
        gc.collect()
        report.resident = [self._read("resident", resident_bytes)] * 3
        report.mappings = [self._read("mappings", count_mappings)]
        report.files = [self._read("files", count_files)]
        began = time.monotonic()
        set_aside = signal.signal(signal.SIGINT, self._interrupt)
        try:
            self._open()
            self._watch(began)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is short, and must be whole
            self._close()
        finally:
            signal.signal(signal.SIGINT, set_aside)
        report.seconds = time.monotonic() - began
        self.show(report, 1.0, True)
        return report

    def _interrupt(self, *_: object) -> None:
        """End soon. An exception might come in a fork, where Python drops it; the lock of ``stopped`` may be held."""
        self.report.interrupted = True

    def _open(self) -> None:
        for i, mode in enumerate(self.report.modes * 2):
            wishes = WISHES[1 + i % 3 if i >= len(self.report.modes) else 0]
            domain = execmem.Domain(f"soak {mode}", write_mode=mode, limit="256M", window="512M", **wishes)
            self.domains.append(domain)
            for anchor in range(3):
                number = 1000 * len(self.domains) + anchor
                block = domain.place(adder(number), name="anchor")
                self.anchors.append((block, block.function("i64(i64)") if self.callable else None, number))
        self.report.packs = [sum(domain.stats().packs for domain in self.domains)] * 3
        self.workers = [Worker(self, number) for number in range(self.report.threads)]
        for worker in self.workers:
            worker.start()

    def _watch(self, began: float) -> None:
        """Look every few milliseconds: failures, forks, laws, memory, the line."""
        look = 0
        while not self.stopped.is_set() and not self.report.interrupted:
            gone = time.monotonic() - began
            if gone >= self.seconds:
                break
            look += 1
            self.report.faults += set_failures(self._draw_script() if look % 2 else None)
            if look % FORKS == 0:
                self._fork()
            if look % CHECKS == 0:
                self._check()
            self._count()
            self.show(self.report, gone / self.seconds, False)
            self.stopped.wait(STEP)

    def _draw_script(self) -> str:
        call = self.random.choice(CALLS)
        # Never thrice in a row: mode flip tries three times to make a pack executable again, and without that
        # whoever calls code in it ends.
        steps = "".join(f"{self.random.randrange(1, 20)}.F" for _ in range(12))
        return f"{call}={steps}"

    def _count(self) -> None:
        report = self.report
        report.operations = sum(worker.operations for worker in self.workers)
        report.calls = sum(worker.calls for worker in self.workers)
        report.refusals = sum(worker.refusals for worker in self.workers)
        now = self._read("resident", resident_bytes)
        report.resident[1] = max((known for known in (report.resident[1], now) if known is not None), default=None)
        packs = sum(int(domain.header()["packs_live"][0]) for domain in self.domains)
        report.packs[1] = max(report.packs[1], packs)

    def _check(self) -> None:
        for domain in self.domains:
            try:
                domain.check()
            except execmem.BrokenLawError as error:
                self.fail(f"{domain.name}: {error}")
            self.report.checks += 1
        self._expect_anchors()

    # ---- forks ----

    def _fork(self) -> None:
        """Fork a child that calls inherited code and works in domains of its own; wait for it."""
        self.report.faults += set_failures(None)
        told, tell = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of threads; the library promises more
            child = os.fork()
        if child == 0:
            code = 1
            try:
                code = self._end_as_child(tell)
            finally:
                os._exit(code)
        os.close(tell)
        end = time.monotonic() + CHILD_SECONDS
        done, status = os.waitpid(child, os.WNOHANG)
        while not done and time.monotonic() < end:
            time.sleep(0.002)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.fail(f"a forked child hung for {CHILD_SECONDS} s")
        elif status:
            why = os.read(told, 2000).decode()
            self.fail(f"a forked child ended with {os.waitstatus_to_exitcode(status)}: {why}")
        else:
            self.report.forks += 1
            self.report.sealed += len(self.report.modes) + 1
        os.close(told)

    def _end_as_child(self, tell: int) -> int:
        """Live; tell what was wrong, and return the exit code."""
        self.report.wrong.clear()
        try:
            self._live_as_child()
        except BaseException:  # noqa: BLE001 - told by the parent, with its traceback
            self.fail(traceback.format_exc(limit=-3))
        os.write(tell, "\n".join(self.report.wrong)[-2000:].encode())
        return 1 if self.report.wrong else 0

    def _live_as_child(self) -> None:
        """Call inherited code; place, call, check, free and seal in new domains; seal an inherited one."""
        self._expect_anchors()
        for i, mode in enumerate(self.report.modes):
            domain = execmem.Domain("soak child", write_mode=mode, **WISHES[(i + self.report.forks) % len(WISHES)])
            blocks = [(domain.place(adder(number)), number) for number in range(50)]
            self._expect_blocks(blocks)
            for block, _ in blocks[::2]:
                retry(block.free)
            del blocks[::2], block
            domain.check()
            self._seal(domain, blocks)
        self._seal(self.domains[self.report.forks % len(self.domains)], [])
        self._expect_anchors()

    def _expect_anchors(self) -> None:
        for block, function, number in self.anchors:
            if bytes(block) != adder(number) or (function and function(5) != number + 5):
                self.fail(f"{block!r} does not add {number} any more")

    def _expect_blocks(self, blocks: list[tuple[Block, int]]) -> None:
        for block, number in blocks:
            if bytes(block) != adder(number) or (self.callable and block.function("i64(i64)")(1) != number + 1):
                self.fail(f"{block!r} does not add {number}")

    def _seal(self, domain: Domain, blocks: list[tuple[Block, int]]) -> None:
        """Seal for as long as this child lives: its code runs, and nothing of it changes."""
        domain.seal()
        if not domain.sealed or domain.stats().quarantined_blocks:
            self.fail(f"{domain!r} is not sealed, or blocks wait in its quarantine")
        for change in (lambda: domain.place(adder(1)), *(block.free for block, _ in blocks)):
            try:
                change()
            except execmem.SealedError:
                continue
            self.fail(f"{domain!r} is sealed and can be changed")
        domain.check()
        self._expect_blocks(blocks)

    # ---- the end ----

    def _close(self) -> None:
        """Stop the threads, free everything, close all domains, and see what is left."""
        report = self.report
        self.stopped.set()
        report.faults += set_failures(None)
        for worker in self.workers:
            worker.join()
        self._count()
        try:
            self._check()
            for worker in self.workers:
                worker.end()
            while self.board:
                retry(self.board.popleft()[0].free)
            report.kept = sum(len(domain) for domain in self.domains) - len(self.anchors)
            self.anchors.clear()
            gc.collect()
            for domain in self.domains:
                domain.check()
            report.packs[2] = sum(domain.stats().packs for domain in self.domains)
            for domain in self.domains:
                domain.close(force=True)
        except (execmem.ExecmemError, execmem.BrokenLawError):
            self.fail(f"at the end: {traceback.format_exc(limit=-3)}")
        self.domains.clear()
        gc.collect()
        report.resident[2] = self._read("resident", resident_bytes)
        report.mappings.append(self._read("mappings", count_mappings))
        report.files.append(self._read("files", count_files))
        for what, told in (("resident", report.resident), ("mappings", report.mappings), ("files", report.files)):
            first, last = told[0], told[-1]
            if first is not None and last is not None and (why := tell_left(what, first, last)):
                self.fail(why)


def tell_left(what: str, first: int, last: int) -> str:
    """Return what a soak left behind; empty: nothing."""
    if what == "mappings" and last > first:
        return f"{last - first} mappings were left behind"
    if what == "files" and last != first:
        return f"{first} files were open at the start, {last} at the end"
    if what == "resident" and last > first + RESIDENT_SLACK:
        return f"{tell_bytes(last - first)} of memory were left behind"
    return ""


# ---- what is shown ----


class Line:
    """A line on a stream that is drawn again and again; on what is no terminal, a line every ten seconds."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        """Decide by the stream how to show."""
        self.stream = stream
        self.quiet = quiet
        self.live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.paint = Paint.of(stream)
        self.interval = 0.2 if self.live else 10.0
        self.shown = time.monotonic() if not self.live else 0.0

    def show(self, report: Report, share: float, last: bool) -> None:
        """Draw, unless that was done a moment ago."""
        now = time.monotonic()
        if self.quiet or (now - self.shown < self.interval and not (last and self.live)):
            return
        self.shown = now
        text = f"{report.operations:,} operations  {report.faults:,} faults  {report.forks:,} forks"
        if not self.live:
            self.stream.write(f"soak {share:4.0%}  {text}\n")
        elif last:
            self.stream.write("\r\x1b[K")
        else:
            cells = max(8, min(30, shutil.get_terminal_size().columns - len(text) - 12))
            self.stream.write(f"\r\x1b[Ksoak {self.paint.bar(share, cells, trough=True)} {text}")
        self.stream.flush()


WIDTHS: Final = (22, -14, -14, -14)


def tell_row(report: Report, name: str, what: str, told: Callable[[int], str]) -> str:
    """Return start, peak if it has one, and end, or why they are not known."""
    if what in report.missing:
        return f"{name:<22} not available: {clean(report.missing[what])}"
    known = [told(value) for value in getattr(report, what) if value is not None]
    return columns((name, known[0], *([""] * (3 - len(known))), *known[1:]), WIDTHS)


def tell(report: Report, paint: Paint, width: int) -> str:
    """Return the report as text."""
    heading = f"execmem soak: {report.threads} threads, {report.seconds:.0f} s, seed {report.seed}"
    widths = WIDTHS
    packs = report.packs or [0, 0, 0]
    lines = [
        paint.head(heading),
        paint.rule(width),
        f"write modes            {', '.join(report.modes)}",
        columns(("operations", f"{report.operations:,}"), widths[:2]),
        columns(("functions called", f"{report.calls:,}"), widths[:2]),
        columns(("system calls refused", f"{report.faults:,}"), widths[:2]) + paint.dim("  made to fail, on purpose"),
        columns(("operations refused", f"{report.refusals:,}"), widths[:2]) + paint.dim("  for it, and undone"),
        columns(("forks survived", f"{report.forks:,}"), widths[:2]),
        columns(("domains sealed", f"{report.sealed:,}"), widths[:2]) + paint.dim("  by children, for good"),
        columns(("domains checked", f"{report.checks:,}"), widths[:2]) + paint.dim("  every law, each time"),
        columns(("blocks kept", f"{report.kept:,}"), widths[:2])
        + paint.dim("  out of use, their batch refused midway"),
        "",
        paint.head(columns(("", "start", "peak", "end"), widths)),
        tell_row(report, "resident memory", "resident", tell_bytes),
        columns(("packs", *(f"{count:,}" for count in packs)), widths),
        tell_row(report, "mappings", "mappings", "{:,}".format),
        tell_row(report, "file descriptors", "files", "{:,}".format),
        "",
    ]
    lines += [f"{paint.bad('WRONG')}  {text}" for text in report.wrong[:10]]
    ended = "ended early by Ctrl-C; until then " if report.interrupted else ""
    verdict = "every result was right, no law was broken, " if report.ok else "it did not hold"
    if report.ok:
        verdict += "nothing was left behind" + " that can be seen here" * bool(report.missing)
    lines.append(f"{paint.verdict('ok' if report.ok else 'FAILED', good=report.ok)}  {ended}{verdict}")
    return "\n".join(lines) + "\n"


# ---- the command ----


def to_minutes(text: str) -> float:
    """Return a time in minutes, more than 0, for argparse."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        message = f"{text!r} is not a number of minutes above 0"
        raise argparse.ArgumentTypeError(message)
    return minutes


def may_write(path: Path) -> bool:
    """Tell whether a file can be made or replaced here, or written as a pipe is."""
    if path.exists() and not path.is_file():
        return not path.is_dir() and os.access(path, os.W_OK)
    return os.access(path.resolve().parent, os.W_OK | os.X_OK)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem soak``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem soak                         ten minutes, four threads\n"
        "  execmem soak --minutes 0.5 --threads 8 --seed 7\n"
        "  execmem soak --minutes 1 --json soak.json --quiet\n"
        "exit code: 0 all held, until its end or Ctrl-C; 1 something was wrong;\n"
        "2 wrong usage"
    )
    parser.add_argument("--minutes", type=to_minutes, default=10.0, metavar="M", help="how long (10)")
    parser.add_argument("--threads", type=to_count, default=4, metavar="N", help="that work at once (4)")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (1)")
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON; - is stdout, without the table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(options: argparse.Namespace) -> int:
    """Soak and print the report; 0 when all held. Where the report is to be written is looked at before, not after."""
    target = None if options.json in {None, "-"} else Path(options.json)
    if target is not None and not may_write(target):
        sys.stderr.write(f"execmem soak: {clean(str(target))} cannot be written: no such folder, or not permitted\n")
        return 1
    report = Soak(options, Line(sys.stderr, quiet=options.quiet).show).run()
    text = json.dumps({**asdict(report), "ok": report.ok}, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return 0 if report.ok else 1
    sys.stdout.write(tell(report, Paint.of(sys.stdout), text_width()))
    if target is not None:
        try:
            write_whole(str(target), text)
        except OSError as error:
            sys.stderr.write(f"execmem soak: {clean(str(target))} cannot be written: {error.strerror}\n")
            return 1
    return 0 if report.ok else 1
