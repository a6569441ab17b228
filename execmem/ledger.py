"""Tables: the ledger as numpy sees it.

Beside ``csrc/ledger.c``. The types of the records are made from their C declarations, so the layout is written once, in
``csrc/execmem.h``; ``docs/ledger.md`` explains it.

>>> BLOCK_DTYPE["address"], BLOCK_DTYPE.itemsize
(dtype('uint64'), 24)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from execmem._core import ffi, lib

if TYPE_CHECKING:
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


HEADER_DTYPE: Final = record_dtype("execmem_header")
PACK_DTYPE: Final = record_dtype("execmem_pack")
BLOCK_DTYPE: Final = record_dtype("execmem_block")
EVENT_DTYPE: Final = record_dtype("execmem_event")
NAME_DTYPE: Final = np.dtype([("next", "<u4"), ("text", f"S{lib.EXECMEM_NAME_CELL_TEXT}")])


class Table:
    """What a numpy array over a ledger has as its base: it keeps the domain, and counts among its holders."""

    __slots__ = ("__array_interface__", "_holders", "_keep")

    def __init__(self, keep: object, holders: dict[int, str], address: int, count: int, size: int) -> None:
        """Show ``count`` records of ``size`` bytes at an address of the ledger of ``keep``, whose holders are given."""
        self._keep = keep
        self._holders = holders
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": (count,),
            "data": (address, True),
        }
        holders[id(self)] = "table"

    def __del__(self) -> None:
        """Leave the holders."""
        self._holders.pop(id(self), None)


def read_name(heap: npt.NDArray[np.void], cell: int) -> str:
    """Return a name from its chain of cells; 0 is no name."""
    parts: list[bytes] = []
    # The chain is bounded, so that a reader overtaken by a free cannot run in a circle.
    while cell and len(parts) * lib.EXECMEM_NAME_CELL_TEXT <= lib.EXECMEM_NAME_MAX:
        record = heap[cell]
        parts.append(bytes(record["text"]))
        cell = int(record["next"])
    return b"".join(parts).decode("utf-8", "replace")
