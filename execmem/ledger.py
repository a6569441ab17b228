"""Holders, and tables among them: the ledger as numpy sees it.

Beside ``csrc/ledger.c``. The types of the records are made from their C declarations, so the layout is written once, in
``csrc/execmem.h``; ``docs/ledger.md`` explains it.

>>> BLOCK_DTYPE["address"], BLOCK_DTYPE.itemsize
(dtype('uint64'), 24)
"""

# ruff: noqa: ANN401 - blocks and domains have their types above this file
# ruff: noqa: SLF001 - holders enter what they hold, where it is private

from __future__ import annotations

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


GATE: Final = threading.RLock()  # an RLock: a collection inside it may run a __del__ that frees
# A fork waits until nobody else is inside; the child's only thread is the one that entered, and leaves too.
os.register_at_fork(before=GATE.acquire, after_in_parent=GATE.release, after_in_child=GATE.release)

HEADER_DTYPE: Final = record_dtype("execmem_header")
PACK_DTYPE: Final = record_dtype("execmem_pack")
BLOCK_DTYPE: Final = record_dtype("execmem_block")
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


class Hold:
    """A reason why a block must not be freed; it counts for as long as it lives."""

    __slots__ = ("block",)

    def __init__(self, block: Any, what: str) -> None:
        """Enter the block's and the domain's holders, or raise because the block is gone."""
        with GATE:
            block._address_live()
            self.block = block
            if block._holders is None:
                block._holders = {}
            block._holders[id(self)] = what
            if block._owner is not None:
                block._owner._holders[id(self)] = what
            block.domain._holders[id(self)] = what

    def __del__(self) -> None:
        """Leave the holders; the last takes away what is lost."""
        block = getattr(self, "block", None)
        if block is None or block._holders is None:  # the block was gone and nothing was entered
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
