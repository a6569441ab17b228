"""export_packs: the counters of domains of other processes, as ``export`` wants them, from scrape to scrape.

    /proc/PID/maps --> Process --> Ledger.look(): counters, O(packs) --> Reading --+--> sums by process and domain
                                   of what has ended: its last counters -----------+

A scrape reads no block records, whatever is live. Labels are the command's and the domain's name, those of equal names
are summed. At most so many pairs of names are told apart (``Fleet.most``), all others are summed as OTHER. A domain
keeps its labels for as long as it is known; what a counter counted stays in its sum when its domain closes or its
process ends, so that sums do not fall.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem._core import lib
from execmem.draw import make_visible
from execmem.watch import FILE_PREFIX, Ledger, Look, Process, WatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from execmem.export import Page

Names = tuple[str, str]  # of the command, of the domain
OTHER: Final[Names] = ("other", "other")
NO_LIMIT: Final = 2**64 - 1
PROCESSES: Final = "processes"  # the source
SHARD_COUNTERS: Final = ("allocs", "frees", "fills", "refusals")
HEADER_COUNTERS: Final = ("packs_made", "packs_returned", "collapses", "collapse_failures")
LIMIT, CHARGED = "limit_bytes", "charged_bytes"


@dataclass(frozen=True)
class Reading:
    """What the counters of a domain say: what is there now (None: no limit), and what was counted since it opened.

    `now` is empty when the domain could not be read again.
    """

    now: dict[str, int | None]
    counted: Counter[str]


def read_counters(look: Look) -> Reading:
    """Return the numbers of a look; some 20 us."""
    packs = look.packs[look.shown]
    spans = packs["state"] == lib.EXECMEM_PACK_SPAN
    covered = np.where(spans, packs["span_packs"], 1).astype(np.int64)
    limit = int(look.header["limit"])
    now: dict[str, int | None] = {
        "packs": int(covered.sum()),
        "packs_huge": int(covered[packs["huge"] != 0].sum()),
        "pack_bytes": int(packs["usable_chunks"].sum(dtype=np.int64)) * lib.EXECMEM_CHUNK,
        "pack_used_bytes": int(packs["used_chunks"].sum(dtype=np.int64)) * lib.EXECMEM_CHUNK,
        "live_blocks": look.live_blocks,
        "live_bytes": look.total("live_bytes"),
        "used_bytes": look.total("used_bytes"),
        "quarantined_bytes": look.total("quarantined_bytes"),
        "retired_blocks": look.total("retired_blocks"),
        CHARGED: None if limit == NO_LIMIT else int(look.header[CHARGED]),
        LIMIT: None if limit == NO_LIMIT else limit,
    }
    counted = Counter({key: look.total(key) for key in SHARD_COUNTERS})
    counted.update({key: int(look.header[key]) for key in HEADER_COUNTERS})
    return Reading(now, counted)


class Watched:
    """A process whose ledgers are open, and what each of its domains had counted when it was last read."""

    def __init__(self, process: Process) -> None:
        """Begin with nothing read."""
        self.process = process
        self.command = command_of(process.pid)
        self.names: dict[Ledger, Names] = {}  # its labels
        self.last: dict[Ledger, Reading] = {}


def command_of(pid: int) -> str:
    """Return the name of a process's command, which is short and the same for all who run it."""
    try:
        return make_visible(Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace"))
    except OSError:
        return "(ended)"


class Fleet:
    """Processes that are read again and again: those that were named, or all in which there is a ledger."""

    def __init__(self, pids: Sequence[int] | None, most: int) -> None:
        """Open the processes that were named; one that cannot be is a WatchError. None: all, found at each scrape."""
        self.most = most
        self._all = pids is None
        self._watched: dict[int, Watched] = {}
        self._ended: dict[Names, Counter[str]] = {OTHER: Counter()}  # of names: what is no more had counted
        self._lost: list[int] = []
        try:
            for pid in dict.fromkeys(pids or ()):
                self._watched[pid] = Watched(Process(pid))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all ledgers."""
        for watched in self._watched.values():
            watched.process.close()
        self._watched.clear()

    def measure(self, page: Page) -> None:
        """Add the domains' numbers: three reads a domain and 0.1 ms a process, of all there are if all are wanted."""
        refused = sum([self._read(watched) for watched in list(self._watched.values())])
        if self._all:
            refused += self._find()
        self._name_new()
        for watched in self._watched.values():
            for ledger, reading in watched.last.items():
                add_reading(page, watched.names[ledger], reading)
        for names in self._unlimited():
            for key in (CHARGED, LIMIT):
                page.drop(f"execmem_domain_{key}", process=names[0], domain=names[1])
        for names, counted in self._ended.items():
            if counted:
                add_counted(page, names, counted)
        page.add("execmem_processes", len(self._watched))
        page.add("execmem_processes_unreadable", refused)
        page.tell_source(PROCESSES, self._missing())

    def _missing(self) -> str | None:
        """Return why not all that was asked for is there."""
        if not self._lost:
            return None
        return f"not available: these processes have ended: {', '.join(map(str, sorted(self._lost)))}"

    def _read(self, watched: Watched) -> bool:
        """Read a process's counters; return whether it refused. What has closed leaves its last counters."""
        process = watched.process
        refused = False
        for ledger in process.ledgers.values():  # first: of what is closed below it is the last state
            refused |= not read_ledger(watched, ledger)
        if process.ended:
            self._bury(watched, list(watched.last))
            process.close()
            del self._watched[process.pid]
            if not self._all:
                self._lost.append(process.pid)
            return False
        known = set(process.ledgers.values())
        try:
            process.refresh()
        except (WatchError, OSError):
            return True
        here = set(process.ledgers.values())
        self._bury(watched, [ledger for ledger in watched.last if ledger not in here])
        for ledger in here - known:
            refused |= not read_ledger(watched, ledger)
        return refused

    def _bury(self, watched: Watched, ledgers: Iterable[Ledger]) -> None:
        """Keep what domains that are no more had counted."""
        for ledger in ledgers:
            names = watched.names.pop(ledger, OTHER)  # without names: it ended before anybody was told of it
            self._ended[names] += watched.last.pop(ledger).counted

    def _find(self) -> int:
        """Open processes that are new and have a ledger; return how many may not be looked at. 0.1 ms a process."""
        refused = 0
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) in self._watched:
                continue
            try:
                if FILE_PREFIX.encode() not in (folder / "maps").read_bytes():
                    continue
                process = Process(int(folder.name))
            except (WatchError, OSError):  # refused, damaged, or it has ended
                refused += folder.exists()
                continue
            watched = self._watched[process.pid] = Watched(process)
            for ledger in process.ledgers.values():
                refused += not read_ledger(watched, ledger)
        return refused

    # ---- names ----

    def _name_new(self) -> None:
        """Give domains that are new their labels, those with most memory first."""
        used = {names for watched in self._watched.values() for names in watched.names.values()} | {OTHER}
        new = [
            (-(reading.now["pack_bytes"] or 0), watched.command, make_visible(ledger.name), watched, ledger)
            for watched in self._watched.values()
            for ledger, reading in watched.last.items()
            if ledger not in watched.names
        ]
        for _, command, domain, watched, ledger in sorted(new, key=lambda one: one[:3]):
            names = watched.names[ledger] = self._slot((command, domain), used)
            used.add(names)

    def _slot(self, names: Names, used: set[Names]) -> Names:
        """Return names that are told apart: those asked for, or OTHER. Names that nobody has any more make room."""
        if names not in self._ended:
            if len(self._ended) > self.most:  # OTHER is among them
                idle = next((old for old in self._ended if old not in used), None)
                if idle is None:
                    return OTHER
                del self._ended[idle]
            self._ended[names] = Counter()
        return names

    def _unlimited(self) -> set[Names]:
        """Return the names of which one domain has no limit."""
        return {
            watched.names[ledger]
            for watched in self._watched.values()
            for ledger, reading in watched.last.items()
            if reading.now.get(LIMIT, 0) is None
        }


def read_ledger(watched: Watched, ledger: Ledger) -> bool:
    """Read the counters of a domain, and tell whether they could be; if not, what it had counted stays."""
    try:
        watched.last[ledger] = read_counters(ledger.look())
    except (WatchError, OSError):
        if ledger in watched.last:
            watched.last[ledger] = Reading({}, watched.last[ledger].counted)
        return False
    return True


def add_reading(page: Page, names: Names, reading: Reading) -> None:
    """Add the numbers of a domain that is there."""
    process, domain = names
    if reading.now:
        page.add("execmem_domains", 1, process=process, domain=domain)
    for key, value in reading.now.items():
        if value is not None:
            page.add(f"execmem_domain_{key}", value, process=process, domain=domain)
    add_counted(page, names, reading.counted)


def add_counted(page: Page, names: Names, counted: Counter[str]) -> None:
    """Add what was counted."""
    process, domain = names
    for key in (*SHARD_COUNTERS, *HEADER_COUNTERS):
        page.add(f"execmem_domain_{key}_total", counted[key], process=process, domain=domain)
