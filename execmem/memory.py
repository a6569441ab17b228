"""The kernel's three calls on the default domain, their batches, and what is asked of an address.

Beside ``csrc/execmem.c``. The three calls are made for those who keep addresses themselves; nothing here frees by
itself. Objects that do are in ``execmem.domain``.

>>> import execmem
>>> address = execmem.execmem_alloc(8)
>>> execmem.execmem_fill(address, bytes.fromhex("488d4707c3"))  # lea rax, [rdi + 7]; ret
>>> execmem.find(address).state
'filled'
>>> execmem.execmem_free(address)
"""

# ruff: noqa: ANN401 - cffi values have no type

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import numpy as np

from execmem._core import ffi, lib
from execmem.errors import BoundsError, InvalidAddressError, InvalidArgumentError, raise_last

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    from typing_extensions import Buffer

    Words = npt.NDArray[np.uint64]
    WordsLike = npt.ArrayLike | Iterable[SupportsIndex]
    BytesLike = Buffer | npt.NDArray[Any]

NULL: Final = ffi.NULL
VOID_P: Final = ffi.typeof("void *")
OUT_P: Final = ffi.typeof("void *[1]")
WORD: Final = ffi.typeof("uintptr_t")
WORDS_P: Final = ffi.typeof("uint64_t[]")
WORD_MAX: Final = 2**64 - 1
ROOT_NUMBER: Final = 1  # the number of the root domain in audit events
KINDS: Final[dict[str, int]] = {"text": lib.EXECMEM_TEXT, "rodata": lib.EXECMEM_RODATA, "data": lib.EXECMEM_DATA}
KIND_NAMES: Final[dict[int, str]] = {number: name for name, number in KINDS.items()}
STATE_NAMES: Final[dict[int, str]] = {
    lib.EXECMEM_BLOCK_NONE: "none",
    lib.EXECMEM_BLOCK_RESERVED: "reserved",
    lib.EXECMEM_BLOCK_FILLED: "filled",
    lib.EXECMEM_BLOCK_DYING | lib.EXECMEM_BLOCK_RESERVED: "dying",
    lib.EXECMEM_BLOCK_DYING | lib.EXECMEM_BLOCK_FILLED: "dying",
}
MODES: Final[dict[str | None, int]] = {
    None: lib.EXECMEM_MODE_AUTO,
    "syscall": lib.EXECMEM_MODE_SYSCALL,
    "alias": lib.EXECMEM_MODE_ALIAS,
    "procmem": lib.EXECMEM_MODE_PROCMEM,
    "flip": lib.EXECMEM_MODE_FLIP,
    "pkey": lib.EXECMEM_MODE_PKEY,
}
SEALED_NAMES: Final[dict[int, str | None]] = {
    lib.EXECMEM_SEALED_NOT: None,
    lib.EXECMEM_SEALED_LIBRARY: "library",
    lib.EXECMEM_SEALED_MAPPINGS: "mappings",
    lib.EXECMEM_SEALED_KERNEL: "kernel",
}
MODE_NAMES: Final[dict[int, str]] = {number: name or "auto" for name, number in MODES.items()}
SUFFIXES: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
BYTES: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)

# ---- arguments: everything that reaches C is checked or converted here ----


def to_size(value: SupportsIndex, what: str) -> int:
    """Return a number of bytes as an int that fits ``size_t``; the core judges the rest."""
    try:
        number = index(value)
    except TypeError:
        message = f"{what} is {value!r}: it must be an integer number of bytes"
        raise InvalidArgumentError(message) from None
    if not 0 <= number <= WORD_MAX:
        message = f"{what} is {number}: it must be positive and fit 64 bits"
        raise InvalidArgumentError(message)
    return number


def to_address(value: SupportsIndex) -> Any:
    """Return an address as ``void *``."""
    try:
        number = index(value)
    except TypeError:
        message = f"{value!r} is no address: it must be an integer or an object with __index__, such as a Block"
        raise InvalidAddressError(message) from None
    if not 0 <= number <= WORD_MAX:
        message = f"{number} is no address: it must lie in 0 .. 2**64 - 1"
        raise InvalidAddressError(message)
    return ffi.cast(VOID_P, number)


def to_bytes(data: BytesLike) -> Any:
    """Return the bytes of an object with a buffer as ``char[]``, not copied; its ``len`` is their number."""
    try:
        return ffi.from_buffer(data)
    except (TypeError, ValueError, BufferError):
        message = f"the bytes must be a contiguous buffer, such as bytes or a numpy array, not {type(data).__name__}"
        raise InvalidArgumentError(message) from None


def to_words(values: WordsLike, what: str) -> Words:
    """Return a new array of 64-bit words with the same numbers; whatever would change a number is refused.

    It is a copy, because the core reads it without the interpreter lock, when another thread may write the original.
    """
    if isinstance(values, np.ndarray):
        array = values
        if array.dtype.kind not in "ui":
            message = f"{what} are of type {array.dtype}: they must be integers"
            raise InvalidArgumentError(message)
        if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
            message = f"{what} must not be negative; the smallest is {int(array.min())}"
            raise InvalidArgumentError(message)
    else:
        try:  # numbers one by one: numpy would turn a list of small and large integers into floats
            array = np.array([index(value) for value in values], dtype=np.uint64)  # type: ignore[union-attr,arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            message = f"{what} must be integers in 0 .. 2**64 - 1: {error}"
            raise InvalidArgumentError(message) from None
    if array.ndim != 1:
        message = f"{what} must have one dimension, not {array.ndim}"
        raise InvalidArgumentError(message)
    return np.array(array, dtype=np.uint64)


def to_name(name: str | None) -> Any:
    """Return a name as what cffi passes as ``const char *``."""
    if name is None:
        return NULL
    try:
        encoded = name.encode()
    except (AttributeError, UnicodeEncodeError):
        message = f"the name is {name!r}: it must be a str that UTF-8 can hold"
        raise InvalidArgumentError(message) from None
    if b"\0" in encoded:
        message = f"the name {name!r} contains a NUL character"
        raise InvalidArgumentError(message)
    return encoded


def to_texts(names: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the names of a batch as a tuple of its own; ``to_names`` judges them."""
    if names is None:
        return None
    try:
        if not isinstance(names, str):
            return tuple(names)
    except TypeError:
        pass
    message = f"names must be a sequence of texts, one for each block, not {type(names).__name__}"
    raise InvalidArgumentError(message)


def to_names(names: Sequence[str] | None, count: int) -> Any:
    """Return the names of a batch, each ended by NUL."""
    if names is None:
        return NULL
    if isinstance(names, str) or len(names) != count:
        message = f"names must be a sequence of {count} texts, one for each block"
        raise InvalidArgumentError(message)
    try:
        joined = "\0".join(names).encode() + b"\0"
    except (TypeError, UnicodeEncodeError) as error:
        message = f"names must be texts that UTF-8 can hold: {error}"
        raise InvalidArgumentError(message) from None
    if count and joined.count(b"\0") != count:
        message = "a name contains a NUL character"
        raise InvalidArgumentError(message)
    return joined


def to_kind(kind: str) -> int:
    """Return the number of a kind."""
    try:
        return KINDS[kind]
    except (KeyError, TypeError):
        message = f"kind is {kind!r}: it must be one of {', '.join(KINDS)}"
        raise InvalidArgumentError(message) from None


def to_mode(write_mode: str | None) -> int:
    """Return the number of a write mode."""
    try:
        return MODES[write_mode]
    except (KeyError, TypeError):
        known = ", ".join(repr(mode) for mode in MODES)
        message = f"write_mode is {write_mode!r}: it must be one of {known}"
        raise InvalidArgumentError(message) from None


def to_slices(data: BytesLike, offsets: WordsLike, count: int) -> tuple[Any, Words]:
    """Return the bytes and bounds of a batch: element i is ``data[offsets[i]:offsets[i + 1]]``."""
    source = to_bytes(data)
    bounds = to_words(offsets, "offsets")
    if len(bounds) != count + 1:
        message = f"there are {len(bounds)} offsets for {count} blocks: there must be one more than blocks"
        raise InvalidArgumentError(message)
    if (bounds[1:] < bounds[:-1]).any():
        message = "offsets must not decrease"
        raise InvalidArgumentError(message)
    if int(bounds[-1]) > len(source):
        message = f"the last offset is {int(bounds[-1])}, beyond the {len(source)} bytes of data"
        raise BoundsError(message)
    return source, bounds


class Libc:
    """The type of ``LIBC``."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Tell how it is written."""
        return "execmem.LIBC"


LIBC: Final = Libc()
"""For ``Domain(near=LIBC)``: near the C library of this process."""


def parse_bytes(value: SupportsIndex | str, what: str) -> int:
    """Return a number of bytes given as an int or as a text such as ``"64M"``; K, M, G, T are powers of 1024.

    >>> parse_bytes("64M", "limit"), parse_bytes("1.5 KiB", "limit"), parse_bytes(512, "limit")
    (67108864, 1536, 512)
    """
    if isinstance(value, str):
        match = BYTES.fullmatch(value)
        if match is None:
            message = f"{what} is {value!r}: write a number of bytes, or a text such as '64M' or '2G'"
            raise InvalidArgumentError(message)
        digits, suffix = match.groups()
        scale = 1 << SUFFIXES[suffix.lower()]
        value = int(digits) * scale if "." not in digits else int(float(digits) * scale)
    number = to_size(value, what)
    if not number:
        message = f"{what} is 0; give a positive number of bytes, or None for the default"
        raise InvalidArgumentError(message)
    return number


def resolve_near(near: SupportsIndex | str | Libc) -> int:
    """Return the address that ``near`` names: a number, a Block, a symbol of this process, or ``LIBC``."""
    if not isinstance(near, str | Libc):
        number = int(ffi.cast(WORD, to_address(near)))
        if not number:
            message = "near is 0; give an address, or None for anywhere"
            raise InvalidArgumentError(message)
        return number
    import ctypes  # noqa: PLC0415 - only here, and slow to import

    process = ctypes.CDLL(None)
    # The first is never replaced by a preloaded allocator or the like; the second is for other C libraries than glibc.
    for name in ("gnu_get_libc_version", "printf") if isinstance(near, Libc) else (near,):
        with suppress(AttributeError, ValueError):
            return ctypes.cast(process[name], ctypes.c_void_p).value or 0
    message = f"near is {near!r}, but this process has no such symbol; give an address, a Block or execmem.LIBC"
    raise InvalidArgumentError(message)


def to_options(  # noqa: PLR0913 - it is the C structure
    *,
    limit: SupportsIndex | str | None,
    near: SupportsIndex | str | Libc | None,
    reach: SupportsIndex | str | None,
    fallback: bool,
    window: SupportsIndex | str | None,
    write_mode: str | None,
    small_pages: bool,
    quarantine: SupportsIndex | str | None,
    gap: SupportsIndex | str | None,
    trust: SupportsIndex,
) -> Any:
    """Return the arguments of ``execmem.Domain`` as the core takes them, but for its name and parent."""
    if reach is not None and near is None:
        message = "reach tells how far from near, and there is no near; give both or neither"
        raise InvalidArgumentError(message)
    options = ffi.new("execmem_options *")
    options.limit = 0 if limit is None else parse_bytes(limit, "limit")
    options.window = 0 if window is None else parse_bytes(window, "window")
    options.near_address = 0 if near is None else resolve_near(near)
    options.reach = 0 if reach is None else parse_bytes(reach, "reach")
    options.fallback = bool(fallback)
    options.write_mode = to_mode(write_mode)
    options.small_pages = bool(small_pages)
    options.quarantine = 0 if quarantine is None else parse_bytes(quarantine, "quarantine")
    gap_size = 0 if gap is None else parse_bytes(gap, "gap")
    options.gap = min(gap_size, lib.EXECMEM_GAP_MAX + 1)  # the core judges
    options.trust = min(to_size(trust, "trust"), lib.EXECMEM_TRUST_MAX + 1)
    return options


# ---- the three calls ----


def execmem_alloc(size: SupportsIndex, align: SupportsIndex = 16) -> int:
    """Return the address of a new block of executable memory in the default domain; it holds traps.

    Parameters
    ----------
    size
        Bytes, from 1 up to the window of the domain.
    align
        Bytes, a power of two from 1 to 4096.

    Raises
    ------
    InvalidArgumentError
        A size or an alignment that can never be right.
    OutOfMemoryError, LimitError, OutOfWindowError
        A shortage.
    ExecDeniedError
        A policy of the system refuses executable memory.

    Notes
    -----
    Cost: about 1 us, whatever the number of live blocks.

    >>> address = execmem_alloc(100, align=64)
    >>> address % 64
    0
    >>> execmem_free(address)

    """
    size, align = to_size(size, "size"), to_size(align, "align")
    sys.audit("execmem.alloc", ROOT_NUMBER, size, align)
    pointer = lib.execmem_alloc(size, align)
    if pointer == NULL:
        raise_last(lib.execmem_error_code())
    return int(ffi.cast(WORD, pointer))


def execmem_fill(address: SupportsIndex, data: BytesLike) -> None:
    """Write bytes at an address; all of them must lie in one live block, of any domain and kind.

    When it returns, every thread of the process that comes to run the bytes sees them.

    Raises
    ------
    InvalidAddressError
        No block of this process owns the address; ``FreedAddressError`` when one did.
    BoundsError
        The bytes would leave the block.

    Notes
    -----
    Cost: a write of the domain's write mode (``syscall``: about 2 us) and a barrier for the other threads.

    """
    source = to_bytes(data)
    pointer = to_address(address)
    sys.audit("execmem.fill", int(ffi.cast(WORD, pointer)), len(source))
    code = lib.execmem_fill(pointer, source, len(source))
    if code:
        raise_last(code)


def execmem_free(address: SupportsIndex) -> None:
    """Free a block by its address; it holds traps again at once.

    The address of a ``Block`` belongs to that object: use ``Block.free``, which knows whether a view or a callable
    still needs the bytes.

    Raises
    ------
    InvalidAddressError
        No domain owns the address; ``InteriorAddressError`` when it is inside a block, ``DoubleFreeError`` when no live
        block is there any more.

    Notes
    -----
    Cost: about 1 us, whatever the number of live blocks.

    """
    pointer = to_address(address)
    sys.audit("execmem.free", int(ffi.cast(WORD, pointer)))
    code = lib.execmem_free(pointer)
    if code:
        raise_last(code, freeing=True)


# ---- batches: one crossing and one audit event each (sizes summed, addresses as an array); all of it or none ----


def words_pointer(words: Words) -> Any:
    """Return the words as ``uint64_t *``, not copied."""
    return ffi.from_buffer(WORDS_P, words)


def execmem_alloc_many(sizes: WordsLike, align: SupportsIndex = 16) -> Words:
    """Return the addresses of new blocks of the given sizes, in bytes, in the default domain.

    Cost: one crossing for all; about 0.1 us a block.

    >>> addresses = execmem_alloc_many([100, 200, 300])
    >>> addresses.dtype, len(set(addresses.tolist()))
    (dtype('uint64'), 3)
    >>> execmem_free_many(addresses)
    """
    words = to_words(sizes, "sizes")
    out: Words = np.zeros(len(words), dtype=np.uint64)
    alloc_many(NULL, ROOT_NUMBER, "text", words, align, None, out, NULL)
    return out


def execmem_place_many(data: BytesLike, offsets: WordsLike, align: SupportsIndex = 16) -> Words:
    """Allocate and fill in one crossing: block i holds ``data[offsets[i]:offsets[i + 1]]``.

    >>> addresses = execmem_place_many(b"abcdef", [0, 2, 6])
    >>> [find(address).size for address in addresses]
    [2, 4]
    >>> execmem_free_many(addresses)
    """
    bounds = to_words(offsets, "offsets")
    if not len(bounds):
        message = "there are no offsets: there must be one more than blocks"
        raise InvalidArgumentError(message)
    source, bounds = to_slices(data, bounds, len(bounds) - 1)
    out: Words = np.zeros(len(bounds) - 1, dtype=np.uint64)
    place_many(NULL, ROOT_NUMBER, "text", source, bounds, align, None, out, NULL)
    return out


def execmem_fill_many(addresses: WordsLike, data: BytesLike, offsets: WordsLike) -> None:
    """Write ``data[offsets[i]:offsets[i + 1]]`` at ``addresses[i]``, in blocks of the default domain.

    All addresses and bounds are judged before the first byte is written.
    """
    targets = to_words(addresses, "addresses")
    source, bounds = to_slices(data, offsets, len(targets))
    sys.audit("execmem.fill", targets, int(bounds[-1] - bounds[0]))
    code = lib.execmem_fill_many(NULL, len(targets), words_pointer(targets), source, words_pointer(bounds))
    if code:
        raise_last(code, batch=True)


def execmem_free_many(addresses: WordsLike) -> None:
    """Free blocks of the default domain by their addresses, all of them or none."""
    words = to_words(addresses, "addresses")
    sys.audit("execmem.free", words)
    code = lib.execmem_free_many(NULL, len(words), words_pointer(words))
    if code:
        raise_last(code, batch=True, freeing=True)


SPARES: Final[list[bytearray]] = []  # one at most: where ``Domain.place_many`` gathers what it is given
SPARE_SIZE: Final = 1 << 20


def take_spare(size: int) -> bytearray | None:
    """Return memory that was used before, for so many bytes; None: they are too few or too many."""
    if not SPARE_SIZE // 8 < size <= SPARE_SIZE:
        return None
    try:
        return SPARES.pop()
    except IndexError:
        return bytearray(SPARE_SIZE)


def keep_spare(spare: bytearray | None) -> None:
    """Keep it for the next."""
    if spare is not None and not SPARES:
        SPARES.append(spare)


def alloc_many(  # noqa: PLR0913, PLR0917 - it is the C call
    handle: Any,
    number: int,
    kind: str,
    sizes: Words,
    align: SupportsIndex,
    names: Sequence[str] | None,
    out: Words,
    live: Any,
) -> None:
    """Make blocks in the domain of a handle and a number; ``live`` is told too, in one piece, where it is not NULL."""
    alignment, texts = to_size(align, "align"), to_names(names, len(sizes))
    sys.audit("execmem.alloc", number, int(sizes.sum()), alignment)
    code = lib.pyblock_alloc_many(
        handle, to_kind(kind), len(sizes), words_pointer(sizes), alignment, texts, words_pointer(out), live
    )
    if code:
        raise_last(code, batch=True)


def place_many(  # noqa: PLR0913, PLR0917 - it is the C call
    handle: Any,
    number: int,
    kind: str,
    source: Any,
    bounds: Words,
    align: SupportsIndex,
    names: Sequence[str] | None,
    out: Words,
    live: Any,
) -> None:
    """Make blocks as ``alloc_many`` does and fill them; source and bounds are as ``to_slices`` gives them."""
    count, size = len(out), int(bounds[-1] - bounds[0])
    alignment, texts = to_size(align, "align"), to_names(names, count)
    sys.audit("execmem.alloc", number, size, alignment)
    sys.audit("execmem.fill", None, size)
    code = lib.pyblock_place_many(
        handle, to_kind(kind), count, source, words_pointer(bounds), alignment, texts, words_pointer(out), live
    )
    if code:
        raise_last(code, batch=True)


# ---- asking ----


@dataclass(frozen=True)
class Info:
    """What is known of a block: sizes in bytes, ``born_ms`` in milliseconds since its domain's ledger was made."""

    address: int
    size: int
    rounded: int
    pack: int
    born_ms: int
    state: str
    kind: str
    domain: int
    name: str


@dataclass(frozen=True)
class Stats:
    """Numbers of a domain at one moment; bytes unless the name tells otherwise, ``limit`` None for none.

    ``resident_bytes``, ``huge_bytes``, ``ledger_bytes``, ``huge_packs`` and ``vmas`` are what the kernel reports, not
    what was asked of it; ``huge_bytes``, ``huge_packs`` and ``vmas`` are None where it cannot be asked (no ``/proc``).
    ``backing`` tells where the pages come from: ``"memfd"``, ``"tmpfs"`` or ``"disk"`` (an unlinked file, where
    ``memfd_create`` is refused), or ``"private"``. ``held_blocks`` were
    freed and are kept as they are until forked processes that may run them are gone; ``held_bytes`` are theirs.
    ``idle_bytes`` are those of packs that no block has, live or held: free, or kept freed, in
    quarantine or for reuse; what random gaps waste is among them. ``retired_bytes`` of
    ``retired_blocks`` wait for threads that may be inside: they are used and charged, but not live. ``sealed`` is as
    ``Domain.sealed``.
    In a forked child ``packs`` and the blocks are also those it inherited, while ``resident_bytes``, ``idle_bytes``
    and ``largest_free`` are of its own packs alone: the others are its parent's memory.
    """

    live_blocks: int
    live_bytes: int
    used_bytes: int
    charged_bytes: int
    limit: int | None
    resident_bytes: int
    huge_bytes: int | None
    ledger_bytes: int
    packs: int
    full_packs: int
    huge_packs: int | None
    vmas: int | None
    largest_free: int
    allocs: int
    frees: int
    fills: int
    fill_bytes: int
    packs_made: int
    packs_returned: int
    collapses: int
    collapse_failures: int
    refusals: int
    held_blocks: int
    window: int
    window_bytes: int
    write_mode: str
    far: bool
    domain: int
    parent: int
    backing: str
    quarantined_bytes: int
    quarantined_blocks: int
    idle_bytes: int
    sealed: str | None
    trust: int
    held_bytes: int
    retired_bytes: int
    retired_blocks: int

    def as_dict(self) -> dict[str, int | str | bool | None]:
        """Return the same as a dict."""
        return asdict(self)


def read_stats(handle: Any) -> Stats:
    """Return the numbers of the domain of a handle."""
    raw = ffi.new("execmem_stats *")
    code = lib.execmem_domain_stats(handle, raw)
    if code:
        raise_last(code)
    values = {field.name: getattr(raw, field.name) for field in fields(Stats)}
    values["limit"] = None if raw.limit == WORD_MAX else raw.limit
    values["write_mode"] = MODE_NAMES[raw.write_mode]
    values["far"] = bool(raw.far)
    values["backing"] = ffi.string(lib.execmem_backing_name(raw.backing)).decode()
    for untold in ("huge_bytes", "huge_packs", "vmas"):
        values[untold] = None if values[untold] == WORD_MAX else values[untold]
    values["sealed"] = SEALED_NAMES[raw.sealed]
    return Stats(**values)


def find(address: SupportsIndex) -> Info:
    """Return what is known of the live block that owns an address; any byte of the block will do.

    Cost: about 3 us, whatever the number of blocks and packs.

    Raises
    ------
    InvalidAddressError
        No domain owns the address; ``FreedAddressError`` when no live block is there.

    """
    info = ffi.new("execmem_info *")
    code = lib.execmem_find(to_address(address), info)
    if code:
        raise_last(code)
    return Info(
        address=info.address,
        size=info.size,
        rounded=info.rounded,
        pack=info.pack,
        born_ms=info.born_ms,
        state=STATE_NAMES[info.state],
        kind=KIND_NAMES[info.kind],
        domain=info.domain,
        name=ffi.string(info.name).decode("utf-8", "replace"),
    )


def sync() -> None:
    """Return when every thread of the process has run a serialising instruction (``membarrier``)."""
    code = lib.execmem_sync()
    if code:
        raise_last(code)


def report_faults(*, on: bool = True) -> None:
    """Have the process tell on stderr of faults in a domain's window before they end it; ``on=False`` takes that back.

    A call of freed code, of code never filled or of a closed domain, a write to code: the report names the block that
    is or used to be there, its domain, when it was freed, and what usually causes it. Then whoever handled the signal
    before does (``faulthandler``, say), or the process ends with the signal it would have ended with; see
    ``docs/crashes.md``. For all threads, and children forked later.

    Cost: nothing until a fault, but 0.5 MB of addresses, and a copy of the name when a named block is freed.

    >>> report_faults()
    >>> report_faults(on=False)
    """
    code = lib.execmem_report_faults(on)
    if code:
        raise_last(code)


def arch() -> str:
    """Return the architecture room in use: ``"x86_64"``, ``"aarch64"``, ``"riscv64"``, or ``"none"``."""
    name: str = ffi.string(lib.execmem_arch_name()).decode()
    return name
