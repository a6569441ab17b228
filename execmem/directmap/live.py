"""live: the direct map from moment to moment, with what was split and joined since the start and who is suspected.

    Recorder (record.py) --rows--> Kept --+
    page tables, bpf_jit_limit, dear -----+--> Watch.look --> Frame

The recorder's looks are reused as they are; its rows stay in memory and are let go when they are many. What is dear is
read again when an allowance of 1 % of a core permits it, and at once after a split.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from execmem.directmap import source
from execmem.directmap.record import NS, Allowance, Recorder
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import Event, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from execmem.directmap.record import Means

KEPT: Final = 500  # events that a ledger can still show
SHARE: Final = 0.01  # of a core, for what is dear


@dataclass(frozen=True)
class Counter:
    """A counter: what it is, by how much it changed since the start, and per second since the frame before."""

    value: int
    change: int
    per_second: float | None  # None: in the first frame


@dataclass(frozen=True)
class Frame:
    """What is known at one moment. What is None is in `missing`, with the reason."""

    seconds: float  # since the start
    counters: Mapping[str, Counter]
    sums: Mapping[str, int]  # loads, unloads, splits, joins since the start
    events: Sequence[tuple[float, Event]]  # the latest, oldest first, with seconds since the start
    fresh: int  # how many of them are new since the frame before; more may have been let go
    state: npt.NDArray[np.uint8] | None  # of each region
    walked: float  # seconds since the start when it was read
    walk_cost: float  # seconds of CPU time
    jit: source.Jit | None
    missing: Mapping[str, str]


class Kept:
    """Rows of a recorder in memory: events since the start, the latest of them."""

    def __init__(self, start_ns: int) -> None:
        """Begin with none; what is of before the start is not kept."""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self.count = 0  # events, those let go included
        self._start = start_ns

    def add(self, events: Iterable[Event]) -> None:
        """Keep what is no sample."""
        for event in events:
            if event.kind != Kind.SAMPLE and event.ns >= self._start:
                self.events.append(event)
                self.count += 1


class Watch:
    """Looks at the direct map again and again; `means` are closed by who opened them.

    `clock` is CLOCK_MONOTONIC in nanoseconds; it and `read_jit` are there for tests.
    """

    def __init__(
        self,
        means: Means,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        read_jit: Callable[[], source.Jit] = source.read_jit,
    ) -> None:
        """Look for the first time. 0.1 ms, and what is dear."""
        self.means = means
        self._clock, self._read_jit = clock, read_jit
        self._start = clock()
        self._kept = Kept(self._start)
        means.check()
        self._recorder = Recorder(self._kept, means, clock=clock)
        self._allowance = Allowance(SHARE, clock)
        self._jit: source.Jit | None = None
        self._state: npt.NDArray[np.uint8] | None = None
        self._walked = self._walk_cost = 0.0
        self._seen = 0  # events, and splits and joins, at the frame before
        self._moved = -1
        self._recorder.sample()
        self._first = dict(self._recorder.values)
        self._before: tuple[int, dict[str, int]] | None = None

    def sample(self) -> None:
        """Hear what happened. 0.1 ms where nothing did; at least once a second, so that no event is lost."""
        self._recorder.sample()

    def look(self) -> Frame:
        """Sample, and return what is known now."""
        self.sample()
        recorder, now = self._recorder, self._clock()
        values = dict(recorder.values)
        for name, value in values.items():
            self._first.setdefault(name, value)
        sums = {name: getattr(recorder, name) for name in ("loads", "unloads", "splits", "joins")}
        moved = sums["splits"] + sums["joins"]
        if self._allowance.left or moved != self._moved:
            self._read_dear()
        self._moved = moved
        fresh, self._seen = self._kept.count - self._seen, self._kept.count
        counters = {name: self._count(name, value, now) for name, value in values.items()}
        self._before = now, values
        return Frame(
            seconds=(now - self._start) / NS,
            counters=counters,
            sums=sums,
            events=[((event.ns - self._start) / NS, event) for event in self._kept.events],
            fresh=min(fresh, len(self._kept.events)),
            state=self._state,
            walked=self._walked,
            walk_cost=self._walk_cost,
            jit=self._jit,
            missing=dict(self.means.missing),
        )

    def _count(self, name: str, value: int, now: int) -> Counter:
        """Return a counter with what became of it."""
        per_second = None
        if self._before and name in self._before[1] and now > self._before[0]:
            per_second = (value - self._before[1][name]) * NS / (now - self._before[0])
        return Counter(value, value - self._first[name], per_second)

    def _read_dear(self) -> None:
        """Walk the page tables and read what BPF's code has of its limit, as long as both can be read."""
        began = time.thread_time_ns()
        if self.means.states is not None:
            try:
                self._walked = (self._clock() - self._start) / NS
                self._state = self.means.states()
            except NotAvailable as error:
                self.means.missing["regions"] = str(error)
                self.means.states = self._state = None
        walked = time.thread_time_ns()
        self._walk_cost = (walked - began) / NS
        if "jit" not in self.means.missing:
            try:
                self._jit = self._read_jit()
            except NotAvailable as error:
                self.means.missing["jit"] = str(error)
                self._jit = None
        self._allowance.spend(time.thread_time_ns() - began)
