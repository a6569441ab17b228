"""Domains and the objects that own blocks.

Beside ``csrc/domain.c``. State lives in C; an object here holds a handle. What makes and frees a single block is C too,
in the classes that ``Block`` and ``Domain`` inherit from (``csrc/pyblock.h``).

::

    Domain <--- Block  <--- View (read-only numpy array), Function, a fill in flight
           <--- Blocks <--- Block
           <--- Table  (numpy arrays over the ledger)

An arrow is a strong reference, so nothing loses the ground under its feet while it lives:

1. A block is freed when its last reference goes, or by ``free``; that is refused while a view, a callable or a call in
   flight holds the block. After ``retire`` nobody gets a new hold, and the last holder to leave frees it.
2. A domain is closed when its last reference goes, or by ``close``; that is refused, forced or not, while a view, a
   callable or a table of it lives: unmapping under them would crash the process.
3. Holders enter a dict under their ``id`` and leave it in ``__del__``. They enter first and then look whether the block
   lives; ``Block.free`` claims the block and looks whether it is held in one piece (``csrc/pyblock.h``), so one of the
   two sees the other. Entering is under ``GATE``, so it cannot pass a ``close``; leaving is one ``dict.pop``.
4. A collection of a cycle runs ``__del__`` in any order, and once an object. So a callable keeps its block out of the
   collector's sight (``hide``), as a numpy array keeps its base, and a block, a batch or a domain whose ``__del__``
   meets a holder or an open child is lost: it lives on, and the last of these takes it away.
"""

# ruff: noqa: SLF001 - the classes of this file share their private state
# ruff: noqa: ANN401 - cffi values have no type

from __future__ import annotations

import sys
import sysconfig
import weakref
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn, SupportsIndex, cast, overload

import numpy as np

from execmem import ledger, memory
from execmem._core import BlockBase, DomainBase, ffi, lib
from execmem.errors import (
    BlockBusyError,
    BoundsError,
    BrokenLawError,
    BusyError,
    ClosedError,
    DoubleFreeError,
    ExecmemError,
    ForkedError,
    FreedAddressError,
    InvalidAddressError,
    InvalidArgumentError,
    SealedError,
    raise_last,
)
from execmem.function import Function
from execmem.ledger import GATE, Hold, View, hide, tell_holders
from execmem.memory import NULL, VOID_P, WORD, WORD_MAX, parse_bytes, to_bytes, to_kind, to_name, to_size
from execmem.retire import close_adrift, let_go
from execmem.site import poke_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    import numpy.typing as npt
    from typing_extensions import Self

    from execmem.memory import BytesLike, Libc, Words, WordsLike

FREE_THREADED: Final = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# A __del__ that meets these has nothing left to do.
GONE: Final = (lib.EXECMEM_ECLOSED, lib.EXECMEM_EFORKED, lib.EXECMEM_ESEALED)
OWNED: Final[Any] = BlockBase._live  # what an Element hides: whether the object itself has a live block


# ---- blocks ----


class Block(BlockBase):
    """A run of bytes in a domain, freed when the last reference to it goes.

    ``Domain.place`` and ``Domain.alloc`` make it. As a context manager it is freed at the end of the ``with``. It is
    its address wherever Python takes an integer (``__index__``), so ctypes and cffi take it as it is.

    Attributes
    ----------
    address
        Of the first byte; a multiple of the alignment asked for.
    size
        Bytes, as asked for.
    name
        What reports call it, or an empty text.
    kind
        ``"text"``, ``"rodata"`` or ``"data"``.
    domain
        The Domain it belongs to.

    >>> import execmem
    >>> with execmem.Domain("doc") as domain:
    ...     block = domain.place(bytes.fromhex("488d4707c3"), name="add7")
    ...     len(block), block.state, bytes(block).hex()
    (5, 'filled', '488d4707c3')

    """

    __slots__ = ()

    _owner: Blocks | None = None

    def _address_live(self) -> int:
        """Return the address, or raise because the block is gone."""
        self.domain._use()
        if not self._live or self._retired:
            message = f"block {self.name!r} at {self.address:#x} was {'retired' if self._retired else 'freed'}"
            raise FreedAddressError(message)
        return self.address

    def _refuse_held(self) -> None:
        """Raise when a view, a callable or a call in flight holds the block."""
        if self._holders:
            held = tell_holders(self._holders.copy().values())
            message = (
                f"block {self.name!r} at {self.address:#x} is held by {held}; "
                "drop them first, or drop the block too: it is freed when the last of them goes"
            )
            raise BlockBusyError(message)

    def _refuse_retire(self) -> None:
        """Raise when the block is gone or going."""
        self.domain._use()
        if not self._live or self._retired:
            message = f"block {self.name!r} at {self.address:#x} was {'retired' if self._retired else 'freed'} before"
            raise DoubleFreeError(message)

    def _refuse_free(self) -> None:
        """Raise when the block cannot be freed."""
        self._refuse_retire()
        self._refuse_held()

    if FREE_THREADED:  # the method of C relies on the interpreter lock; GATE stands in for it

        def free(self) -> None:
            """Free the block; it holds traps again at once. Errors are those of the method this one calls."""
            with GATE:
                super().free()

        def retire(self) -> None:
            """Free the block as soon as nobody can be inside, as the method does that this one calls."""
            with GATE:
                super().retire()

    def fill(self, data: BytesLike, offset: SupportsIndex = 0) -> None:
        """Write bytes into the block, ``offset`` bytes from its start.

        Cost: see ``execmem.execmem_fill``. Raises ``BoundsError`` when they would leave the block.
        """
        source = to_bytes(data)
        start = to_size(offset, "offset")
        if start + len(source) > self.size:
            message = f"{len(source)} bytes at offset {start} would leave block {self.name!r} of {self.size} bytes"
            raise BoundsError(message)
        sys.audit("execmem.fill", self._address_live() + start, len(source))
        hold = Hold(self, "call in flight")  # last, or the traceback of a refusal would keep it
        code = lib.execmem_fill(ffi.cast(VOID_P, self.address + start), source, len(source))
        del hold
        if code:
            raise_last(code)

    poke = poke_block

    @property
    def view(self) -> npt.NDArray[np.uint8]:
        """The bytes as a read-only numpy array, not copied; it keeps the block. Cost: about 2 us."""
        return np.asarray(View(self, "view"))

    def function(self, signature: str) -> Function:
        """Return the code as a callable of a signature such as ``"i64(i64,i64)"``; it keeps the block.

        The types are those of ``execmem.function``. Cost: about 7 us to make, 0.15 to 0.3 us to call, 1 us with
        pointers.

        >>> import execmem
        >>> with execmem.default_domain().place(bytes.fromhex("488d4707c3")) as block:
        ...     block.function("i64(i64)")(35) if execmem.arch() == "x86_64" else 42
        42
        """
        if self.kind != "text":
            message = f"block {self.name!r} is of kind {self.kind}, which cannot be executed; place code as kind text"
            raise InvalidArgumentError(message)
        function = Function(self._address_live(), signature, self.name)
        if self.state != "filled":
            message = f"block {self.name!r} was never filled: it holds traps, which would end the process when called"
            raise InvalidArgumentError(message)
        function.keep(hide(Hold(self, "callable")))  # last, or the traceback of a refusal would keep it
        return function

    @property
    def state(self) -> str:
        """``"reserved"`` (all traps), ``"filled"``, ``"retired"`` or ``"freed"``; asks C.

        ``"frozen"``: in a forked child that had no memory for the domain's bookkeeping.
        """
        try:
            return memory.find(self._address_live()).state
        except (ClosedError, InvalidAddressError):
            return "retired" if self._retired and not self.domain.closed else "freed"
        except ForkedError:
            return "frozen"

    @property
    def pack(self) -> int:
        """The number of its pack in the window of the domain; asks C."""
        return memory.find(self._address_live()).pack

    def __index__(self) -> int:
        """Return the address."""
        return self._address_live()

    def __len__(self) -> int:
        """Return the size in bytes."""
        return self.size

    def __bytes__(self) -> bytes:
        """Return a copy of the bytes."""
        hold = Hold(self, "call in flight")
        copy: bytes = ffi.buffer(ffi.cast("char *", self.address), self.size)[:]
        del hold
        return copy

    def __enter__(self) -> Self:
        """Return the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the block unless it is gone or sealed; an error on its way is not hidden behind a holder."""
        if not self._live or self._retired or self.domain.closed or self.domain.sealed:
            return
        with suppress(BlockBusyError) if kind else nullcontext():
            self.free()

    def __repr__(self) -> str:
        """Tell name, address, size and state."""
        shown = f" {self.name!r}" if self.name else ""
        return f"<Block{shown} {self.address:#x} {self.size} bytes {self.kind} {self.state}>"


class Element(Block):
    """A block of a batch, which owns it; the object keeps the batch."""

    __slots__ = ("_owner", "_place")

    _owner: Blocks
    _place: int

    @property
    def _live(self) -> bool:  # type: ignore[override]  # only blocks that own themselves are told
        """Whether the block is live."""
        return bool(self._owner._live[self._place])

    def free(self) -> None:
        """Free the block; see ``Block.free``."""
        with GATE:  # so that of two threads one frees it
            self._refuse_free()
            self._owner.free([self._place])

    def retire(self) -> None:
        """Free the block as soon as nobody can be inside; see ``Block.retire``."""
        with GATE:
            self._refuse_retire()
            try:
                self._own(own=True)
                super().retire()
            except BaseException:
                if not self._retired:  # Ctrl-C may come right after it was
                    self._own(own=False)
                raise

    def _own(self, *, own: bool) -> None:
        """Take the block out of the batch, so that the last to leave the block frees it, or give it back."""
        OWNED.__set__(self, own)
        self._owner._live[self._place] = not own


class Blocks(Sequence[Block]):
    """The blocks of one batch, in the order given; they are freed when the last reference goes.

    ``Domain.place_many`` and ``Domain.alloc_many`` make it. Element i is a ``Block`` that keeps the batch.

    Attributes
    ----------
    addresses, sizes
        Arrays of uint64, shape (n,), in bytes; the addresses of blocks freed one by one stay in place.
    domain, kind
        Of all of them.

    Cost: 17 bytes a block and its name; Block objects are made when asked for.

    """

    __slots__ = (
        *("__weakref__", "_blocks", "_holders", "_live", "_lost", "_names"),
        *("addresses", "domain", "kind", "sizes"),
    )

    def __init__(self, domain: Domain, sizes: Words, names: Sequence[str] | None, kind: str) -> None:
        """Own what the core tells to be live; users call ``Domain.place_many`` or ``Domain.alloc_many``."""
        self.domain = domain
        self.addresses: Words = np.zeros(len(sizes), dtype=np.uint64)
        self.sizes = sizes
        self.kind = kind
        self._names = names
        self._lost = False
        self._holders: dict[int, str] = {}  # of all its elements
        self._live: npt.NDArray[np.bool_] = np.zeros(len(sizes), dtype=np.bool_)
        # One Block an element, so that holders are counted in one place; weak, or the batch would keep itself alive.
        self._blocks: weakref.WeakValueDictionary[int, Element] = weakref.WeakValueDictionary()
        self.addresses.flags.writeable = sizes.flags.writeable = False  # only the core writes, once

    def __del__(self, _free: Any = lib.execmem_free_many) -> None:
        """Free what is live: nobody holds an element any more."""
        live = getattr(self, "_live", None)
        if live is None or 1 not in (states := live.tobytes()):  # numpy's any and all import: the end of Python refuses
            return
        if self._holders:
            self._lost = True
            return
        addresses = self.addresses[live] if 0 in states else self.addresses
        live[:] = False
        if self.domain._handle is None:
            return
        try:
            sys.audit("execmem.free", addresses)
        finally:  # as in Block.__del__
            handle = self.domain._handle
            code = 0 if handle is None else _free(handle, len(addresses), memory.words_pointer(addresses))
            if code and code not in GONE:
                raise_last(code, batch=True, freeing=True)

    def _refuse_held(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Raise when one of the blocks chosen is held."""
        for block in [block for number, block in self._blocks.items() if chosen[number]]:
            block._refuse_held()

    def free(self, which: object = slice(None)) -> None:
        """Free all blocks of the batch that are live, or those an index of numpy chooses, in one crossing.

        Raises ``BlockBusyError`` while a view or a callable holds one of them, and frees none then.

        >>> import execmem
        >>> with execmem.Domain("doc") as domain:
        ...     blocks = domain.place_many([b"one", b"two", b"three"])
        ...     blocks.free(slice(0, 2))
        ...     domain.stats().live_blocks
        1
        """
        with GATE:
            self.domain._use()
            chosen: npt.NDArray[np.bool_] = np.zeros(len(self), dtype=np.bool_)
            chosen[which] = True  # type: ignore[call-overload]
            chosen &= self._live
            self._refuse_held(chosen)
            if not chosen.any():
                return
            addresses = self.addresses if chosen.all() else self.addresses[chosen]
            sys.audit("execmem.free", addresses)
            handle = self.domain._use()  # again: a hook may have changed what is there
            self._refuse_held(chosen)
            if not self._live[chosen].all():
                message = f"blocks of {self.domain.name!r} were freed by an audit hook of their free"
                raise DoubleFreeError(message)
            before, kept = self._live, self._live & ~chosen
            count, pointer, free = len(addresses), memory.words_pointer(addresses), lib.execmem_free_many
            self._live = kept  # right before the call: Ctrl-C finds all of it undone, or done
            code = free(handle, count, pointer)
            if code:
                self._live = before
                self._refuse_freed(code, chosen)

    def _refuse_freed(self, code: int, chosen: npt.NDArray[np.bool_]) -> NoReturn:
        """Raise the error of a free, when it is known which of the blocks it freed."""
        try:
            raise_last(code, batch=True, freeing=True)
        except InvalidAddressError:  # addresses are judged before the first block is freed
            raise
        except ExecmemError as error:  # the system refused to blank this one; those before it are gone
            self._live[np.flatnonzero(chosen)[: error.index or 0]] = False
            raise

    def __len__(self) -> int:
        """Return how many blocks the batch had."""
        return len(self.addresses)

    @overload
    def __getitem__(self, number: int) -> Block: ...
    @overload
    def __getitem__(self, number: slice) -> list[Block]: ...
    def __getitem__(self, number: int | slice) -> Block | list[Block]:
        """Return a Block, or a list of them for a slice."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        place = range(len(self))[index(number)]  # raises IndexError, and counts from the end
        with GATE:
            block = self._blocks.get(place)
            if block is None:
                name = self._names[place] if self._names is not None else ""
                address, size = int(self.addresses[place]), int(self.sizes[place])
                block = self.domain._element(Element, address, size, name, self.kind)
                block._owner, block._place = self, place
                self._blocks[place] = block
            return block

    def __iter__(self) -> Iterator[Block]:
        """Return the blocks one after another."""
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        """Tell how many and where."""
        return f"<Blocks of {self.domain.name!r}: {int(self._live.sum())} of {len(self)} live, {self.kind}>"


# ---- domains ----

Stats = memory.Stats


class Domain(DomainBase, ledger.Books):
    """Who the memory is for: a limit, a window of addresses, a write mode, statistics; domains form a tree.

    Parameters
    ----------
    name
        Shown in reports, at most 63 bytes; ``"unnamed"`` when not given.
    parent
        The domain whose limit counts too; None for the default domain.
    limit
        Bytes that live blocks, children's included, may occupy as rounded; None for no limit. Sizes may be texts such
        as ``"64M"``.
    near
        All of the window is to lie within ``reach`` of this: an address, a Block, the name of a symbol of this process,
        or ``execmem.LIBC``. None for anywhere.
    reach
        Bytes either way; None for what a branch of this CPU reaches: 2 GB less 1 MB on x86-64 and riscv64, 127 MB on
        aarch64.
    fallback
        Take any address when none is within reach, and tell so in ``stats().far``; else that is ``OutOfWindowError``.
    window
        Bytes of address space, 2 MB to 8 GB; None for 2 GB, 256 MB with ``near``, or less where that cannot be had.
    write_mode
        ``"pkey"``, ``"syscall"``, ``"procmem"``, ``"flip"``, or None for the first of these that works here; or
        ``"alias"``.
    small_pages
        Never ask for 2 MB pages.
    quarantine
        Bytes of freed blocks, those of each thread's part of the domain by itself, that are kept from reuse, first in,
        first out; None for none. Blocks larger than this or than a pack are not kept.
    gap
        Bytes, at most 1 MB: each block lies at random up to so far behind the start of the free run it is taken from.
    trust
        Class of the code, 0 (trusted most) to 255; 0 takes the parent's, and none may be below it.

    Notes
    -----
    Leaving a ``with`` closes the domain and frees its blocks; it raises ``BusyError`` when a view, a callable or a
    table of the domain lives. Drop these inside the ``with``. Opening costs about 0.1 ms. A sealed domain stays.

    >>> import execmem
    >>> with execmem.Domain("plugins", limit="64M") as domain:
    ...     block = domain.place(b"some code", name="first")
    ...     domain.limit, domain.stats().live_bytes
    (67108864, 9)

    """

    __slots__ = (
        *("__weakref__", "_children", "_handle", "_header", "_holders", "_is_root", "_lost"),
        *("name", "parent"),
    )

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        name: str | None = None,
        *,
        parent: Domain | None = None,
        limit: SupportsIndex | str | None = None,
        near: SupportsIndex | str | Libc | None = None,
        reach: SupportsIndex | str | None = None,
        fallback: bool = False,
        window: SupportsIndex | str | None = None,
        write_mode: str | None = None,
        small_pages: bool = False,
        quarantine: SupportsIndex | str | None = None,
        gap: SupportsIndex | str | None = None,
        trust: SupportsIndex = 0,
    ) -> None:
        """Open a domain."""
        more: dict[str, Any] = {"fallback": fallback, "small_pages": small_pages, "write_mode": write_mode}
        more |= {"quarantine": quarantine, "gap": gap, "trust": trust}
        options = memory.to_options(limit=limit, near=near, reach=reach, window=window, **more)
        encoded = NULL if name is None else ffi.new("char[]", to_name(name))  # must live until the call is over
        options.name = encoded
        out = ffi.new("execmem_domain *[1]")
        with GATE:  # so that the parent is not closed meanwhile
            try:
                options.parent = NULL if parent is None else parent._use()
            except AttributeError:
                message = f"parent is {parent!r}: it must be a Domain, or None for the default domain"
                raise InvalidArgumentError(message) from None
            code = lib.execmem_domain_open(options, out)
            if code:
                raise_last(code)
            self._take(out[0], parent)

    def _take(self, handle: Any, parent: Domain | None) -> None:
        """Take over a handle."""
        self._handle: Any = handle
        self._word = int(ffi.cast(WORD, handle))
        self._header: Any = lib.execmem_domain_ledger(handle)
        self._holders: dict[int, str] = {}
        self._children: dict[int, weakref.ref[Domain]] = {}  # the open ones; they leave when they are closed
        self._is_root = self._lost = False
        self.name: str = ffi.string(self._header.name).decode("utf-8", "replace")
        self.number = self._header.domain
        self.parent = parent
        if parent is not None:
            parent._children[id(self)] = weakref.ref(self)

    def _use(self) -> Any:
        """Return the handle, or raise because the domain is closed."""
        handle = self._handle
        if handle is None:
            message = f"domain {self.name!r} is closed; open another one"
            raise ClosedError(message)
        return handle

    def _ledger(self) -> Any:
        """Return the ledger's header, or raise because the domain is closed; read it under ``GATE``."""
        self._use()
        return self._header

    def _family(self) -> list[Domain]:
        """Return this domain and all below it."""
        family = [self]
        for reference in list(self._children.values()):
            child = reference()
            if child is None:
                message = f"a child of domain {self.name!r} is being collected; close again when it is gone"
                raise BusyError(message)
            family += child._family()
        return family

    # -- one block --

    def alloc(
        self, size: SupportsIndex, name: str | None = None, kind: str = "text", align: SupportsIndex = 16
    ) -> Block:
        """Return a new block of ``size`` bytes: traps in kind text, zeros in the others.

        Cost: about 0.2 us, whatever the number of live blocks. The errors are those of ``execmem.execmem_alloc``.
        """
        block = self._make(Block, None, size, name, kind, align)
        return self._make_converted(None, size, name, kind, align) if block is None else block

    def place(self, code: BytesLike, name: str | None = None, kind: str = "text", align: SupportsIndex = 16) -> Block:
        """Return a new block that holds ``code``: alloc and fill in one crossing.

        Cost: about 2 us in write mode ``syscall``, 0.2 us in ``alias``, whatever the number of live blocks; 1 us more
        when ``code`` is not plain bytes. Ctrl-C does not lose the block.
        """
        block = self._make(Block, code, 0, name, kind, align)
        return self._make_converted(code, 0, name, kind, align) if block is None else block

    def _make_converted(
        self, code: BytesLike | None, size: SupportsIndex, name: str | None, kind: str, align: SupportsIndex
    ) -> Block:
        """Do what ``_make`` left to Python: convert the arguments, or raise because one of them cannot be right."""
        self._use()
        source = None if code is None else to_bytes(code)
        length = to_size(size, "size") if source is None else len(source)
        alignment = to_size(align, "align")
        to_kind(kind)
        to_name(name)
        address = None if source is None else int(ffi.cast(WORD, source))
        block = self._make(Block, address, length, name, kind, alignment)
        if block is None:
            self._use()  # an audit hook closed the domain, or the texts are none
            message = f"name {name!r} and kind {kind!r} must be texts of type str"
            raise InvalidArgumentError(message)
        return block

    # -- batches --

    def alloc_many(
        self, sizes: WordsLike, names: Iterable[str] | None = None, kind: str = "text", align: SupportsIndex = 16
    ) -> Blocks:
        """Return new blocks of the given sizes in bytes; one crossing, all or none."""
        words, texts = memory.to_words(sizes, "sizes"), memory.to_texts(names)
        blocks = Blocks(self, words, texts, kind)
        live = ffi.from_buffer(blocks._live)
        memory.alloc_many(self._use(), self.number, kind, words, align, texts, blocks.addresses, live)
        return blocks

    def place_many(
        self,
        codes: Iterable[BytesLike],
        names: Iterable[str] | None = None,
        kind: str = "text",
        align: SupportsIndex = 16,
    ) -> Blocks:
        """Return new blocks that hold the given bytes; one crossing, all or none.

        Cost: tens of nanoseconds a block and the copy of its bytes; ``docs/performance.md`` has it.

        >>> import execmem
        >>> with execmem.Domain("doc") as domain:
        ...     [bytes(block) for block in domain.place_many([b"one", b"three"], names=["a", "b"])]
        [b'one', b'three']
        """
        try:
            parts = tuple(codes)
        except TypeError:
            message = f"codes must be a sequence of buffers, such as a list of bytes, not {type(codes).__name__}"
            raise InvalidArgumentError(message) from None
        measured = self._measure(parts)
        if measured is None:
            parts = tuple(code if type(code) is bytes else ffi.buffer(to_bytes(code))[:] for code in parts)
            measured = self._measure(parts)
        bounds: Words = np.frombuffer(cast("bytearray", measured), dtype=np.uint64)
        texts = memory.to_texts(names)
        blocks = Blocks(self, np.diff(bounds), texts, kind)
        live = ffi.from_buffer(blocks._live)
        spare = memory.take_spare(int(bounds[-1]))
        if spare is not None:
            self._gather(parts, spare)
        source = b"".join(cast("tuple[bytes, ...]", parts)) if spare is None else ffi.from_buffer(spare)
        memory.place_many(self._use(), self.number, kind, source, bounds, align, texts, blocks.addresses, live)
        memory.keep_spare(spare)
        return blocks

    # -- asking --

    @property
    def closed(self) -> bool:
        """Whether the domain is closed."""
        return self._handle is None

    @property
    def limit(self) -> int | None:
        """Bytes that live blocks may occupy, None for no limit; below what is in use stops further ones."""
        with GATE:
            value: int = self._ledger().limit
        return None if value == WORD_MAX else value

    @limit.setter
    def limit(self, value: SupportsIndex | str | None) -> None:
        code = lib.execmem_domain_limit(self._use(), WORD_MAX if value is None else parse_bytes(value, "limit"))
        if code:
            raise_last(code)

    @property
    def sealed(self) -> str | None:
        """None, or who keeps the sealed domain from being written: ``"kernel"``, ``"mappings"`` or ``"library"``."""
        with GATE:
            return None if self._header is None else memory.SEALED_NAMES[self._header.sealed]

    @property
    def write_mode(self) -> str:
        """How bytes get into its executable views: the mode in use, never "auto"."""
        with GATE:
            return memory.MODE_NAMES[self._ledger().write_mode]

    def find(self, address: SupportsIndex) -> memory.Info:
        """Return what is known of the block of this domain that owns an address; see ``execmem.find``."""
        self._use()
        info = memory.find(address)
        if info.domain != self.number:
            message = f"{index(address):#x} is in a block of domain {info.domain}, not of {self.name!r} ({self.number})"
            raise InvalidAddressError(message)
        return info

    def stats(self) -> Stats:
        """Return the numbers of this moment; asks the kernel, which costs microseconds a pack."""
        return memory.read_stats(self._use())

    def check(self) -> None:
        """Raise ``BrokenLawError`` when a structure of the domain is not lawful; walks everything, for tests."""
        handle = self._use()
        if lib.execmem_domain_ledger(handle) == NULL:  # closed, say: no law is broken
            raise_last(lib.execmem_error_code())
        broken = lib.execmem_domain_check(handle)
        if broken != NULL:
            message = f"domain {self.name!r}: {ffi.string(broken).decode()}"
            raise BrokenLawError(message)

    # -- the end --

    def seal(self) -> None:
        """Let nothing write to the domain any more, for ever: its code runs on, every change is a ``SealedError``.

        It cannot be closed either, nor a domain above it; blocks dropped later stay. ``sealed`` tells who sees to it,
        ``docs/lockdown.md`` against what. Children are not sealed. Cost: tens of microseconds.

        >>> import execmem
        >>> domain = execmem.Domain("setup", window="2M")
        >>> block = domain.place(bytes.fromhex("488d4707c3"))
        >>> domain.seal()
        >>> domain.sealed in ("kernel", "mappings", "library"), bytes(block).hex()
        (True, '488d4707c3')
        """
        handle = self._use()
        sys.audit("execmem.seal", self.number)
        code = lib.execmem_domain_seal(handle)
        if code:
            raise_last(code)

    def close(self, *, force: bool = False) -> None:
        """Close the domain; every one of its addresses is unmapped.

        Parameters
        ----------
        force
            Live blocks and child domains go with it; else they are a ``BusyError``. Views, callables and tables are one
            either way, the children's too: unmapping would crash who uses them.

        """
        if self._is_root:
            message = "the default domain lives as long as the process"
            raise BusyError(message)
        with GATE:
            if self._handle is None:
                return
            family = self._family()
            held = [what for domain in family for what in domain._holders.copy().values()]
            if held:
                message = (
                    f"domain {self.name!r} is held by {tell_holders(held)}, which closing would crash; "
                    "drop them (copy what is to outlive the domain) and close again"
                )
                raise BusyError(message)
            self._shut(force=force, family=family)

    def _shut(self, *, force: bool, family: list[Domain]) -> None:
        """Close in C, then tell all of the family."""
        close_adrift()  # a child may be in the way
        code = lib.execmem_domain_close(self._handle, force)
        close_adrift()  # one that went along must be forgotten: its handle will be another's
        if code:
            raise_last(code)
        for domain in family:
            domain._leave()

    def _leave(self) -> None:
        """Know that the domain is closed, and leave the children of its parent."""
        self._handle = self._header = None
        self._word = 0
        if self.parent is not None:
            self.parent._children.pop(id(self), None)

    def __del__(self, _gate: Any = GATE) -> None:
        """Close by force, but not before what a collection came to later, nor what threads are waited for."""
        with _gate:
            if getattr(self, "_handle", None) is None or self._is_root:
                return
            if self._holders or self._children:
                self._lost = True
                return
            code = let_go(self._handle, self.parent)
            self._leave()
            if self.parent is not None and self.parent._lost:
                self.parent.__del__()
            if code and code not in GONE:
                raise_last(code)

    def __enter__(self) -> Self:
        """Return the domain."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the domain and free its blocks, but for sealed ones; an error on its way is not hidden by a holder."""
        with suppress(BusyError, SealedError) if kind else suppress(SealedError):
            self.close(force=True)

    def __len__(self) -> int:
        """Return the number of live blocks of its own."""
        with GATE:
            gone = self._count("frees")  # first: who is counted as freed is then counted as given out too
            gone += self._count("retired_blocks")
            return self._count("allocs") - gone

    def __bool__(self) -> bool:
        """Say yes: an empty domain is a domain."""
        return True

    def __repr__(self) -> str:
        """Tell name, number, blocks, bytes, limit and write mode."""
        with GATE:
            header = self._header
            if header is None:
                return f"<Domain {self.name!r} closed>"
            limit = "no limit" if self.limit is None else f"limit {self.limit}"
            return (
                f"<Domain {self.name!r} ({self.number}) {len(self)} blocks, {self._count('live_bytes')} bytes, "
                f"{header.packs_live} packs, {limit}, {self.write_mode}>"
            )

    @property
    def _window(self) -> int | None:
        """Where the window begins, None when the domain is closed."""
        with GATE:
            return None if self.closed else int(self._header.window)

    def _repr_svg_(self) -> str:
        """Return the picture of its packs that notebooks show, or why there is none; about 1 ms a pack."""
        from execmem import notebook  # noqa: PLC0415 - few draw, and all import this module

        return notebook.draw_svg(self.number, self._window, repr(self))

    def _repr_html_(self) -> str:
        """Return the same picture for notebooks that would rather have HTML."""
        from execmem import notebook  # noqa: PLC0415 - few draw, and all import this module

        return notebook.draw_html(self.number, self._window, repr(self))


ROOTS: Final[list[Domain]] = []  # the newest is the one of this process


def default_domain() -> Domain:
    """Return the default domain, where ``execmem_alloc`` puts its blocks; it opens on first use and is never closed.

    >>> default_domain() is default_domain()
    True
    """
    handle = lib.execmem_domain_root()
    if handle == NULL:
        raise_last(lib.execmem_error_code())
    with GATE:
        if not ROOTS or ROOTS[-1]._handle != handle:
            root = Domain.__new__(Domain)
            root._take(handle, None)
            root._is_root = True
            ROOTS.append(root)
        return ROOTS[-1]
