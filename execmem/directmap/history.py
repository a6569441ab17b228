"""history: a trace as the numbers that pictures of it draw.

    rows, texts --+
                  +--> History: what each region was before, what became of it when, who did it;
    states -------+             counters, code that came and went and what lived, in 1,024 steps of time

``states`` are those of a walk of the page tables now, or of one at the start, which the header of a trace may keep.
Without them only those regions are known that rows of splits and joins name.

Everything is bounded, whatever the trace holds, so that a page made of it is below 10 MB; `notes` says what was left
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from execmem.directmap.region import COUNT_MAX, SPLIT, State, decode_states
from execmem.directmap.trace import Kind, Texts, TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Numbers = npt.NDArray[np.float64]

NS: Final = 1e9
REGION: Final = 2 << 20
SEEN: Final = len(State)  # a region was split, and nobody looked at what it is like
UNKNOWN: Final = SEEN + 1

REGIONS_MAX: Final = COUNT_MAX
MOVES_MAX: Final = 1 << 18
SUSPECTS_MAX: Final = 1000
COUNTERS_MAX: Final = 64
STEPS: Final = 1024
TEXT_SHOWN: Final = 200


class Suspect(NamedTuple):
    """Who split (or joined) mappings of a size, and why that is believed; how often, and when first."""

    joined: bool
    size: int
    pieces: int
    owner: str  # "": not attributed
    why: str
    first: float  # seconds


@dataclass(frozen=True)
class History:
    """A trace in numbers; times are seconds since its start.

    Move i makes region `where[i]` be in state `after[i]` at `when[i]`, by suspect `who[i]` (-1: not listed). `counters`
    have times and values. `splits` and `joins` count mappings in each step of time, `loads` and `unloads` pieces of
    code; `live` and `live_bytes` tell what was there at its end.
    """

    title: str
    seconds: float
    known: bool  # whether page tables were read
    begin: Bytes
    when: Numbers
    where: npt.NDArray[np.uint32]
    after: Bytes
    who: npt.NDArray[np.int32]
    suspects: list[Suspect]
    counters: Mapping[str, tuple[Numbers, Numbers]]
    splits: npt.NDArray[np.int64]
    joins: npt.NDArray[np.int64]
    loads: npt.NDArray[np.int64]
    unloads: npt.NDArray[np.int64]
    live: npt.NDArray[np.int64]
    live_bytes: npt.NDArray[np.int64]
    notes: list[str]

    def state_at(self, seconds: float) -> Bytes:
        """Return the state of every region at a time: a ``State``, SEEN or UNKNOWN."""
        state = self.begin.copy()
        upto = int(np.searchsorted(self.when, seconds, "right"))
        state[self.where[:upto]] = self.after[:upto]  # of several of one region the last stays
        return state


def tell(rows: npt.NDArray[np.void], header: Mapping[str, Any], state: Bytes | None = None) -> History:
    """Return the history that rows of a trace tell; `state` of each region at its end. About 0.5 us a row."""
    texts = Texts(rows)
    start = header["start_ns"]
    notes: list[str] = []
    rows = rows[rows["kind"] != Kind.TEXT]
    early = rows["ns"] < start
    rows = rows[np.argsort(rows["ns"], kind="stable")]
    when = np.where(rows["ns"] < start, 0.0, (rows["ns"] - np.uint64(start)) / NS)
    seconds = float(when.max()) if len(when) else 0.0
    changed = (rows["kind"] == Kind.SPLIT) | (rows["kind"] == Kind.JOIN)
    suspects, who = find_suspects(rows[changed], when[changed], texts, notes)
    moves = find_moves(rows[changed], when[changed], who, notes)
    first = find_first(header) if state is None else None
    begin, after = find_states(moves[1], moves[2], state, first)
    if first is not None:
        notes.append(
            "Page tables were read when the recording began: what was split later has not been looked at since (s)."
        )
        if (begin[moves[1]] == State.GIGABYTE).any():
            notes.append("Of a 1 GB page that was split only the 2 MB that were split further are shown as such.")
    elif state is None and len(begin):
        notes.append(
            "The trace holds no page tables: the atlas shows only regions that were seen to be split or joined."
        )
    if state is not None and seconds:
        notes.append(
            "Regions are as page tables had them when this was drawn; the trace does not tell of changes since."
        )
    code = (rows["kind"] == Kind.LOAD) | (rows["kind"] == Kind.UNLOAD)
    if early.any():
        notes.append(f"Rows of before the start, which are shown at 0: {int(early.sum()):,}.")
    return History(
        cut(f"{header['kernel'].split(' ')[0]} {header['machine']}"),
        seconds,
        state is not None or first is not None,
        begin,
        moves[0],
        moves[1],
        after,
        moves[3],
        suspects,
        find_counters(rows, when, texts, notes),
        **count_changes(rows[changed], when[changed], seconds),
        **count_code(rows[code], when[code], seconds, start, notes),
        notes=notes,
    )


def find_suspects(
    events: npt.NDArray[np.void], when: Numbers, texts: Texts, notes: list[str]
) -> tuple[list[Suspect], npt.NDArray[np.int32]]:
    """Return who did splits and joins, those first who did most, and the place in that list for each event."""
    key = np.unique(events["name"], return_inverse=True)[1].astype(np.int64)
    key = np.unique(
        key << 17 | events["owner"].astype(np.int64) << 1 | (events["kind"] == Kind.JOIN), return_inverse=True
    )[1]
    sizes, size = np.unique(events["size"], return_inverse=True)
    _, first, key = np.unique(key * len(sizes) + size, return_index=True, return_inverse=True)  # first in time
    counts = np.bincount(key, weights=events["id"], minlength=len(first)).astype(np.int64)
    order = np.lexsort((first, -counts))
    if len(order) > SUSPECTS_MAX:
        notes.append(f"Of {len(order):,} kinds of splits the {SUSPECTS_MAX:,} most frequent are listed.")
    place = np.full(len(order), -1, np.int32)
    order = order[:SUSPECTS_MAX]
    place[order] = np.arange(len(order), dtype=np.int32)
    chosen = events[first[order]]
    told = zip(
        (chosen["kind"] == Kind.JOIN).tolist(),
        chosen["size"].tolist(),
        counts[order].tolist(),
        map(cut, texts.take(chosen["owner"]).tolist()),
        map(cut, texts.take(chosen["name"]).tolist()),
        when[first[order]].tolist(),
        strict=True,
    )
    return [Suspect(*one) for one in told] if len(order) else [], place[key]


def cut(text: str) -> str:
    """Return a text, shortened if it is very long."""
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def find_moves(
    events: npt.NDArray[np.void], when: Numbers, who: npt.NDArray[np.int32], notes: list[str]
) -> tuple[Numbers, npt.NDArray[np.uint32], npt.NDArray[np.bool_], npt.NDArray[np.int32]]:
    """Return time, region, whether it was split, and suspect of each event that tells where it was."""
    places = events["at"] // np.uint64(REGION)
    known = (events["at"] != 0) & (events["size"] == REGION) & (places < REGIONS_MAX)
    missing = int(events["id"][~known].sum(dtype=np.int64))
    if missing:
        notes.append(
            f"Only in the table: {missing:,} of the splits and joins, whose place is not known or no 2 MB region."
        )
    found = np.flatnonzero(known)
    if len(found) > MOVES_MAX:
        end = float(when[found[MOVES_MAX]])
        notes.append(
            f"The atlas follows the first {MOVES_MAX:,} of {len(found):,} splits and joins, up to {end:.3f} s."
        )
        found = found[:MOVES_MAX]
    return when[found], places[found].astype(np.uint32), events["kind"][found] == Kind.SPLIT, who[found]


def find_first(header: Mapping[str, Any]) -> Bytes | None:
    """Return the states of regions when a recording began, where its header has them."""
    text = header.get("regions")
    if text is None:
        return None
    try:
        return decode_states(str(text))
    except ValueError as error:
        message = f"the header is damaged: {error}"
        raise TraceError(message) from error


def find_states(
    where: npt.NDArray[np.uint32], split: npt.NDArray[np.bool_], state: Bytes | None, first: Bytes | None = None
) -> tuple[Bytes, Bytes]:
    """Return the states of regions before the first move, and the state of its region after each move.

    Known are those at the end, `state`, or those at the start, `first`, or none.

    >>> region = np.array([1, 1], np.uint32)
    >>> begin, after = find_states(region, np.array([True, False]), np.full(2, State.WHOLE, np.uint8))
    >>> begin.tolist(), after.tolist()
    ([2, 2], [6, 2])
    """
    known = state if state is not None else first
    size = max(len(known) if known is not None else 0, int(where.max()) + 1 if len(where) else 0)
    begin = np.full(size, UNKNOWN, np.uint8)
    if known is not None:
        begin[: len(known)] = known
    if first is not None and known is first:
        return begin, np.where(split, np.uint8(SEEN), np.uint8(State.WHOLE))
    after = np.where(split, np.uint8(SEEN), np.uint8(State.WHOLE))
    regions, last = np.unique(where[::-1], return_index=True)
    last = len(where) - 1 - last
    seen = begin[regions]  # at the end: more is known of it than the move tells, if the two agree
    agree = np.where(split[last], np.isin(seen, SPLIT), np.isin(seen, (State.WHOLE, State.GIGABYTE)))
    after[last] = np.where(agree, seen, after[last])
    _, earliest = np.unique(where, return_index=True)
    begin[regions] = np.where(split[earliest], np.uint8(State.WHOLE), np.uint8(SEEN))
    return begin, after


def find_counters(
    rows: npt.NDArray[np.void], when: Numbers, texts: Texts, notes: list[str]
) -> dict[str, tuple[Numbers, Numbers]]:
    """Return times and values of each counter: the first, and the last of each step of time that has some."""
    chosen = np.flatnonzero(rows["kind"] == Kind.SAMPLE)
    samples, when = rows[chosen], when[chosen]
    order = np.argsort(samples["name"], kind="stable")
    numbers, starts = np.unique(samples["name"][order], return_index=True)
    if len(numbers) > COUNTERS_MAX:
        notes.append(f"Of {len(numbers):,} counters the first {COUNTERS_MAX} are shown.")
    step = steps_of(when, float(when.max()) if len(when) else 0.0)
    found = {}
    parts = np.split(order, starts[1:])[:COUNTERS_MAX] if len(numbers) else []
    for name, part in zip(texts.take(numbers[:COUNTERS_MAX]).tolist(), parts, strict=True):
        ends = np.flatnonzero(np.diff(step[part], append=-1))
        keep = part[np.unique(np.append(ends, 0))]
        found[cut(name)] = when[keep], samples["at"][keep].astype(np.float64)
    return found


def steps_of(when: Numbers, seconds: float) -> npt.NDArray[np.intp]:
    """Return the step of time that each moment lies in."""
    return np.minimum(when * (STEPS / seconds if seconds else 0.0), STEPS - 1).astype(np.intp)


def count_changes(events: npt.NDArray[np.void], when: Numbers, seconds: float) -> dict[str, npt.NDArray[np.int64]]:
    """Return how many mappings were split, and joined, in each step of time."""
    step = steps_of(when, seconds)
    split = events["kind"] == Kind.SPLIT
    splits, joins = (
        np.bincount(step[which], weights=events["id"][which], minlength=STEPS).astype(np.int64)
        for which in (split, ~split)
    )
    return {"splits": splits, "joins": joins}


def count_code(
    rows: npt.NDArray[np.void], when: Numbers, seconds: float, start: int, notes: list[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """Return loads and unloads in each step of time, and pieces and bytes that lived at its end."""
    step = steps_of(when, seconds)
    came = rows["kind"] == Kind.LOAD
    fresh = rows["ns"] >= start
    parts = [
        np.bincount(step[which], minlength=STEPS).astype(np.int64)
        for which in (came & fresh, ~came & fresh, came, ~came)
    ]
    size = np.where(came, 1, -1) * rows["size"].astype(np.int64)
    live = np.cumsum(parts[2] - parts[3])
    live_bytes = np.cumsum(np.bincount(step, weights=size, minlength=STEPS)).astype(np.int64)
    unseen = max(0, -int(live.min()))
    if unseen:
        notes.append(f"At least {unseen:,} pieces of code went that nobody had seen come; they count as there before.")
    live_bytes += max(0, -int(live_bytes.min()))
    return {"loads": parts[0], "unloads": parts[1], "live": live + unseen, "live_bytes": live_bytes}
