"""draw_directmap: the kernel's direct map as text: atlas, counters, ledger; numbers in, lines out, no I/O."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem import draw
from execmem.directmap import region
from execmem.directmap.record import HUGE, NS
from execmem.directmap.trace import Client, Kind
from execmem.draw import clean, columns, tell_bytes, tell_time, text_width
from execmem.screen import share_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from execmem.directmap.live import Counter, Frame
    from execmem.directmap.source import Jit, Zone
    from execmem.directmap.trace import Event
    from execmem.draw import Paint

CELLS: Final = 64
ROWS_MAX: Final = 24
LETTERS: Final = {  # the worst state of its regions is what a cell shows, the last of these being the worst
    region.State.ABSENT: (".", "no memory"),
    region.State.GIGABYTE: ("G", "1 GB page"),
    region.State.WHOLE: ("M", "2 MB page"),
    region.State.UNIFORM: ("u", "split, uniform"),
    region.State.MIXED: ("x", "split, mixed permissions"),
    region.State.HOLED: ("o", "split, with holes"),
}
SPLIT_LETTERS: Final = "".join(LETTERS[state][0] for state in region.SPLIT)
OFFSET: Final = 11  # columns before the cells of a line
BAR: Final = 20
ROOMY: Final = 32  # lines, from which on all words of the limit are said

# ---- values ----


def tell_value(name: str, value: float) -> str:
    """Return a counter as people read it: bytes, times or numbers, as its name says; of integers every digit.

    >>> tell_value("directmap_4k", 4096), tell_value("recorder_cpu_ns", 2_000), tell_value("areas", 2**53 + 1)
    ('4.0 kB', '2.00 us', '9,007,199,254,740,993')
    """
    if name.endswith("_bytes") or name.startswith("directmap_"):
        return tell_bytes(value)
    if name.endswith("_ns"):
        return tell_time(value / NS)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"


def tell_change(name: str, value: float, suffix: str = "") -> str:
    """Return a change with its sign, nothing where there is none.

    >>> tell_change("directmap_4k", -4096, "/s"), tell_change("loads", 0), tell_change("loads", 0.25, "/s")
    ('-4.0 kB/s', '', '+0.25/s')
    """
    if not value:
        return ""
    small = abs(value) < 10 and value != int(value) and tell_value(name, 1) == "1"  # noqa: PLR2004 - 9.75, but 10
    return f"{'-' if value < 0 else '+'}{f'{abs(value):.2f}' if small else tell_value(name, abs(value))}{suffix}"


def cut(text: str, width: int) -> str:
    """Return a text of others as one line of a length.

    >>> cut("a very long name", 8), cut("short", 8)
    ('a very..', 'short')
    """
    return draw.cut(clean(text), width)


# ---- the atlas ----


@dataclass(frozen=True)
class Atlas:
    """Regions in cells, each for as many of them; a cell has the place in LETTERS of the worst state in it."""

    each: int
    cells: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, state: npt.NDArray[np.uint8], lines: int, width: int = CELLS) -> Atlas:
        """Return cells for the regions that fit in so many lines, each for a power of two of them."""
        each = 1
        while len(state) > width * max(lines, 1) * each:
            each *= 2
        order = np.array([list(LETTERS).index(known) for known in region.State], dtype=np.uint8)
        padded = np.zeros(-(-len(state) // each) * each, dtype=np.uint8)
        padded[: len(state)] = order[state]
        return cls(each, padded.reshape(-1, each).max(axis=1))

    def lines(self, width: int = CELLS) -> list[tuple[str, str]]:
        """Return where each line of cells begins, and its letters."""
        letters = [letter for letter, _ in LETTERS.values()]
        return [
            (
                f"{tell_bytes(start * self.each * HUGE):>9}",
                "".join(letters[cell] for cell in self.cells[start : start + width].tolist()),
            )
            for start in range(0, len(self.cells), width)
        ]


def tell_legend(state: npt.NDArray[np.uint8], each: int) -> str:
    """Return what letters mean, and how many regions there are of each state."""
    present = [known for known in LETTERS if (state == known).any()]
    legend = ", ".join(
        f"{LETTERS[known][0]} {LETTERS[known][1]} ({int((state == known).sum()):,})" for known in present
    )
    return f"a letter is {each * 2} MB, the worst of it: {legend}"


def draw_atlas(state: npt.NDArray[np.uint8], paint: Paint, rows: int = ROWS_MAX, note: str = "") -> list[str]:
    """Return lines of 64 cells, each for as many regions as make it so many lines, a legend and a note."""
    atlas = Atlas.of(state, rows)
    lines = []
    for start, text in atlas.lines():
        for letter in SPLIT_LETTERS:
            text = text.replace(letter, f"\0{letter}")  # noqa: PLW2901 - the same text, marked
        cells = "".join(
            paint.bad(part[0]) + part[1:] if number else part for number, part in enumerate(text.split("\0"))
        )
        lines.append(f"{start}  {cells}")
    return [*lines, *textwrap.wrap(tell_legend(state, atlas.each) + note, text_width())]


# ---- free memory, and the limit ----


def tell_free(zones: Sequence[Zone]) -> list[str]:
    """Return a line for each zone of memory: how much is free, and how much of that in blocks of 2 MB and more."""
    lines = []
    for zone in zones:
        sizes = [count << (12 + order) for order, count in enumerate(zone.free)]
        large = sum(sizes[9:])
        blocks = " ".join(f"{count:,}" for count in zone.free)
        lines.append(
            f"free in {clean(zone.name)} of node {zone.node}: {tell_bytes(sum(sizes))}, {tell_bytes(large)} in blocks "
            f"of 2 MB and more; blocks by size, 4 kB doubling: {blocks}"
        )
    return lines


def draw_jit(jit: Jit | None, why: str, paint: Paint, width: int) -> list[str]:
    """Return how far BPF's code is from its limit: a bar of what is known to be used, and words; or why not."""
    if jit is None:
        return wrap("bpf_jit_limit", clean(why), width)
    told = [] if jit.enabled else ["the compiler is off (bpf_jit_enable is 0)"]
    told += [] if jit.packs is None else [f"packs, which hold all of it: {tell_bytes(jit.packs)}"]
    if jit.programs is None:
        first = f"{tell_bytes(jit.limit)}; what is used is hidden (kernel.kptr_restrict)"
        return [*wrap("bpf_jit_limit", first, width), *wrap("", "; ".join(told), width)]
    share = jit.programs / jit.limit if jit.limit else 1.0
    told.insert(0, f"at least {tell_bytes(jit.programs)} used, by programs with a number")
    told.append(f"at most {tell_bytes(max(jit.limit - jit.programs, 0))} left")
    bar = paint.bar(share, BAR, trough=True)
    return [
        f"{'bpf_jit_limit':<{TOPIC}}{bar} {share:.1%} of {tell_bytes(jit.limit)}",
        *wrap("", "; ".join(told), width),
    ]


def jit_as_dict(jit: Jit) -> dict[str, int | float | bool | None]:
    """Return the same for JSON; null is hidden."""
    share = None if jit.programs is None or not jit.limit else jit.programs / jit.limit
    return {
        "limit_bytes": jit.limit,
        "enabled": jit.enabled,
        "programs_bytes": jit.programs,
        "packs_bytes": jit.packs,
        "share": share,
        "left_at_most_bytes": None if jit.programs is None else max(jit.limit - jit.programs, 0),
    }


def wrap(topic: str, text: str, width: int) -> list[str]:
    """Return a topic and a text beside it, on as many lines as it takes."""
    first, *more = textwrap.wrap(text, width - TOPIC, break_on_hyphens=False) or [""]
    return [f"{topic:<{TOPIC}}{first}", *(f"{'':<{TOPIC}}{line}" for line in more)]


TOPIC: Final = 14

# ---- a frame ----

COUNTERS: Final = (32, -14, -13, -14)
KINDS: Final = {Kind.LOAD: "came", Kind.UNLOAD: "went", Kind.SPLIT: "SPLIT", Kind.JOIN: "joined"}
SUMS: Final = {"splits": "split", "joins": "joined", "loads": "came", "unloads": "went"}


def draw_counters(counters: Mapping[str, Counter], room: int) -> list[str]:
    """Return counters with change and rate: all that fit, those first that changed, then those of splits."""
    ordered = sorted(counters, key=lambda name: (not counters[name].change, not name.endswith("_splits")))
    ordered = ordered[: max(room - 1, 0)]
    lines = [columns(["counter", "now", "since start", "per second"], COUNTERS)]
    for name in (name for name in counters if name in ordered):
        one = counters[name]
        rate = "" if one.per_second is None else tell_change(name, one.per_second, "/s")
        lines.append(columns([clean(name), tell_value(name, one.value), tell_change(name, one.change), rate], COUNTERS))
    return lines


def tell_event(seconds: float, event: Event, width: int) -> str:
    """Return one line of the ledger: when, what, where, and who is suspected of it or did it."""
    kind = KINDS[event.kind]
    if event.kind in {Kind.SPLIT, Kind.JOIN}:
        what = f"{event.id:,} x {tell_bytes(event.size)}" + (f" at {event.at:#x}" if event.at else "")
        who = f"{event.owner or 'unattributed'}: {event.name}" if event.kind == Kind.SPLIT else event.name
    else:
        what = f"{event.name} ({Client(event.client).name.lower()}, {tell_bytes(event.size)})"
        who = event.owner or "by whom is not known"
    return cut(f"{seconds:>9.1f} s  {kind:<6} {what}  {who}", width)


def draw_events(events: Sequence[tuple[float, Event]], room: int, width: int, paint: Paint) -> list[str]:
    """Return the latest events, the latest first."""
    if not events:
        return ["nothing was split, and no code came or went, since the start"][:room]
    lines = []
    for seconds, event in list(reversed(events))[:room]:
        line = tell_event(seconds, event, width)
        lines.append(paint.bad(line) if event.kind == Kind.SPLIT else line)
    return lines


def tell_walked(frame: Frame) -> str:
    """Return how old the atlas is, where that is worth a word: page tables are read again when it may cost so much."""
    age = frame.seconds - frame.walked
    return f"; read {age:.1f} s ago" if age >= 1 else ""


def tell_sums(frame: Frame) -> str:
    """Return what happened since the start, in a line."""
    return ", ".join(f"{frame.sums[name]:,} {word}" for name, word in SUMS.items())


def draw_frame(frame: Frame, heading: str, paint: Paint, width: int, height: int) -> list[str]:
    """Return a whole picture in so many lines, if that is enough for one line of each part."""
    jit = draw_jit(frame.jit, frame.missing.get("jit", ""), paint, width)
    jit = jit if height >= ROOMY or frame.jit is None else jit[:1]
    head = [paint.head(cut(heading, width)), paint.rule(width), *jit]
    ledger = f"since the start: {tell_sums(frame)}"
    missing = [line for name, why in frame.missing.items() if name != "jit" for line in wrap(name, clean(why), width)]
    fixed = len(head) + 4
    legend = 3 if frame.state is not None else 0
    wanted = [len(frame.counters) + 1, legend and ROWS_MAX, max(len(frame.events), 1), len(missing)]
    rooms = share_out(max(height - fixed - legend, 4), wanted)
    lines = [*head, paint.rule(width), *draw_counters(frame.counters, rooms[0]), paint.rule(width)]
    if frame.state is not None:
        lines += [*draw_atlas(frame.state, paint, rooms[1], tell_walked(frame)), paint.rule(width)]
    lines += [ledger, *draw_events(frame.events, rooms[2], width, paint)]
    return lines + [paint.dim(line) for line in missing[: rooms[3]]]


def frame_as_dict(frame: Frame) -> dict[str, object]:
    """Return a frame for a line of JSON; docs/directmap.md has the keys."""
    fresh = list(frame.events)[len(frame.events) - frame.fresh :]
    return {
        "schema": "execmem-directmap-watch-1",
        "seconds": round(frame.seconds, 3),
        "counters": {
            name: {"value": one.value, "change": one.change, "per_second": one.per_second}
            for name, one in frame.counters.items()
        },
        "sums": dict(frame.sums),
        "events": [
            {
                "seconds": round(seconds, 6),
                "kind": event.kind.name.lower(),
                "client": None if event.kind in {Kind.SPLIT, Kind.JOIN} else Client(event.client).name.lower(),
                "address": event.at,
                "size": event.size,
                "count": event.id if event.kind in {Kind.SPLIT, Kind.JOIN} else 1,
                "owner": event.owner or None,
                "name": event.name,
            }
            for seconds, event in fresh
        ],
        "regions": None
        if frame.state is None
        else {known.name.lower(): int((frame.state == known).sum()) for known in region.State},
        "walked_seconds": None if frame.state is None else round(frame.walked, 3),
        "jit": None if frame.jit is None else jit_as_dict(frame.jit),
        "missing": dict(frame.missing),
    }
