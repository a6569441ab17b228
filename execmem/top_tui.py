"""top_tui: ``execmem top PID --tui``: packs, their 64 kB rows, their chunks and blocks, by keys.

    packs --Enter--> rows of a pack --Enter--> chunks of a row, and the block under the cursor
          <--Esc---                 <--Esc---

Numbers are ``survey``'s, pictures ``draw_packs``'; here is what the keys do. Looks are made in a thread; one of owners
or ages reads the records of all blocks, and is made again only when four times its cost has gone.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual.binding import Binding

from execmem import draw_packs, map_cli
from execmem.draw import tell_bytes
from execmem.survey import ROW_CHUNKS, ROWS, Wish, survey_row, survey_rows
from execmem.tui import LiveApp, draw_text, draw_texts, window
from execmem.watch import WatchError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from textual.binding import BindingType

    from execmem.draw import Paint
    from execmem.survey import BlockFacts, DomainFacts, PackFacts, RowFacts
    from execmem.watch import Ledger, Pages, Process

PACKS, INSIDE, CHUNKS = range(3)  # levels
SORTS: Final = ("number", "fill")
COLOURS: Final = ("fill", "owner", "age")
MARK_AT: Final = 11  # the column before a bar, which is bare
GRID_AT: Final = 9  # the column of a row's first chunk
GRID: Final = draw_packs.ROW_LINE
CHUNK: Final = map_cli.CHUNK
PAGE: Final = 8  # packs or rows
KEYS: Final = {
    PACKS: "up/down  Enter inside  s sort: {sort}  b by: {by}  p pause  ? help  q quit",
    INSIDE: "up/down row  Enter its chunks  Esc back to the packs  p pause  ? help  q quit",
    CHUNKS: "arrows chunk  n next block  Esc back to the rows  p pause  ? help  q quit",
}


@dataclass(frozen=True)
class Want:
    """What is to be looked at."""

    level: int = PACKS
    domain: int = 0
    pack: int = 0
    row: int = 0
    sort: str = "number"
    by: str = "fill"
    limit: int = 0  # packs of a domain, as far as the cursor has come
    cells: int = draw_packs.CELLS_NARROW


@dataclass(frozen=True)
class Found:
    """What a look found; what is of other levels is empty."""

    want: Want
    domains: Sequence[DomainFacts] = ()
    name: str = ""  # of the domain that is looked into
    pack: PackFacts | None = None
    rows: Sequence[RowFacts] = ()
    blocks: Sequence[BlockFacts] = ()
    chunks: Sequence[int] = ()
    gone: str = ""  # why what was wanted is not there any more
    ended: bool = False
    at: str = field(default_factory=lambda: time.strftime("%H:%M:%S"))


class TopApp(LiveApp):
    """The packs of a process."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "sort", priority=True),
        Binding("b", "by", "by fill, owner or age", priority=True),
        Binding("n", "next_block", "next block", priority=True),
    ]
    KEYS_TOLD = (
        "execmem top --tui",
        "",
        "up, down      the pack, row or line of chunks before and after;",
        "              also Page Up, Page Down, Home, End",
        "left, right   the chunk before and after",
        "Enter         look inside: a pack's rows of 64 kB, a row's chunks of 64 bytes",
        "Esc           back",
        "n             the next block of a row",
        "s             packs by number, or the emptiest first",
        "b             packs by fill, by owner, by age: letters, colours repeat them",
        "p             pause, or go on",
        "q             quit",
        "",
        "shades: share in use, by quarters; bare: not open for blocks",
        "pages: 1x2M one of 2 MB, 512x4k or 4k of 4 kB, none: not touched, n/a: unknown",
        "by owner and by age all blocks are read: 1 ms a pack, a fifth of a core at most",
        "",
        "? closes this",
    )

    def __init__(self, process: Process, pages: Pages, options: argparse.Namespace, paint: Paint) -> None:
        """Begin with the list of packs; `options` has domain, sort and every."""
        super().__init__(options.every, paint)
        self.process, self.pages = process, pages
        self.source = map_cli.Looks(process, pages, options.domain)
        self.level, self.sort, self.by = PACKS, options.sort, COLOURS[0]
        self.chosen: tuple[int, int] | None = None  # domain and pack
        self.row = self.chunk = self.offset = 0
        self.note = ""
        self.listed: list[tuple[int, int]] = []  # domain and number of the packs of the list, in its order
        self.found: Found | None = None

    # ---- looking, in a thread ----

    def want(self) -> Want:
        """Return what is to be looked at now."""
        domain, pack = self.chosen or (0, 0)
        cells = draw_packs.cells_for(self.columns)
        limit = ((self._place() + self.size.height) // 16 + 1) * 16  # in steps, so that the list does not jump
        return Want(self.level, domain, pack, self.row, self.sort, self.by, limit, cells)

    def look(self) -> Found:
        """Read what is wanted; what is not there any more is told, and the process's end."""
        want = self.want()
        if self._ended():
            return Found(want, ended=True)
        try:
            ledgers = self.source.ledgers()
            if want.level == PACKS:
                wish = Wish(want.cells, want.limit, want.sort, want.by)
                looks = map_cli.look_at(ledgers)
                return Found(want, self.source.survey(looks, [wish] * len(looks)))
            ledger = next((one for one in ledgers if one.domain == want.domain), None)
            if ledger is None:
                return Found(want, gone=f"domain {want.domain} was closed")
            return self._look_inside(ledger, want)
        except WatchError as error:
            if self._ended():
                return Found(want, ended=True)
            if want.level == PACKS:
                raise
            return Found(want, gone=str(error))

    def _ended(self) -> bool:
        """Tell whether the process is no more."""
        return self.process.ended

    def _look_inside(self, ledger: Ledger, want: Want) -> Found:
        """Read a pack's rows, or a row's chunks."""
        pack, now_ms = map_cli.find_pack(ledger, self.pages, want.pack)
        if want.level == INSIDE:
            return Found(want, name=ledger.name, pack=pack, rows=survey_rows(ledger, pack, now_ms))
        blocks, chunks = survey_row(ledger, pack, want.row, now_ms)
        return Found(want, name=ledger.name, pack=pack, blocks=blocks, chunks=chunks)

    def take(self, found: Found) -> None:
        """Keep what was found; from what is gone go back to the packs, at the process's end stand still."""
        if found.ended:
            self.over = True
            return
        if found.gone:
            self.level, self.note = PACKS, draw_packs.printable(found.gone, self.paint, 200)
            self.ask()
            return
        self.found = found
        if found.want.level == PACKS:
            place = self._place()
            self.listed = [(domain.number, pack.number) for domain in found.domains for pack in domain.packs]
            if self.chosen not in self.listed:  # the first time, and when the pack was returned
                self.chosen = self.listed[min(place, len(self.listed) - 1)] if self.listed else None

    # ---- the cursor ----

    def _place(self) -> int:
        """Return where the cursor is in the list of packs."""
        with contextlib.suppress(ValueError):
            if self.chosen:
                return self.listed.index(self.chosen)
        return 0

    def action_step(self, key: str) -> None:
        """Move the cursor."""
        self.note = ""
        if self.level == PACKS:
            if self.listed:
                self.chosen = self.listed[move(self._place(), key, len(self.listed))]
        elif self.level == INSIDE:
            self.row = move(self.row, key, ROWS)
        else:
            self.chunk = move_in_grid(self.chunk, key)
        self.redraw()
        if self.level == PACKS and self.found and self.want().limit != self.found.want.limit:
            self.ask()

    def action_enter(self) -> None:
        """Look inside the pack or the row under the cursor."""
        if self.chosen is None or self.level == CHUNKS or self.over:
            return
        self.level += 1
        self.row, self.chunk = (0, 0) if self.level == INSIDE else (self.row, 0)
        self.ask()

    def action_out(self) -> None:
        """Go back to the rows, or to the packs."""
        self.helping = False
        self.level = max(self.level - 1, PACKS) if not self.over else self.level
        self.redraw()
        self.ask()

    def action_sort(self) -> None:
        """Sort packs the other way."""
        self.sort = SORTS[1 - SORTS.index(self.sort)]
        self.ask()

    def action_by(self) -> None:
        """Show fill, owners, ages, in turns."""
        self.by = COLOURS[(COLOURS.index(self.by) + 1) % len(COLOURS)]
        self.ask()

    def action_next_block(self) -> None:
        """Go to the first chunk of the next block of the row, from the last to the first."""
        if self.level != CHUNKS or self.found is None or not self.found.chunks:
            return
        chunks = self.found.chunks
        places = [*range(self.chunk + 1, ROW_CHUNKS), *range(self.chunk + 1)]
        here = chunks[self.chunk]
        self.chunk = next((at for at in places if chunks[at] >= 0 and chunks[at] != here), self.chunk)
        self.redraw()

    # ---- drawing ----

    def draw(self, width: int, height: int) -> list[Text]:
        """Return the picture of what was found last."""
        paint, found = self.paint, self.found
        if found is None:
            return [Text(f"process {self.process.pid} has ended: q quits" if self.over else "looking ...")]
        state = " ENDED: q quits" if self.over else " PAUSED: p goes on" if self.paused else f" every {self.every:g} s"
        right = f" {found.at}{state}"
        command = draw_packs.printable(self.process.command, paint, max(width - len(right) - 24, 8))
        title = Text(f"execmem top {self.process.pid}: {command}", style="bold")
        title.append(right, "reverse bold" if self.over or self.paused else "")
        keys = Text(KEYS[found.want.level].format(sort=found.want.sort, by=found.want.by), style="dim")
        room = height - 2
        parts = {PACKS: self._draw_packs, INSIDE: self._draw_rows, CHUNKS: self._draw_chunks}
        body = parts[found.want.level](found, self.columns, room)
        return [title, *body[:room], *[Text()] * (room - len(body)), keys]

    def _draw_packs(self, found: Found, width: int, room: int) -> list[Text]:
        """Return the list of packs around the cursor, and below it what else is known of the one under it."""
        lines: list[Text] = []
        first = last = 0
        for domain in found.domains:
            head = draw_packs.head(domain, self.paint)
            lines += draw_texts(head if domain.packs else head[:1])
            if domain.packs:
                lines.append(draw_text(self.paint.dim(draw_packs.axis(found.want.cells))))
            for pack in domain.packs:
                block = draw_texts(draw_packs.draw_pack(pack, domain.by, self.paint))
                if (domain.number, pack.number) == self.chosen:
                    first, last = len(lines), len(lines) + len(block) - 1
                    mark(block[0], self.paint)
                lines += block
            if domain.packs_left_out:
                lines.append(Text(draw_packs.tell_left_out(domain), style="dim"))
            lines.append(Text())
        if not found.domains:
            lines.append(Text("no domain is open now"))
        below = self._tell_pack(found, width)
        room -= len(below)
        # At the first pack the lines over it are shown too, where there is room: they tell of the domain.
        first = 0 if self.chosen in self.listed[:1] and last < room else first
        self.offset = window(self.offset, first, last, len(lines), room)
        body = lines[self.offset : self.offset + room]
        return [*body, *[Text()] * (room - len(body)), *below]

    def _tell_pack(self, found: Found, width: int) -> list[Text]:
        """Return lines about the pack under the cursor, after a rule."""
        lines = [draw_text(self.paint.rule(width))]
        lettered = found.domains[:1]  # where no pack is chosen
        for domain in found.domains:
            for pack in domain.packs:
                if (domain.number, pack.number) == self.chosen:
                    lines += tell_pack(pack, domain.name, self.paint)
                    lettered = [domain]
        if found.want.by != "fill":
            lines += [draw_text(tell_letters(domain, self.paint)) for domain in lettered]
        return [*lines, *([Text(self.note, style="bold")] if self.note else [])]

    def _draw_rows(self, found: Found, width: int, room: int) -> list[Text]:
        """Return the rows of a pack, the one under the cursor marked."""
        if found.pack is None:
            return []
        top = [*tell_pack(found.pack, found.name, self.paint), draw_text(self.paint.rule(width))]
        axis, *rows = draw_texts(draw_packs.draw_rows(found.pack, found.rows, self.paint, width)[: ROWS + 1])
        mark(rows[self.row], self.paint)
        below = draw_texts([self.paint.rule(width), f"ages: {draw_packs.age_marks(self.paint)}"])
        room -= len(top) + 1 + len(below)
        self.offset = window(self.offset, self.row, self.row, len(rows), room)
        return [*top, axis, *rows[self.offset : self.offset + room], *below]

    def _draw_chunks(self, found: Found, width: int, room: int) -> list[Text]:
        """Return the chunks of a row and the block under the cursor; where there is room its other blocks too."""
        if found.pack is None:
            return []
        start = found.want.row * ROW_CHUNKS * CHUNK
        drawn = draw_texts(draw_packs.draw_row(start, found.blocks, found.chunks, self.paint, width))
        grid, table = drawn[1 : 1 + ROW_CHUNKS // GRID], drawn[2 + ROW_CHUNKS // GRID :]
        at = GRID_AT + self.chunk % GRID
        grid[self.chunk // GRID].stylize("reverse bold", at, at + 1)
        name = draw_packs.printable(found.name, self.paint, 24)
        head = f"row {found.want.row} of pack {found.pack.number} of {name}; %: in use, but by no live block"
        told = self._tell_chunk(found, width)
        lines = [Text(head), *grid, *told]
        room -= len(lines) + 1
        place = found.chunks[self.chunk]
        if len(table) > 1 and room > 2:  # noqa: PLR2004 - a rule, a heading and a block
            rows = table[1:]
            begin = window(0, max(place, 0), max(place, 0), len(rows), room - 1)
            lines += [draw_text(self.paint.rule(width)), table[0], *rows[begin : begin + room - 1]]
        return lines

    def _tell_chunk(self, found: Found, width: int) -> list[Text]:
        """Return what the chunk under the cursor is of."""
        if found.pack is None:
            return []
        place = found.chunks[self.chunk]
        address = found.pack.address + (found.want.row * ROW_CHUNKS + self.chunk) * CHUNK
        where = f"chunk {self.chunk} of the row, at {address:#x}: "
        if place < 0:
            of = {
                draw_packs.BLANK: "free",
                draw_packs.HELD: "in use, by no live block (parked, retired or held)",
            }
            return [Text(where + of.get(place, "not open for blocks")), Text(), Text()]
        block = found.blocks[place]
        owner = draw_packs.printable(block.owner, self.paint, 24)
        name = draw_packs.printable(block.name, self.paint, width - 10) or "(no name)"
        size = f"{block.size:,} bytes in {block.chunks:,} chunks"
        letter, _ = draw_packs.chunk_letter(place, self.paint)
        return [
            Text(f"{where}block {letter} at {block.address:#x}"),
            Text(f"  {size}, {block.state}, {draw_packs.tell_age(block.age_ms)} old, of {owner}"),
            Text(f"  name {name}", style="bold"),
        ]


# ---- what needs no screen ----


def mark(line: Text, paint: Paint) -> None:
    """Mark a line as the one under the cursor: by a sign, and its label reversed."""
    sign = "▶" if paint.unicode else ">"
    line.plain = line.plain[:MARK_AT] + sign + line.plain[MARK_AT + 1 :]
    line.stylize("reverse", 0, MARK_AT)


def move(place: int, key: str, count: int) -> int:
    """Return where a key moves to in a list.

    >>> move(5, "up", 32), move(5, "pagedown", 10), move(5, "home", 32), move(5, "left", 32)
    (4, 9, 0, 5)
    """
    steps = {"up": -1, "down": 1, "pageup": -PAGE, "pagedown": PAGE, "home": -count, "end": count}
    return min(max(place + steps.get(key, 0), 0), count - 1)


def move_in_grid(place: int, key: str) -> int:
    """Return where a key moves to among the chunks of a row; at an edge it stays.

    >>> move_in_grid(3, "up"), move_in_grid(3, "down"), move_in_grid(0, "left"), move_in_grid(64, "left")
    (3, 67, 0, 63)
    """
    steps = {"up": -GRID, "down": GRID, "left": -1, "right": 1, "pageup": -4 * GRID, "pagedown": 4 * GRID}
    if key in {"home", "end"}:
        return 0 if key == "home" else ROW_CHUNKS - 1
    to = place + steps[key]
    return to if 0 <= to < ROW_CHUNKS else place


def tell_pack(pack: PackFacts, domain: str, paint: Paint) -> list[Text]:
    """Return two lines about a pack."""
    name = draw_packs.printable(domain, paint, 24)
    full = f"{pack.fill:.1%} of {tell_bytes(pack.usable_bytes)} in use"
    badge = draw_packs.tell_pages(pack.pages)
    more = draw_packs.notes(pack)
    state = f"span of {pack.packs} packs" if pack.state == "span" else pack.state
    blocks = f"{pack.blocks:,} block{'s' * (pack.blocks != 1)}"
    return [
        Text(f"pack {pack.number} of {name}, {pack.kind}, {state}, at {pack.address:#x}", style="bold"),
        Text(", ".join([f"{blocks}, {full}; {badge}", *more])),
    ]


def tell_letters(domain: DomainFacts, paint: Paint) -> str:
    """Return what the letters of a domain's bars mean."""
    if domain.by == "age":
        return f"ages: {draw_packs.age_marks(paint)}"
    owners = (domain.owners or [])[: len(draw_packs.OWNER_LETTERS) - 1]
    names = [
        f"{draw_packs.tint(letter, colour, paint, ground=True)} {draw_packs.printable(owner.name, paint, 16)}"
        for letter, colour, owner in zip(draw_packs.OWNER_LETTERS, draw_packs.OWNER_COLOURS, owners, strict=False)
    ]
    return f"owners in {draw_packs.printable(domain.name, paint, 16)}: {'  '.join(names)}  * others"
