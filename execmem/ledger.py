"""Holders, and tables among them: the ledger as numpy sees it.

Beside ``csrc/ledger.c``. The types of the records are made from their C declarations, so the layout is written once, in
``csrc/execmem.h``; ``docs/ledger.md`` explains it.

>>> EVENT_DTYPE["address"], EVENT_DTYPE.itemsize
(dtype('uint64'), 24)
"""

# ruff: noqa: ANN401 - blocks and domains have their types above this file
# ruff: noqa: SLF001 - holders enter what they hold, where it is private

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from execmem._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt


def record_dtype(name: str) -> np.dtype[np.void]:
    """Return the numpy type of a record, made from its C declaration; fields named reserved are left out."""
    record = ffi.typeof(name)
    formats = {"char": "S", "uint8_t": "<u1", "uint16_t": "<u2", "uint32_t": "<u4", "uint64_t": "<u8"}
    fields: dict[str, tuple[Any, int]] = {}
    for key, field in record.fields:
        is_array = field.type.kind == "array"
        item = formats[field.type.item.cname if is_array else field.type.cname]
        if key != "reserved":
            kind = (f"S{field.type.length}" if item == "S" else (item, (field.type.length,))) if is_array else item
            fields[key] = (kind, field.offset)
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": ffi.sizeof(record),
        }
    )


WORD: Final = ffi.typeof("uintptr_t")
WORD_MAX: Final = 2**64 - 1
READINGS: Final = 5  # of a ledger that changes under the reader

GATE: Final = threading.RLock()  # an RLock: a collection inside it may run a __del__ that frees


def leave_after_fork() -> None:
    """Leave the gate, in both processes; a signal whose handler raises may have ended the wait to enter it."""
    if GATE._is_owned():  # type: ignore[attr-defined]
        GATE.release()


def open_after_fork() -> None:
    """In the child, open the gate also when a thread that is not here was inside: nobody else could."""
    leave_after_fork()
    if not GATE._is_owned():  # type: ignore[attr-defined]
        GATE._at_fork_reinit()  # type: ignore[attr-defined]


# A fork waits until nobody else is inside; the child's only thread is the one that entered, and leaves too.
os.register_at_fork(before=GATE.acquire, after_in_parent=leave_after_fork, after_in_child=open_after_fork)
# Python ends daemon threads where they next want the interpreter, perhaps inside, and then runs finalizers that want in
# too. So the main thread enters while they still live, and stays.
atexit.register(GATE.acquire)

HEADER_DTYPE: Final = record_dtype("execmem_header")
PACK_DTYPE: Final = record_dtype("execmem_pack")
SHARD_DTYPE: Final = record_dtype("execmem_shard")
RECORD_DTYPE: Final = record_dtype("execmem_block")  # as it lies in the ledger
BLOCK_DTYPE: Final = np.dtype(  # with what follows from where it lies
    [
        ("address", "<u8"),
        ("size", "<u4"),  # bytes asked for
        ("name", "<u4"),  # first cell in the name heap, 0: none
        ("born_ms", "<u4"),
        ("state", "u1"),  # enum execmem_block_state
        ("kind", "u1"),  # enum execmem_kind
    ]
)
EVENT_DTYPE: Final = record_dtype("execmem_event")
NAME_DTYPE: Final = np.dtype([("next", "<u4"), ("text", f"S{lib.EXECMEM_NAME_CELL_TEXT}")])


# ---- holders: what keeps blocks and domains from being unmapped ----


def tell_holders(holders: Iterable[str]) -> str:
    """Return holders as a text such as ``2 views and 1 callable``."""
    kinds = list(holders)
    counted = [f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in dict.fromkeys(kinds)]
    return " and ".join(counted) or "nothing"


def hide(keep: object) -> npt.NDArray[np.object_]:
    """Return an array that keeps an object; the collector does not look into arrays, so it takes it to be in use."""
    box = np.empty((), dtype=np.object_)
    box[()] = keep
    return box


IN_FLIGHT: Final[dict[int, Any]] = {}  # the blocks that calls hold, under the number of the hold


def forget_calls() -> None:
    """Let go, in a forked child, what calls of other threads held: those threads are not here."""
    for number, block in IN_FLIGHT.copy().items():
        for kept in (block, block._owner, block.domain):
            if kept is not None:
                kept._holders.pop(number, None)
    IN_FLIGHT.clear()


os.register_at_fork(after_in_child=forget_calls)


class Hold:
    """A reason why a block must not be freed; it counts for as long as it lives."""

    __slots__ = ("block",)

    def __init__(self, block: Any, what: str) -> None:
        """Enter the block's and the domain's holders, or raise because the block is gone."""
        with GATE:
            if block._holders is None:
                block._holders = {}
            self.block = block
            for kept in (block, block._owner, block.domain):
                if kept is not None:
                    kept._holders[id(self)] = what
            if what == "call in flight":
                IN_FLIGHT[id(self)] = block
            try:  # after it entered: a free that comes between claims the block first, or finds it held
                block._address_live()
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        """Leave the holders."""
        IN_FLIGHT.pop(id(self), None)
        for kept in (self.block, self.block._owner, self.block.domain):
            if kept is not None:
                kept._holders.pop(id(self), None)

    def __del__(self, _calls: dict[int, Any] = IN_FLIGHT) -> None:
        """Leave the holders; the last takes away what is lost."""
        block = getattr(self, "block", None)
        _calls.pop(id(self), None)
        if block is None or block._holders is None:
            return
        for kept in (block, block._owner, block.domain):
            if kept is not None:
                kept._holders.pop(id(self), None)
                if kept._lost and not kept._holders:
                    kept.__del__()


class View(Hold):
    """What a numpy array over a block has as its base."""

    __slots__ = ()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The bytes of the block, read-only."""
        block = self.block
        return {"version": 3, "typestr": "|u1", "shape": (block.size,), "data": (block.address, True)}


class Table:
    """What a numpy array over a ledger has as its base: it keeps the domain, and counts among its holders."""

    __slots__ = ("__array_interface__", "_domain")

    def __init__(self, domain: Any, address: int, count: int, size: int) -> None:
        """Show ``count`` records of ``size`` bytes at an address of the ledger of a domain."""
        self._domain = domain
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": (count,),
            "data": (address, True),
        }
        domain._holders[id(self)] = "table"

    def __del__(self) -> None:
        """Leave the holders; the last takes away a domain that is lost, as in ``execmem.domain``."""
        domain = self._domain
        domain._holders.pop(id(self), None)
        if domain._lost and not domain._holders:
            domain.__del__()


def read_name(heap: npt.NDArray[np.void], cell: int) -> str:
    """Return a name from its chain of cells; 0 is no name."""
    parts: list[bytes] = []
    # The chain is bounded, so that a reader overtaken by a free cannot run in a circle.
    while cell and len(parts) * lib.EXECMEM_NAME_CELL_TEXT <= lib.EXECMEM_NAME_MAX:
        record = heap[cell]
        parts.append(bytes(record["text"]))
        cell = int(record["next"])
    return b"".join(parts).decode("utf-8", "replace")


# ---- the ledger, read: the same for this process and for another that maps it ----


def read_blocks(raw: npt.NDArray[np.uint8], header: Any) -> npt.NDArray[np.void]:
    """Return the live blocks of a ledger, by address; ``raw`` is the whole ledger as bytes. About 1 ms a pack."""
    packs = raw[header.packs_offset :][: header.packs_top * PACK_DTYPE.itemsize].view(PACK_DTYPE)
    states = (lib.EXECMEM_PACK_SMALL, lib.EXECMEM_PACK_FULL, lib.EXECMEM_PACK_SPAN)
    parts = [
        pack_blocks(
            packs[number],
            raw[header.maps_offset + number * header.maps_stride :][: header.maps_stride],
            raw[header.blocks_offset + number * header.blocks_stride :][: header.blocks_stride],
            header.extents_at,
        )
        for number in np.flatnonzero(np.isin(packs["state"], states)).tolist()
    ]
    blocks: npt.NDArray[np.void] = np.concatenate(parts) if parts else np.empty(0, dtype=BLOCK_DTYPE)
    return blocks


def pack_blocks(
    pack: np.void, maps: npt.NDArray[np.uint8], records: npt.NDArray[np.uint8], extents_at: int
) -> npt.NDArray[np.void]:
    """Return the live blocks of one pack: the heads tell where they are, and where their records are."""
    words = maps[: lib.EXECMEM_PACK_WORDS * 16].view(np.uint8).reshape(-1, 2, 8)
    used, head = (np.unpackbits(words[:, half].reshape(-1), bitorder="little") for half in (0, 1))
    first = np.flatnonzero(head)
    extents = maps[extents_at:][: lib.EXECMEM_PACK_WORDS * 2].view(np.uint16).astype(np.uint32) * 2
    group = first >> 6
    rank = np.arange(len(first)) - np.searchsorted(group, group)  # among the heads of its group
    stride = RECORD_DTYPE.itemsize
    record = records[: len(records) // stride * stride].view(RECORD_DTYPE)[extents[group] + rank]
    if pack["state"] == lib.EXECMEM_PACK_SPAN:
        end = np.array([pack["usable_chunks"]])
    else:  # a block ends at the next head or free chunk, or where the pack's open part does
        edge = np.append(np.flatnonzero(head | (used ^ 1)), pack["usable_chunks"])
        end = np.minimum(edge[np.searchsorted(edge, first, side="right")], pack["usable_chunks"])
    blocks = np.empty(len(first), dtype=BLOCK_DTYPE)
    blocks["address"] = pack["address"] + first.astype(np.uint64) * lib.EXECMEM_CHUNK
    blocks["size"] = (end - first) * lib.EXECMEM_CHUNK - record["unused"]
    for field in ("name", "born_ms", "state", "kind"):
        blocks[field] = record[field]
    freed = lib.EXECMEM_BLOCK_PARKED  # its bits are those of a quarantined block and of a held one too
    live: npt.NDArray[np.void] = blocks[record["state"] & freed != freed]
    return live


def read_events(raw: npt.NDArray[np.uint8], header: Any) -> npt.NDArray[np.void]:
    """Return what the rings of a ledger hold, oldest first; ``raw`` is the whole ledger as bytes."""
    shards = raw[header.shards_offset :][: header.shards * SHARD_DTYPE.itemsize].view(SHARD_DTYPE)
    size = header.events_max * EVENT_DTYPE.itemsize
    rings, times = [], []
    for number, written in enumerate(shards["events"].tolist()):
        ring = raw[header.events_offset + number * size :][:size].view(EVENT_DTYPE)
        rings.append(np.roll(ring, -(written % len(ring)))[-min(written, len(ring)) :] if written else ring[:0])
        # A batch has the time of its start, and a pack made on the way its own: a ring is in order all the same.
        times.append(np.maximum.accumulate(rings[-1]["time_ms"]))
    events = np.concatenate(rings)
    return events[np.argsort(np.concatenate(times), kind="stable")]


# ---- a domain's own ledger ----


class Books:
    """What a ``Domain`` shows of its ledger, not copied: what is shown changes as the domain does."""

    __slots__ = ()

    if TYPE_CHECKING:
        _holders: dict[int, str]

        def _ledger(self) -> Any:
            """Return the header, or raise because the domain is closed; read it under ``GATE``."""

    def header(self) -> npt.NDArray[np.void]:
        """Return the ledger's header as an array of one record; counters change under it."""
        return self._table(0, 1, HEADER_DTYPE)

    def packs(self) -> npt.NDArray[np.void]:
        """Return the table of packs, zero-copy and read-only, shape (packs,); row i is pack i of the window.

        The columns are those of ``execmem_pack`` in ``csrc/execmem.h``, those marked private there included. The array
        counts as a holder: ``close`` is refused until it is dropped. Copy what is to outlive the domain.
        """
        with GATE:
            header = self._ledger()
            return self._table(header.packs_offset, header.packs_top, PACK_DTYPE)

    def shards(self) -> npt.NDArray[np.void]:
        """Return the counters of the domain's parts, zero-copy and read-only, shape (shards,); a domain's are the sums.

        Threads have parts of their own. The columns are those of ``execmem_shard`` in ``csrc/execmem.h``. A holder as
        in ``packs``.
        """
        with GATE:
            header = self._ledger()
            return self._table(header.shards_offset, header.shards, SHARD_DTYPE)

    def blocks(self) -> npt.NDArray[np.void]:
        """Return the records of live blocks, by address: a copy; about 1 ms a pack.

        The columns are address, size (bytes asked for), name (see ``names``), born_ms, state (1 reserved, 2 filled) and
        kind (0 text, 1 rodata, 2 data). While other threads place and free, it is read anew up to five times for a
        picture of one moment; if they never pause, rows of what changed meanwhile may be wrong.

        >>> import execmem
        >>> with execmem.Domain("doc") as domain:
        ...     block = domain.place(b"bytes", name="first")
        ...     records = domain.blocks()
        ...     records["size"].tolist(), domain.names(records)
        ([5], ['first'])
        """
        with GATE:
            header = self._ledger()
            raw = self._raw(header)
            moving = ("frees", "allocs", "retired_blocks")
            for _ in range(READINGS):
                before = [self._count(what) for what in moving]
                blocks = read_blocks(raw, header)
                if before == [self._count(what) for what in moving]:
                    break
            return blocks

    def events(self) -> npt.NDArray[np.void]:
        """Return recent events, oldest first: a copy of the last 4,096 of each shard; about 0.1 ms a shard.

        The columns are those of ``execmem_event`` in ``csrc/execmem.h``; ``op`` is one of ``enum execmem_event_op``.
        """
        with GATE:
            header = self._ledger()
            return read_events(self._raw(header), header)

    def _raw(self, header: Any) -> npt.NDArray[np.uint8]:
        """Return the whole ledger as bytes, not copied, for as long as ``GATE`` is held."""
        return np.frombuffer(ffi.buffer(header, header.ledger_size), dtype=np.uint8)

    def names(self, records: npt.NDArray[np.void]) -> list[str]:
        """Return the names of block records, an empty text for none; about 1 us a name."""
        with GATE:
            header = self._ledger()
            heap = self._table(header.names_offset, header.names_top, NAME_DTYPE)
        return [read_name(heap, cell) for cell in records["name"].tolist()]

    def _table(self, offset: int, count: int, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Return records of the ledger as an array that keeps the domain and counts as a holder."""
        with GATE:
            start = int(ffi.cast(WORD, self._ledger()))
            table = Table(self, start + offset, count, dtype.itemsize)
        records: npt.NDArray[np.void] = np.asarray(table).view(dtype)
        return records

    def _count(self, what: str) -> int:
        """Return the sum of a counter over the shards."""
        header = self._ledger()
        shards = ffi.cast("execmem_shard *", int(ffi.cast(WORD, header)) + header.shards_offset)
        return int(sum(getattr(shards[number], what) for number in range(header.shards))) & WORD_MAX
