"""draw_svg_packs: the packs of domains as SVG, from the numbers that the terminal shows.

    pack 0  |#|## |#####|##   |  71.3 % full      [1 x 2 MB]    a column is a page of 4 kB, as high as it is in use
    text    | |##||#####|##|  |  largest free 96.0 kB           its colour: the age or the owner of most of its bytes
              A B  A     C       1,042 blocks, oldest 24.0 h

So small blocks do not vanish: they are a part of a column's height. Words, letters and colours are those of
``draw_packs``. Everything returns text: no I/O here. Size: up to 12 kB a pack.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem import draw_packs
from execmem.draw import Paint, tell_bytes
from execmem.draw_packs import OWNERS_TOLD, PACK_BYTES, palette, tell_age
from execmem.draw_svg import WIDTH, Part, document, notes, shorten, write
from execmem.survey import AGES, NO_CLASS, OTHER, OWNERS_SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from execmem.survey import DomainFacts, PackFacts, Share

CELLS: Final = 512  # of a bar: pages of 4 kB
LEFT, PLOT, HIGH = 92, 768, 44  # of a bar
BESIDE: Final = LEFT + PLOT + 20
LEVELS: Final = 8  # heights of a column
GROUPS: Final = 64  # a letter stands for at least so much of a bar
LINE: Final = 18
NOTE_LETTERS: Final = 44  # that fit beside a bar
PLAIN: Final = Paint(colour=False, unicode=True)
NOBODY: Final = 'class="em-dim" fill-opacity=".4"'  # in use, but by no live block


def rgb(colour: int) -> str:
    """Return one of a terminal's 256 colours, the first 16 left out, as SVG has it.

    >>> rgb(97), rgb(220), rgb(245)
    ('#875faf', '#ffd700', '#8a8a8a')
    """
    if colour >= 232:  # noqa: PLR2004 - greys
        return f"#{8 + 10 * (colour - 232):02x}" + f"{8 + 10 * (colour - 232):02x}" * 2
    parts = ((colour - 16) // 36, (colour - 16) // 6 % 6, (colour - 16) % 6)
    return "#" + "".join(f"{55 + 40 * part if part else 0:02x}" for part in parts)


# ---- one pack ----


def draw_columns(pack: PackFacts, by: str) -> str:
    """Return the columns of a bar: a path for each colour, in pages across and eighths of the height."""
    classes = pack.classes or [NO_CLASS] * len(pack.cells)
    paths: dict[int, list[str]] = {}
    at = 0
    heights = [-int(-share * LEVELS // 1) if share else 0 for share in pack.cells]
    for (height, kind), run in groupby(zip(heights, classes, strict=True)):
        wide = len(list(run))
        if height:
            paths.setdefault(kind, []).append(f"M{at} {LEVELS}v-{height}h{wide}v{height}z")
        at += wide
    colours, _ = palette(by)
    out = []
    for kind, path in sorted(paths.items()):
        ink = NOBODY if kind == NO_CLASS else f'fill="{rgb(colours[kind])}"'
        ink = 'class="em-giant"' if pack.classes is None else ink
        out.append(f'<path {ink} d="{"".join(path)}"/>')
    return "".join(out)


def find_letters(pack: PackFacts, letters: str) -> list[tuple[int, int, str]]:
    """Return where letters stand below a bar, in parts of 64: begin, width and letter of most of what is in use."""
    per = max(1, len(pack.cells) // GROUPS)
    shares = np.array([share or 0.0 for share in pack.cells]).reshape(-1, per)
    classes = np.array(pack.classes).reshape(-1, per)
    most = []
    for share, kinds in zip(shares, classes, strict=True):
        known = kinds != NO_CLASS
        sums = np.bincount(kinds[known], weights=share[known])
        most.append(letters[int(sums.argmax())] if sums.any() else "")
    found, at = [], 0
    for letter, run in groupby(most):
        wide = len(list(run))
        if letter:
            found.append((at, wide, letter))
        at += wide
    return found


def draw_badge(pack: PackFacts) -> str:
    """Return how the kernel maps a pack: a full badge for 2 MB pages, an empty one for others."""
    words = draw_packs.tell_pages(pack.pages)
    wide = 14 + 6.8 * len(words)
    x = WIDTH - 16 - wide
    whole = bool(pack.pages.huge_bytes) and "+" not in words
    look = "em-giant" if whole else "em-n em-dim-l"
    box = f'<rect x="{x:g}" y="1" width="{wide:g}" height="18" rx="9" class="{look}"/>'
    return box + write(x + wide / 2, 14, words, "em-m em-page" if whole else "em-m em-ink", "middle")


def draw_pack(pack: PackFacts, by: str) -> Part:
    """Return one pack: its bar, letters below it, facts beside it, and who pins it."""
    usable = sum(share is not None for share in pack.cells)
    cell = PLOT / len(pack.cells)
    out = [write(LEFT - 10, 18, f"pack {pack.number}", "em-ink", "end")]
    out.append(write(LEFT - 10, 34, pack.kind, "em-dim em-m", "end"))
    out.append(f'<rect x="{LEFT}" width="{usable * cell:g}" height="{HIGH}" class="em-line" fill-opacity=".3"/>')
    columns = draw_columns(pack, by)
    if columns:
        scale = f"translate({LEFT} 0) scale({cell:g} {HIGH / LEVELS:g})"
        out.append(f'<g transform="{scale}" shape-rendering="crispEdges">{columns}</g>')
    out.append(f'<rect x="{LEFT}" width="{PLOT}" height="{HIGH}" class="em-n em-line-l"/>')
    oldest = "" if pack.oldest_ms is None else f", oldest {tell_age(pack.oldest_ms)}"
    blocks = f"{pack.blocks:,} block{'s' * (pack.blocks != 1)}{oldest}"
    out.append(write(BESIDE, 13, f"{pack.fill * 100:.1f} % full", "em-b em-ink"))
    out.append(write(BESIDE, 29, f"largest free {tell_bytes(pack.largest_free_bytes)}"))
    out.append(write(BESIDE, 45, blocks) + draw_badge(pack))
    y = HIGH + 14
    if pack.classes is not None:
        group = PLOT / min(GROUPS, len(pack.cells))
        out += [
            write(LEFT + (at + wide / 2) * group, y - 2, letter, "em-m em-dim", "middle")
            for at, wide, letter in find_letters(pack, palette(by)[1])
        ]
    span = f"a span of {pack.packs} packs" if pack.state == "span" else pack.state
    said = [span] * (pack.state != "full") + draw_packs.notes(pack)
    below = [] if pack.pinned_by is None else [shorten(tell_pins(pack), 120)]
    if len(", ".join(said)) > NOTE_LETTERS:
        below.append(", ".join(said))
    else:
        out.append(write(BESIDE, y + 3, ", ".join(said), "em-m em-ink"))
    for line in below:
        y += LINE
        out.append(write(LEFT, y, line, "em-m em-ink"))
    return Part("".join(out), y + 14)


def tell_pins(pack: PackFacts) -> str:
    """Return who keeps a nearly empty pack."""
    pins = pack.pinned_by or []
    named = ", ".join(shorten(name, 28) for name in pins) or "no live block"
    more = pack.blocks - len(pins)
    return f"pinned by {named}{f' and {more:,} more' if more > 0 else ''}"


# ---- a domain ----


def draw_axis(y: float) -> Part:
    """Return the scale of bars."""
    out = []
    for part, words in enumerate(("0", "512 kB", "1 MB", "1.5 MB", "2 MB")):
        x = LEFT + PLOT * part / 4
        out.append(f'<path class="em-n em-line-l" d="M{x:g} {y + 14:g}v4"/>')
        out.append(write(x, y + 11, words, "em-dim em-m", "middle"))
    return Part("".join(out), y + 18)


def draw_table(x: float, what: str, shares: Sequence[Share], by: str) -> Part:
    """Return blocks by owner or by age; with the letters and colours of the bars where these tell the same."""
    total = sum(share.bytes for share in shares) or 1
    places = (x + 262, x + 342, x + 402, x + 482, x + 562)
    out = [write(x, 12, what, "em-b em-ink")]
    heads = ("blocks", "bytes", "share", "youngest", "oldest")
    out += [write(place, 12, word, "em-dim em-m", "end") for place, word in zip(places, heads, strict=True)]
    colours, letters = palette(what)
    names = [text for _, text in AGES]
    y = 12
    for place, share in enumerate(shares[:OWNERS_TOLD]):
        y += LINE
        if what == by:
            kind = names.index(share.name) if what == "age" else min(place, OTHER)
            ink = rgb(colours[kind])
            out.append(f'<rect x="{x:g}" y="{y - 11}" width="16" height="13" fill="{ink}" class="em-line-l"/>')
            out.append(f'<text x="{x + 8:g}" y="{y}" class="em em-m" text-anchor="middle">{letters[kind]}</text>')
        out.append(write(x + 24, y, shorten(share.name, 24)))
        ages = (tell_age(share.youngest_ms), tell_age(share.oldest_ms))
        cells = (f"{share.blocks:,}", tell_bytes(share.bytes), f"{share.bytes / total * 100:.1f} %", *ages)
        out += [write(at, y, cell, "em-ink em-m", "end") for at, cell in zip(places, cells, strict=True)]
    if len(shares) > OWNERS_TOLD:
        rest = shares[OWNERS_TOLD:]
        count, size = sum(share.blocks for share in rest), sum(share.bytes for share in rest)
        y += LINE
        told = f"and {len(rest):,} more, with {count:,} blocks of {tell_bytes(size)}"
        out.append(write(x + 24, y, told, "em-dim em-m"))
    return Part("\n".join(out), y + 14)


def draw_domain(facts: DomainFacts) -> list[Part]:
    """Return a domain: what it is, its packs, whose its blocks are and how old."""
    first, *more = draw_packs.head(facts, PLAIN)
    body = [write(16, 14, first, "em-b em-ink")]
    body += [write(16, 14 + LINE * row, line, "em-dim em-m") for row, line in enumerate(more, 1)]
    parts = [Part("".join(body), 14 + LINE * len(more) + 10)]
    if not facts.packs:
        return parts
    parts.append(draw_axis(0))
    parts += [draw_pack(pack, facts.by) for pack in facts.packs]
    told = []
    if facts.packs_left_out:
        fills = draw_packs.tell_fills(facts)
        told.append(f"{draw_packs.tell_left_out(facts)}; packs by fill, 0 to 100 % in tenths: {fills}")
    told += [f"pages: not available: {reason}" for reason in draw_packs.tell_no_pages(facts)]
    if facts.of_one_moment is False:
        told.append(draw_packs.SEVERAL_MOMENTS)
    parts += [notes(told)] * bool(told)
    if facts.owners is not None and facts.ages is not None:
        left, right = draw_table(16, "owner", facts.owners, facts.by), draw_table(620, "age", facts.ages, facts.by)
        parts.append(Part(f"{left.body}\n{right.body}", max(left.height, right.height) + 6))
    return parts


def draw_legend(by: str) -> Part:
    """Return what heights, letters and colours mean, and which way they go."""
    page = tell_bytes(PACK_BYTES // CELLS)
    lines = [f"Addresses grow to the right. A column is {page}: the higher, the more of it is in use."]
    lines[0] += " Only ground: free. No ground: not open for blocks."
    if by == "fill":
        return notes(lines)
    lines.append("Pale: in use by no live block (parked, retired, in quarantine, held for a fork).")
    colours, letters = palette(by)
    if by == "owner":
        words = [*("" for _ in letters[:-1]), f"all after the first {OWNERS_SHOWN}"]
        lead = "Owner of most of a column's bytes, from most bytes in all to fewest:"
    else:
        words = [text for _, text in AGES]
        lead = "Age of most of a column's bytes, from new to old:"
    out, x = [notes(lines).body, write(16, 54, lead, "em-ink em-m")], 30.0 + 6.3 * len(lead)
    for letter, colour, word in zip(letters, colours, words, strict=True):
        out.append(f'<rect x="{x:g}" y="43" width="16" height="14" fill="{rgb(colour)}" class="em-line-l"/>')
        out.append(f'<text x="{x + 8:g}" y="54" class="em em-m" text-anchor="middle">{letter}</text>')
        out.append(write(x + 22, 54, word, "em-ink em-m"))
        x += 30 + 6.4 * len(word)
    return Part("".join(out), 70)


def draw_packs_of(domains: Sequence[DomainFacts], title: str, *, key: str = "") -> str:
    """Return a file: every domain below the other, and what it all means; `key` makes its names in a page its own."""
    parts = [part for facts in domains for part in draw_domain(facts)]
    if any(facts.packs for facts in domains):
        parts.append(draw_legend(domains[0].by))
    else:
        parts.append(notes(["there is no pack"]))
    packs = sum(facts.packs_live for facts in domains)
    blocks = sum(facts.live_blocks for facts in domains)
    return document(title, parts, describe=f"{title}: {packs:,} packs with {blocks:,} blocks", key=key)
