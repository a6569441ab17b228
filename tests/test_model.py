"""The model: any sequence of calls does what a few lines of plain Python say it must.

Hypothesis chooses alloc, place, fill, free, views, batches, domains and limits. After every step each domain is asked
whether it is lawful, and its bytes, records and counters are compared with a model kept on a SortedDict by address.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from conftest import MODES, SHORT, TRAP
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from sortedcontainers import SortedDict

import execmem
from execmem._core import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHUNK, PAGE, PACK = lib.EXECMEM_CHUNK, 4096, lib.EXECMEM_PACK_SIZE
MOST_BLOCKS = 120

sizes = st.one_of(
    st.integers(1, 300),
    st.integers(1, 5000),
    st.sampled_from([CHUNK, PAGE, PAGE + 1, 100_000, PACK - CHUNK, PACK, PACK + 1]),
)
aligns = st.sampled_from([1, 2, 16, 64, 128, 1024, 4096])
kinds = st.sampled_from(["text", "text", "rodata", "data"])
names = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))


@dataclass
class Room:
    """What a domain should be."""

    domain: execmem.Domain
    parent: Room | None
    limit: int | None
    used: int = 0
    live: int = 0
    allocs: int = 0
    frees: int = 0

    def charged_up(self) -> list[Room]:
        return [self, *(self.parent.charged_up() if self.parent else [])]


@dataclass
class Thing:
    """What a block should be."""

    room: Room
    block: execmem.Block
    contents: bytearray
    name: str
    kind: str
    state: str
    batch: execmem.Blocks | None = None
    views: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    alive: bool = True

    @property
    def rounded(self) -> int:
        unit = PAGE if len(self.contents) > PACK else CHUNK
        return -(-len(self.contents) // unit) * unit


def blank(kind: str) -> int:
    return TRAP if kind == "text" else 0


def read(address: int, size: int) -> bytes:
    return bytes(ffi.buffer(ffi.cast("char *", address), size))


def works(mode: str | None) -> bool:
    try:
        execmem.probe(mode)
    except execmem.ExecmemError:
        return False
    return True


class Model(RuleBasedStateMachine):
    """The calls, and what must be true after each."""

    rooms = Bundle("rooms")
    things = Bundle("things")

    def __init__(self) -> None:
        super().__init__()
        self.live: Any = SortedDict()  # address -> Thing
        self.open: list[Room] = []
        self.charged: dict[int, int] = {}  # by domain number, children's included

    # ---- helpers ----

    def fits(self, room: Room, size: int) -> bool:
        unit = PAGE if size > PACK else CHUNK
        need = -(-size // unit) * unit
        return all(up.limit is None or self.charged[up.domain.number] + need <= up.limit for up in room.charged_up())

    def enter(self, thing: Thing) -> Thing:
        self.live[thing.block.address] = thing
        thing.room.used += thing.rounded
        thing.room.live += 1
        thing.room.allocs += 1
        for up in thing.room.charged_up():
            self.charged[up.domain.number] += thing.rounded
        return thing

    def leave(self, thing: Thing) -> None:
        del self.live[thing.block.address]
        thing.alive = False
        thing.room.used -= thing.rounded
        thing.room.live -= 1
        thing.room.frees += 1
        for up in thing.room.charged_up():
            self.charged[up.domain.number] -= thing.rounded

    # ---- domains ----

    @rule(
        target=rooms,
        parent=st.one_of(st.none(), rooms),
        limit=st.sampled_from([None, None, 5000, 100_000, 5 << 20]),
        mode=st.sampled_from([mode for mode in (None, *MODES) if works(mode)]),
        small_pages=st.booleans(),
    )
    def open_domain(self, parent: Room | None, limit: int | None, mode: str | None, small_pages: bool) -> Any:
        if len(self.open) >= 4 or (parent is not None and parent.domain.closed):
            return multiple()
        above = parent.domain if parent else None
        domain = execmem.Domain("m", parent=above, limit=limit, write_mode=mode, window="32M", small_pages=small_pages)
        room = Room(domain, parent, limit)
        self.open.append(room)
        self.charged[domain.number] = 0
        return room

    @rule(room=rooms, limit=st.sampled_from([None, 64, 10_000, 3 << 20]))
    def set_limit(self, room: Room, limit: int | None) -> None:
        if not room.domain.closed:
            room.domain.limit = room.limit = limit

    @rule(room=consumes(rooms), force=st.booleans())
    def close_domain(self, room: Room, force: bool) -> None:
        if room.domain.closed:
            return
        family = [other for other in self.open if room in other.charged_up()]
        inside = [thing for thing in self.live.values() if thing.room in family]
        held = any(thing.views for thing in inside)
        refused = held or (not force and (len(family) > 1 or room.live))
        if refused:
            with pytest.raises(execmem.BusyError):
                room.domain.close(force=force)
            for thing in inside:
                thing.views.clear()
        room.domain.close(force=True)
        for thing in inside:
            self.leave(thing)
        for other in family:
            assert other.domain.closed
            self.open.remove(other)

    # ---- blocks ----

    @precondition(lambda self: len(self.live) < MOST_BLOCKS)
    @rule(
        target=things,
        room=rooms,
        size=sizes,
        align=aligns,
        kind=kinds,
        name=names,
        byte=st.integers(0, 255),
        fill=st.booleans(),
    )
    def make(self, room: Room, size: int, align: int, kind: str, name: str | None, byte: int, fill: bool) -> Any:  # noqa: PLR0913, PLR0917 - hypothesis chooses each
        if room.domain.closed:
            return multiple()
        contents = bytearray([byte if fill else blank(kind)]) * size
        try:
            if fill:
                block = room.domain.place(bytes(contents), name=name, kind=kind, align=align)
            else:
                block = room.domain.alloc(size, name=name, kind=kind, align=align)
        except execmem.LimitError:
            assert not self.fits(room, size)
            return multiple()
        except execmem.OutOfWindowError:
            assert room.used + size > 4 * PACK  # only a window in use may be full
            return multiple()
        assert self.fits(room, size)
        assert block.address % align == 0
        return self.enter(Thing(room, block, contents, name or "", kind, "filled" if fill else "reserved"))

    @precondition(lambda self: len(self.live) < MOST_BLOCKS)
    @rule(
        target=things,
        room=rooms,
        parts=st.lists(st.binary(min_size=1, max_size=300), max_size=20),
        kind=kinds,
        named=st.booleans(),
    )
    def make_many(self, room: Room, parts: list[bytes], kind: str, named: bool) -> Any:
        if room.domain.closed:
            return multiple()
        texts = [f"part {number} " * number for number in range(len(parts))] if named else None
        try:
            blocks = room.domain.place_many(parts, names=texts, kind=kind)
        except execmem.LimitError:
            assert not self.fits(room, sum(-(-len(part) // CHUNK) * CHUNK for part in parts))
            return multiple()
        except execmem.OutOfWindowError:
            assert room.used > 4 * PACK
            return multiple()
        return multiple(
            *(
                self.enter(Thing(room, block, bytearray(part), texts[number] if texts else "", kind, "filled", blocks))
                for number, (block, part) in enumerate(zip(blocks, parts, strict=True))
            )
        )

    @rule(thing=things, data=st.binary(max_size=400), offset=st.integers(0, 400), by_address=st.booleans())
    def fill(self, thing: Thing, data: bytes, offset: int, by_address: bool) -> None:
        if not thing.alive:
            with pytest.raises((execmem.ClosedError, execmem.FreedAddressError, execmem.BoundsError)):
                thing.block.fill(data, offset)
            return
        if offset + len(data) > len(thing.contents):
            with pytest.raises(execmem.BoundsError):
                thing.block.fill(data, offset)
            return
        if by_address and data:
            execmem.execmem_fill(thing.block.address + offset, data)
        else:
            thing.block.fill(data, offset)
        if data:
            thing.contents[offset : offset + len(data)] = data
            thing.state = "filled"

    @rule(thing=things)
    def view(self, thing: Thing) -> None:
        if thing.alive:
            thing.views.append(thing.block.view)
        else:
            with pytest.raises((execmem.ClosedError, execmem.FreedAddressError)):
                _ = thing.block.view

    @rule(thing=things)
    def drop_views(self, thing: Thing) -> None:
        thing.views.clear()

    @rule(thing=things)
    def free(self, thing: Thing) -> None:
        if not thing.alive:
            with pytest.raises((execmem.ClosedError, execmem.DoubleFreeError)):
                thing.block.free()
        elif thing.views:
            with pytest.raises(execmem.BlockBusyError):
                thing.block.free()
        else:
            thing.block.free()
            self.leave(thing)

    @rule(thing=consumes(things))
    def drop(self, thing: Thing) -> None:
        """Let the last reference go; an element of a batch lives on with its batch, so that one is freed."""
        thing.views.clear()
        if thing.alive:
            self.leave(thing)
            if thing.batch is not None:
                thing.block.free()
        del thing.block

    @rule(thing=things)
    def free_many(self, thing: Thing) -> None:
        """Free what is left of a batch."""
        if thing.batch is None or thing.room.domain.closed:
            return
        mates = [other for other in self.live.values() if other.batch is thing.batch]
        if any(other.views for other in mates):
            with pytest.raises(execmem.BlockBusyError):
                thing.batch.free()
        else:
            thing.batch.free()
            for other in mates:
                self.leave(other)

    @rule(thing=things, inside=st.integers(1, 5000))
    def free_inside(self, thing: Thing, inside: int) -> None:
        if thing.alive and inside < len(thing.contents):
            with pytest.raises(execmem.InteriorAddressError):
                execmem.execmem_free(thing.block.address + inside)

    # ---- after every step ----

    @invariant()
    def blocks_are_apart_and_hold_their_bytes(self) -> None:
        end = 0
        for address, thing in self.live.items():
            assert address >= end
            end = address + thing.rounded
            size = len(thing.contents)
            assert read(address, size) == thing.contents
            assert read(address + size, thing.rounded - size) == bytes([blank(thing.kind)]) * (thing.rounded - size)
            for view in thing.views:
                assert view.tobytes() == thing.contents

    @invariant()
    def blocks_are_found(self) -> None:
        for address, thing in self.live.items():
            info = execmem.find(address + len(thing.contents) - 1)
            assert (info.address, info.size, info.rounded) == (address, len(thing.contents), thing.rounded)
            assert (info.name, info.kind, info.state) == (thing.name, thing.kind, thing.state)
            assert info.domain == thing.room.domain.number

    @invariant()
    def domains_are_lawful_and_count_right(self) -> None:
        for room in self.open:
            room.domain.check()
            inside = [thing for thing in self.live.values() if thing.room is room]
            stats = room.domain.stats()
            assert stats.live_blocks == len(room.domain) == len(inside) == room.live
            assert stats.live_bytes == sum(len(thing.contents) for thing in inside)
            assert stats.used_bytes == room.used
            assert stats.charged_bytes == self.charged[room.domain.number]
            assert (stats.allocs - stats.frees, stats.limit) == (room.live, room.limit)
            records = room.domain.blocks()
            assert records["address"].tolist() == [thing.block.address for thing in inside]
            assert records["size"].tolist() == [len(thing.contents) for thing in inside]
            assert room.domain.names(records) == [thing.name for thing in inside]
            packs = room.domain.packs()
            assert int(packs["blocks"].sum()) == room.live
            assert stats.packs == int((packs["state"] != lib.EXECMEM_PACK_ABSENT).sum())
            del packs

    def teardown(self) -> None:
        for thing in self.live.values():
            thing.views.clear()
        for room in reversed(self.open):
            if not room.domain.closed:
                room.domain.close(force=True)
        self.live.clear()
        gc.collect()


Model.TestCase.settings = settings(
    max_examples=20 if SHORT else 60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestModel = Model.TestCase
