"""occupancy: the packs of domains in the course of time, from lines that ``execmem top --json`` printed.

    line ---> one picture: counters, and number, age and fill of every pack
    History   a domain: what its counters were, and a Life for each pack that was made, used and perhaps returned
    grid      either, in equal steps of time

Time is the domain's own: seconds since it was opened. Whatever a file says is checked before it is used. Nothing here
draws; about 12 bytes a pack and picture are kept.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from execmem.watch import WatchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

SCHEMA: Final = "execmem-map-1"
HISTORY_SCHEMA: Final = "execmem-history-1"  # of what is told of a recording
LINE_MAX: Final = 64 << 20  # bytes of a line
HELD: Final = 3  # a picture stands for so many usual steps; then nobody looked
COUNTERS: Final = ("live_bytes", "live_blocks", "packs_live")
RATES: Final = ("allocs", "frees")
NUMBER_MAX: Final = 1 << 62


@dataclass
class Life:
    """A pack from when it was made to when it was returned, as far as somebody looked."""

    number: int
    kind: str
    born: float
    returned: float | None = None  # None: not before the end
    times: array[float] = field(default_factory=lambda: array("d"))
    fills: array[float] = field(default_factory=lambda: array("f"))


@dataclass
class History:
    """A domain in the course of time."""

    name: str
    number: int
    pid: int | None
    times: array[float] = field(default_factory=lambda: array("d"))
    values: dict[str, array[float]] = field(default_factory=dict)  # NaN: not known
    lives: list[Life] = field(default_factory=list)
    partial: int = 0  # pictures that left packs out
    backwards: int = 0  # pictures that were skipped: their time was before the last one's
    _open: dict[int, Life] = field(default_factory=dict)

    def rows(self) -> dict[int, list[Life]]:
        """Return the lives under the number of each pack, in order."""
        found: dict[int, list[Life]] = {}
        for life in sorted(self.lives, key=lambda life: (life.number, life.born)):
            found.setdefault(life.number, []).append(life)
        return found

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last moment that was recorded."""
        return self.times[0], self.times[-1]

    def add(self, domain: dict[str, Any]) -> None:
        """Add a picture."""
        now = domain["age_ms"] / 1000
        if self.times and now < self.times[-1]:
            self.backwards += 1
            return
        rates = domain["per_second"] or {}
        for key in COUNTERS:
            self.values.setdefault(key, array("d")).append(domain[key])
        for key in RATES:
            self.values.setdefault(key, array("d")).append(rates.get(key, float("nan")))
        shown = set()
        for pack in domain["packs"]:
            number, born = pack["number"], max(now - pack["age_ms"] / 1000, 0.0)
            shown.add(number)
            life = self._open.get(number)
            if life is None or life.times[-1] < born:
                if life is not None:
                    life.returned = born
                life = self._open[number] = Life(number, pack["kind"], born)
                self.lives.append(life)
            life.times.append(now)
            life.fills.append(pack["fill"])
        if domain["packs_left_out"]:
            self.partial += 1
        else:
            for number in self._open.keys() - shown:
                self._open.pop(number).returned = now
        self.times.append(now)


# ---- reading ----


def refuse(where: str, line: int, why: str) -> WatchError:
    """Return the error of a line."""
    return WatchError(f"{where} is no recording of `execmem top --json`: line {line:,} {why}")


def check(value: dict[str, Any], keys: dict[str, type | tuple[type, ...]], what: str) -> None:
    """Raise ValueError when a record lacks a key, or has something else than it should."""
    for key, kind in keys.items():
        found = value.get(key)
        wrong = not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool)
        if wrong or (isinstance(found, (int, float)) and not 0 <= found < NUMBER_MAX):
            message = f"has {what} without a proper {key!r}"
            raise ValueError(message)


def check_line(raw: bytes) -> tuple[int | None, list[dict[str, Any]]]:
    """Return the process and the domains of a line, or raise ValueError with what is wrong with it."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        message = "is no JSON"
        raise ValueError(message) from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        message = f"has no schema {SCHEMA!r}"
        raise ValueError(message)
    domains, pid = value.get("domains"), value.get("pid")
    if not isinstance(domains, list) or not all(isinstance(domain, dict) for domain in domains):
        message = "has no domains; with --pack, top prints one pack only"
        raise ValueError(message)
    for domain in domains:
        counters = dict.fromkeys(("number", "age_ms", "packs_left_out", *COUNTERS), int)
        check(domain, {"name": str, "packs": list, "per_second": (dict, type(None)), **counters}, "a domain")
        check(domain["per_second"] or dict.fromkeys(RATES, 0), dict.fromkeys(RATES, (int, float)), "rates")
        for pack in domain["packs"]:
            check(pack if isinstance(pack, dict) else {}, {"number": int, "age_ms": int, "kind": str}, "a pack")
            check(pack, {"fill": (int, float)}, "a pack")
            if not pack["fill"] <= 1:
                message = "has a pack that is more than full"
                raise ValueError(message)
    return pid if isinstance(pid, int) else None, domains


def read(file: BinaryIO, where: str) -> tuple[list[History], list[str]]:
    """Return the domains of a recording, and notes about what is wrong with it; what is no recording is an error."""
    found: dict[tuple[int | None, int, str], History] = {}
    notes: list[str] = []
    line = 0
    while raw := file.readline(LINE_MAX):
        line += 1
        try:
            pid, domains = check_line(raw)
        except ValueError as error:
            if line > 1 and not raw.endswith(b"\n") and len(raw) < LINE_MAX:
                notes.append(f"the last line, {line:,}, is cut off and left out")
                break
            raise refuse(where, line, str(error)) from None
        for domain in domains:
            key = (pid, domain["number"], domain["name"])
            found.setdefault(key, History(domain["name"], domain["number"], pid)).add(domain)
    if not line:
        message = f"{where} is empty: `execmem top PID --limit 0 --json > FILE` records"
        raise WatchError(message)
    return sorted(found.values(), key=lambda history: (history.pid or 0, history.number)), notes


def tell_number(value: float, *, whole: bool) -> float | None:
    """Return a counter's value for JSON; None: not available.

    >>> tell_number(4096.0, whole=True), tell_number(21.00049, whole=False), tell_number(float("nan"), whole=False)
    (4096, 21.0, None)
    """
    if math.isnan(value):
        return None
    return int(value) if whole else round(value, 3)


def as_json(histories: Sequence[History], file: str, notes: Sequence[str], limit: int | None) -> dict[str, object]:
    """Return all that is known of domains, at every picture, and of the packs with the lowest numbers."""
    return {
        "schema": HISTORY_SCHEMA,
        "file": file,
        "notes": list(notes),
        "domains": [
            {
                "name": history.name,
                "number": history.number,
                "pid": history.pid,
                "pictures": len(history.times),
                "partial": history.partial,
                "backwards": history.backwards,
                "seconds": list(history.times),
                "counters": {
                    key: [tell_number(value, whole=key in COUNTERS) for value in values]
                    for key, values in history.values.items()
                },
                "packs": [
                    {
                        "number": life.number,
                        "kind": life.kind,
                        "made": round(life.born, 3),  # milliseconds were read
                        "returned": None if life.returned is None else round(life.returned, 3),
                        "seen": [[when, round(fill, 6)] for when, fill in zip(life.times, life.fills, strict=True)],
                    }
                    for lives in list(history.rows().values())[:limit]
                    for life in lives
                ],
                "packs_left_out": max(0, len(history.rows()) - limit) if limit else 0,
            }
            for history in histories
        ],
    }


# ---- in steps of time ----


def steps(history: History, columns: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for equal steps of the recorded time, the last picture in or before each, and the first one in it.

    The last is -1 where nobody looked: HELD usual steps after a picture. The first is beyond the last where none is in.
    """
    times = np.array(history.times)
    first, last = history.span
    edges = first + (last - first) * np.arange(columns + 1) / columns
    edges[-1] = np.inf
    begin = np.searchsorted(times, edges[:-1], side="left")
    end = np.searchsorted(times, edges[1:], side="left") - 1
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    late = edges[:-1] - times[np.maximum(end, 0)] > HELD * usual
    return np.where((end < begin) & late, -1, end), begin


def find_values(history: History, key: str, columns: int) -> list[float | None]:
    """Return a counter in equal steps of time: its largest value in each; None where nobody looked."""
    values = np.array(history.values[key])
    found: list[float | None] = []
    for last, first in zip(*(part.tolist() for part in steps(history, columns)), strict=True):
        inside = values[min(first, last) : last + 1] if last >= 0 else values[:0]
        known = inside[~np.isnan(inside)]
        found.append(float(known.max()) if len(known) else None)
    return found


def find_fills(history: History, life: Life, columns: int) -> list[float | None]:
    """Return the fill of a pack in equal steps of time, its last in each; None: not there, or nobody looked."""
    times, own = np.array(history.times), np.array(life.times)
    last, first = steps(history, columns)
    place = np.searchsorted(own, times[last], side="right") - 1
    there = (last >= 0) & (place >= 0) & (own[place] >= times[np.minimum(first, last)])
    return [life.fills[at] if known else None for at, known in zip(place.tolist(), there.tolist(), strict=True)]


def find_column(history: History, when: float, columns: int) -> int | None:
    """Return in which of equal steps of time a moment is; None before the first picture."""
    first, last = history.span
    if when < first or last <= first:
        return None
    return min(int((when - first) / (last - first) * columns), columns - 1)
