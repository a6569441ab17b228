"""record: samples counters, hears of code that comes and goes, and names who split the direct map.

    sources  (counters)  --+
    streams  (events)    --+--> Recorder.sample --> rows of a trace
    clues    (who did what)-+        once a second; ten times as often when something has just happened

When a counter of splits has grown since the sample before, the process is named that is known to have done, in that
window, what splits: rules are tried in the order of ``docs/trace.md``, and the first that finds somebody decides. When
it finds several, or nobody, the split is not attributed, and its row says why.

Laws: (1) what is written is true also if the recorder is killed next. (2) What cannot be read is said in the header and
leaves no rows. (3) What is not done at every sample (looks at processes and page tables, slow sources, samples out of
turn) is paid out of an allowance of 0.05 % of a core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from execmem.directmap import perf, region, source
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import HEADER_MAX, Client, Event, Kind, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt
    from typing_extensions import Self

    Counters = Callable[[], Mapping[str, int]]  # reads, or raises NotAvailable
    Stream = Callable[[], Iterable[Event]]  # what happened since the call before
    Regions = Callable[[], set[int]]  # the offsets in the direct map of regions that are split, or NotAvailable
    States = Callable[[], npt.NDArray[np.uint8]]  # the state of each region, or NotAvailable

HUGE: Final = 2 << 20
GIANT: Final = 1 << 30
NS: Final = 1_000_000_000

# ---- processes: who may have done it ----

SECRET: Final = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) +/secretmem[^\n]*\n(?:[A-Z][^\n]*\n)*?Rss: +(\d+) kB", re.MULTILINE
)

SECRET_PLACE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) +/secretmem", re.MULTILINE)
PAGE: Final = 4096
FRAME: Final = (1 << 55) - 1  # the page's number in an entry of pagemap, whose highest bit says that it is there
LOOKED_AT: Final = 1 << 18  # pages of secret memory: 1 GB


@dataclass(frozen=True)
class Process:
    """A process; a number may be used again, number and start are one process's alone."""

    pid: int
    start_ns: int
    name: str

    def __str__(self) -> str:
        """Return how it is called in traces."""
        return f"pid {self.pid} {self.name}"


class Secret(NamedTuple):
    """Secret memory (memfd_secret): its number, its resident bytes, and the oldest process that has it mapped."""

    number: int
    resident: int
    holder: Process


class Processes:
    """What /proc tells of processes. A look at all of them takes some 20 us each."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        """Look below another root, for tests."""
        self.root = Path(root, "proc")
        self.refused = 0  # processes that could not be looked into the last time
        self._asleep = 0  # nanoseconds

    def tell(self, pid: int) -> str:
        """Return how a process is called in traces, its name too if it is still there."""
        process = self.find(pid)
        return str(process) if process else f"pid {pid}"

    def find(self, pid: int) -> Process | None:
        """Return a process, or None when it has ended."""
        try:
            text = (self.root / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        name, _, rest = text.partition(b"(")[2].rpartition(b")")
        # Field 22 counts ticks since boot, sleeps included; the clock of traces stops while the machine sleeps.
        tick = NS // os.sysconf("SC_CLK_TCK")
        asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        if abs(asleep - self._asleep) > tick:  # it slept again; smaller differences are of the two calls
            self._asleep = asleep
        start = int(rest.split()[19]) * tick - self._asleep
        return Process(pid, start, name.decode("utf-8", "backslashreplace"))

    def pids(self) -> list[int]:
        """Return the numbers of all processes."""
        try:
            return sorted(int(entry.name) for entry in os.scandir(self.root) if entry.name.isdigit())
        except OSError as error:
            why = f"{self.root} cannot be read ({error.strerror})"
            raise NotAvailable(why=why, remedy="mount /proc") from error

    def started(self, since_ns: int) -> list[Process]:
        """Return the processes that began after a moment; starts are told to 10 ms."""
        found = (self.find(pid) for pid in self.pids())
        return [process for process in found if process and process.start_ns >= since_ns]

    def secrets(self) -> dict[int, Secret]:
        """Return the secret memory that processes have mapped, as far as this one may see."""
        found: dict[int, Secret] = {}
        self.refused = 0
        for pid in self.pids():
            folder = self.root / str(pid)
            try:
                text = (folder / "smaps").read_bytes() if b" /secretmem" in (folder / "maps").read_bytes() else b""
            except PermissionError:
                self.refused += 1
                continue
            except OSError:  # it has just ended
                continue
            process = self.find(pid) if text else None
            if process is None:
                continue
            sizes: dict[int, int] = {}
            for number, resident in SECRET.findall(text):
                sizes[int(number)] = sizes.get(int(number), 0) + (int(resident) << 10)
            for number, size in sizes.items():
                known = found.get(number)
                holder = known.holder if known and known.holder.start_ns <= process.start_ns else process
                found[number] = Secret(number, max(size, known.resident if known else 0), holder)
        return found

    def regions_of(self, secret: Secret) -> set[int] | None:
        """Return the offsets in the direct map of the 2 MB regions its pages lie in; None where it cannot be told.

        8 bytes are read for each page that is mapped, of 1 GB at most.
        """
        folder = self.root / str(secret.holder.pid)
        found: set[int] = set()
        left = LOOKED_AT
        try:
            with (folder / "pagemap").open("rb", buffering=0) as pagemap:
                for start, end, number in SECRET_PLACE.findall((folder / "maps").read_bytes()):
                    if int(number) != secret.number:
                        continue
                    first, count = int(start, 16) // PAGE, (int(end, 16) - int(start, 16)) // PAGE
                    if count > left:
                        return None
                    left -= count
                    pagemap.seek(8 * first)
                    entries = np.frombuffer(pagemap.read(8 * count), "<u8")
                    frames = entries[entries >> 63 == 1] & FRAME
                    if not np.all(frames):
                        return None  # the kernel hides them from who has not CAP_SYS_ADMIN
                    found.update(np.unique(frames * PAGE // HUGE * HUGE).tolist())
        except OSError:
            return None
        return found


# ---- who did it: pure ----


NAMED: Final = 5  # suspects that a reason names at most


class Clues(NamedTuple):
    """What was seen of a window: by rule, the reason when there is nothing, and secret memory that has grown."""

    strong: list[Clue]
    weak: list[Clue]
    nobody: str
    grown: Sequence[Secret] = ()
    looked: bool = True  # at processes: who got secret memory is known


class Clue(NamedTuple):
    """Somebody did what may split: who ("": not known), and what."""

    owner: str
    what: str


def blame(strong: Sequence[Clue], weak: Sequence[Clue], nobody: str) -> Clue:
    """Return who is to blame and why; nobody ("") when several or none are.

    >>> blame([Clue("pid 7 tc", "it loaded cls_main")], [Clue("pid 8 sh", "its old_main was freed")], "nothing seen")
    Clue(owner='pid 7 tc', what='it loaded cls_main')
    >>> blame([Clue("pid 7 tc", "it loaded cls_main"), Clue("pid 8 sh", "it loaded x")], [], "nothing seen")
    Clue(owner='', what='one of: pid 7 tc: it loaded cls_main; pid 8 sh: it loaded x')
    """
    for clues in (strong, weak):
        first: dict[str, list[Clue]] = {}
        for clue in clues:
            first.setdefault(clue.owner, []).append(clue)
        if len(first) == 1:
            [(owner, theirs)] = first.items()
            more = f", and {len(theirs) - 1} more" if len(theirs) > 1 else ""
            return Clue(owner, theirs[0].what + more)
        if first:
            told = [f"{owner or 'somebody'}: {theirs[0].what}" for owner, theirs in list(first.items())[:NAMED]]
            more = f"; and {len(first) - NAMED} more" if len(first) > NAMED else ""
            return Clue("", f"one of: {'; '.join(told)}{more}")
    return Clue("", nobody)


class Growth(NamedTuple):
    """Mappings of a size that were split (or joined) between two samples."""

    kind: Kind
    size: int
    pieces: int


PROOF: Final = {  # counters of /proc/vmstat
    "direct_map_level2_splits": (Kind.SPLIT, HUGE),
    "direct_map_level3_splits": (Kind.SPLIT, GIANT),
    "direct_map_level2_collapses": (Kind.JOIN, HUGE),
    "direct_map_level3_collapses": (Kind.JOIN, GIANT),
}
SMALL: Final = "directmap_4k"  # bytes mapped by 4 KB pages: what older kernels have; a split adds 2 MB


def find_growth(before: Mapping[str, int], now: Mapping[str, int]) -> list[Growth]:
    """Return what was split and joined between two readings of counters.

    Without counters of splits it is the change of what is mapped by 4 KB pages: of splits and joins in one window only
    the difference is known then.

    >>> find_growth({"directmap_4k": 2 << 20}, {"directmap_4k": 6 << 20})
    [Growth(kind=<Kind.SPLIT: 3>, size=2097152, pieces=2)]
    """
    if "direct_map_level2_splits" in now:
        both = [(kind, size, now[name] - before[name]) for name, (kind, size) in PROOF.items() if name in before]
        return [Growth(kind, size, count) for kind, size, count in both if count > 0]
    if SMALL not in before or SMALL not in now:
        return []
    count = round((now[SMALL] - before[SMALL]) / HUGE)
    return [Growth(Kind.SPLIT if count > 0 else Kind.JOIN, HUGE, abs(count))] if count else []


# ---- modules ----


class Modules:
    """Tells of kernel modules that came and went between two looks at /proc/modules."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        """Look for the first time, or raise NotAvailable."""
        self._path = Path(root, "proc/modules")
        self._text = b""
        self._known: dict[str, tuple[int, int]] = {}
        self._numbers: dict[str, int] = {}
        self._look()

    def _look(self) -> bool:
        """Read size and address (0: hidden from who is not root) by name; tell whether anything is new."""
        try:
            text = self._path.read_bytes()
        except OSError as error:
            why, remedy = f"{self._path} cannot be read ({error.strerror})", "none if this kernel has no modules"
            raise NotAvailable(why=why, remedy=remedy) from error
        if text == self._text:
            return False
        self._text = text
        rows = (line.split() for line in text.decode("utf-8", "backslashreplace").splitlines())
        self._known = {name: (int(size), int(at, 16)) for name, size, _, _, _, at, *_ in rows}
        return True

    def __call__(self) -> list[Event]:
        """Return what came and went; the moment is that of this look. About 20 us where nothing did."""
        before = self._known
        try:
            if not self._look():
                return []
        except NotAvailable:  # as at the very end of a machine's run
            return []
        now = self._known
        ns = time.monotonic_ns()

        def tell(kind: Kind, name: str, size: int, at: int) -> Event:
            number = self._numbers.setdefault(name, len(self._numbers) + 1)
            return Event(kind, ns, at, size, number, Client.MODULE, f"module {name}", name)

        gone = [tell(Kind.UNLOAD, name, *before[name]) for name in before if now.get(name) != before[name]]
        return gone + [tell(Kind.LOAD, name, *now[name]) for name in now if now[name] != before.get(name)]


# ---- the recorder ----

SETTLE: Final = 0.02  # seconds: a program's event comes after the split that made room for it
ALERT: Final = 10  # samples taken ten times as often after something happened
SLOW_EVERY: Final = 60 * NS
SHARE: Final = 0.0005  # of a core, for costly looks
LOAN: Final = NS // 20  # that may be spent in advance
OWN_CPU: Final = "recorder_cpu_ns"  # a counter written whenever something is: what recording has cost
QUIET: Final = 10 * NS  # after so long it is written though nothing else is, so that a reader sees somebody is there


class Allowance:
    """CPU time for what is not done at every sample: a share of the time that has gone, and a loan at the start."""

    def __init__(self, share: float, clock: Callable[[], int]) -> None:
        """Begin with the loan."""
        self._share, self._clock, self._start, self._spent = share, clock, clock(), 0

    @property
    def left(self) -> bool:
        """Tell whether something may be spent."""
        return self._spent < LOAN + (self._clock() - self._start) * self._share

    def spend(self, ns: int) -> None:
        """Count what was spent."""
        self._spent += ns


@dataclass
class Means:
    """What a recorder reads. `missing` says why what is not here is not, for the header of the trace."""

    counters: dict[str, Counters] = field(default_factory=dict)  # read at every sample
    slow: dict[str, Counters] = field(default_factory=dict)  # read once a minute, if the allowance lasts
    streams: dict[str, Stream] = field(default_factory=dict)
    processes: Processes | None = None
    regions: Regions | None = None
    begin: npt.NDArray[np.uint8] | None = None  # the state of each region when `regions` was got ready
    states: States | None = None
    missing: dict[str, str] = field(default_factory=dict)
    living: list[Event] = field(default_factory=list)  # LOADs from before the recording
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Return the means."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.undo.close()

    def check(self) -> Mapping[str, str]:
        """Read every source once, leave out those that are not available, and return what the header says of them."""
        for name in [*self.counters, *self.slow]:
            self.read(name)
        here = [*self.counters, *self.slow, *self.streams]
        here += (
            ["programs"] * bool(self.living)
            + ["processes"] * (self.processes is not None)
            + ["regions"] * (self.regions is not None)
        )
        return dict.fromkeys(here, "available") | self.missing

    def attempt(self, name: str, step: Callable[[], None]) -> None:
        """Take a step that needs something that may not be available."""
        try:
            step()
        except NotAvailable as error:
            self.missing[name] = str(error)

    def read(self, name: str) -> Mapping[str, int]:
        """Read a source; one that is not available, now or any more, is left out from now on."""
        try:
            return (self.counters.get(name) or self.slow[name])()
        except NotAvailable as error:
            self.missing[name] = str(error)
            self.counters.pop(name, None)
            self.slow.pop(name, None)
            return {}


class Sink(Protocol):
    """Where rows go: a ``Writer``, or who only wants to hear them."""

    def add(self, events: Iterable[Event]) -> None:
        """Take rows."""


class Recorder:
    """Takes samples and writes them; see ``record`` for how it is used.

    `clock` is CLOCK_MONOTONIC in nanoseconds and `sleep` takes seconds; both are there for tests.
    """

    def __init__(
        self,
        writer: Sink,
        means: Means,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Write what lives already, as far as it is known."""
        self.writer, self.means = writer, means
        self.values: dict[str, int] = {}
        self.loads = self.unloads = self.splits = self.joins = 0
        self._clock, self._sleep = clock, sleep
        self._allowance = Allowance(SHARE, clock)
        self._alert = 0
        self._since = self._slow_at = clock()
        self._written = 0
        self._recent: list[Event] = []  # since the sample before
        # What lives, for who owned it when it goes.
        self._loaded = {(event.client, event.at or event.id): event for event in means.living}
        writer.add(means.living)
        self._secrets: dict[int, Secret] = {}
        self._regions: set[int] = set()
        self._early: set[int] = set()  # regions that the last walk saw split or joined and no counter has counted yet
        self._skipped = False  # the last look at processes and page tables, for want of allowance

    def sample(self) -> None:
        """Read everything once and write what is new. About 0.1 ms where nothing happened."""
        before = self.values
        now, began = self._clock(), time.thread_time_ns()
        self.values = before | self._count(now)
        rows = self._listen()
        changed = [(name, value) for name, value in self.values.items() if before.get(name) != value]
        growth = find_growth(before, self.values) if before and changed else []
        if changed and not before:
            self._secrets = self.means.processes.secrets() if self.means.processes else {}
            self._regions = self.means.regions() if self.means.regions else set()
        if growth:
            self._sleep(SETTLE)
            rows += self._listen()
            rows += self._explain(growth, now)
        else:  # what was seen early and is not counted now is nothing that counters count
            self._regions ^= self._early
            self._early = set()
        self._recent = [event for event in self._recent if event.ns > now]
        rows += [Event(Kind.SAMPLE, now, value, name=name) for name, value in changed]
        if rows or now >= self._written + QUIET:
            self._write(rows, now)
        self._since = now
        if self._alert or growth:  # a sample out of turn, or with costly looks
            self._allowance.spend(time.thread_time_ns() - began)
        self._alert = ALERT if growth or any(row.kind != Kind.SAMPLE for row in rows) else max(self._alert - 1, 0)

    def _write(self, rows: Sequence[Event], now: int) -> None:
        """Write rows, and what recording has cost."""
        self._written = now
        self.writer.add([*rows, Event(Kind.SAMPLE, now, time.thread_time_ns(), name=OWN_CPU)])

    def _count(self, now: int) -> dict[str, int]:
        """Read the counters; the slow ones when it is time and the allowance lasts."""
        slow = self.means.slow and now - self._slow_at >= (SLOW_EVERY if self.values else 0) and self._allowance.left
        values: dict[str, int] = {}
        for name in list(self.means.counters):
            values |= self.means.read(name)
        began = time.thread_time_ns()
        for name in list(self.means.slow) if slow else ():
            values |= self.means.read(name)
        if slow:
            self._slow_at = now
            self._allowance.spend(time.thread_time_ns() - began)
        return values

    def _listen(self) -> list[Event]:
        """Return what the streams tell, oldest first, with owners; and remember it."""
        events = sorted((event for read in self.means.streams.values() for event in read()), key=lambda event: event.ns)
        for place, event in enumerate(events):
            key = event.client, event.at or event.id
            if event.kind == Kind.LOAD:
                self._loaded[key] = event
                self.loads += 1
            elif event.kind == Kind.UNLOAD:
                self.unloads += 1
                load = self._loaded.pop(key, None)
                if load:  # the kernel's thread that freed it is not who had it
                    events[place] = event._replace(owner=load.owner)
        self._recent += events
        return events

    def _explain(self, growth: Sequence[Growth], now: int) -> list[Event]:
        """Return the rows of splits and joins, with who did them."""
        look = self._allowance.left
        clues = self._find_clues(look=look)
        places = self._find_places(growth) if look else {}
        culprit = self._judge(clues, places.get(Kind.SPLIT, []), growth)
        self._skipped = not look
        rows = []
        for kind, size, count in growth:
            if kind == Kind.SPLIT:
                self.splits += count
                owner, why = culprit
            else:
                self.joins += count
                owner, why = "", "the kernel joins by itself, from 6.15 on"
            known = places.get(kind, []) if size == HUGE else []
            rows += [Event(kind, now, at, size, 1, owner=owner, name=why) for at in known]
            if count > len(known):
                rows.append(Event(kind, now, 0, size, count - len(known), owner=owner, name=why))
        return rows

    def _find_places(self, growth: Sequence[Growth]) -> dict[Kind, list[int]]:
        """Return the offsets of the regions that were split and joined, at most as many as were counted.

        They are not known when the walk before was skipped: it cannot be told then what happened in which window.
        """
        if self.means.regions is None:
            return {}
        before = self._regions
        try:
            self._regions = self.means.regions()
        except NotAvailable as error:
            self.means.missing["regions"] = str(error)
            self.means.regions = None
            return {}
        if self._skipped:
            return {}
        counts = {kind: count for kind, size, count in growth if size == HUGE}
        split = sorted(self._regions - before)
        joined = sorted(before - self._regions)
        # What was split or joined after the counters were read is told with the next sample, if that counts it.
        self._early = {*split[counts.get(Kind.SPLIT, 0) :], *joined[counts.get(Kind.JOIN, 0) :]}
        self._regions ^= self._early
        return {Kind.SPLIT: split[: counts.get(Kind.SPLIT, 0)], Kind.JOIN: joined[: counts.get(Kind.JOIN, 0)]}

    def _find_clues(self, *, look: bool) -> Clues:
        """Find out who did what splits since the sample before; `look`: also at processes."""
        strong = [
            Clue(event.owner, "it was loaded" if event.client == Client.MODULE else f"it loaded {event.name}")
            for event in self._recent
            if event.kind == Kind.LOAD
        ]
        weak = [Clue(event.owner, f"its {event.name} was freed") for event in self._recent if event.kind == Kind.UNLOAD]
        processes = self.means.processes
        if processes is None:
            return Clues(
                strong, weak, f"processes cannot be looked at: {self.means.missing.get('processes', '')}", looked=False
            )
        if not look:
            why = "not looked: so many splits that looking would cost more than its allowance"
            return Clues(strong, weak, why, looked=False)
        before = self._secrets
        try:
            self._secrets = processes.secrets()
            young = [] if strong or weak else processes.started(self._since)
        except NotAvailable as error:
            return Clues(strong, weak, f"processes cannot be looked at any more: {error}", looked=False)
        grown = [
            secret
            for number, secret in self._secrets.items()
            if secret.resident > (before[number].resident if number in before else 0)
        ]
        nobody = "nobody was seen to load code or get secret memory; classic BPF and the kernel itself are not seen"
        if processes.refused:
            nobody += "; not all processes may be looked into"
            nobody += ": run as root" if os.geteuid() else ", though this is root: a container or a policy refuses"
        if young:
            nobody += f"; begun then: {', '.join(map(str, young[:NAMED]))}"
        return Clues(strong, weak, nobody, grown)

    def _judge(self, clues: Clues, split: Sequence[int], growth: Sequence[Growth]) -> Clue:
        """Return who is to blame. Who got secret memory is no suspect when none of it lies in what was split.

        That can be told when the offset of each split region is known, and where that memory lies.
        """
        count = sum(count for kind, _, count in growth if kind == Kind.SPLIT)
        what = "it got secret memory (memfd_secret)" + " since the last look" * self._skipped
        strong, elsewhere = list(clues.strong), []
        for secret in clues.grown:
            known = (
                self.means.processes.regions_of(secret) if self.means.processes and count == len(split) > 0 else None
            )
            if known is None or known & set(split):
                strong.append(Clue(str(secret.holder), what))
            else:
                elsewhere.append(str(secret.holder))
        nobody = clues.nobody
        if elsewhere:
            nobody += f"; secret memory of {', '.join(elsewhere[:NAMED])} lies in other regions"
        found = blame(strong, clues.weak, nobody)
        unsure = not clues.looked and found.what != nobody
        return Clue(found.owner, f"{found.what}; nobody looked further") if unsure else found

    def run(
        self,
        *,
        seconds: float | None = None,
        every: float = 1.0,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Sample until the time is over, or until `wait`, which waits for so many seconds, returns true."""
        wait = wait or self._sleep
        end = None if seconds is None else self._clock() + round(seconds * NS)
        stopped: object = False
        due = self._clock()
        while True:
            self.sample()
            now = self._clock()
            if stopped or (end is not None and now >= end):
                self._write([], now)
                return
            # Kept in step, but what was missed (a machine that slept) is not made up for.
            due = max(due + round(every * NS / (10 if self._alert and self._allowance.left else 1)), now)
            stopped = wait(((due if end is None else min(due, end)) - now) / NS)


# ---- the means of this machine ----

UNITS: Final = {4 << 10: "4k", 2 << 20: "2m", 4 << 20: "4m", 1 << 30: "1g"}
ORDER_HUGE: Final = 9  # of 2 MB among free blocks of 4 KB << n


def count_directmap(root: Path) -> dict[str, int]:
    """Return the bytes that pages of each size map."""
    return {f"directmap_{UNITS.get(size, size)}": count for size, count in source.read_directmap(root).sizes.items()}


def count_splits(root: Path) -> dict[str, int]:
    """Return the kernel's counters of splits and joins, under its own names."""
    found = dataclasses.asdict(source.read_splits(root))
    return {f"direct_map_{name}": value for name, value in found.items() if value is not None}


def read_part(fd: int, word: bytes) -> bytes:
    """Return the lines of a file of /proc from the first that begins with a word to the last, as it is now."""
    data = b""
    while piece := os.pread(fd, 1 << 16, len(data)):
        data += piece
    return data[data.find(word) : data.find(b"\n", data.rfind(word))]


def keep_while_same(means: Means, name: str, path: Path, word: bytes, count: Callable[[], dict[str, int]]) -> None:
    """Add a counter that is parsed anew only when its lines have changed: for the many samples where nothing has."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        means.counters[name] = count  # which tells why it is not available
        return
    means.undo.callback(os.close, fd)
    last: tuple[bytes, dict[str, int]] = b"", {}

    def read() -> dict[str, int]:
        nonlocal last
        part = read_part(fd, word)  # before it is parsed: what changes meanwhile is seen the next time
        if not part or part != last[0]:
            last = part, count()
        return last[1]

    means.counters[name] = read


def count_areas(root: Path) -> dict[str, int]:
    """Return how many areas of kernel memory there are for each use of code, and their bytes."""
    areas = source.read_areas(root)
    uses = [use for use in source.Use if use is not source.Use.OTHER]
    sums = {use.value: areas.total(use) for use in uses}
    return {f"{name}_areas": count for name, (count, _) in sums.items()} | {
        f"{name}_bytes": size for name, (_, size) in sums.items()
    }


def count_free(root: Path) -> dict[str, int]:
    """Return how many free blocks of memory are 2 MB or larger, in 2 MB."""
    zones = source.read_buddyinfo(root)
    return {
        "free_2m": sum(
            count << (order - ORDER_HUGE)
            for zone in zones
            for order, count in enumerate(zone.free)
            if order >= ORDER_HUGE
        )
    }


def count_unseen(root: Path) -> dict[str, int]:
    """Return how many BPF programs have no number (classic ones), and the bytes of their instructions."""
    unseen = source.read_unseen(root)
    return {"classic_programs": unseen.programs, "classic_bytes": unseen.bytes}


def find_living() -> list[Event]:
    """Return a LOAD for each function of each BPF program that lives, when it was loaded; its user is its owner."""
    asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return [
        Event(
            Kind.LOAD,
            max(program.loaded_ns - asleep, 0),
            at or 0,
            size or 0,
            program.id,
            Client.BPF,
            f"uid {program.uid}",
            f"bpf_prog_{program.tag}_{program.name}".rstrip("_"),
        )
        for program in source.read_programs()
        for at, size in program.functions or ((None, program.code),)
    ]


def open_listener(means: Means) -> None:
    """Listen to code that comes and goes in the kernel from now on."""
    listener = means.undo.enter_context(perf.Listener())
    processes = means.processes or Processes()

    def hear() -> list[Event]:
        heard = listener.read()
        owners = {pid: processes.tell(pid) if pid else "" for pid in {one.pid for one in heard}}
        return [
            Event(one.kind, one.ns, one.at, one.size, one.id, one.client, owners[one.pid], one.name) for one in heard
        ]

    means.streams["events"] = hear
    means.counters["events_lost"] = lambda: {"events_lost": listener.lost}


def open_walker(means: Means) -> None:
    """Get ready to walk the direct map's page tables."""
    walker = means.undo.enter_context(region.Walker())

    def states() -> npt.NDArray[np.uint8]:
        return walker.walk().state

    def regions() -> set[int]:
        return {int(place) * HUGE for place in np.flatnonzero(np.isin(states(), region.SPLIT))}

    means.begin = states()
    means.states, means.regions = states, regions


def open_means(root: str | os.PathLike[str] = "/") -> Means:
    """Return what can be known on this machine; some 0.3 s, most of it for the walk of page tables.

    With another root only what lies in files, for tests.
    """
    at = Path(root)
    means = Means(
        slow={"areas": lambda: count_areas(at), "free": lambda: count_free(at), "unseen": lambda: count_unseen(at)},
    )
    keep_while_same(means, "directmap", at / "proc/meminfo", b"DirectMap", lambda: count_directmap(at))
    keep_while_same(means, "splits", at / "proc/vmstat", b"direct_map_", lambda: count_splits(at))

    def look() -> None:
        means.processes = Processes(at)
        means.processes.pids()

    def watch_modules() -> None:
        means.streams["modules"] = Modules(at)

    def find_programs() -> None:
        means.living = find_living()

    steps: dict[str, Callable[[], None]] = {"processes": look, "modules": watch_modules}
    if at == Path("/"):
        steps |= {"regions": lambda: open_walker(means), "events": lambda: open_listener(means)}
        steps |= {"programs": find_programs}
    for name, step in steps.items():
        means.attempt(name, step)
    return means


def record(
    path: str | os.PathLike[str],
    *,
    means: Means | None = None,
    seconds: float | None = None,
    every: float = 1.0,
    wait: Callable[[float], object] | None = None,
) -> Recorder:
    """Record into a new file, which is whole whatever ends it; return the recorder, whose numbers tell the sums.

    `means` are the ways to know, which are closed at the end: those of this machine, unless others are given. `wait`
    may be the ``wait`` of a ``threading.Event`` that ends the recording.
    """
    with (
        means or open_means() as known,
        Writer(path, make_header(known, every)) as writer,
    ):
        recorder = Recorder(writer, known)
        recorder.run(seconds=seconds, every=every, wait=wait)
    return recorder


STATES_ROOM: Final = HEADER_MAX * 3 // 4  # letters of a header that states of regions may take


def make_header(means: Means, every: float) -> dict[str, Any]:
    """Return what the header of a trace says of its recorder, and the states of regions if these are not too many."""
    header = {"sources": tell_sources(means), "every": every}
    states = region.encode_states(means.begin) if means.begin is not None else ""
    return header | ({"regions": states} if 0 < len(states) <= STATES_ROOM else {})


def tell_sources(means: Means) -> dict[str, str]:
    """Return what the header of a trace says of sources: available, or why not, in at most 150 characters each."""
    return {name: text[:150] for name, text in means.check().items()}
