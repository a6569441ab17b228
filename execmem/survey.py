"""survey: what a ledger says, as the numbers that a picture of packs shows.

    watch.Look, used bits ----> bars by fill: O(packs), for a view that is refreshed
    watch.Ledger.blocks ------> owners, ages, who pins a pack: once, for a view that is read

Nothing here draws or opens anything; the records are what ``execmem map --json`` prints (docs/watch.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem._core import ffi, lib
from execmem.ledger import WORD_MAX
from execmem.watch import Look, Pages, PagesFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from execmem.watch import Ledger

KINDS: Final = ("text", "rodata", "data")
STATES: Final = {
    lib.EXECMEM_PACK_SMALL: "small",
    lib.EXECMEM_PACK_FULL: "full",
    lib.EXECMEM_PACK_SPAN: "span",
}
BLOCK_STATES: Final = {
    lib.EXECMEM_BLOCK_RESERVED: "reserved",
    lib.EXECMEM_BLOCK_FILLED: "filled",
    lib.EXECMEM_BLOCK_RETIRED: "retired",
}
SEALED: Final = ("no", "library", "mappings", "kernel")
AGES: Final = (  # upper edge in ms, and what it is called
    (1_000, "under 1 s"),
    (10_000, "under 10 s"),
    (60_000, "under 1 min"),
    (600_000, "under 10 min"),
    (3_600_000, "under 1 h"),
    (86_400_000, "under 1 day"),
    (None, "1 day or more"),
)
OWNERS_SHOWN: Final = 7  # with a letter and a colour of their own
OTHER: Final = OWNERS_SHOWN  # the class of all further owners
NO_CLASS: Final = -1
NO_NAME: Final = "(no name)"
PINNED_BELOW: Final = 1 / 8  # of a full pack in use: who keeps it is told
PINS_TOLD: Final = 5
ROW_CHUNKS: Final = 1024  # 64 kB
ROWS: Final = lib.EXECMEM_PACK_CHUNKS // ROW_CHUNKS
ROW_CELLS: Final = 64
SPLIT: Final = re.compile(r"[:/.@!]")
COUNTERS: Final = ("allocs", "frees", "fills", "refusals", "events")


# ---- records ----


@dataclass(frozen=True)
class PackFacts:
    """One pack: what its counters, its bits and, if they were asked for, its blocks say."""

    number: int
    address: int
    kind: str
    state: str
    packs: int  # 1, or how many a span covers
    usable_bytes: int
    used_bytes: int
    fill: float
    largest_free_bytes: int
    blocks: int
    parked: int
    retired: int
    held: int
    draining: bool
    inherited: bool
    shard: int
    age_ms: int
    pages: PagesFound
    cells: list[float | None]  # share in use, by address; None: not open for blocks
    classes: list[int] | None = None  # of each cell: the owner or age of most bytes, NO_CLASS: of nobody
    oldest_ms: int | None = None
    pinned_by: list[str] | None = None  # of a nearly empty pack: the largest of its blocks


@dataclass(frozen=True)
class Share:
    """Blocks of one owner, or of one age."""

    name: str
    blocks: int
    bytes: int
    oldest_ms: int
    youngest_ms: int


@dataclass(frozen=True)
class DomainFacts:
    """One domain: its counters, its packs and whose its blocks are."""

    name: str
    number: int
    parent: int
    arch: str
    write_mode: str
    sealed: str
    limit_bytes: int | None
    age_ms: int
    live_blocks: int
    live_bytes: int
    used_bytes: int
    quarantined_bytes: int
    retired_blocks: int
    packs_live: int
    packs_made: int
    packs_returned: int
    collapses: int
    collapse_failures: int
    per_second: dict[str, float] | None
    per_second_why: str | None
    interval: float | None
    packs: list[PackFacts]
    packs_left_out: int
    fills: list[int]  # packs by tenths of fill
    by: str
    owners: list[Share] | None
    ages: list[Share] | None
    of_one_moment: bool | None  # False: blocks came and went while they were read


@dataclass(frozen=True)
class Wish:
    """What of a domain is to be looked at."""

    cells: int  # of a bar; a power of two
    limit: int | None  # bars, None: all
    sort: str  # "number", or "fill": emptiest first
    by: str  # "owner", "age", or "fill": block records are not read


# ---- bars ----


def fill_cells(used: npt.NDArray[np.bool_], cells: int, whole: int = lib.EXECMEM_PACK_CHUNKS) -> list[float | None]:
    """Return the share in use of equal parts of ``whole`` chunks; None for what is not open.

    >>> fill_cells(np.array([True, True, True, False]), 4, 8)
    [1.0, 0.5, None, None]
    """
    per = whole // cells
    padded = np.zeros(whole, dtype=np.bool_)
    padded[: len(used)] = used
    counts = padded.reshape(cells, per).sum(axis=1).tolist()
    opened = np.clip(len(used) - np.arange(cells) * per, 0, per).tolist()
    return [count / room if room else None for count, room in zip(counts, opened, strict=True)]


def largest_run(used: npt.NDArray[np.bool_]) -> int:
    """Return the length of the longest run of what is not in use.

    >>> largest_run(np.array([False, True, False, False, True])), largest_run(np.array([], dtype=bool))
    (2, 0)
    """
    edges = np.concatenate(([-1], np.flatnonzero(used), [len(used)]))
    return int(np.diff(edges).max()) - 1


def ranges(blocks: npt.NDArray[np.void], start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first chunk of each block, counted from an address, and the one behind its last."""
    first = (blocks["address"] - np.uint64(start)).astype(np.int64) // lib.EXECMEM_CHUNK
    return first, first - (-blocks["size"].astype(np.int64) // lib.EXECMEM_CHUNK)


def class_cells(
    first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], classes: npt.NDArray[np.int64], cells: int
) -> list[int]:
    """Return, for equal parts of a pack, the class that has most of its chunks.

    >>> class_cells(np.array([0, 16384]), np.array([100, 32768]), np.array([2, 5]), 4)
    [2, -1, 5, 5]
    """
    per = lib.EXECMEM_PACK_CHUNKS // cells
    last = np.minimum(last, lib.EXECMEM_PACK_CHUNKS)
    lengths = np.maximum(last - first, 0)
    total = int(lengths.sum())
    chunks = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(total)
    width = OWNERS_SHOWN + 1
    counts = np.bincount(chunks // per * width + np.repeat(classes, lengths), minlength=cells * width)
    counts = counts[: cells * width].reshape(cells, width)
    return [int(best) if row[best] else NO_CLASS for row, best in zip(counts, counts.argmax(axis=1), strict=True)]


# ---- owners and ages ----


def owner_of(name: str) -> str:
    """Return whose a block is, as far as its name tells: before the first of ``: / . @ !``, or without its number.

    >>> [owner_of(name) for name in ("v8:dot", "expr_417", "", "7", ".init")]
    ['v8', 'expr', '(no name)', '7', '.init']
    """
    head, *rest = SPLIT.split(name, maxsplit=1)
    if head and rest:
        return head
    return name.rstrip("0123456789").rstrip("_-#") or name or NO_NAME


def age_class(ages_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which of AGES each age is."""
    edges = [edge for edge, _ in AGES if edge is not None]
    return np.searchsorted(edges, ages_ms, side="right").astype(np.int64)


class Tally:
    """Adds up blocks by a text."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.rows: dict[str, list[int]] = {}

    def add(
        self,
        names: Sequence[str],
        which: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        ages: npt.NDArray[np.int64],
    ) -> None:
        """Add blocks: ``which`` is the number of each one's name."""
        count = len(names)
        blocks = np.bincount(which, minlength=count).tolist()
        total = np.bincount(which, weights=sizes, minlength=count).astype(np.int64).tolist()
        oldest, youngest = np.zeros(count, dtype=np.int64), np.full(count, np.iinfo(np.int64).max)
        np.maximum.at(oldest, which, ages)
        np.minimum.at(youngest, which, ages)
        for place, name in enumerate(names):
            if blocks[place]:
                row = self.rows.setdefault(name, [0, 0, 0, int(youngest[place])])
                row[0] += blocks[place]
                row[1] += total[place]
                row[2] = max(row[2], int(oldest[place]))
                row[3] = min(row[3], int(youngest[place]))

    def shares(self) -> list[Share]:
        """Return the rows, most bytes first."""
        order = sorted(self.rows.items(), key=lambda item: (-item[1][1], item[0]))
        return [Share(name, *row) for name, row in order]


@dataclass(frozen=True)
class PackBlocks:
    """The blocks of one pack and what is known of each."""

    blocks: npt.NDArray[np.void]
    ages: npt.NDArray[np.int64]
    names: list[str]
    owners: list[str]  # different ones
    which: npt.NDArray[np.int64]  # of each block: its owner's number


def read_pack(ledger: Ledger, number: int, now_ms: int) -> tuple[PackBlocks, bool]:
    """Return the blocks of a pack with names, owners and ages, and whether they are of one moment."""
    blocks, steady = ledger.blocks(number)
    names = ledger.names(blocks["name"])
    owners: dict[str, int] = {}
    which = np.array([owners.setdefault(owner_of(name), len(owners)) for name in names], dtype=np.int64)
    ages = np.maximum(now_ms - blocks["born_ms"].astype(np.int64), 0)
    return PackBlocks(blocks, ages, names, list(owners), which), steady


def tell_pins(pack: PackBlocks) -> list[str]:
    """Return the names of a pack's largest blocks, an address where there is none."""
    order = np.argsort(-pack.blocks["size"].astype(np.int64), kind="stable")[:PINS_TOLD].tolist()
    return [pack.names[place] or f"{NO_NAME} {int(pack.blocks['address'][place]):#x}" for place in order]


# ---- a domain ----


def rates(before: Look | None, after: Look) -> tuple[dict[str, float] | None, float | None]:
    """Return events per second between two looks, and the seconds between them."""
    if before is None or after.monotonic_ns <= before.monotonic_ns:
        return None, None
    seconds = (after.monotonic_ns - before.monotonic_ns) / 1e9
    # A domain's counters are sums modulo 2**64, and so are differences of them.
    counted = {key: (after.total(key) - before.total(key)) % 2**64 / seconds for key in COUNTERS}
    return counted, seconds


def choose_packs(look: Look, wish: Wish) -> list[int]:
    """Return the packs that are shown, in order."""
    shown = look.shown
    if wish.sort == "fill":
        packs = look.packs
        shown.sort(key=lambda number: packs["used_chunks"][number] / max(packs["usable_chunks"][number], 1))
    return shown if wish.limit is None else shown[: wish.limit]


def pack_facts(ledger: Ledger, look: Look, number: int, cells: int, pages: Pages | None) -> PackFacts:
    """Return what the counters and the bits of a pack say; some 0.1 ms, whatever it holds."""
    record = look.packs[number]
    span = record["state"] == lib.EXECMEM_PACK_SPAN
    covered = int(record["span_packs"]) if span else 1
    usable = int(record["usable_chunks"])
    used_bits = np.ones(lib.EXECMEM_PACK_CHUNKS, dtype=np.bool_) if span else ledger.used(number)
    used = usable if span else int(used_bits.sum())
    address, size = int(record["address"]), usable * lib.EXECMEM_CHUNK
    if pages is None:
        huge = covered * lib.EXECMEM_PACK_SIZE if record["huge"] else 0
        found = PagesFound(huge, None, "ledger", "a copy: as the kernel last told its process")
    else:
        found = pages.find(
            address, covered * lib.EXECMEM_PACK_SIZE if record["state"] != lib.EXECMEM_PACK_SMALL else size
        )
    return PackFacts(
        number=number,
        address=address,
        kind=KINDS[record["kind"]],
        state=STATES.get(int(record["state"]), "gone"),
        packs=covered,
        usable_bytes=size,
        used_bytes=used * lib.EXECMEM_CHUNK,
        fill=used / max(usable if span else len(used_bits), 1),
        largest_free_bytes=0 if span else largest_run(used_bits) * lib.EXECMEM_CHUNK,
        blocks=max(int(record["blocks"]) - int(record["retired"]), 0),
        parked=int(record["parked"]),
        retired=int(record["retired"]),
        held=int(record["held"]),
        draining=bool(record["draining"]),
        inherited=bool(record["inherited"]),
        shard=int(record["shard"]),
        age_ms=look.age_ms(int(record["born_ms"])),
        pages=found,
        cells=fill_cells(used_bits, cells),
    )


def nearly_empty(pack: PackFacts) -> bool:
    """Whether a pack is kept for little: who does is told."""
    return pack.state == "full" and 0 < pack.used_bytes < PINNED_BELOW * pack.usable_bytes


class BlockSurvey:
    """What the block records of a domain add to its counters: owners, ages, pins. About 1 ms a pack."""

    def __init__(self, ledger: Ledger, look: Look, kept: Sequence[int]) -> None:
        """Read every pack; the blocks of those in ``kept`` are kept."""
        owners, ages = Tally(), Tally()
        texts = [text for _, text in AGES]
        self.kept: dict[int, PackBlocks] = {}
        self.steady = True
        wanted = frozenset(kept)
        for number in look.shown:
            pack, steady = read_pack(ledger, number, look.now_ms)
            self.steady &= steady
            sizes = pack.blocks["size"].astype(np.int64)
            owners.add(pack.owners, pack.which, sizes, pack.ages)
            ages.add(texts, age_class(pack.ages), sizes, pack.ages)
            if number in wanted:
                self.kept[number] = pack
        self.owners = owners.shares()
        found = {share.name: share for share in ages.shares()}
        self.ages = [found[text] for text in texts if text in found]
        self._rank = {share.name: place for place, share in enumerate(self.owners[:OWNERS_SHOWN])}

    def add_to(self, facts: PackFacts, by: str) -> PackFacts:
        """Return the facts of a pack with what its blocks tell."""
        pack = self.kept[facts.number]
        if by == "owner":
            ranks = np.array([self._rank.get(owner, OTHER) for owner in pack.owners], dtype=np.int64)
            classes = ranks[pack.which] if len(pack.which) else pack.which
        else:
            classes = age_class(pack.ages)
        first, last = ranges(pack.blocks, facts.address)
        return PackFacts(
            **{
                **facts.__dict__,
                "classes": class_cells(first, last, classes, len(facts.cells)),
                "oldest_ms": int(pack.ages.max()) if len(pack.ages) else None,
                "pinned_by": tell_pins(pack) if nearly_empty(facts) else None,
            }
        )


def survey_domain(  # noqa: PLR0913, PLR0917 - the last is for pages only
    ledger: Ledger,
    before: Look | None,
    look: Look,
    pages: Pages | None,
    wish: Wish,
    kept: dict[int, PackBlocks] | None = None,
) -> DomainFacts:
    """Return what a domain's ledger says. By fill: O(packs), else its block records are read too, and `kept` if given.

    Those of the packs that are shown are kept, under the numbers of these.
    """
    header = look.header
    chosen = choose_packs(look, wish)
    packs = [pack_facts(ledger, look, number, wish.cells, pages) for number in chosen]
    blocks = None if wish.by == "fill" else BlockSurvey(ledger, look, chosen)
    if blocks is not None:
        packs = [blocks.add_to(pack, wish.by) for pack in packs]
        if kept is not None:
            kept.update(blocks.kept)
    counted, seconds = rates(before, look)
    shown = look.packs[look.shown]
    tenths = np.minimum(shown["used_chunks"].astype(np.int64) * 10 // np.maximum(shown["usable_chunks"], 1), 9)
    limit = int(header["limit"])
    return DomainFacts(
        name=ledger.name,
        number=ledger.domain,
        parent=int(header["parent"]),
        arch=bytes(header["arch"]).decode("ascii", "replace"),
        write_mode=mode_name(int(header["write_mode"])),
        sealed=SEALED[int(header["sealed"])] if header["sealed"] < len(SEALED) else str(int(header["sealed"])),
        limit_bytes=None if limit == 2**64 - 1 else limit,
        age_ms=look.now_ms,
        live_blocks=(look.live_blocks - look.total("retired_blocks")) & WORD_MAX,
        live_bytes=(look.total("live_bytes") - look.total("retired_bytes")) & WORD_MAX,
        used_bytes=look.total("used_bytes"),
        quarantined_bytes=look.total("quarantined_bytes"),
        retired_blocks=look.total("retired_blocks"),
        packs_live=int(header["packs_live"]),
        packs_made=int(header["packs_made"]),
        packs_returned=int(header["packs_returned"]),
        collapses=int(header["collapses"]),
        collapse_failures=int(header["collapse_failures"]),
        per_second=counted,
        per_second_why=None if counted else ("one look only" if ledger.live else "a copy does not move"),
        interval=seconds,
        packs=packs,
        packs_left_out=len(shown) - len(packs),
        fills=np.bincount(tenths, minlength=10).tolist(),
        by=wish.by,
        owners=None if blocks is None else blocks.owners,
        ages=None if blocks is None else blocks.ages,
        of_one_moment=None if blocks is None else blocks.steady,
    )


def mode_name(mode: int) -> str:
    """Return the name of a write mode."""
    return ffi.string(lib.execmem_mode_name(mode)).decode() if 0 <= mode < lib.EXECMEM_MODES else f"mode {mode}"


# ---- drill-down ----


@dataclass(frozen=True)
class RowFacts:
    """64 kB of a pack."""

    row: int
    address: int
    fill: float | None  # None: not open for blocks
    largest_free_bytes: int
    blocks: int  # that begin in it
    cells: list[float | None]
    classes: list[int]


@dataclass(frozen=True)
class BlockFacts:
    """One block."""

    address: int
    size: int
    first_chunk: int  # in the pack
    chunks: int
    state: str
    age_ms: int
    name: str
    owner: str


def survey_rows(ledger: Ledger, pack: PackFacts, now_ms: int) -> list[RowFacts]:
    """Return the 64 kB rows of a pack."""
    held, _ = read_pack(ledger, pack.number, now_ms)
    first, last = ranges(held.blocks, pack.address)
    classes = class_cells(first, last, age_class(held.ages), ROWS * ROW_CELLS)
    span = pack.state == "span"
    used = np.ones(lib.EXECMEM_PACK_CHUNKS, dtype=np.bool_) if span else ledger.used(pack.number)
    rows = []
    for row in range(ROWS):
        part = used[row * ROW_CHUNKS : (row + 1) * ROW_CHUNKS]
        begin = np.count_nonzero(first // ROW_CHUNKS == row)
        rows.append(
            RowFacts(
                row=row,
                address=pack.address + row * ROW_CHUNKS * lib.EXECMEM_CHUNK,
                fill=float(part.mean()) if len(part) else None,
                largest_free_bytes=largest_run(part) * lib.EXECMEM_CHUNK if len(part) else 0,
                blocks=int(begin),
                cells=fill_cells(part, ROW_CELLS, ROW_CHUNKS),
                classes=classes[row * ROW_CELLS : (row + 1) * ROW_CELLS],
            )
        )
    return rows


def chunks_of_nobody(ledger: Ledger, pack: PackFacts, blocks: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Return a bool a usable chunk: in use, but of none of these blocks (parked, retired, held for a fork)."""
    if pack.state == "span":
        return np.zeros(lib.EXECMEM_PACK_CHUNKS, dtype=np.bool_)
    alone = ledger.used(pack.number)
    first, last = ranges(blocks, pack.address)
    steps = np.zeros(lib.EXECMEM_PACK_CHUNKS + 1, dtype=np.int64)
    np.add.at(steps, np.clip(first, 0, lib.EXECMEM_PACK_CHUNKS), 1)
    np.add.at(steps, np.clip(last, 0, lib.EXECMEM_PACK_CHUNKS), -1)
    alone[np.cumsum(steps)[: len(alone)] > 0] = False
    return alone


def survey_row(ledger: Ledger, pack: PackFacts, row: int, now_ms: int) -> tuple[list[BlockFacts], list[int]]:
    """Return the blocks that have chunks in a row, and of each chunk which of them it is of.

    -1: of nobody, -2: in use, but of no live block (parked, retired, held for a fork), -3: not open for blocks.
    """
    held, _ = read_pack(ledger, pack.number, now_ms)
    used = np.ones(lib.EXECMEM_PACK_CHUNKS, dtype=np.bool_) if pack.state == "span" else ledger.used(pack.number)
    low, high = row * ROW_CHUNKS, (row + 1) * ROW_CHUNKS
    first, last = ranges(held.blocks, pack.address)
    part = used[low:high]
    chunks = np.full(ROW_CHUNKS, -3, dtype=np.int64)
    chunks[: len(part)] = np.where(part, -2, -1)
    found: list[BlockFacts] = []
    for place in np.flatnonzero((first < high) & (last > low)).tolist():
        begin, end = int(first[place]), int(last[place])
        chunks[max(begin - low, 0) : min(end, high) - low] = len(found)
        block = held.blocks[place]
        found.append(
            BlockFacts(
                address=int(block["address"]),
                size=int(block["size"]),
                first_chunk=begin,
                chunks=end - begin,
                state=BLOCK_STATES.get(int(block["state"]), "being freed"),
                age_ms=int(held.ages[place]),
                name=held.names[place],
                owner=owner_of(held.names[place]),
            )
        )
    return found, chunks.tolist()
