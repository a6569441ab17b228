"""Live patching: one instruction takes the place of another while other threads may be running it.

Beside ``csrc/site.c``; ``docs/patching.md`` tells how it is done and what each CPU allows.

>>> import execmem
>>> if execmem.arch() == "x86_64":
...     with execmem.default_domain().place(bytes.fromhex("b801000000c3")) as block:  # mov eax, 1; ret
...         one = block.function("i32()")
...         before = one()
...         block.poke(0, bytes.fromhex("b801000000"), bytes.fromhex("b802000000"))
...         after = one()
...         del one
... else:
...     before, after = 1, 2
>>> before, after
(1, 2)
"""

# ruff: noqa: ANN401 - cffi values have no type

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

from execmem._core import ffi, lib
from execmem.errors import BoundsError, InvalidArgumentError, raise_last
from execmem.ledger import Hold
from execmem.memory import WORD, to_address, to_bytes, to_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from execmem.memory import BytesLike

INSTRUCTIONS: Final[dict[str, int]] = {
    "nop": lib.EXECMEM_INSN_NOP,
    "jump": lib.EXECMEM_INSN_JUMP,
    "call": lib.EXECMEM_INSN_CALL,
}


def to_pair(old: BytesLike, new: BytesLike) -> tuple[Any, Any]:
    """Return both as ``char[]`` of one length."""
    before, after = to_bytes(old), to_bytes(new)
    if len(before) != len(after):
        message = f"{len(before)} bytes cannot become {len(after)}: an instruction takes the place of one of its length"
        raise InvalidArgumentError(message)
    return before, after


def execmem_poke(site: SupportsIndex, old: BytesLike, new: BytesLike) -> None:
    """Replace the instruction ``old`` at an address by the instruction ``new`` of the same length.

    Other threads may be running it: meanwhile they run the one or the other, and from the return on the new one.

    Raises
    ------
    ChangedError
        The bytes there are not ``old``.
    InstructionError, MisalignedError
        Either is not exactly one instruction, or this CPU cannot change it there.
    InvalidAddressError, BoundsError
        No filled block of kind text has the bytes; ``ForkedError`` and ``SealedError`` when it cannot be written.
    BusyError
        Threads had to be stopped, as in write mode ``flip``, and one did not stop.

    Notes
    -----
    Cost: one to three synchronisations of all threads (``sync``), some 15 us each while another thread runs.

    """
    before, after = to_pair(old, new)
    pointer = to_address(site)
    sys.audit("execmem.poke", int(ffi.cast(WORD, pointer)), len(before))
    code = lib.execmem_poke(pointer, before, after, len(before))
    if code:
        raise_last(code)


def execmem_poke_many(sites: Iterable[tuple[SupportsIndex, BytesLike, BytesLike]]) -> None:
    """Replace many instructions of one domain, all or none, for the synchronisations of one.

    Each element is ``(site, old, new)`` as for ``execmem_poke``, in any order. Cost: about 1 us each for Python to
    convert it; in the core some 50 ns where it can store, and three writes of the kernel elsewhere. The ``index`` of
    the exception tells which element was refused.
    """
    try:
        triples: list[tuple[Any, ...]] = [tuple(each) for each in sites]
    except TypeError:
        triples = [()]
    if any(len(each) != 3 for each in triples):  # noqa: PLR2004 - the three that are named
        message = "sites must be a sequence of (site, old, new)"
        raise InvalidArgumentError(message)
    listed = [(to_address(site), *to_pair(old, new)) for site, old, new in triples]
    batch = ffi.new("execmem_poke_site[]", len(listed))
    for place, (site, before, after) in zip(batch, listed, strict=True):
        place.site, place.old_bytes, place.new_bytes, place.len = site, before, after, len(before)
    sys.audit(
        "execmem.poke", [int(ffi.cast(WORD, site)) for site, _, _ in listed], sum(len(old) for _, old, _ in listed)
    )
    code = lib.execmem_poke_batch(batch, len(listed))
    if code:
        raise_last(code, batch=True)


def encode(instruction: str, size: SupportsIndex, site: SupportsIndex = 0, target: SupportsIndex = 0) -> bytes:
    """Return an instruction of exactly ``size`` bytes: ``"nop"``, or ``"jump"`` or ``"call"`` from a site to a target.

    On x86-64 there are nops of 1 to 9 bytes, jumps of 2 and of 5 to 15, calls of 5; on aarch64 all have 4; on riscv64
    all may have 4, nops and jumps 2.

    Raises
    ------
    InvalidArgumentError
        None has that size on this CPU.
    MisalignedError
        No instruction lies at the site, or at the target, on this CPU.
    ReachError
        The target is too far.

    >>> import execmem
    >>> encode("jump", 5, 0x1000, 0x2000).hex() if execmem.arch() == "x86_64" else "e9fb0f0000"
    'e9fb0f0000'

    """
    try:
        number = INSTRUCTIONS[instruction]
    except (KeyError, TypeError):
        message = f"instruction is {instruction!r}: it must be one of {', '.join(INSTRUCTIONS)}"
        raise InvalidArgumentError(message) from None
    length = to_size(size, "size")
    out = ffi.new("unsigned char[]", lib.EXECMEM_SITE_MAX)
    code = lib.execmem_encode(number, to_address(site), to_address(target), out, length)
    if code:
        raise_last(code)
    return bytes(ffi.buffer(out, length))


def poke_block(block: Any, offset: SupportsIndex, old: BytesLike, new: BytesLike) -> None:
    """Replace the instruction ``old``, ``offset`` bytes from the start, by ``new`` of the same length.

    Threads may be running it, and callables may hold the block. Errors and cost: see ``execmem.execmem_poke``.
    """
    start = to_size(offset, "offset")
    before, _ = to_pair(old, new)
    if start + len(before) > block.size:
        message = f"{len(before)} bytes at offset {start} would leave block {block.name!r} of {block.size} bytes"
        raise BoundsError(message)
    address = block._address_live()  # noqa: SLF001 - a method of Block
    hold = Hold(block, "call in flight")
    try:
        execmem_poke(address + start, old, new)
    finally:
        del hold
