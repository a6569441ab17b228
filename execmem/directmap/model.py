"""model: a machine's direct map, and what loading a program does to it.

    extents     [first ... last) of pages mapped alike: with 4 KB, 2 MB or 1 GB pages, read-only or not
    protect     the same permission again: nothing. A whole 2 MB page: rewritten in place. A part of it: split to 4 KB.
                A part of a 1 GB page: split to 2 MB first
    join        4 KB pages of a region, all there and all alike, become one 2 MB page; no kernel of the lab ever did it

`Kernel` holds what differs between kernels, one set of figures each, `KERNELS` those of the lab (docs/model.md says
where each figure comes from). `Machine` is a kernel on memory: physical pages, direct map, and what a program takes
besides its code.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from sortedcontainers import SortedDict

from execmem.directmap.pages import (
    MAX_ORDER,
    MOVABLE,
    PAGE,
    REGION,
    REGION_ORDER,
    UNMOVABLE,
    ListRule,
    Memory,
    OutOfMemoryError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GIGA: Final = 1 << 18  # pages of 4 KB in 1 GB
STEERING: Final = 16
FIRST_FREE: Final = 11 * REGION  # below lie the kernel itself and what was mapped with 4 KB pages from the start


class Size(enum.IntEnum):
    """What maps an extent; the value is its pages."""

    HOLE = 0
    PAGE = 1
    REGION = REGION
    GIGA = GIGA


class Extent(NamedTuple):
    """A run of pages mapped alike."""

    last: int
    size: Size
    read_only: bool


class DirectMap:
    """The kernel's map of all memory: what is mapped with which page size, and what was split.

    >>> table = DirectMap([(0, 4 * REGION, Size.REGION)])
    >>> table.protect(5, 6, read_only=True), table.protect(REGION, 2 * REGION, read_only=True)
    (1, 0)
    >>> table.protect(5, 6, read_only=False), table.split
    (0, {0})
    >>> table.join(0), table.split
    (True, set())
    """

    def __init__(self, extents: Iterable[tuple[int, int, Size]]) -> None:
        """Map [first, last) with pages of a size each; what is not named is a hole. Time grows with extents."""
        self._extents: SortedDict[int, Extent] = SortedDict()
        self.split: set[int] = set()  # regions that are mapped with 4 KB pages and were not at first
        self.splits: Counter[Size] = Counter()
        self.joins: Counter[Size] = Counter()
        self._gigas: set[int] = set()  # 1 GB pages there were at first
        for first, last, size in extents:
            self._extents[first] = Extent(last, size, read_only=False)
            if size == Size.GIGA:
                self._gigas.update(range(first // GIGA, last // GIGA))

    def protect(self, first: int, last: int, *, read_only: bool) -> int:
        """Change the permission of pages [first, last); return how many 2 MB pages that split. O(log extents)."""
        before = self.splits[Size.REGION]
        for start, extent in self._different(first, last, read_only=read_only):
            low, high = max(start, first), min(extent.last, last)
            pieces = [(start, extent)]
            if low % extent.size or high % extent.size:
                for size, below in ((Size.GIGA, Size.REGION), (Size.REGION, Size.PAGE)):
                    pieces = [part for piece in pieces for part in self._cut(piece, low, high, size, below)]
                for begin, piece in pieces:
                    self._extents[begin] = piece
            for begin, piece in pieces:
                if begin < high and piece.last > low:
                    self._repaint(begin, piece, max(begin, low), min(piece.last, high), read_only=read_only)
        return self.splits[Size.REGION] - before

    def _different(self, first: int, last: int, *, read_only: bool) -> list[tuple[int, Extent]]:
        """Return the extents in [first, last) that have another permission."""
        touched: list[tuple[int, Extent]] = []
        begin = next(self._extents.irange(maximum=first, reverse=True), first)
        extent = self._extents.get(begin)
        if extent is not None and extent.last >= last:  # nearly always
            return [(begin, extent)] if extent.size and extent.read_only != read_only else touched
        for start in self._extents.irange(begin, last, inclusive=(True, False)):
            extent = self._extents[start]
            if extent.last > first and extent.size and extent.read_only != read_only:
                touched.append((start, extent))
        return touched

    def _repaint(self, start: int, extent: Extent, first: int, last: int, *, read_only: bool) -> None:
        """Give [first, last) of one extent another permission; neighbours mapped alike become one extent."""
        size = extent.size
        new = Extent(last, size, read_only)
        if last < extent.last:
            self._extents[last] = extent
        else:
            after = self._extents.get(last)
            if after is not None and after.size == size and after.read_only == read_only:
                del self._extents[last]
                new = after
        if first > start:
            self._extents[start] = Extent(first, size, extent.read_only)
            self._extents[first] = new
            return
        begin = next(self._extents.irange(maximum=start, inclusive=(True, False), reverse=True), None)
        before = None if begin is None else self._extents[begin]
        if before is not None and before == (start, size, read_only):
            self._extents[begin] = new
            del self._extents[start]
        else:
            self._extents[start] = new

    def _cut(
        self, piece: tuple[int, Extent], first: int, last: int, size: Size, below: Size
    ) -> list[tuple[int, Extent]]:
        """Split the large pages of a piece that [first, last) covers in part."""
        start, extent = piece
        if extent.size != size or extent.last <= first or start >= last:
            return [piece]
        cut = {edge // size for edge in (max(first, start), min(last, extent.last)) if edge % size}
        self.splits[size] += len(cut)
        if size == Size.REGION:
            self.split |= cut
        parts = []
        at = start
        for large in sorted(cut):
            if at < large * size:
                parts.append((at, extent._replace(last=large * size)))
            at = (large + 1) * size
            parts.append((large * size, extent._replace(last=at, size=below)))
        if at < extent.last:
            parts.append((at, extent))
        return parts

    def _insert(self, first: int, extent: Extent) -> None:
        """Add an extent; one with its neighbours where these are mapped alike."""
        after = self._extents.get(extent.last)
        if after is not None and after[1:] == extent[1:]:
            del self._extents[extent.last]
            extent = extent._replace(last=after.last)
        at = self._extents.bisect_left(first) - 1
        if at >= 0:
            start, before = self._extents.peekitem(at)
            if before.last == first and before[1:] == extent[1:]:
                first = start
        self._extents[first] = extent

    def join(self, region: int) -> bool:
        """Map a split region with one page again if all of it has one permission; tell whether that was done."""
        first = region * REGION
        start, extent = self._extents.peekitem(self._extents.bisect_right(first) - 1)
        if region not in self.split or extent.last < first + REGION:
            return False
        self.split.remove(region)
        self.joins[Size.REGION] += 1
        self._replace(start, extent, first, first + REGION, Size.REGION)
        giga = first // GIGA
        start, extent = self._extents.peekitem(self._extents.bisect_right(first) - 1)
        if giga in self._gigas and start <= giga * GIGA and extent.last >= (giga + 1) * GIGA:
            self.joins[Size.GIGA] += 1
            self._replace(start, extent, giga * GIGA, (giga + 1) * GIGA, Size.GIGA)
        return True

    def _replace(self, start: int, extent: Extent, first: int, last: int, size: Size) -> None:
        """Map [first, last) of one extent with pages of another size."""
        del self._extents[start]
        if start < first:
            self._extents[start] = extent._replace(last=first)
        if last < extent.last:
            self._extents[last] = extent
        self._insert(first, extent._replace(last=last, size=size))

    def bytes_by_size(self) -> dict[Size, int]:
        """Return how many bytes are mapped with pages of each size. Time grows with extents."""
        found = dict.fromkeys((Size.PAGE, Size.REGION, Size.GIGA), 0)
        for start, extent in self._extents.items():
            if extent.size:
                found[extent.size] += (extent.last - start) * PAGE
        return found

    def check(self) -> str | None:
        """Say what is wrong with the extents, or nothing."""
        end = 0
        for start, extent in self._extents.items():
            if start < end:
                return f"the extent at page {start} begins before the one before it ends"
            if extent.last <= start:
                return f"the extent at page {start} is empty"
            if extent.size and (start % extent.size or extent.last % extent.size):
                return f"the extent at page {start} is cut within a page of {extent.size * 4} KB"
            end = extent.last
        for region in self.split:
            start, extent = self._extents.peekitem(self._extents.bisect_right(region * REGION) - 1)
            if extent.size != Size.PAGE:
                return f"region {region} counts as split and is mapped with larger pages"
        return None


# ---- kernels ----


@dataclass(frozen=True)
class Kernel:
    """What of a kernel decides where its pages lie.

    `slabs`: per program, pages of small objects (order of the slab, objects in it, empty slabs that are kept).
    `areas`: vmalloc areas a program has besides its code, of one page and a guard page each; their page tables are
    never given back. `contiguous`: vmalloc asks for the largest blocks first.
    """

    name: str
    rule: ListRule
    slabs: tuple[tuple[int, int, int], ...]
    contiguous: bool = False
    areas: int = 1


_SLABS: Final = ((2, 8, 12), (0, 6, 200))
KERNELS: Final = {
    kernel.name: kernel
    for kernel in (
        Kernel("5.10", ListRule(by_watermark=False, orders=1), ((1, 8, 12), (0, 6, 200)), areas=1),
        Kernel("6.1", ListRule(by_watermark=True, overflow=1 << 40), _SLABS),
        Kernel("6.12", ListRule(by_watermark=True, overflow=2016, decay=2016), _SLABS),
        Kernel("7.2", ListRule(by_watermark=True, overflow=2016, decay=2016), _SLABS, contiguous=True),
    )
}


class SlabCache:
    """Small objects of one size: which slab one comes from, and when a slab goes back to the page allocator."""

    def __init__(self, memory: Memory, order: int, objects: int, keep: int) -> None:
        """Take slabs of 2**order pages with so many objects; keep up to `keep` of them that are not full."""
        self._memory = memory
        self._order = order
        self._objects = objects
        self._keep = keep
        self._free: dict[int, int] = {}  # slab -> free objects, for those that have any
        self._small: dict[int, int] = {}  # slab -> its order, where there was no block of the usual one

    def take(self) -> int:
        """Return the slab that gave an object: the one used last that has any left, or a new one."""
        slab = next(reversed(self._free)) if self._free else self._make()
        left = self._free.get(slab, self._size(slab)) - 1
        if left:
            self._free[slab] = left
        else:
            del self._free[slab]
        return slab

    def _size(self, slab: int) -> int:
        """Return how many objects a slab has."""
        return max(1, self._objects >> self._order - self._small.get(slab, self._order))

    def _make(self) -> int:
        """Take a new slab, a smaller one where there is none of the usual order."""
        for order in range(self._order, 0, -1):
            try:
                slab = self._memory.take(order)
            except OutOfMemoryError:
                continue
            break
        else:
            slab, order = self._memory.take(), 0
        if order < self._order:
            self._small[slab] = order
        self._free[slab] = self._size(slab)
        return slab

    def give(self, slab: int) -> None:
        """Give an object back."""
        left = self._free.get(slab, 0) + 1
        if left == self._size(slab) and len(self._free) > self._keep:
            self._free.pop(slab, None)
            self._memory.give(slab, self._small.pop(slab, self._order))
        else:
            self._free[slab] = left


@dataclass
class Beside:
    """What one program takes besides its code."""

    slabs: list[int] = field(default_factory=list)
    page: int = 0


def zones_of(free: int, total: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, Size]]]:
    """Return page ranges of the zones and extents of the direct map, of a PC with `total` pages, `free` of them free.

    Up to 3 GB lie below 4 GB, the rest above, which is free first: no zone has more free pages than `free`, nor than
    are mapped. The first GB is mapped with 2 MB pages, as is the last; larger machines
    have 1 GB pages in between.
    """
    if total <= 3 * GIGA:
        return [(FIRST_FREE, min(FIRST_FREE + free, total))], [
            (0, FIRST_FREE, Size.PAGE),
            (FIRST_FREE, total, Size.REGION),
        ]
    high = total - 3 * GIGA
    top = 4 * GIGA + high
    whole = (top // GIGA - 1) * GIGA if high > 2 * GIGA else 4 * GIGA
    low = max(free - high, 0)
    extents = [
        (0, FIRST_FREE, Size.PAGE),
        (FIRST_FREE, GIGA, Size.REGION),
        (GIGA, 3 * GIGA, Size.GIGA),
        (4 * GIGA, whole, Size.GIGA),
        (whole, top, Size.REGION),
    ]
    zones = [(4 * GIGA, 4 * GIGA + min(high, free)), (FIRST_FREE, min(FIRST_FREE + low, 3 * GIGA))]
    return zones, [row for row in extents if row[0] < row[1]]


class Machine:
    """A kernel on memory: physical pages, the direct map, and what programs take besides code.

    >>> machine = Machine(KERNELS["6.1"], free=200_000, total=GIGA)
    >>> held = machine.take_pages(512)
    >>> machine.protect(held, read_only=True)  # 512 single pages, in a row but not aligned
    2
    """

    def __init__(self, kernel: Kernel, free: int, total: int) -> None:
        """Start with `free` of `total` pages free and never used."""
        self.kernel = kernel
        zones, extents = zones_of(free, total)
        # Boot has left a region in part used, so the first programs meet an edge of a region soon.
        self.memory = Memory(zones, kernel.rule, used=300)
        self.map = DirectMap(extents)
        self._caches = [SlabCache(self.memory, *slab) for slab in kernel.slabs]
        self._virtual = 0  # pages of vmalloc space in use, and at most
        self._virtual_peak = 0

    def take_virtual(self, count: int) -> None:
        """Use address space for areas: a page of page tables for each 2 MB that were never used before."""
        self._virtual += count
        while self._virtual > self._virtual_peak:
            self.memory.take()
            self._virtual_peak += REGION

    def give_virtual(self, count: int) -> None:
        """Give address space back; its page tables stay."""
        self._virtual -= count

    def take_beside(self) -> Beside:
        """Take what a program needs besides its code."""
        slabs = [self._caches[0].take()]
        self.take_virtual(2 * self.kernel.areas)
        page = self.memory.take()
        return Beside(slabs + [cache.take() for cache in self._caches[1:]], page)

    def give_beside(self, beside: Beside) -> None:
        """Give it back."""
        self.give_virtual(2 * self.kernel.areas)
        self.memory.give(beside.page)
        for cache, slab in zip(self._caches, beside.slabs, strict=True):
            cache.give(slab)

    def take_pages(self, count: int) -> list[tuple[int, int]]:
        """Return the (first, last) runs of pages a vmalloc area of `count` pages gets."""
        self.take_virtual(count + 1)
        runs: list[tuple[int, int]] = []
        order = min(MAX_ORDER, count.bit_length() - 1) if self.kernel.contiguous else 0
        while count:
            order = min(order, count.bit_length() - 1)
            try:
                page = self.memory.take(order)
            except OutOfMemoryError:
                if not order:
                    raise
                order -= 1
                continue
            count -= 1 << order
            if runs and runs[-1][1] == page:
                runs[-1] = (runs[-1][0], page + (1 << order))
            else:
                runs.append((page, page + (1 << order)))
        return runs

    def give_pages(self, runs: Sequence[tuple[int, int]]) -> None:
        """Free an area: aligned blocks whole where the kernel takes them whole, else page by page."""
        self.give_virtual(sum(last - first for first, last in runs) + 1)
        for first, last in runs:
            at = first
            while at < last:
                order = 0
                if self.kernel.contiguous:
                    order = min(REGION_ORDER, (at & -at).bit_length() - 1, (last - at).bit_length() - 1)
                self.memory.give(at, order)
                at += 1 << order

    def take_block(self, order: int, *, steer: bool) -> tuple[int, int] | None:
        """Return (first, last) of a block of 2**order pages; none where there is none.

        `steer`: sixteen are looked at, and one is taken whose region is split already, where there is such a one.
        """
        tried: list[int] = []
        try:
            while len(tried) < (STEERING if steer else 1):
                tried.append(self.memory.take(order))
                if tried[-1] >> REGION_ORDER in self.map.split:
                    break
        except OutOfMemoryError:
            if not tried:
                return None
        best = tried.pop() if tried[-1] >> REGION_ORDER in self.map.split else tried.pop(0)
        for page in reversed(tried):
            self.memory.give(page, order)
        self.take_virtual((1 << order) + 1)
        return best, best + (1 << order)

    def take_steered(self, count: int) -> list[tuple[int, int]]:
        """Return runs of `count` single pages that split few regions.

        Sixteen times as many are looked at: those of regions split already are kept first, then those of which a region
        has most.
        """
        seen: list[int] = []
        try:
            while len(seen) < STEERING * count:
                seen.append(self.memory.take())
        except OutOfMemoryError:
            if len(seen) < count:
                self.memory.give_many(reversed(seen))
                raise
        regions = Counter(page >> REGION_ORDER for page in seen)
        ranked = sorted(
            seen, key=lambda page: (page >> REGION_ORDER not in self.map.split, -regions[page >> REGION_ORDER], page)
        )
        kept = set(ranked[:count])
        self.memory.give_many(page for page in reversed(seen) if page not in kept)
        self.take_virtual(count + 1)
        runs: list[tuple[int, int]] = []
        for page in sorted(kept):
            if runs and runs[-1][1] == page:
                runs[-1] = (runs[-1][0], page + 1)
            else:
                runs.append((page, page + 1))
        return runs

    def protect(self, runs: Sequence[tuple[int, int]], *, read_only: bool, huge: bool = False) -> int:
        """Change the permission of runs in the direct map; return how many 2 MB pages that split.

        Memory mapped `huge` where it is used is changed by 2 MB; else page by page, so that a region is split even when
        all of it is changed.
        """
        split = 0
        for first, last in runs:
            if not huge and last - first >= REGION:
                for region in range(-(-first // REGION), last // REGION):
                    at = region * REGION
                    split += self.map.protect(at, at + 1, read_only=read_only)
            split += self.map.protect(first, last, read_only=read_only)
        return split

    # ---- ageing, as the lab's counters suggest that it does it ----

    def age_movable(self, one_in: int, seed: int) -> None:
        """Fill 92 % of the free memory with movable pages, then give one random page in `one_in` back."""
        held = self.memory.take_many(self.memory.free * 92 // 100, MOVABLE)
        order = np.random.default_rng(seed).permutation(len(held))
        self.memory.give_many(held[order[: len(held) // one_in]].tolist())

    def age_unmovable(self, one_in: int, keep: int, pipe: int = 256) -> None:
        """Fill all but `keep` pages with pipes, a page to each in turn; then close one pipe in `one_in`.

        So the pages of a pipe of 1 MB lie in as many regions as it has pages.
        """
        pipes = (self.memory.free - keep) // pipe
        held = self.memory.take_many(pipes * pipe, UNMOVABLE).reshape(pipe, pipes)
        for one in range(0, pipes, one_in):
            self.memory.give_many(held[:, one].tolist())
