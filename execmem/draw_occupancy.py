"""draw_occupancy: packs in the course of time, as text and as SVG, from what ``occupancy`` found in a recording.

    bytes    |..:::|||||      |   counters above
    3  text  |  >░░▒▓▓▓█▓░    |   a row for each pack: how full it was; > where it was made, bare where it was not there

Everything returns text: no I/O here.
"""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem import draw_packs
from execmem.draw import tell_bytes
from execmem.draw_packs import LABEL, printable, tell_age, tell_rate
from execmem.draw_svg import LEFT, PLOT, Part, document, draw_scale, find_ceiling, find_ticks, notes, write
from execmem.occupancy import find_column, find_fills, find_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from execmem.draw import Paint
    from execmem.occupancy import History, Life

SPARKS, SPARKS_ASCII = "▁▂▃▄▅▆▇█", "123456789"
MADE: Final = ">"
BESIDE: Final = 30  # columns beside a bar
COLUMNS: Final = 350  # of a picture
ROW: Final = 17
CHART: Final = 84
LEVELS: Final = 5  # of fill
COLOUR: Final = 36
CHARTS: Final[tuple[tuple[str, str, Callable[[float], str]], ...]] = (
    ("live_bytes", "live bytes", tell_bytes),
    ("live_blocks", "live blocks", "{:,.0f}".format),
    ("packs_live", "packs", "{:,.0f}".format),
    ("allocs", "allocs/s", tell_rate),
    ("frees", "frees/s", tell_rate),
)


def tell_lives(lives: Sequence[Life], first: float) -> str:
    """Return when a pack was made and returned, of several the last time."""
    life = lives[-1]
    made = "before" if life.born < first else f"made {tell_age((life.born - first) * 1000)}"
    gone = "" if life.returned is None else f", gone {tell_age((life.returned - first) * 1000)}"
    return f"{f'{len(lives)} times, ' if len(lives) > 1 else ''}{made}{gone}"


def tell_history(history: History, paint: Paint) -> str:
    """Return what was recorded, in a line."""
    first, last = history.span
    process = "" if history.pid is None else f" of process {history.pid}"
    count = len(history.times)
    looks = f"{count:,} picture{'s' * (count != 1)} in {tell_age((last - first) * 1000)}"
    name = f"domain {printable(history.name, paint)} ({history.number})"
    return f"{name}{process}: {looks}, from {tell_age(first * 1000)} after it was opened"


def tell_extremes(history: History, key: str, told: Callable[[float], str]) -> tuple[float, str]:
    """Return the largest value of a counter, and it and the last in words."""
    values = np.array(history.values[key])
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, "not available"
    return float(known.max()), f"most {told(float(known.max()))}, last {told(float(known[-1]))}"


def tell_notes(history: History, left_out: int) -> list[str]:
    """Return what to mind about a recording."""
    told = []
    if left_out:
        told.append(f"and {left_out:,} packs more: --limit 0 shows all")
    if history.partial:
        told.append(f"{history.partial:,} pictures left packs out, which may have been there: record with --limit 0")
    if history.backwards:
        told.append(f"{history.backwards:,} pictures were left out: they are older than the one before them")
    return told


# ---- text ----


def draw_spark(values: Sequence[float | None], most: float, paint: Paint) -> str:
    """Return values as bars of a character each; bare: nobody looked."""
    sparks = SPARKS if paint.unicode else SPARKS_ASCII
    pieces: list[tuple[str, int | None]] = []
    for value in values:
        if not value:
            pieces.append((" " if value is None else draw_packs.shade(0.0, paint), None))
        else:
            pieces.append((sparks[min(int(value / most * len(sparks)), len(sparks) - 1)], COLOUR))
    return draw_packs.frame(draw_packs.merge(pieces, paint), paint)


def draw_row(history: History, lives: Sequence[Life], cells: int, paint: Paint) -> str:
    """Return how full a pack was."""
    pieces: list[tuple[str, int | None]] = [(" ", None)] * cells
    for life in lives:
        for place, share in enumerate(find_fills(history, life, cells)):
            if share is not None:
                pieces[place] = (draw_packs.shade(share, paint), COLOUR if share else None)
        born = find_column(history, life.born, cells)
        if born is not None:
            pieces[born] = (MADE, COLOUR)
    return draw_packs.frame(draw_packs.merge(pieces, paint), paint)


def draw_text(history: History, limit: int | None, paint: Paint, width: int) -> list[str]:
    """Return a domain in the course of time, in lines of at most so many columns."""
    cells = width - LABEL - 2 - BESIDE
    first, last = history.span
    lines = [paint.head(line) for line in textwrap.wrap(tell_history(history, paint), width)]
    end = tell_age((last - first) * 1000)
    lines.append(paint.dim(" " * (LABEL + 1) + "0 s" + end.rjust(cells - 3)))
    for key, words, told in CHARTS:
        most, facts = tell_extremes(history, key, told)
        lines.append(f"{words:<{LABEL}}{draw_spark(find_values(history, key, cells), most, paint)} {facts}")
    rows = history.rows()
    shown = list(rows)[:limit]
    for number in shown:
        lives = rows[number]
        label = f"{number:<4} {printable(lives[-1].kind, paint, LABEL - 6):<{LABEL - 5}}"
        lines.append(f"{label}{draw_row(history, lives, cells, paint)} {tell_lives(lives, first)}")
    return lines + tell_notes(history, len(rows) - len(shown))


def legend(paint: Paint) -> list[str]:
    """Return what shades mean, and which way they go."""
    shades = " ".join(draw_packs.SHADES if paint.unicode else draw_packs.SHADES_ASCII)
    blank = draw_packs.shade(0.0, paint)
    heights = "the higher" if paint.unicode else f"{SPARKS_ASCII[0]} to {SPARKS_ASCII[-1]}: the higher the digit"
    return [
        "time goes to the right, and counts from the left end; bare: nobody looked",
        f"packs: {blank} empty, {shades} fuller by quarters, {MADE} made, bare: not there",
        f"above: {heights}, the more; {blank} none",
    ]


# ---- SVG ----


def draw_runs(values: Sequence[int | None], y: float, high: float) -> str:
    """Return runs of equal levels as bars, darker where they are fuller."""
    wide, at, paths = PLOT / len(values), 0, dict[int, list[str]]()
    for level, run in groupby(values):
        count = len(list(run))
        if level is not None:
            x = LEFT + at * wide
            paths.setdefault(level, []).append(f"M{x:.5g} {y:g}h{count * wide:.5g}v{high:g}h{-count * wide:.5g}z")
        at += count
    return "".join(
        f'<path class="em-giant" fill-opacity="{shade_of(level):g}" d="{"".join(path)}"/>'
        for level, path in sorted(paths.items())
    )


def shade_of(level: int) -> float:
    """Return how opaque a level of fill is."""
    return round(0.12 + 0.88 * level / LEVELS, 2)


def level_of(share: float | None) -> int | None:
    """Return the level of a share: 0 empty, else by fifths.

    >>> [level_of(share) for share in (None, 0.0, 0.01, 0.5, 1.0)]
    [None, 0, 1, 3, 5]
    """
    return None if share is None else min(int(share * LEVELS) + 1, LEVELS) if share else 0


def draw_chart(history: History, key: str, words: str, told: Callable[[float], str], top: float) -> str:
    """Return a counter as columns."""
    values = find_values(history, key, COLUMNS)
    most, facts = tell_extremes(history, key, told)
    base = top + CHART - 30
    unit = next((unit for unit in (1 << 30, 1 << 20, 1 << 10) if most >= unit), 1) if key == "live_bytes" else 1
    ceiling = find_ceiling(most / unit) * unit
    wide = PLOT / COLUMNS
    out = draw_scale(top, base, [])
    out.append(write(LEFT - 8, top + 6, told(ceiling), "em-dim em-m", "end"))
    path, at = "", 0
    for value, run in groupby(values):
        count = len(list(run))
        if value:
            high = max((base - top) * value / ceiling, 0.5)
            path += f"M{LEFT + at * wide:.5g} {base:g}v{-high:.4g}h{count * wide:.5g}v{high:.4g}z"
        at += count
    ink = {"allocs": "em-came", "frees": "em-went"}.get(key, "em-giant")
    out.append(f'<path class="{ink}" d="{path}" shape-rendering="crispEdges"/>')
    out.append(write(LEFT + PLOT + 16, top + 14, words, "em-b em-ink"))
    out.append(write(LEFT + PLOT + 16, top + 31, facts, "em-m em-ink"))
    return "".join(out)


def draw_lives(history: History, lives: Sequence[Life], y: float) -> str:
    """Return the row of a pack: its fill, and marks where it was made and returned."""
    out = [write(LEFT - 8, y + 12, f"{lives[-1].number} {lives[-1].kind}"[:12], "em-m em-dim", "end")]
    wide = PLOT / COLUMNS
    for life in lives:
        out.append(draw_runs([level_of(share) for share in find_fills(history, life, COLUMNS)], y, ROW - 4))
        for when, ink, way in ((life.born, "came", 5), (life.returned, "went", -5)):
            column = None if when is None else find_column(history, when, COLUMNS)
            if column is not None:
                x = LEFT + (column + (way < 0)) * wide
                out.append(f'<path class="em-{ink}" d="M{x:.5g} {y - 1:g}v{ROW - 2}l{way} {-(ROW - 2) / 2:g}z"/>')
    out.append(write(LEFT + PLOT + 16, y + 12, tell_lives(lives, history.span[0]), "em-m em-ink"))
    return "".join(out)


def draw_domain(history: History, limit: int | None, paint: Paint) -> list[Part]:
    """Return a domain: its counters above, its packs below, on one axis of time."""
    first, last = history.span
    out = [write(16, 14, tell_history(history, paint), "em-b em-ink")]
    y = 34.0
    for key, words, told in CHARTS:
        out.append(draw_chart(history, key, words, told, y))
        y += CHART - 12
    rows = history.rows()
    shown = list(rows)[:limit]
    y += 8
    out.append(write(LEFT, y, "packs: how full, and when they were made and returned", "em-b em-ink"))
    y += 10
    top = y
    for number in shown:
        out.append(draw_lives(history, rows[number], y))
        y += ROW
    out.append(f'<path class="em-n em-line-l" d="M{LEFT} {top:g}V{y + 2:g}H{LEFT + PLOT}"/>')
    if last > first:
        for tick in find_ticks(last - first):
            x = LEFT + PLOT * tick / (last - first)
            out.append(f'<path class="em-n em-line-l" d="M{x:.5g} {y + 2:g}v5"/>')
            out.append(write(x, y + 20, f"{tick:,.10g}", "em-dim em-m", "middle"))
    out.append(write(LEFT + PLOT + 16, y + 20, "seconds", "em-dim em-m"))
    told_notes = tell_notes(history, len(rows) - len(shown))
    return [Part("\n".join(out), y + 34), *([notes(told_notes)] if told_notes else [])]


def draw_legend() -> Part:
    """Return what colours and marks mean, and which way they go."""
    out, x = [write(16, 12, "A pack is emptier where it is fainter:", "em-m em-ink")], 250.0
    for level in range(LEVELS + 1):
        words = "empty" if level == 0 else f"to {level * 100 // LEVELS} %"
        out.append(
            f'<rect x="{x:g}" y="1" width="18" height="13" class="em-giant" fill-opacity="{shade_of(level):g}"/>'
        )
        out.append(write(x + 24, 12, words, "em-m em-ink"))
        x += 80
    for ink, path, words in (("came", "M{x} 1v14l6 -7z", "made"), ("went", "M{x} 1v14l-6 -7z", "returned")):
        out.append(f'<path class="em-{ink}" d="{path.format(x=f"{x + 6:g}")}"/>')
        out.append(write(x + 18, 12, words, "em-m em-ink"))
        x += 74
    out.append(write(16, 30, "Time goes to the right. Bare: no pack, or nobody looked.", "em-m em-dim"))
    return Part("".join(out), 42)


def draw_svg(histories: Sequence[History], title: str, limit: int | None, paint: Paint) -> str:
    """Return a file: every domain below the other."""
    parts = [part for history in histories for part in draw_domain(history, limit, paint)]
    return document(title, [*parts, draw_legend()])
