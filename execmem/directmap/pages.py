"""pages: the physical page allocator of a simulated machine: which page a request gets.

    request -> per-CPU list (last in, first out; never merged) -> free lists by order (merged with their buddies)

Whether neighbouring pages of code share a region of the direct map is decided here, so the parts of Linux
mm/page_alloc.c are kept that decide it: free lists by order and mobility, the smallest sufficient block first, the
lower half of a split block first, the largest foreign block when one's own are used up, and the per-CPU lists whose
length differs so much between kernels. Left out: several CPUs and nodes, ZONE_DMA, compaction, swapping.
"""

from __future__ import annotations

import random
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Pages = npt.NDArray[np.int64]

PAGE: Final = 4096
REGION_ORDER: Final = 9  # 2 MB, also the kernel's pageblock
REGION: Final = 1 << REGION_ORDER
MAX_ORDER: Final = 10
LISTED_ORDERS: Final = 4  # orders with per-CPU lists
BATCH: Final = 63
ZONE_AT: Final = 3  # the word of a line of buddyinfo that names the zone
UNMOVABLE: Final = 0
MOVABLE: Final = 1


class OutOfMemoryError(MemoryError):
    """The simulated machine has no page left; give it more memory or a smaller workload."""


@dataclass(frozen=True)
class ListRule:
    """How long a kernel lets the per-CPU lists grow, and how it shortens them.

    `by_watermark`: up to the zone's low watermark (5.14 and later), else six batches. `orders`: how many orders have
    lists. `overflow`: pages given back, oldest first, when there are too many. `decay`: pages given back in a second
    without allocations (6.7 and later; 32 batches).
    """

    by_watermark: bool
    orders: int = LISTED_ORDERS
    overflow: int = BATCH
    decay: int = 0


class Zone:
    """Free pages of one range of physical memory.

    >>> zone = Zone(0, 4096, ListRule(by_watermark=False), low=64)
    >>> [zone.take() for _ in range(3)]
    [0, 1, 2]
    >>> zone.give(1)
    >>> zone.take()  # the page freed last comes first
    1
    """

    def __init__(self, first: int, last: int, rule: ListRule, low: int, used: int = 0) -> None:
        """Make the pages [first, last) free but for the `used` first ones; `low` is the low watermark."""
        self.first = first
        self.last = last
        self.rule = rule
        self.low = low
        self.free = 0
        self._lists: list[list[dict[int, None]]] = [[{} for _ in range(MAX_ORDER + 1)] for _ in (UNMOVABLE, MOVABLE)]
        self._unmovable: set[int] = set()  # pageblocks
        self._cpu: list[deque[int]] = [deque() for _ in range(LISTED_ORDERS + 1)]  # the last one: movable pages
        self._cpu_pages = 0
        self._pressed = False  # the free pages fell below the low watermark, and kswapd is at work
        self._sheds = 0  # how often lists were shortened under pressure lately
        blocks = []
        if used:  # by something that does not move
            self._unmovable.add(first >> REGION_ORDER)
        first += used
        while first < last:
            order = min(MAX_ORDER, (first & -first).bit_length() - 1 if first else MAX_ORDER)
            while first + (1 << order) > last:
                order -= 1
            blocks.append((first, order))
            first += 1 << order
        for block, order in reversed(blocks):  # the lowest is taken first
            self._put(block, order)

    # ---- free lists by order ----

    def _put(self, page: int, order: int) -> None:
        """Put a block on its free list, merged with its free buddies."""
        self.free += 1 << order
        lists = self._lists[UNMOVABLE if page >> REGION_ORDER in self._unmovable else MOVABLE]
        while order < MAX_ORDER:
            buddy = page ^ (1 << order)
            if buddy not in lists[order]:
                break
            del lists[order][buddy]
            page &= buddy
            order += 1
        lists[order][page] = None

    def _pull(self, order: int, kind: int, least: int = 0) -> int:
        """Take a block off the free lists: the smallest that does, of its own kind where there is one.

        Of the other kind a block of order `least` or more is taken.
        """
        lists = self._lists[kind]
        for found in range(order, MAX_ORDER + 1):
            if lists[found]:
                page = lists[found].popitem()[0]
                break
        else:
            page, found, lists = self._steal(max(order, least), kind)
        self.free -= 1 << order
        while found > order:
            found -= 1
            lists[found][page + (1 << found)] = None
        return page

    def _steal(self, order: int, kind: int) -> tuple[int, int, list[dict[int, None]]]:
        """Take the largest block of the other kind; a whole pageblock changes its kind with that."""
        theirs = self._lists[1 - kind]
        for found in range(MAX_ORDER, order - 1, -1):
            if theirs[found]:
                page = theirs[found].popitem()[0]
                break
        else:
            message = f"no block of {1 << order} pages in a zone with {self.free} free pages"
            raise OutOfMemoryError(message)
        if found < REGION_ORDER:
            return page, found, theirs
        blocks = range(page >> REGION_ORDER, (page + (1 << found)) >> REGION_ORDER)
        if kind == UNMOVABLE:
            self._unmovable.update(blocks)
        else:
            self._unmovable.difference_update(blocks)
        return page, found, self._lists[kind]

    # ---- per-CPU lists ----

    def _shed(self, count: int) -> None:
        """Give back the oldest pages of the per-CPU lists, from each list in turn."""
        while count > 0 and self._cpu_pages:
            for index, listed in enumerate(self._cpu):
                order = index if index < LISTED_ORDERS else 0
                for _ in range(min(len(listed), max(1, BATCH >> order))):
                    self._put(listed.popleft(), order)
                    self._cpu_pages -= 1 << order
                    count -= 1 << order
                    if count <= 0:
                        return

    def take(self, order: int = 0, kind: int = UNMOVABLE) -> int:
        """Return the first page of a block of 2**order pages. Constant time, up to a batch of them now and then."""
        if order >= self.rule.orders:
            return self._pull(order, kind)
        listed = self._cpu[LISTED_ORDERS if kind == MOVABLE else order]
        self._sheds >>= 1
        self._pressed = self._pressed or self.free < self.low
        if not listed:
            count = max(BATCH >> order, 2)
            try:
                while count:
                    listed.appendleft(self._pull(order, kind, REGION_ORDER if listed else 0))
                    self._cpu_pages += 1 << order
                    count -= 1
            except OutOfMemoryError:
                if not listed:
                    raise
        self._cpu_pages -= 1 << order
        return listed.pop()

    def give(self, page: int, order: int = 0) -> None:
        """Free a block."""
        if order >= self.rule.orders:
            self._put(page, order)
            return
        movable = order == 0 and page >> REGION_ORDER not in self._unmovable
        self._cpu[LISTED_ORDERS if movable else order].append(page)
        self._cpu_pages += 1 << order
        self._pressed = self._pressed and self.free < self.low * 6 // 5  # kswapd stops at the high watermark
        if self._pressed and self.rule.by_watermark:
            if self._cpu_pages > 4 * BATCH:
                self._shed(BATCH << self._sheds)
                self._sheds = min(self._sheds + 1, 8)
        elif self._cpu_pages >= (self.low if self.rule.by_watermark else 6 * BATCH):
            self._shed(self.rule.overflow)

    def settle(self) -> None:
        """Let a second pass."""
        self._shed(min(self.rule.decay, self._cpu_pages))

    def whole_regions(self) -> int:
        """Count the regions that are free, in blocks of that size or larger."""
        return sum(len(lists[order]) << order - REGION_ORDER for lists in self._lists for order in (9, MAX_ORDER))

    def seed(self, counts: Sequence[int], rng: random.Random) -> None:
        """Use all pages but for so many free blocks of each order, at random places, no two of them buddies."""
        if len(counts) > MAX_ORDER + 1 and any(counts[MAX_ORDER + 1 :]):
            message = f"blocks of more than order {MAX_ORDER} are not simulated"
            raise ValueError(message)
        used = [page for lists in self._lists for page in lists[MAX_ORDER]]
        rng.shuffle(used)
        self._lists = [[{} for _ in range(MAX_ORDER + 1)] for _ in (UNMOVABLE, MOVABLE)]
        self.free = 0
        for order in range(MAX_ORDER, -1, -1):
            count = counts[order] if order < len(counts) else 0
            if count > len(used):
                message = (
                    f"{count} free blocks of order {order} do not fit into {self.last - self.first} pages of a zone: "
                    "the lists are of a machine with more memory"
                )
                raise ValueError(message)
            kind = MOVABLE if order >= REGION_ORDER else UNMOVABLE
            chosen, used = used[:count], used[count:]
            if kind == UNMOVABLE:
                self._unmovable.update(page >> REGION_ORDER for page in chosen)
            self._lists[kind][order] = dict.fromkeys(chosen)
            self.free += count << order
            smaller = sum(counts[:order])
            if smaller:  # the buddy of a free block is used, or used in part
                parents = rng.sample(used, min(len(used), smaller))
                halves = [rng.getrandbits(1) << order - 1 for _ in parents]
                used = [page ^ half for page, half in zip(parents, halves, strict=True)]
                used += [page ^ half ^ 1 << order - 1 for page, half in zip(parents, halves, strict=True)]

    def suits(self, order: int, kind: int) -> bool:
        """Tell whether a block can be had above the low watermark without mixing kinds in a pageblock."""
        if self.free < self.low:
            return False
        if order < self.rule.orders and self._cpu[LISTED_ORDERS if kind == MOVABLE else order]:
            return True
        theirs = self._lists[1 - kind]
        return any(self._lists[kind][order:]) or any(theirs[max(order, REGION_ORDER) :])

    @property
    def room(self) -> int:
        """Pages that can be had, those of the per-CPU lists among them."""
        return self.free + self._cpu_pages

    def take_many(self, count: int, kind: int) -> Pages:
        """Return so many single pages, as taking one after the other would. Time grows with blocks, not with pages."""
        parts = [np.fromiter((self.take(0, kind) for _ in range(min(count, 2 * BATCH))), np.int64)]
        count -= len(parts[0])
        while count:
            lists = self._lists[kind]
            found = next((order for order in range(MAX_ORDER + 1) if lists[order]), MAX_ORDER)
            while found and 1 << found > count:
                found -= 1
            page = self._pull(found, kind)
            parts.append(np.arange(page, page + (1 << found), dtype=np.int64))
            count -= 1 << found
        return np.concatenate(parts)

    def check(self) -> str | None:
        """Say what is wrong with the lists, or nothing."""
        seen: set[int] = set()
        for lists in self._lists:
            for order, blocks in enumerate(lists):
                for page in blocks:
                    if page & ((1 << order) - 1):
                        return f"the block of order {order} at page {page} is not aligned"
                    pages = range(page, page + (1 << order))
                    if not seen.isdisjoint(pages):
                        return f"a page of the block at page {page} is free twice"
                    seen.update(pages)
        return None if len(seen) == self.free else f"{len(seen)} pages are on lists, {self.free} are counted"


def low_watermark(pages: int, total: int, zones: int) -> int:
    """Return the low watermark of a zone, after khugepaged's set_recommended_min_free_kbytes."""
    least = min(REGION * zones * (2 + 9), total // 20)
    return max(64, least * pages // total * 5 // 4)


class Memory:
    """The zones of a machine, the one to be used first first."""

    def __init__(self, zones: Sequence[tuple[int, int]], rule: ListRule, used: int = 0) -> None:
        """Make every page of the ranges [first, last) free, but for the `used` first ones of each."""
        total = sum(last - first for first, last in zones)
        # One more zone is there in every PC: the first 16 MB, which nothing here uses.
        self.zones = [
            Zone(first, last, rule, low_watermark(last - first, total, len(zones) + 1), used) for first, last in zones
        ]

    def take(self, order: int = 0, kind: int = UNMOVABLE) -> int:
        """Return the first page of a block of 2**order pages, of the first zone where it does no harm."""
        for zone in self.zones:
            if zone.suits(order, kind):
                return zone.take(order, kind)
        for zone in self.zones:
            if zone.room >> order:
                try:
                    return zone.take(order, kind)
                except OutOfMemoryError:
                    continue
        message = f"no block of {1 << order} pages left: {self.free} pages are free"
        raise OutOfMemoryError(message)

    def give(self, page: int, order: int = 0) -> None:
        """Free a block."""
        for zone in self.zones:
            if zone.first <= page < zone.last:
                zone.give(page, order)
                return
        message = f"page {page} is in no zone"
        raise ValueError(message)

    def give_many(self, pages: Iterable[int]) -> None:
        """Free single pages one after the other."""
        for page in pages:
            self.give(page)

    def whole_regions(self) -> int:
        """Count the free regions: aligned 2 MB that nobody uses a page of. Constant time."""
        return sum(zone.whole_regions() for zone in self.zones)

    def seed(self, text: str, seed: int) -> None:
        """Make the free lists those of a /proc/buddyinfo: as many blocks of each order, at random places.

        Its zones are matched from the last to the first named, as they are used. Small blocks count as unmovable ones.
        """
        lines = [line.split() for line in text.splitlines() if line.startswith("Node")]
        for words in lines:
            if len(words) <= ZONE_AT or not all(re.fullmatch(r"[0-9]{1,12}", word) for word in words[ZONE_AT + 1 :]):
                message = f"buddyinfo: {' '.join(words)[:80]!r} is not `Node N, zone NAME` and a count for each order"
                raise ValueError(message)
        counts = [[int(word) for word in words[ZONE_AT + 1 :]] for words in lines if words[ZONE_AT] != "DMA"]
        if len(counts) != len(self.zones):
            message = f"buddyinfo has {len(counts)} zones besides DMA, the simulated machine {len(self.zones)}"
            raise ValueError(message)
        for zone, orders in zip(self.zones, reversed(counts), strict=True):
            zone.seed(orders, random.Random(seed))  # noqa: S311

    def settle(self, seconds: int = 1) -> None:
        """Let time pass without allocations."""
        for _ in range(seconds):
            for zone in self.zones:
                zone.settle()

    @property
    def free(self) -> int:
        """Free pages, those on per-CPU lists not counted, as in MemFree."""
        return sum(zone.free for zone in self.zones)

    def take_many(self, count: int, kind: int) -> Pages:
        """Return so many single pages; zones are used up one after the other."""
        parts = []
        for zone in self.zones:
            part = min(count, max(0, zone.free - (zone.low if zone is not self.zones[-1] else 0)))
            if part:
                parts.append(zone.take_many(part, kind))
                count -= part
        if count:
            message = f"{count} pages more than there are"
            raise OutOfMemoryError(message)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
