"""policy: where executable memory comes from: what kernels did, what was proposed, and ours, as rules of a simulation.

    an image      what a client loads: text, and for modules rodata and data
    a store       gives memory for one kind of part: `Areas` pages of its own to each, `Packs` chunks of shared packs
    a policy      which store a part of which client comes from

Every policy keeps the same books: bytes held, bytes in use, and why the rest is not in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from execmem.directmap.model import FIRST_FREE, Machine
from execmem.directmap.pages import PAGE, REGION, REGION_ORDER
from execmem.directmap.trace import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

CHUNK: Final = 64
PACK: Final = REGION * PAGE
SMALL: Final = 64  # pages of a pack where there is no 2 MB
PROGRAMS: Final = frozenset({Client.BPF, Client.CLASSIC, Client.UNKNOWN})
MODULE_PARTS: Final = (50, 20, 30)  # of a hundred bytes of a module: text, rodata, data


@dataclass(eq=False)
class Pack:
    """Physical pages that are handed out in chunks."""

    runs: list[tuple[int, int]]
    chunk: int
    huge: bool  # mapped with one 2 MB page where the code runs
    taken: bytearray = field(init=False)
    used: int = 0
    limit: int = field(init=False)  # no run of more free chunks than this
    lowest: int = 0  # no free chunk below

    def __post_init__(self) -> None:
        """Start empty."""
        self.limit = self.bytes // self.chunk
        self.taken = bytearray(self.limit)

    @property
    def bytes(self) -> int:
        """Size of all pages."""
        return sum(last - first for first, last in self.runs) * PAGE

    def take(self, count: int) -> int | None:
        """Return the first of `count` chunks in a row, the lowest there are; none where there are none."""
        if count > self.limit:
            return None
        self.lowest = max(self.lowest, self.taken.find(0, self.lowest))
        first = self.taken.find(bytes(count), self.lowest)
        if first < 0:
            self.limit = count - 1
            return None
        self.taken[first : first + count] = b"\1" * count
        self.used += count
        return first

    def give(self, first: int, count: int) -> None:
        """Free chunks."""
        self.taken[first : first + count] = bytes(count)
        self.used -= count
        self.lowest = min(self.lowest, first)
        self.limit = min(len(self.taken) - self.used, 2 * self.limit + count)  # it may have joined two runs


@dataclass(frozen=True, eq=False)
class Held:
    """Memory of one part of an image."""

    pack: Pack | None  # none: an area of its own
    first: int
    count: int  # chunks, or pages
    runs: list[tuple[int, int]]

    def entries(self) -> Iterator[tuple[int, int]]:
        """Give the TLB entries that running all of it takes."""
        if self.pack is None:
            yield from ((id(self.runs), page) for page in range(self.count))
        elif self.pack.huge:
            yield id(self.pack), 0
        else:
            chunk = self.pack.chunk
            pages = range(self.first * chunk // PAGE, ((self.first + self.count) * chunk - 1) // PAGE + 1)
            yield from ((id(self.pack), page) for page in pages)


class Areas:
    """A store that gives each part pages of its own."""

    def __init__(self, machine: Machine, *, read_only: bool) -> None:
        """Make them read-only after they were written, or not."""
        self._machine = machine
        self._read_only = read_only
        self.held = 0  # bytes
        self.rounded = 0

    def take(self, size: int) -> Held:
        """Return pages for a part."""
        count = -(-size // PAGE)
        runs = self._machine.take_pages(count)
        if self._read_only:
            self._machine.protect(runs, read_only=True)
        self.held += count * PAGE
        self.rounded += count * PAGE
        return Held(None, 0, count, runs)

    def give(self, held: Held) -> None:
        """Free them; they become writable first."""
        if self._read_only:
            self._machine.protect(held.runs, read_only=False)
        self._machine.give_pages(held.runs)
        self.held -= held.count * PAGE
        self.rounded -= held.count * PAGE


@dataclass(frozen=True)
class Rule:
    """How a store of packs works.

    `huge`: asks for an aligned 2 MB block and maps it with one page. `rewrite`: each part is made writable and
    read-only again when it is loaded and when it is freed. `fullest`: the fullest pack that has room, else the oldest.
    `order`: what asks for blocks asks for 2**order pages.
    `steer`: prefers blocks in regions split already, makes small packs of such pages where there is no block, and
    joins regions.
    """

    chunk: int = CHUNK
    read_only: bool = True
    huge: bool = False
    rewrite: bool = False
    fullest: bool = False
    steer: bool = False
    order: int = REGION_ORDER  # of the pages of a pack


class Packs:
    """A store that puts parts into packs; a pack goes back when nothing is left in it."""

    def __init__(self, machine: Machine, rule: Rule, *, boot: bool = False) -> None:
        """Start with no pack, or with the one that boot has left, in memory that is mapped with 4 KB pages anyway."""
        self._machine = machine
        self._rule = rule
        self._alone = Areas(machine, read_only=rule.read_only)
        self._packs: list[Pack] = []
        self._boot = Pack([(FIRST_FREE - REGION, FIRST_FREE)], rule.chunk, huge=False) if boot else None
        if self._boot:
            self._machine.protect(self._boot.runs, read_only=True)
            self._packs.append(self._boot)
        self._held = PACK if boot else 0
        self._rounded = 0

    @property
    def held(self) -> int:
        """Bytes of all packs."""
        return self._held + self._alone.held

    @property
    def rounded(self) -> int:
        """Bytes of all chunks in use."""
        return self._rounded + self._alone.rounded

    def take(self, size: int) -> Held:
        """Return chunks for a part."""
        if size > PAGE << self._rule.order:
            return self._alone.take(size)
        count = -(-size // self._rule.chunk)
        packs = sorted(self._packs, key=lambda pack: -pack.used) if self._rule.fullest else self._packs
        for pack in packs:
            first = pack.take(count)
            if first is not None:
                break
        else:
            pack = self._make(size)
            first = pack.take(count)
            if first is None:
                message = f"a new pack of {pack.bytes} bytes has no room for {size}"
                raise AssertionError(message)
        self._rounded += count * self._rule.chunk
        held = Held(pack, first, count, [])
        self._rewrite(held)
        return held

    def give(self, held: Held) -> None:
        """Free chunks, and the pack with the last of them."""
        pack = held.pack
        if pack is None:
            self._alone.give(held)
            return
        self._rewrite(held)
        pack.give(held.first, held.count)
        self._rounded -= held.count * self._rule.chunk
        if not pack.used and pack is not self._boot:
            self._packs.remove(pack)
            self._held -= pack.bytes
            if self._rule.read_only:
                self._machine.protect(pack.runs, read_only=False, huge=pack.huge)
            self._machine.give_pages(pack.runs)
            self._join(pack)

    def _make(self, size: int) -> Pack:
        """Make a pack with room for `size` bytes at least."""
        order, rule = self._rule.order, self._rule
        steer = rule.steer and rule.read_only  # what stays writable splits nothing
        block = self._machine.take_block(order, steer=steer) if rule.huge or rule.steer else None
        if block:
            runs = [block]
        elif steer:
            runs = self._machine.take_steered(max(SMALL, -(-size // PAGE)))
        else:
            runs = self._machine.take_pages(1 << order)
        pack = Pack(runs, self._rule.chunk, huge=block is not None and block[1] - block[0] == REGION)
        if self._rule.read_only:
            self._machine.protect(runs, read_only=True, huge=pack.huge)
        self._packs.append(pack)
        self._held += pack.bytes
        self._join(pack)
        return pack

    def _rewrite(self, held: Held) -> None:
        """Make the pages of a part writable and read-only again, where loading and freeing does that."""
        if self._rule.rewrite and held.pack:
            start = held.pack.runs[0][0] if len(held.pack.runs) == 1 else None
            if start is None:
                return  # single pages: their regions are split already
            first = start + held.first * self._rule.chunk // PAGE
            last = start + -(-(held.first + held.count) * self._rule.chunk // PAGE)
            self._machine.protect([(first, last)], read_only=False)
            self._machine.protect([(first, last)], read_only=True)

    def _join(self, pack: Pack) -> None:
        """Join the regions of a pack that are of one permission now."""
        if self._rule.steer:
            for first, last in pack.runs:
                for region in range(first // REGION, -(-last // REGION)):
                    self._machine.map.join(region)


Store = Areas | Packs
Stores = tuple[Store, Store, Store]


class Loaded(NamedTuple):
    """An image in memory."""

    size: int
    client: int
    parts: list[tuple[Store, Held]]
    beside: object


class Policy:
    """What loads and unloads images, and its books.

    >>> from execmem.directmap.model import GIGA, KERNELS, Machine
    >>> policy = POLICIES["page each, 5.10"].build(Machine(KERNELS["5.10"], free=200_000, total=GIGA))
    >>> policy.load(1, 500, Client.BPF)
    >>> policy.waste()
    {'header': 8, 'rounding': 3588, 'free': 0}
    """

    HEADER: Final = 8

    def __init__(self, machine: Machine, programs: Stores, modules: Stores, other: Stores) -> None:
        """Take text, rodata and data of programs, modules and the rest (trampolines, probes) from these stores."""
        self.machine = machine
        self._programs = programs
        self._modules = modules
        self._other = other
        self._stores = list(dict.fromkeys((*programs, *modules, *other)))
        self._images: dict[Hashable, Loaded] = {}
        self.live = 0

    def load(self, key: Hashable, size: int, client: int) -> None:
        """Load an image; `key` is its name until it is unloaded."""
        stores, rodata, data = self._other, 0, 0
        if client in PROGRAMS:
            stores = self._programs
        elif client == Client.MODULE:
            stores = self._modules
            rodata, data = size * MODULE_PARTS[1] // 100, size * MODULE_PARTS[2] // 100
        # The memory of the machine is taken in the kernel's order: objects first, code last.
        beside = self.machine.take_beside() if client in PROGRAMS else None
        sizes = (size - rodata - data + self.HEADER, rodata, data)
        parts = [(store, store.take(part)) for store, part in zip(stores, sizes, strict=True) if part]
        self._images[key] = Loaded(size, client, parts, beside)
        self.live += size

    def unload(self, key: Hashable) -> None:
        """Unload an image."""
        image = self._images.pop(key)
        for store, held in image.parts:
            store.give(held)
        if image.beside is not None:
            self.machine.give_beside(image.beside)  # type: ignore[arg-type]
        self.live -= image.size

    @property
    def held(self) -> int:
        """Bytes of memory held for images."""
        return sum(store.held for store in self._stores)

    def waste(self) -> dict[str, int]:
        """Return bytes held and not live, by cause: headers, rounding to chunks or pages, free in packs."""
        rounded = sum(store.rounded for store in self._stores)
        header = self.HEADER * len(self._images)
        return {"header": header, "rounding": rounded - self.live - header, "free": self.held - rounded}

    def tlb_entries(self, keys: list[Hashable]) -> int:
        """Return how many TLB entries running all of these images takes."""
        return len({entry for key in keys for entry in self._images[key].parts[0][1].entries()})

    def keys(self) -> list[Hashable]:
        """Return the images that are loaded, oldest first."""
        return list(self._images)


# ---- the policies ----


def _page_each(machine: Machine) -> Policy:
    text, data = Areas(machine, read_only=True), Areas(machine, read_only=False)
    return Policy(machine, (text, text, data), (text, text, data), (text, text, data))


def _prog_pack(machine: Machine) -> Policy:
    text, data = Areas(machine, read_only=True), Areas(machine, read_only=False)
    packs = Packs(machine, Rule(), boot=True)
    return Policy(machine, (packs, text, data), (text, text, data), (text, text, data))


def _execmem(machine: Machine) -> Policy:
    text, data = Areas(machine, read_only=True), Areas(machine, read_only=False)
    packs = Packs(machine, Rule(), boot=True)  # for trampolines too, by now
    return Policy(machine, (packs, text, data), (text, text, data), (packs, text, data))


def _rox_cache(machine: Machine) -> Policy:
    text, data = Areas(machine, read_only=True), Areas(machine, read_only=False)
    packs = Packs(machine, Rule(), boot=True)
    cache = Packs(machine, Rule(chunk=PAGE, huge=True, rewrite=True))
    return Policy(machine, (packs, text, data), (cache, text, data), (packs, text, data))


def _song(machine: Machine) -> Policy:
    text, data = Areas(machine, read_only=True), Areas(machine, read_only=False)
    packs = Packs(machine, Rule(huge=True))
    return Policy(machine, (packs, text, data), (packs, text, data), (packs, text, data))


def _ours(machine: Machine) -> Policy:
    text, rodata = (Packs(machine, Rule(fullest=True, steer=True)) for _ in range(2))
    # Data stays writable, which splits nothing: 128 KB at a time leave less free than 2 MB.
    data = Packs(machine, Rule(read_only=False, fullest=True, steer=True, order=5))
    return Policy(machine, (text, rodata, data), (text, rodata, data), (text, rodata, data))


class Plan(NamedTuple):
    """A policy and the kernel whose page allocator it works on."""

    kernel: str
    build: Callable[[Machine], Policy]


POLICIES: Final = {
    "page each, 5.10": Plan("5.10", _page_each),
    "prog_pack, 6.1": Plan("6.1", _prog_pack),
    "execmem, 6.12": Plan("6.12", _execmem),
    "ROX cache, 7.2": Plan("7.2", _rox_cache),
    "Song 2022": Plan("7.2", _song),
    "ours": Plan("7.2", _ours),
}
