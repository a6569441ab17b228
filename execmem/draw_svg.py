"""draw_svg: the direct map and its ledger as SVG, from numbers.

    draw_atlas   rows of regions of 2 MB, an axis of GB, and what the colours mean
    draw_ledger  what was split in the course of time, above code that came and went, beside them who is suspected
    document     such parts, one below the other, as a file

Everything returns text: no I/O here, and no fonts, scripts or addresses of other files in what it returns. Colours can
be told apart by those who do not see all of them, are other ones on dark screens, and have letters beside them.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from execmem.directmap.history import REGION, SEEN, UNKNOWN
from execmem.directmap.region import State
from execmem.draw import clean, close, tell_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from execmem.directmap.history import History, Numbers, Suspect

WIDTH: Final = 1200
LEFT: Final = 76  # of what is drawn; the axis is before it


class Look(NamedTuple):
    """How a state of regions is shown, and how bad it is: a cell shows the worst of its regions."""

    letter: str
    words: str
    light: str
    dark: str
    rank: int


LOOKS: Final = {
    UNKNOWN: Look("?", "not known", "#f4f4f6", "#1e2128", 0),
    State.ABSENT: Look(".", "no memory", "#c3c6d0", "#474d5b", 1),
    State.GIGABYTE: Look("G", "1 GB page", "#2a5d8c", "#2c5f92", 2),
    State.WHOLE: Look("M", "2 MB page", "#7fb2d8", "#5b9bd0", 3),
    SEEN: Look("s", "split, not looked at", "#f0e442", "#ffef9a", 4),
    State.UNIFORM: Look("u", "split, uniform", "#e69f00", "#f5b93c", 5),
    State.MIXED: Look("x", "split, mixed permissions", "#c0392b", "#ff6f59", 6),
    State.HOLED: Look("o", "split, with holes", "#111111", "#ffffff", 7),
}
INKS: Final = {  # of everything else: light, dark
    "page": ("#ffffff", "#14161b"),
    "ink": ("#1b1e25", "#e8eaf0"),
    "dim": ("#5b6170", "#a3a9b8"),
    "line": ("#c9ccd6", "#3d424e"),
    "came": ("#00795a", "#3fc79a"),
    "went": ("#b5541c", "#f0a070"),
    "split": ("#c0392b", "#ff6f59"),
    "giant": ("#2a5d8c", "#7db8ea"),
    "joined": ("#00795a", "#3fc79a"),
}


def style() -> str:
    """Return the style sheet: a class `em-NAME` for each ink, `em-sN` for each state, light and dark."""
    light, dark = (
        "".join(f".em-{name}{{fill:{pair[way]}}}.em-{name}-l{{stroke:{pair[way]}}}" for name, pair in INKS.items())
        + "".join(f".em-s{int(state)}{{fill:{(look.light, look.dark)[way]}}}" for state, look in LOOKS.items())
        for way in (0, 1)
    )
    text = ".em{font:13px system-ui,'DejaVu Sans',sans-serif}.em-b{font-weight:600}.em-m{font-size:11.5px}"
    return f"{text}.em-n{{fill:none}}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def tell(text: str) -> str:
    r"""Return a text for SVG or HTML: marks escaped, what is not printable made visible.

    >>> print(tell("<img onerror=x>" + chr(0)))
    &lt;img onerror=x&gt;\x00
    """
    return html.escape(clean(text))


def shorten(text: str, letters: int) -> str:
    """Return a text of at most so many letters, once it is clean."""
    text = clean(text)
    return text if len(text) <= letters else close(text[: letters - 1]) + "\N{HORIZONTAL ELLIPSIS}"


def write(x: float, y: float, text: str, look: str = "em-ink", anchor: str = "start") -> str:
    """Return a line of text; `look` is its classes."""
    return f'<text x="{x:g}" y="{y:g}" class="em {look}" text-anchor="{anchor}">{tell(text)}</text>'


class Part(NamedTuple):
    """A piece of a picture and how high it is."""

    body: str
    height: float


def document(title: str, parts: Sequence[Part], *, describe: str = "", key: str = "") -> str:
    """Return a whole SVG file: the parts below each other under a title; `key` sets its ids apart in a page of many."""
    y, bodies = 44.0, []
    for part in parts:
        bodies.append(f'<g transform="translate(0 {y:g})">{part.body}</g>\n')
        y += part.height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:g}" viewBox="0 0 {WIDTH} {y:g}" '
        f'role="img" aria-labelledby="em-title{key} em-desc{key}">\n<title id="em-title{key}">{tell(title)}</title>\n'
        f'<desc id="em-desc{key}">{tell(describe or title)}</desc>\n<style>{style()}</style>\n'
        f'<rect width="100%" height="100%" class="em-page"/>\n'
        f'<text x="16" y="28" class="em em-b em-ink" font-size="16">{tell(title)}</text>\n{"".join(bodies)}</svg>\n'
    )


def notes(lines: Iterable[str]) -> Part:
    """Return notes, each a line."""
    told = [shorten(line, 170) for line in lines]
    return Part(
        "".join(write(16, 14 + 18 * row, line, "em-dim em-m") for row, line in enumerate(told)), 18 * len(told) + 12
    )


# ---- the atlas ----

ROWS: Final = 32
CELLS: Final = 512
ROW: Final = 13  # its height
GB: Final = (1 << 30) // REGION


def draw_atlas(state: npt.NDArray[np.uint8]) -> Part:
    """Return rows of regions, a power of two in each and 32 rows at most, and a legend with numbers."""
    if not len(state):
        return Part(write(LEFT, 16, "no region of the direct map is known", "em-dim"), 30)
    in_row = 64
    while in_row * ROWS < len(state):
        in_row *= 2
    each = max(1, in_row // CELLS)
    cells = find_worst(state, each)
    across = in_row // each
    wide = (WIDTH - LEFT - 16) / across
    rows = -(-len(cells) // across)
    out = [write(LEFT, 12, f"{tell_size(in_row)} a row, {tell_size(each)} a cell", "em-dim em-m")]
    out.append(write(WIDTH - 16, 12, "addresses grow to the right, then down", "em-dim em-m", "end"))
    top = 20
    out += [
        write(LEFT - 8, top + ROW * row + 10, tell_place(row * in_row), "em-dim em-m", "end") for row in range(rows)
    ]
    ends = np.flatnonzero((np.diff(cells, append=255) != 0) | (np.arange(1, len(cells) + 1) % across == 0))
    starts = np.append(0, ends[:-1] + 1)
    for known, look in LOOKS.items():
        ours = cells[starts] == known
        path = "".join(
            f"M{LEFT + begin % across * wide:.5g} {top + ROW * (begin // across)}"
            f"h{(end - begin + 1) * wide:.5g}v{ROW - 1}h{(begin - end - 1) * wide:.5g}z"
            for begin, end in zip(starts[ours].tolist(), ends[ours].tolist(), strict=True)
        )
        if path:
            out.append(f'\n<path class="em-s{int(known)}" d="{path}"><title>{tell(look.words)}</title></path>')
    legend = draw_legend(state, top + ROW * rows + 12)
    return Part("".join(out) + legend.body, top + ROW * rows + 12 + legend.height)


def find_worst(state: npt.NDArray[np.uint8], each: int) -> npt.NDArray[np.uint8]:
    """Return for each cell, which is so many regions, the worst state in it.

    >>> find_worst(np.array([2, 5, 1], np.uint8), 2).tolist()
    [5, 1]
    """
    ranked = np.array(sorted(LOOKS, key=lambda known: LOOKS[known].rank), dtype=np.uint8)
    rank = np.argsort(ranked).astype(np.uint8)
    padded = np.zeros(-(-len(state) // each) * each, np.uint8)
    padded[: len(state)] = rank[state]
    worst: npt.NDArray[np.uint8] = ranked[padded.reshape(-1, each).max(axis=1)]
    return worst


def tell_size(regions: int) -> str:
    """Return the size of so many regions.

    >>> tell_size(1), tell_size(256), tell_size(16384)
    ('2 MB', '512 MB', '32 GB')
    """
    return f"{regions * 2} MB" if regions < GB else f"{regions / GB:g} GB"


def tell_place(region: int) -> str:
    """Return where a region begins in the direct map, in GB."""
    return f"{region / GB:g} GB"


def draw_legend(state: npt.NDArray[np.uint8], y: float) -> Part:
    """Return the states there are, from good to bad, each with its letter, colour and number of regions."""
    counts = np.bincount(state, minlength=len(LOOKS))
    present = [known for known in sorted(LOOKS, key=lambda known: LOOKS[known].rank) if counts[known]]
    x, first, out = float(LEFT), y, []
    for known in present:
        look = LOOKS[known]
        words = f"{look.letter}  {look.words}: {int(counts[known]):,}"
        if x + 30 + 7 * len(words) > WIDTH:
            x, y = float(LEFT), y + 20
        out.append(f'<rect x="{x:g}" y="{y:g}" width="16" height="11" class="em-s{int(known)} em-line-l"/>')
        out.append(write(x + 22, y + 10, words))
        x += 44 + 7 * len(words)
    out.append(
        write(LEFT, y + 30, "From left to right better to worse; a cell shows the worst of its regions.", "em-dim em-m")
    )
    return Part("\n" + "".join(out), y - first + 54)


# ---- the ledger ----

PLOT: Final = 700  # width of what has time across
HIGH: Final = 150  # of each of the two charts
BARS: Final = 256
SHOWN: Final = 9  # suspects
TICKS: Final = 10
PROOF: Final = (  # counters of the kernel, what they count, and their ink
    ("direct_map_level2_splits", "2 MB pages split", "split"),
    ("direct_map_level3_splits", "1 GB pages split", "giant"),
    ("direct_map_level2_collapses", "joined to 2 MB", "joined"),
)


def draw_ledger(history: History) -> Part:
    """Return counters of splits above, code that came and went below, and a column of suspects."""
    seconds = history.seconds or 1.0

    def across(when: float) -> float:
        return LEFT + PLOT * min(when / seconds, 1.0)

    out = [write(LEFT, 12, "split since the start", "em-b em-ink")]
    out += draw_counters(history, across)
    low = HIGH + 80
    out.append(write(LEFT, low - 10, "code that came (up) and went (down)", "em-b em-ink"))
    out += draw_code(history, low)
    free = [0.0] * SHOWN  # where numbers end in each line of them, so that none is written over another
    for x, number in sorted((across(one.first), number) for number, one in enumerate(history.suspects[:SHOWN], 1)):
        out.append(f'<path class="em-n em-dim-l" stroke-dasharray="2 3" d="M{x:.5g} 24V{low + HIGH}"/>')
        line = next(line for line, end in enumerate(free) if x >= end)
        free[line] = x + 12
        out.append(write(x + 3, 34 + 13 * line, str(number), "em-b em-m em-ink"))
    bottom = low + HIGH
    for tick in find_ticks(seconds):
        out.append(f'<path class="em-n em-line-l" d="M{across(tick):.5g} {bottom}v5"/>')
        out.append(write(across(tick), bottom + 18, f"{tick:,.10g}", "em-dim em-m", "middle"))
    out.append(write(LEFT + PLOT, bottom + 34, "seconds", "em-dim em-m", "end"))
    out += draw_suspects(history.suspects)
    return Part("\n".join(out), bottom + 48)


def draw_counters(history: History, across: Callable[[float], float]) -> list[str]:
    """Return a line of steps for each counter of splits, with its scale."""
    lines = find_lines(history)
    top, base = 24, 24 + HIGH
    most = max((float(values.max()) for _, _, _, values in lines if len(values)), default=0.0)
    ceiling = find_ceiling(most)
    out = draw_scale(top, base, [(0.0, base), (ceiling, top)])
    x = LEFT + 24.0
    for words, ink, when, values in lines:
        path = "".join(
            f"H{across(at):.5g}V{base - HIGH * value / ceiling:.5g}"
            for at, value in zip(when.tolist(), values.tolist(), strict=True)
        )
        out.append(
            f'<path class="em-n em-{ink}-l" stroke-width="2" d="M{LEFT} {base}{path}H{LEFT + PLOT}">'
            f"<title>{tell(words)}</title></path>"
        )
        last = f"{words}: {values[-1]:+,.0f}" if len(values) else words
        out.append(f'<path class="em-{ink}-l" stroke-width="3" d="M{x:g} {base + 15}h16"/>')
        out.append(write(x + 22, base + 19, last, "em-m em-ink"))
        x += 44 + 6.6 * len(last)
    if not lines:
        out.append(write(LEFT + 12, base - 12, "no counter of splits was recorded, and nothing was split", "em-dim"))
    return out


def find_lines(history: History) -> list[tuple[str, str, Numbers, Numbers]]:
    """Return words, ink, times and growth of the kernel's counters, or of the rows of splits where it has none."""
    lines = []
    for name, words, ink in PROOF:
        if name in history.counters:
            when, values = history.counters[name]
            lines.append((words, ink, when, values - values[0]))
    if lines:
        return lines
    for words, ink, counts in (("split", "split", history.splits), ("joined", "joined", history.joins)):
        steps = np.flatnonzero(counts)
        if len(steps):
            when = (steps + 0.5).astype(np.float64) * (history.seconds / len(counts))
            lines.append((words, ink, when, np.cumsum(counts[steps]).astype(np.float64)))
    return lines


def find_ceiling(most: float) -> float:
    """Return a round number that is not below another.

    >>> find_ceiling(0), find_ceiling(7), find_ceiling(12), find_ceiling(200)
    (1.0, 10.0, 20.0, 200.0)
    """
    step = 10.0 ** max(0, int(np.ceil(np.log10(max(most, 1.0)))) - 1)
    return next((step * times for times in (1, 2, 5, 10) if step * times >= most), step * 10)


def draw_scale(top: float, base: float, marks: Sequence[tuple[float, float]]) -> list[str]:
    """Return the frame of a chart, with values at heights."""
    out = [f'<path class="em-n em-line-l" d="M{LEFT} {top}V{base}H{LEFT + PLOT}"/>']
    out += [write(LEFT - 8, y + 4, f"{value:,.10g}", "em-dim em-m", "end") for value, y in marks]
    return out


def draw_code(history: History, top: float) -> list[str]:
    """Return bars up for code that came and down for code that went, in 256 steps of time."""
    came, went = (count.reshape(BARS, -1).sum(axis=1) for count in (history.loads, history.unloads))
    ceiling = find_ceiling(float(max(came.max(), went.max())))
    middle, half = top + HIGH / 2, HIGH / 2
    out = draw_scale(top, top + HIGH, [(ceiling, top), (0.0, middle), (ceiling, top + HIGH)])
    out.append(f'<path class="em-n em-line-l" d="M{LEFT} {middle:g}h{PLOT}"/>')
    wide = PLOT / BARS
    for counts, ink, words, way in ((came, "came", "came", -1), (went, "went", "went", 1)):
        path = "".join(
            f"M{LEFT + bar * wide:.5g} {middle:g}h{wide:.4g}"
            f"v{way * max(half * counts[bar] / ceiling, 1):.4g}h{-wide:.4g}z"
            for bar in np.flatnonzero(counts).tolist()
        )
        total = f"{int(counts.sum()):,} {words}"
        out.append(f'<path class="em-{ink}" d="{path}"><title>{tell(total)}</title></path>')
        out.append(write(LEFT + PLOT - 6, middle + (16 if way > 0 else -8) + way * 48, total, f"em-m em-{ink}", "end"))
    return out


def find_ticks(seconds: float) -> list[float]:
    """Return 4 to 11 round moments of a time, from 0.

    >>> find_ticks(3.7)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    """
    step = 10.0 ** np.floor(np.log10(seconds))
    step = float(next(step * times for times in (0.1, 0.2, 0.5, 1) if seconds / (step * times) <= TICKS))
    return [round(step * count, 9) for count in range(int(seconds / step) + 1)]


def draw_suspects(suspects: Sequence[Suspect]) -> list[str]:
    """Return a column of who split most, with when, how much and why."""
    x = LEFT + PLOT + 28
    out = [write(x, 12, "suspects, those of most splits first", "em-b em-ink")]
    for number, one in enumerate(suspects[:SHOWN], 1):
        y = 36 + 38 * (number - 1)
        owner = one.owner or "unattributed"
        done = "joined" if one.joined else "split"
        what = f"{one.pieces:,} x {tell_bytes(one.size)} {done} from {one.first:,.4g} s on: "
        out.append(f"<g><title>{tell(f'{owner}: {one.why}')}</title>")
        out.append(write(x, y, f"{number}", "em-b em-ink"))
        out.append(write(x + 20, y, shorten(owner, 48)))
        out.append(write(x + 20, y + 16, shorten(what + one.why, 58), "em-m em-dim") + "</g>")
    if not suspects:
        out.append(write(x, 36, "nothing was split", "em-dim"))
    if len(suspects) > SHOWN:
        out.append(write(x, 36 + 38 * SHOWN, f"and {len(suspects) - SHOWN:,} more", "em-dim em-m"))
    return out


def draw_history(history: History) -> str:
    """Return a file: the atlas at the end of a trace and, if any time passed, the ledger below it."""
    title, parts = f"direct map of Linux {history.title}", [draw_atlas(history.state_at(history.seconds))]
    if history.seconds:
        title += f", after {history.seconds:,.4g} s"
        parts.append(draw_ledger(history))
    return document(title, [*parts, notes(history.notes)])
