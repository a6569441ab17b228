"""trace: what happened to executable kernel memory and the direct map, as rows of 32 bytes.

A row is an event or a sample of a counter; `EVENT` is its layout, little-endian on every machine.

    LOAD    code came: at its address (0: not known), size in bytes, id: a number of this piece alone, owner: who
            loaded it, name: what it is called, client: what it is for
    UNLOAD  it went; the same fields
    SPLIT   large mappings were split: at the offset of the region in the direct map (0: not known), size in bytes of a
            mapping that was split, id: how many, owner: who did it, name: why that is believed
    JOIN    they were joined again; the same fields
    SAMPLE  a counter was read: name of the counter, at: its value
    TEXT    a text that owner and name point at: name is its number, from 1, owner the part of it, from 0; the bytes of
            the part, up to 24, lie where ns, at, size and id are, client is how many

`ns` is CLOCK_MONOTONIC of the machine the trace is of. Text 0 is "not known".
"""

from __future__ import annotations

import enum
from typing import Final

import numpy as np


class Kind(enum.IntEnum):
    """What a row tells; 0 is a row not yet written."""

    NOTHING = 0
    LOAD = 1
    UNLOAD = 2
    SPLIT = 3
    JOIN = 4
    SAMPLE = 5
    TEXT = 6


class Client(enum.IntEnum):
    """What code is for."""

    UNKNOWN = 0
    BPF = 1
    CLASSIC = 2  # classic BPF: socket filters, seccomp
    TRAMPOLINE = 3
    MODULE = 4
    OTHER = 5


EVENT: Final = np.dtype(
    [
        ("ns", "<u8"),
        ("at", "<u8"),
        ("size", "<u4"),
        ("id", "<u4"),
        ("name", "<u4"),
        ("owner", "<u2"),
        ("kind", "u1"),
        ("client", "u1"),
    ]
)
