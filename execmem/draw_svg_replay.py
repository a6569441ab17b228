"""draw_svg_replay: what policies would have made of a workload, as SVG: a table first, pictures second.

    draw_table        a row a policy, a column a figure
    draw_curves       regions split, load by load
    draw_difference   how far the policies are from one of them
    draw_memory       memory held for code, and code that lives

A policy has a letter, a colour and dashes, the same in every part. Lines that lie on each other are drawn from the
widest to the thinnest, so that each is seen. Everything returns text: no I/O here.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from execmem.directmap.replay import FIGURES, MB, differ
from execmem.draw_svg import LEFT, WIDTH, Part, document, draw_scale, find_ceiling, find_ticks, notes, shorten, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from execmem.directmap.replay import Figure, Result


class Line(NamedTuple):
    """How a policy is drawn; its colours can be told apart without one kind of cones, on light and on dark screens."""

    letter: str
    light: str
    dark: str
    dashes: str
    wide: float


LINES: Final = (
    Line("A", "#cf3b59", "#ff7b39", "", 6.0),
    Line("B", "#1636b0", "#7665e1", "", 4.8),
    Line("C", "#0697e6", "#82c6ff", "9 5", 4.0),
    Line("D", "#761f67", "#b37397", "", 3.2),
    Line("E", "#bf9200", "#ffcc93", "7 4", 2.6),
    Line("F", "#111111", "#ffffff", "2 3", 1.8),
)
NOTES: Final = (
    "Simulated: docs/model.md tells how near real kernels come to it. Lines on each other are drawn from wide to thin.",
    "Held, live, what is not live, and TLB entries (of 1,024 random images) are of the moment with most live bytes.",
)


@dataclass(frozen=True)
class Comparison:
    """What is drawn: the results of one workload, and which of them the others are held against."""

    title: str
    rows: int  # loads and unloads
    memory: int  # bytes of the simulated machine
    results: Sequence[Result]
    against: int  # its place among the results

    @property
    def base(self) -> Result:
        """What the others are held against."""
        return self.results[self.against]

    @property
    def facts(self) -> str:
        """One line about what was replayed."""
        return f"{self.rows:,} loads and unloads on a simulated machine of {self.memory // MB:,} MB"


def style() -> str:
    """Return the style sheet of the policies: classes `em-pN` to fill and `em-pN-l` for lines, light and dark."""
    light, dark = (
        "".join(
            f".em-p{number}{{fill:{colour}}}.em-p{number}-l{{stroke:{colour}}}"
            for number, line in enumerate(LINES)
            for colour in [(line.light, line.dark)[way]]
        )
        for way in (0, 1)
    )
    dashed = "".join(
        f".em-p{number}-l{{stroke-width:{line.wide:g};stroke-dasharray:{line.dashes or 'none'}}}"
        for number, line in enumerate(LINES)
    )
    return f"{light}{dashed}@media(prefers-color-scheme:dark){{{dark}}}"


def look_of(number: int) -> int:
    """Return which of the looks a policy has, by its place among the results."""
    return number % len(LINES)


def draw_swatch(number: int, x: float, y: float) -> str:
    """Return a piece of a policy's line."""
    return f'<path class="em-n em-p{look_of(number)}-l" d="M{x:g} {y:g}h30"/>'


def name_of(number: int, row: Result) -> str:
    """Return letter and name of a policy."""
    return f"{LINES[look_of(number)].letter}  {row.policy}"


# ---- the table ----

COLUMN: Final = 79
FIRST: Final = 232  # where its columns begin


def find_best(figure: Figure, results: Sequence[Result]) -> str:
    """Return the least value of a figure as it is shown, or nothing where all are the same."""
    told = [figure.tell(row) for row in map(figure.take, results)]
    return figure.tell(min(map(figure.take, results))) if len(set(told)) > 1 else ""


def draw_table(given: Comparison) -> Part:
    """Return a row a policy; the least of each column is bold."""
    out = []
    for column, figure in enumerate(FIGURES):
        x = FIRST + COLUMN * (column + 1) - 6
        for line, words in enumerate(textwrap.wrap(figure.words, 11)):
            out.append(write(x, 14 + 15 * line, words, "em-dim em-m", "end"))
    out.append(write(16, 29, "lower is better everywhere; bold: the least", "em-dim em-m"))
    best = [find_best(figure, given.results) for figure in FIGURES]
    y = 54.0
    for number, row in enumerate(given.results):
        out.append(f'<path class="em-n em-line-l" d="M16 {y - 17:g}H{WIDTH - 16}"/>')
        out.append(draw_swatch(number, 16, y - 4))
        out.append(write(54, y, name_of(number, row)))
        for column, figure in enumerate(FIGURES):
            told = figure.tell(figure.take(row))
            look = "em-ink em-b" if told == best[column] else "em-ink"
            out.append(write(FIRST + COLUMN * (column + 1) - 6, y, told, look, "end"))
        y += 24
    return Part("\n".join(out), y + 8)


# ---- what happened in the course of the workload ----

PLOT: Final = 880
HIGH: Final = 180
ROOM: Final = 16  # between two labels
COLUMNS: Final = PLOT // 2


class Curve(NamedTuple):
    """Values of a policy: pairs of row and value, and the words at its end."""

    points: Sequence[tuple[int, float]]
    words: str


def spread(wanted: Sequence[float], room: float, lowest: float) -> list[float]:
    """Return heights near those wanted, in order, at least `room` apart and none below (greater than) the lowest.

    >>> spread([10, 11, 50], 16, 60)
    [10, 26, 50]
    >>> spread([58, 59], 16, 60)
    [44, 60]
    """
    found: list[float] = []
    for height in wanted:
        found.append(max(height, found[-1] + room) if found else height)
    for place in range(len(found) - 1, -1, -1):
        found[place] = min(found[place], lowest if place == len(found) - 1 else found[place + 1] - room)
    return found


def draw_path(points: Sequence[tuple[int, float]], rows: int, ceiling: float) -> str:
    """Return steps through points: a value holds until the next. Of many the last in each two pixels is drawn."""
    base, first = 24 + HIGH, points[0][1]
    if len(points) > COLUMNS:
        points = list({at * COLUMNS // rows: (at, value) for at, value in points}.values())
    steps = "".join(f"H{LEFT + PLOT * at / rows:.5g}V{base - HIGH * value / ceiling:.5g}" for at, value in points)
    return f"M{LEFT} {base - HIGH * first / ceiling:.5g}{steps}H{LEFT + PLOT}"


def draw_chart(title: str, rows: int, curves: Sequence[Curve], area: Sequence[tuple[int, float]] = ()) -> Part:
    """Return curves over the rows of a workload, each with its words at its end; `area` is filled below."""
    rows = max(rows, 1)
    ceiling = find_ceiling(max(value for curve in curves for _, value in curve.points))
    top, base = 24, 24 + HIGH
    out = [write(LEFT, 12, title, "em-b em-ink")]
    if area:
        out.append(f'<path class="em-line" d="{draw_path(area, rows, ceiling)}V{base}H{LEFT}z"/>')
    shares = (0.25, 0.5, 0.75, 1.0)
    out += [f'<path class="em-n em-line-l" d="M{LEFT} {base - HIGH * share:g}h{PLOT}"/>' for share in shares]
    marks = [(ceiling * share, base - HIGH * share) for share in (0.0, 0.5, 1.0)]
    out += draw_scale(top, base, marks)[1:]
    out.append(f'<path class="em-n em-line-l" d="M{LEFT} {top}V{base}H{LEFT + PLOT}"/>')
    for tick in find_ticks(rows):
        x = LEFT + PLOT * tick / rows
        out.append(f'<path class="em-n em-line-l" d="M{x:.5g} {base}v5"/>')
        out.append(write(x, base + 18, f"{tick:,.10g}", "em-dim em-m", "middle"))
    out.append(write(LEFT + PLOT, base + 34, "loads and unloads", "em-dim em-m", "end"))
    for number, curve in enumerate(curves):
        path = draw_path(curve.points, rows, ceiling)
        out.append(f'<path class="em-n em-p{look_of(number)}-l" d="{path}"/>')
    ends = [base - HIGH * curve.points[-1][1] / ceiling for curve in curves]
    order = sorted(range(len(curves)), key=lambda number: (ends[number], number))
    for number, height in zip(order, spread([ends[number] for number in order], ROOM, base), strict=True):
        x = LEFT + PLOT
        out.append(f'<path class="em-n em-dim-l" d="M{x + 2} {ends[number]:.5g}L{x + 18} {height:.5g}"/>')
        out.append(write(x + 22, height + 4, curves[number].words, "em-m em-ink"))
    return Part("\n".join(out), base + 48)


def draw_curves(given: Comparison) -> Part:
    """Return how regions were split."""
    curves = [
        Curve(row.over_time, f"{name_of(number, row)}: {row.splits:,}") for number, row in enumerate(given.results)
    ]
    return draw_chart("regions split so far (lower is better)", given.rows, curves)


def draw_memory(given: Comparison) -> Part:
    """Return memory held for code, above code that lives."""
    curves = [
        Curve([(at, held / MB) for at, _, held in row.memory], f"{name_of(number, row)}: {row.memory[-1][2] / MB:,.1f}")
        for number, row in enumerate(given.results)
    ]
    live = [(at, live / MB) for at, live, _ in given.base.memory]
    return draw_chart("memory held for code, MB (lower is better); grey: the code that lives", given.rows, curves, live)


# ---- the difference ----

SHOWN: Final = tuple(one for one in FIGURES if one.name in {"splits", "mapped_4k", "tlb", "held"})
NUMBER: Final = 88  # room for a number beside a bar
NUMBER_LETTERS: Final = 15  # that fit into it
BAR: Final = 22  # height of a row


def tell_share(change: float, base: float) -> str:
    """Return a change as a share of what it was, not rounded up: nothing but all is 100 %, nothing but none is 0.

    >>> tell_share(-3, 4), tell_share(-999, 1000), tell_share(-1, 1000), tell_share(1, 0)
    (' (-75 %)', ' (-99 %)', ' (<1 %)', '')
    """
    if not base or not change:
        return ""
    share = int(100 * change / base)
    return f" ({share:+d} %)" if share else " (<1 %)"


def draw_panel(figure: Figure, given: Comparison, left: float, wide: float) -> list[str]:
    """Return bars to the left for less than the baseline has, to the right for more."""
    base = figure.take(given.base)
    changes = [differ(row, given.base)[figure.name] for row in given.results]
    low, high = min(0.0, *changes), max(0.0, *changes)
    least, most = (left + NUMBER if low < 0 else left), (left + wide - NUMBER if high > 0 else left + wide)
    scale = (most - least) / ((high - low) or 1.0)
    zero = least - low * scale if high > low else left
    others = [place for place in range(len(changes)) if place != given.against]
    out = [write(left, 32, f"{figure.words}: {figure.tell(base)}", "em-b em-m em-ink")]
    out.append(f'<path class="em-n em-dim-l" d="M{zero:.5g} 40v{BAR * len(others)}"/>')
    for line, place in enumerate(others):
        y, change = 43 + BAR * line, changes[place]
        told = figure.tell_change(change)
        if told != "=":
            share = tell_share(change, base)
            told += share if len(told + share) <= NUMBER_LETTERS else ""  # no room: the table has both numbers
            ink = "came" if change < 0 else "went"
            out.append(f'<path class="em-{ink}" d="M{zero:.5g} {y}h{change * scale:.5g}v{BAR - 7}H{zero:.5g}z"/>')
        to_left = change < 0 or (change == 0 and high == 0)  # where this panel has room for numbers
        x, anchor = (zero + change * scale - 5, "end") if to_left else (zero + change * scale + 5, "start")
        out.append(write(x, y + 12, told, "em-m em-ink", anchor))
    return out


def draw_difference(given: Comparison) -> Part:
    """Return a panel a figure: how far each policy is from the one it is held against."""
    out = [write(16, 12, f"against {name_of(given.against, given.base)}", "em-b em-ink")]
    out.append(
        write(FIRST, 12, "bars to the left are better (less), bars to the right are worse (more)", "em-dim em-m")
    )
    others = [number for number in range(len(given.results)) if number != given.against]
    for line, number in enumerate(others):
        y = 55 + BAR * line
        out += [draw_swatch(number, 16, y - 4), write(54, y, name_of(number, given.results[number]))]
    wide = (WIDTH - 16 - FIRST) / len(SHOWN)
    for column, figure in enumerate(SHOWN):
        out += draw_panel(figure, given, FIRST + wide * column, wide - 18)
    if not others:
        out.append(write(54, 55, "only one policy was replayed: nothing to compare it with", "em-dim"))
    return Part("\n".join(out), 60 + BAR * max(len(others), 1))


# ---- the file ----


def draw_replay(given: Comparison) -> str:
    """Return a file: the table, curves, the difference, memory."""
    title = f"what if: {shorten(given.title, 100)}"
    facts = Part(f"<style>{style()}</style>" + write(16, 8, given.facts, "em-dim"), 22)
    parts = [facts, draw_table(given), draw_curves(given), draw_difference(given), draw_memory(given), notes(NOTES)]
    told = ", ".join(f"{row.policy} {row.splits:,}" for row in given.results)
    return document(title, parts, describe=f"{given.facts}. Regions split: {told}.")
