"""draw_packs: packs, their rows and chunks as text; numbers in, lines out, no I/O.

    0    text   |▓███▓▒░    ████████|  71.3%   96.0 kB     1,042     shade: share in use
                |CCCDDDA    GGGGGGGG|  1 x 2 MB, oldest 24.0 h          letter and colour: age, or owner

Colours repeat what letters and shades say already; the palettes are told apart by colour-blind readers (ages: viridis,
owners: Okabe and Ito). Names come from other processes: ``printable`` takes what would move a terminal's cursor.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final, TypeVar

from execmem.draw import clean, columns, cut, make_visible, tell_bytes, width_of
from execmem.survey import AGES, NO_CLASS, OTHER, OWNERS_SHOWN, ROW_CHUNKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from execmem.draw import Paint
    from execmem.survey import BlockFacts, DomainFacts, PackFacts, RowFacts, Share
    from execmem.watch import PagesFound

T = TypeVar("T")

CELLS_NARROW, CELLS_WIDE, WIDE_FROM = 32, 64, 110
LABEL = 12  # columns before a bar
AGE_COLOURS: Final = (97, 61, 31, 36, 71, 148, 220)  # of 256: viridis, new to old
OWNER_COLOURS: Final = (214, 75, 36, 227, 32, 166, 175, 245)  # Okabe and Ito; the last is all others
AGE_LETTERS: Final = "ABCDEFG"
OWNER_LETTERS: Final = "ABCDEFG*"
SHADES, SHADES_ASCII = "░▒▓█", "-+x#"
EMPTY, EMPTY_ASCII = "·", "."
CHUNK_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK, HELD, SHUT = -1, -2, -3  # chunks of no block, as survey_row has them
ROW_LINE = 64  # chunks a line
OWNERS_TOLD = 12
NAME_LENGTH = 48
PACK_BYTES, SMALL_PAGE = 2 << 20, 4096
FACTS = (-6, -9, -9, 6)  # columns beside a bar: they and the bar fit in 80
FACTS_WIDTH = 36
ROW_FACTS = (-6, -9, -6, 7)
SEVERAL_MOMENTS: Final = "blocks came and went while they were read: the picture is of several moments"
FEW = 10  # a second: below this tenths are told


# ---- words ----


def printable(text: str, paint: Paint, most: int = NAME_LENGTH) -> str:
    r"""Return a text of another process with nothing in it that a terminal obeys, cut to a length.

    >>> from execmem.draw import Paint
    >>> printable("a\x1b[2Jb", Paint(colour=False, unicode=True)), printable("ä" * 9, Paint(False, False), 9)
    ('a\\x1b[2Jb', '\\xe4\\xe..')
    """
    return cut(clean(text if paint.unicode else make_visible(text, unicode=False)), most)


def tell_age(ms: float) -> str:
    """Return an age as people say it.

    >>> tell_age(340), tell_age(5_400_000), tell_age(9 * 86_400_000)
    ('340 ms', '1.5 h', '9.0 days')
    """
    for unit, scale in (("days", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= scale:
            return f"{ms / scale:.1f} {unit}"
    return f"{ms:.0f} ms"


def tell_rate(value: float) -> str:
    """Return a number of events per second."""
    return f"{value:.1f}" if 0 < value < FEW else f"{value:,.0f}"


def tell_pages(pages: PagesFound) -> str:
    """Return the badge of a pack: how the kernel maps it.

    >>> from execmem.watch import PagesFound
    >>> tell_pages(PagesFound(2 << 20, 2 << 20, "pagemap")), tell_pages(PagesFound(0, 32768, "pagemap"))
    ('1 x 2 MB', '8 x 4 kB')
    """
    if pages.huge_bytes is None:
        return "pages: not available"
    huge = pages.huge_bytes // PACK_BYTES
    if pages.present_bytes is None:
        return f"{huge} x 2 MB" if huge else "4 kB pages"  # nobody tells how many
    small = (pages.present_bytes - pages.huge_bytes) // SMALL_PAGE
    told = [f"{huge} x 2 MB"] * bool(huge) + [f"{small} x 4 kB"] * bool(small)
    return " + ".join(told) or "no page touched"


def short_pages(pages: PagesFound) -> str:
    """Return the badge in 6 columns.

    >>> from execmem.watch import PagesFound
    >>> short_pages(PagesFound(2 << 20, 2 << 20, "pagemap")), short_pages(PagesFound(0, None, "ledger"))
    ('1x2M', '4k')
    """
    if pages.huge_bytes is None:
        return "n/a"
    told = tell_pages(pages)
    if "+" in told:
        return "mixed"
    if told.startswith("no"):
        return "none"
    return told.removesuffix(" pages").replace(" x ", "x").replace(" MB", "M").replace(" kB", "k")


# ---- bars ----


def cells_for(width: int) -> int:
    """Return the cells of a bar in so many columns: 64 kB each, or 32 kB where there is room."""
    return CELLS_WIDE if width >= WIDE_FROM else CELLS_NARROW


def tint(text: str, colour: int, paint: Paint, *, ground: bool = False) -> str:
    """Return a text in one of 256 colours, or black on it."""
    if not paint.colour or not text.strip():
        return text
    return f"\x1b[30;48;5;{colour}m{text}\x1b[0m" if ground else f"\x1b[38;5;{colour}m{text}\x1b[0m"


def shade(share: float | None, paint: Paint) -> str:
    """Return the character of a share in use; what is not open for blocks is bare."""
    if share is None:
        return " "
    if share == 0:
        return EMPTY if paint.unicode else EMPTY_ASCII
    return (SHADES if paint.unicode else SHADES_ASCII)[min(int(share * 4), 3)]


def merge(pieces: Sequence[tuple[str, int | None]], paint: Paint, *, ground: bool = False) -> str:
    """Return characters and colours as a text; neighbours of a colour share its escape."""
    parts, run, last = [], "", None
    for char, colour in pieces:
        if colour != last:
            parts.append(run if last is None else tint(run, last, paint, ground=ground))
            run, last = "", colour
        run += char
    parts.append(run if last is None else tint(run, last, paint, ground=ground))
    return "".join(parts)


def palette(by: str) -> tuple[Sequence[int], str]:
    """Return the colours and letters of owners or ages."""
    return (OWNER_COLOURS, OWNER_LETTERS) if by == "owner" else (AGE_COLOURS, AGE_LETTERS)


def fill_bar(cells: Sequence[float | None], classes: Sequence[int] | None, by: str, paint: Paint) -> str:
    """Return a bar shaded by fill, coloured by owner or age where that is known."""
    colours, _ = palette(by)
    if classes is None:
        classes = [NO_CLASS] * len(cells)
        return frame(merge([(shade(cell, paint), 36 if cell else None) for cell in cells], paint), paint)
    pieces = [
        (shade(cell, paint), None if not cell else 245 if kind == NO_CLASS else colours[kind])
        for cell, kind in zip(cells, classes, strict=True)
    ]
    return frame(merge(pieces, paint), paint)


def letter_bar(classes: Sequence[int], by: str, paint: Paint) -> str:
    """Return the letters of owners or ages on their colours."""
    colours, letters = palette(by)
    pieces = [(" ", None) if kind == NO_CLASS else (letters[kind], colours[kind]) for kind in classes]
    return frame(merge(pieces, paint, ground=True), paint)


def frame(bar: str, paint: Paint) -> str:
    """Return a bar between its ends."""
    edge = paint.dim("│" if paint.unicode else "|")
    return f"{edge}{bar}{edge}"


def axis(cells: int) -> str:
    """Return the line over bars: where a pack begins and ends, and what is beside."""
    middle = "1 MB"
    left = cells // 2 - 1
    scale = "0".ljust(left) + middle + "2 MB".rjust(cells - left - len(middle))
    return f"{'pack kind':<{LABEL}} {scale}  " + columns(["fill", "max free", "blocks", "pages"], FACTS)


# ---- a domain ----


def notes(pack: PackFacts) -> list[str]:
    """Return what else there is to say about a pack."""
    told = [("parked", pack.parked), ("retired", pack.retired), ("held for a fork", pack.held)]
    found = [f"{count:,} {what}" for what, count in told if count]
    return found + ["draining"] * pack.draining + ["the parent process's"] * pack.inherited


def draw_pack(pack: PackFacts, by: str, paint: Paint) -> list[str]:
    """Return one pack: its bar by fill, and where blocks were read its letters and who pins it."""
    label = f"{pack.number:<4} {pack.kind:<{LABEL - 5}}"
    badge = short_pages(pack.pages)
    facts = columns([f"{pack.fill:.1%}", tell_bytes(pack.largest_free_bytes), f"{pack.blocks:,}", badge], FACTS)
    lines = [f"{label}{fill_bar(pack.cells, pack.classes, by, paint)} {facts}"]
    if pack.classes is None:
        return lines
    indent = " " * (LABEL + 2)
    said = [f"span of {pack.packs} packs" if pack.state == "span" else pack.state] * (pack.state != "full")
    said += [] if pack.oldest_ms is None else [f"oldest {tell_age(pack.oldest_ms)}"]
    extra = notes(pack)
    fits = len(", ".join([*said, *extra])) <= FACTS_WIDTH - len("||  ")
    beside = ", ".join([*said, *extra] if fits else said)
    lines.append(f"{'':<{LABEL}}{letter_bar(pack.classes, by, paint)}  {beside}".rstrip())
    if not fits:
        lines.append(f"{indent}{', '.join(extra)}")
    if pack.pinned_by is not None:
        named = ", ".join(printable(name, paint, 24) for name in pack.pinned_by) or "no live block"
        more = pack.blocks - len(pack.pinned_by)
        text = f"pinned by {named}{f' and {more:,} more' if more > 0 else ''}"
        wrapped = textwrap.wrap(text, LABEL + len(pack.cells) + FACTS_WIDTH - len(indent), break_on_hyphens=False)
        lines += [f"{indent}{line}" for line in wrapped]
    return lines


def head(facts: DomainFacts, paint: Paint) -> list[str]:
    """Return the lines that tell of a domain as a whole."""
    name = f"domain {printable(facts.name, paint)} ({facts.number})"
    packs = f"{facts.packs_live:,} pack{'s' * (facts.packs_live != 1)}"
    blocks = f"{facts.live_blocks:,} block{'s' * (facts.live_blocks != 1)}"
    limit = "" if facts.limit_bytes is None else f", limit {tell_bytes(facts.limit_bytes)}"
    sealed = "" if facts.sealed == "no" else f", sealed ({facts.sealed})"
    waiting = [f"{facts.retired_blocks:,} retired"] * bool(facts.retired_blocks)
    waiting += [f"{tell_bytes(facts.quarantined_bytes)} in quarantine"] * bool(facts.quarantined_bytes)
    beside = "".join(f", {words}" for words in waiting)
    history = f"packs made {facts.packs_made:,}, returned {facts.packs_returned:,}"
    lines = [
        f"{paint.head(name)}: {packs}, {blocks} of {tell_bytes(facts.live_bytes)}{limit}{sealed}{beside}",
        f"mode {facts.write_mode}, {printable(facts.arch, paint)}, opened {tell_age(facts.age_ms)} ago; {history}",
    ]
    if facts.collapse_failures:
        tries = facts.collapses + facts.collapse_failures
        lines.append(f"{facts.collapse_failures:,} of {tries:,} collapses to 2 MB pages failed")
    if facts.per_second is None:
        return [*lines, f"events per second: not available: {facts.per_second_why}"]
    rates = ", ".join(f"{tell_rate(value)} {what}" for what, value in facts.per_second.items() if what != "events")
    return [*lines, f"per second, over {facts.interval:.2f} s: {rates}"]


def draw_domain(facts: DomainFacts, paint: Paint, width: int) -> list[str]:
    """Return a domain's packs, whose its blocks are and how old."""
    lines = head(facts, paint)
    if not facts.packs:
        return lines[:1]
    lines.append(paint.dim(axis(cells_for(width))))
    for pack in facts.packs:
        lines += draw_pack(pack, facts.by, paint)
    if facts.packs_left_out:
        lines.append(f"{tell_left_out(facts)}; packs by fill, 0 to 100 % in tenths: {tell_fills(facts)}")
    lines += [f"pages: not available: {reason}" for reason in tell_no_pages(facts)]
    if facts.owners is not None and facts.ages is not None:
        letters = OWNER_LETTERS if facts.by == "owner" else ""
        lines += ["", *table("owner", facts.owners, letters, OWNER_COLOURS, paint)]
        letters = AGE_LETTERS if facts.by == "age" else ""
        lines += ["", *table("age", facts.ages, letters, AGE_COLOURS, paint)]
    if facts.of_one_moment is False:
        lines.append(SEVERAL_MOMENTS)
    return lines


def tell_left_out(facts: DomainFacts) -> str:
    """Return how many packs are not shown."""
    return f"and {facts.packs_left_out:,} pack{'s' * (facts.packs_left_out != 1)} more"


def tell_no_pages(facts: DomainFacts) -> list[str]:
    """Return why pages of packs are not known."""
    return sorted({pack.pages.why for pack in facts.packs if pack.pages.huge_bytes is None and pack.pages.why})


def tell_fills(facts: DomainFacts) -> str:
    """Return how many packs there are of each tenth of fill."""
    return " ".join(f"{count:,}" for count in facts.fills)


def table(what: str, shares: Sequence[Share], letters: str, colours: Sequence[int], paint: Paint) -> list[str]:
    """Return blocks by owner or by age, with the letters of the bars where they have them."""
    total = sum(share.bytes for share in shares) or 1
    widths = [-9, -10, -7, -10, -10]
    lines = [paint.dim("  " + f"{what:<24}" + columns(["blocks", "bytes", "share", "youngest", "oldest"], widths))]
    age_names = [text for _, text in AGES]
    for place, share in enumerate(shares[:OWNERS_TOLD]):
        kind = age_names.index(share.name) if what == "age" else min(place, OTHER)
        mark = tint(letters[kind], colours[kind], paint, ground=True) if letters else " "
        ages = [tell_age(share.youngest_ms), tell_age(share.oldest_ms)]
        cells = [f"{share.blocks:,}", tell_bytes(share.bytes), f"{share.bytes / total:.1%}", *ages]
        name = printable(share.name, paint, 23)
        lines.append(f"{mark} {name}{' ' * (24 - width_of(name))}{columns(cells, widths)}")
    if len(shares) > OWNERS_TOLD:
        rest = shares[OWNERS_TOLD:]
        count, size = sum(share.blocks for share in rest), sum(share.bytes for share in rest)
        lines.append(f"  and {len(rest):,} more, with {count:,} blocks of {tell_bytes(size)}")
    return lines


def legend(by: str, cells: int, paint: Paint) -> list[str]:
    """Return what shades, letters and colours mean, and which way they go."""
    shades = " ".join(SHADES if paint.unicode else SHADES_ASCII)
    blank = EMPTY if paint.unicode else EMPTY_ASCII
    each = tell_bytes(PACK_BYTES // cells)
    lines = [f"a cell is {each}: {blank} free, {shades} fuller by quarters, bare: not open for blocks"]
    lines.append("pages: 1x2M one of 2 MB, 512x4k or 4k of 4 kB, none: not touched, n/a: unknown")
    if by == "age":
        lines += ["letter: age of most of its bytes, from new to old:", f"  {age_marks(paint)}"]
    elif by == "owner":
        lines.append(f"letter: owner of most of its bytes; A has most in all, * is all after the first {OWNERS_SHOWN}")
    return lines


def age_marks(paint: Paint) -> str:
    """Return the letters of ages, new to old, with what they are up to."""
    marks = [tint(letter, colour, paint, ground=True) for letter, colour in zip(AGE_LETTERS, AGE_COLOURS, strict=True)]
    edges = [f"< {text.removeprefix('under ')} <" for edge, text in AGES if edge is not None]
    return " ".join(piece for pair in zip(marks, [*edges, ""], strict=True) for piece in pair).rstrip()


# ---- drill-down ----


def draw_rows(pack: PackFacts, rows: Sequence[RowFacts], paint: Paint, width: int) -> list[str]:
    """Return the 64 kB rows of a pack, a cell 1 kB or 2, coloured by age, with the letters of the ages in each."""
    wide = width >= WIDE_FROM
    cells = len(rows[0].cells) if wide else len(rows[0].cells) // 2
    scale = "0".ljust(cells - 5) + "64 kB"
    lines = [paint.dim(f"row at       {scale}  " + columns(["fill", "max free", "blocks", "ages"], ROW_FACTS))]
    for row in rows:
        shares = row.cells if wide else halve(row.cells)
        kinds = row.classes if wide else [left if left != NO_CLASS else right for left, right in pairs(row.classes)]
        kinds = [kind if share else NO_CLASS for kind, share in zip(kinds, shares, strict=True)]
        fill = "" if row.fill is None else f"{row.fill:.1%}"
        free = "not open" if row.fill is None else tell_bytes(row.largest_free_bytes)
        ages = "".join(AGE_LETTERS[kind] for kind in sorted(set(row.classes) - {NO_CLASS}))
        facts = columns([fill, free, f"{row.blocks:,}", ages], ROW_FACTS)
        lines.append(f"{row.row:<4}+{row.address - pack.address:06x} {fill_bar(shares, kinds, 'age', paint)} {facts}")
    lines.append(f"--pack {pack.number} --row N shows the chunks and blocks of a row")
    return lines


def halve(cells: Sequence[float | None]) -> list[float | None]:
    """Return means of pairs of cells.

    >>> halve([1.0, 0.5, None, None])
    [0.75, None]
    """
    return [None if left is None else (left + (left if right is None else right)) / 2 for left, right in pairs(cells)]


def pairs(cells: Sequence[T]) -> Iterator[tuple[T, T]]:
    """Return neighbours, two and two."""
    return zip(cells[::2], cells[1::2], strict=True)


def chunk_letter(place: int, paint: Paint) -> tuple[str, int | None]:
    """Return the letter and colour of what a chunk is of."""
    if place >= 0:
        return CHUNK_LETTERS[place % len(CHUNK_LETTERS)], OWNER_COLOURS[place % OWNERS_SHOWN]
    return {BLANK: EMPTY if paint.unicode else EMPTY_ASCII, HELD: "%", SHUT: " "}[place], None


def draw_row(start: int, blocks: Sequence[BlockFacts], chunks: Sequence[int], paint: Paint, width: int) -> list[str]:
    """Return the chunks of a row from an offset in its pack on, a letter a block, and then the blocks."""
    lines = ["a cell is a chunk of 64 bytes, a letter a block; %: in use, but by no live block"]
    for at in range(0, ROW_CHUNKS, ROW_LINE):
        pieces = [chunk_letter(place, paint) for place in chunks[at : at + ROW_LINE]]
        lines.append(f"+{start + at * 64:06x} {frame(merge(pieces, paint), paint)}")
    if not blocks:
        return [*lines, "no live block lies here"]
    lines.append("")
    widths = [-1, 14, -9, -7, 9, -9]
    lines.append(paint.dim(columns(["", "address", "size", "chunks", "state", "age"], widths) + "  name"))
    for place, block in enumerate(blocks):
        letter, _ = chunk_letter(place, paint)
        cells = [letter, f"{block.address:#014x}", f"{block.size:,}", f"{block.chunks:,}", block.state]
        name = printable(block.name, paint, max(16, width - 62)) or "(no name)"
        lines.append(columns([*cells, tell_age(block.age_ms)], widths) + f"  {name}")
    return lines
