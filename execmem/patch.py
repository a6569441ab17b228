"""Branches that change while they run: static keys, static calls, hooks.

Beside ``csrc/patch.c`` and ``csrc/hook.c``; ``docs/patching.md`` tells when to use which and what each costs.

An object here holds the blocks it changes and those it leads to: none of them can be freed meanwhile. What it led to
before it holds too, for other threads may still be inside; only the caller knows when they are not, and says so
(``StaticCall.release``, ``Hook.close``).
"""

# ruff: noqa: ANN401 - cffi values have no type
# ruff: noqa: SLF001 - blocks and domains share their holders with what holds them

from __future__ import annotations

import sys
from operator import index
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

from execmem._core import ffi, lib
from execmem.domain import Block, Domain
from execmem.errors import (
    BlockBusyError,
    BoundsError,
    BrokenLawError,
    ClosedError,
    InvalidArgumentError,
    raise_last,
)
from execmem.function import Function
from execmem.ledger import GATE, Hold, hide, tell_holders
from execmem.memory import NULL, VOID_P, WORD, to_address, to_name, to_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self

KEPT: Final[set[Any]] = set()  # calls with sites and hooks that are attached: code leads through them


def hold_code(code: object, what: str) -> object:
    """Return what keeps code alive: a hold of a block, else the object itself."""
    return Hold(code, what) if isinstance(code, Block) else code


def refuse(code: int) -> None:
    """Raise the error of a call, if it gave one."""
    if code:
        raise_last(code)


def refuse_law(broken: Any) -> None:
    """Raise when a law is broken."""
    if broken != NULL:
        raise BrokenLawError(ffi.string(broken).decode())


def to_block(block: object) -> Block:
    """Return a block, or raise."""
    if isinstance(block, Block):
        return block
    message = f"{block!r} is no Block: sites and functions lie in blocks, which are held as long as they are patched"
    raise InvalidArgumentError(message)


def to_site(block: Block, offset: SupportsIndex) -> int:
    """Return the address of an offset in a block."""
    start = to_size(offset, "offset")
    if start >= block.size:
        message = f"offset {start} is not in block {block.name!r} of {block.size} bytes"
        raise BoundsError(message)
    return block._address_live() + start


def to_handle(domain: Domain) -> Any:
    """Return the handle of a domain, or raise."""
    try:
        return domain._use()
    except AttributeError:
        message = f"domain is {domain!r}: it must be a Domain"
        raise InvalidArgumentError(message) from None


def to_word(number: SupportsIndex) -> int:
    """Return a number as 64 bits hold it."""
    return int(ffi.cast(WORD, index(number)))


# ---- static keys ----


class StaticKey:
    """A yes or no that costs the code that asks it one nop, or one jump, and a change of code when it is switched.

    A code generator emits ``execmem.encode("nop", 5)`` where the code asks, and behind it what is to be done while the
    key is off; ``add`` tells where these sites are and where each goes while the key is on.

    Parameters
    ----------
    enabled
        Whether it is on at first.

    Notes
    -----
    Cost: switching is one live change for all sites of a domain (``execmem.execmem_poke_many``). The key holds the
    blocks of its sites; when it goes, they stay as they are.

    >>> import execmem
    >>> key = StaticKey()
    >>> answer = 2
    >>> if execmem.arch() == "x86_64":
    ...     # the site; mov eax, 1; ret; there: mov eax, 2; ret
    ...     code = execmem.encode("nop", 5) + bytes.fromhex("b801000000c3 b802000000c3")
    ...     block = execmem.default_domain().place(code)
    ...     key.add(block, [(0, 11)])
    ...     key.enable()
    ...     answer = block.function("i32()")()
    >>> answer
    2

    """

    __slots__ = ("__weakref__", "_blocks", "_handle")

    def __init__(self, enabled: bool = False) -> None:
        """Make a key without sites."""
        out = ffi.new("execmem_key *[1]")
        self._blocks: dict[int, tuple[int, int, Hold]] = {}  # by id: the address, the size
        refuse(lib.execmem_key_make(bool(enabled), out))
        self._handle = out[0]

    def __del__(self, _free: Any = lib.execmem_key_free) -> None:
        """Forget the sites."""
        handle = getattr(self, "_handle", None)
        if handle is not None:
            _free(handle)

    def add(self, block: Block, sites: Iterable[Sequence[SupportsIndex]]) -> None:
        """Add a table of sites of a block, all or none; they become what the key is now.

        Each is ``(offset, target)``, ``(offset, target, size)`` or ``(offset, target, size, inverted)``: where the
        instruction is, where it goes while the key is on, both in bytes from the block's start (the target may lie
        outside), its bytes (0: 5 on x86-64, where 2 is the other choice; else 4, or 2 on riscv64), and whether it goes
        there while the key is off instead. There must be a nop as ``execmem.encode`` gives it, or the jump.

        Raises
        ------
        ChangedError
            There is another instruction.
        ReachError
            The target is too far.
        InvalidArgumentError
            A site overlaps another of the key.

        """
        rows = [tuple(row) for row in sites]
        base = to_block(block)._address_live()
        table = ffi.new("execmem_key_site[]", max(len(rows), 1))
        for place, row in zip(table, rows, strict=False):
            if not 2 <= len(row) <= 4:  # noqa: PLR2004 - as told above
                message = f"{row!r} is no site: give (offset, target), and size and inverted if need be"
                raise InvalidArgumentError(message)
            offset, target, size, inverted = (*row, 0, 0)[:4] if len(row) < 4 else row  # noqa: PLR2004
            place.site = to_site(block, offset)
            place.target = to_word(base + index(target))
            place.len, place.inverted = min(to_size(size, "size"), 99), bool(inverted)
        sys.audit("execmem.patch", "key", self, len(rows))
        with GATE:
            kept = self._blocks.get(id(block))
            hold = kept[2] if kept else Hold(block, "static key")
            code = lib.execmem_key_add(self._handle, table, len(rows))
            if code:
                raise_last(code, batch=True)
            if rows:
                self._blocks[id(block)] = (base, block.size, hold)

    def drop(self, block: Block) -> None:
        """Forget the sites of a block, which stay as they are, and the block."""
        with GATE:
            kept = self._blocks.pop(id(block), None)
            if kept is not None:
                refuse(lib.execmem_key_remove(self._handle, ffi.cast(VOID_P, kept[0]), kept[1]))

    def set(self, enabled: bool) -> None:
        """Switch the key; from the return on every thread that asks sees it.

        Nothing is done when it is so already. Errors are those of ``execmem.execmem_poke``; the key is then as it was.
        """
        sys.audit("execmem.patch", "key", self, bool(enabled))
        refuse(lib.execmem_key_set(self._handle, bool(enabled)))

    def enable(self) -> None:
        """Switch the key on."""
        self.set(True)

    def disable(self) -> None:
        """Switch the key off."""
        self.set(False)

    @property
    def enabled(self) -> bool:
        """Whether the key is on."""
        return bool(lib.execmem_key_is_on(self._handle))

    def check(self) -> None:
        """Raise ``BrokenLawError`` when a site is not what the key is: somebody else changed it."""
        refuse_law(lib.execmem_key_check(self._handle))

    def __bool__(self) -> bool:
        """Return whether the key is on."""
        return self.enabled

    def __len__(self) -> int:
        """Return the number of sites."""
        count: int = lib.execmem_key_count(self._handle)
        return count

    def __repr__(self) -> str:
        """Tell the state and the number of sites."""
        return f"<StaticKey {'on' if self else 'off'} {len(self)} sites>"


# ---- what has code of its own in a domain ----


class Patch:
    """What static calls and hooks have in common: code in a domain, which holders keep like a block's."""

    __slots__ = ("__weakref__", "_handle", "_holders", "_kept", "_lost", "address", "domain", "name")

    _owner = None
    what: str

    def __init__(self, domain: Domain, handle: Any, address: int, name: str) -> None:
        """Take over a handle."""
        self.domain = domain
        self.address = address
        self.name = name
        self._handle = handle
        self._holders: dict[int, str] = {}
        self._kept: list[object] = []  # what it leads to, the last one now
        self._lost = False
        domain._holders[id(self)] = self.what

    @property
    def _live(self) -> bool:
        """Whether it is still there."""
        return self._handle is not None

    def _use(self) -> Any:
        """Return the handle, or raise because it is closed."""
        if self._handle is None:
            message = f"the {self.what} {self.name!r} at {self.address:#x} is closed"
            raise ClosedError(message)
        return self._handle

    def _address_live(self) -> int:
        """Return the address, or raise because it is closed."""
        self._use()
        return self.address

    def _refuse_held(self) -> None:
        """Raise when a callable holds it."""
        if self._holders:
            held = tell_holders(self._holders.copy().values())
            message = f"the {self.what} {self.name!r} is held by {held}; drop them first"
            raise BlockBusyError(message)

    def _forget(self, free: Any) -> None:
        """Free the handle, then what it kept; a domain that is lost goes with the last of its holders."""
        refuse(free(self._handle))
        self._handle = None
        self._kept.clear()
        self.domain._holders.pop(id(self), None)
        if self.domain._lost and not self.domain._holders:
            self.domain.__del__()

    def _make_function(self, signature: str) -> Function:
        """Return its code as a callable, which keeps it."""
        function = Function(self._address_live(), signature, self.name)
        function.keep(hide(Hold(self, "callable")))
        return function

    def __index__(self) -> int:
        """Return the address."""
        return self._address_live()

    def __enter__(self) -> Self:
        """Return itself."""
        return self


# ---- static calls ----


class StaticCall(Patch):
    """A function that is one direct jump, whose target changes while threads call it.

    Parameters
    ----------
    domain
        Where the jump lies.
    target
        A Block, a callable of one, anything that is an address; None: a call returns at once and gives 0.
    veneer
        Reach what is too far for a branch through an indirect jump, which costs 64 bytes a target; else such a
        target is a ``ReachError``.
    name
        What reports call it.

    Attributes
    ----------
    address
        Of the jump, the same for its life; the object is this address wherever Python takes an integer.

    Notes
    -----
    Cost: a call costs a direct jump more than one to the target. Sites that are added cost no more than a direct call.
    Keep the object as long as code calls its address.

    >>> import execmem
    >>> if execmem.arch() == "x86_64":
    ...     with execmem.Domain("doc") as domain:
    ...         one, two = (domain.place(bytes.fromhex(f"b80{n}000000c3")) for n in (1, 2))  # mov eax, n; ret
    ...         with StaticCall(domain, one) as call:
    ...             give = call.function("i32()")
    ...             before = give()
    ...             call.set(two)
    ...             after = give()
    ...             del give
    ... else:
    ...     before, after = 1, 2
    >>> before, after
    (1, 2)

    """

    __slots__ = ("_blocks", "_target", "_veneer")

    what = "static call"

    def __init__(self, domain: Domain, target: Any = None, *, veneer: bool = True, name: str | None = None) -> None:
        """Place the jump."""
        out = ffi.new("execmem_call *[1]")
        flags = lib.EXECMEM_PATCH_VENEER if veneer else 0
        sys.audit("execmem.patch", "call", None, target)
        with GATE:
            kept = hold_code(target, self.what)
            pointer = NULL if target is None else to_address(target)
            refuse(lib.execmem_call_make(to_handle(domain), pointer, flags, to_name(name), out))
            super().__init__(domain, out[0], int(ffi.cast(WORD, lib.execmem_call_entry(out[0]))), name or "")
        self._blocks: dict[int, tuple[int, int, Hold]] = {}
        self._kept.append(kept)
        self._target = target
        self._veneer = veneer

    def __del__(self) -> None:
        """Free the jump, when nobody holds it."""
        if getattr(self, "_handle", None) is None:
            return
        if self._holders:
            self._lost = True
        elif not self.domain.closed:
            self.close()

    @property
    def target(self) -> Any:
        """What was set last."""
        return self._target

    def set(self, target: Any) -> None:
        """Lead to another target; from the return on every call that begins goes there.

        The former one is held until ``release``. Raises ``ReachError`` when it is too far, without a veneer; nothing
        changes then. Cost: one live change (``execmem.execmem_poke``), for all sites together.
        """
        sys.audit("execmem.patch", "call", self, target)
        flags = lib.EXECMEM_PATCH_VENEER if self._veneer else 0
        with GATE:
            kept = hold_code(target, self.what)
            pointer = NULL if target is None else to_address(target)
            refuse(lib.execmem_call_set(self._use(), pointer, flags))
            self._kept.append(kept)
            self._target = target

    def release(self) -> None:
        """Let former targets go: you know that no thread is inside them any more."""
        with GATE:
            del self._kept[:-1]

    def add(self, block: Block, offsets: Iterable[SupportsIndex]) -> None:
        """Add call sites of a block, all or none: calls or jumps to the address or the target.

        They are of 5 bytes on x86-64, else of 4.
        From now on they go to the target itself. Raises ``ChangedError`` when one goes elsewhere.
        """
        given = list(offsets)
        base = to_block(block)._address_live()
        table = ffi.new("uint64_t[]", [to_site(block, offset) for offset in given])
        sys.audit("execmem.patch", "call", self, self._target)
        with GATE:
            kept = self._blocks.get(id(block))
            hold = kept[2] if kept else Hold(block, self.what)
            code = lib.execmem_call_add(self._use(), table, len(given))
            if code:
                raise_last(code, batch=True)
            if given:
                self._blocks[id(block)] = (base, block.size, hold)
                KEPT.add(self)

    def drop(self, block: Block) -> None:
        """Forget the sites of a block, which stay as they are, and the block."""
        with GATE:
            kept = self._blocks.pop(id(block), None)
            if kept is not None:
                refuse(lib.execmem_call_remove(self._use(), ffi.cast(VOID_P, kept[0]), kept[1]))
            if not self._blocks:
                KEPT.discard(self)

    def function(self, signature: str) -> Function:
        """Return a callable of a signature such as ``"i64(i64)"``, which goes to the target of the moment."""
        return self._make_function(signature)

    def check(self) -> None:
        """Raise ``BrokenLawError`` when it does not lead to its target: somebody else changed it."""
        refuse_law(lib.execmem_call_check(self._use()))

    def close(self) -> None:
        """Free it: nobody calls it any more. Raises ``BusyError`` while it has sites or a callable."""
        with GATE:
            if self._handle is not None:
                self._refuse_held()
                self._forget(lib.execmem_call_free)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget its sites and close it; an error on its way is not hidden behind a holder."""
        with GATE:
            for _, _, hold in list(self._blocks.values()):
                self.drop(hold.block)
            if not (kind and self._holders):
                self.close()

    def __repr__(self) -> str:
        """Tell name, address and target."""
        shown = f" {self.name!r}" if self.name else ""
        target = "nothing" if self._target is None else f"{index(self._target):#x}" if self._live else "closed"
        return f"<StaticCall{shown} {self.address:#x} to {target}>"


# ---- hooks ----


class Hook(Patch):
    """Code that runs instead of a function of a block, and may call what it would have been.

    Parameters
    ----------
    function
        The Block the function is in.
    replacement
        What runs instead: a Block, a callable of one, anything that is an address. None: ``attach`` gives it later,
        when it has to know ``address`` first.
    offset
        Of the function in its block.
    size
        Bytes of the function, all of them code; 0: to the end of the block.
    before
        Bytes before the function that are for patching, M of ``-fpatchable-function-entry=N,M``.
    domain
        Where the hook's own code lies; None: the function's.
    priority, quiet, veneer
        As for ``attach``.

    Attributes
    ----------
    address
        Of what the function would be without this hook and those before it: what the replacement calls.

    Raises
    ------
    EntryError
        The function cannot be hooked, or not while it may be running (``quiet``).

    Notes
    -----
    An attached hook is kept although nobody has it. Leave a ``with`` when no other thread runs the function: that is
    what ``close`` asks for.

    >>> import execmem
    >>> answers = [5, 8, 5]
    >>> if execmem.arch() == "x86_64":
    ...     with execmem.Domain("doc") as domain:
    ...         five, eight = (domain.place(bytes.fromhex(f"b80{n}000000c3")) for n in (5, 8))  # mov eax, n; ret
    ...         give = five.function("i32()")
    ...         answers[0] = give()
    ...         with Hook(five, eight):
    ...             answers[1] = give()
    ...         answers[2] = give()
    ...         del give
    >>> answers
    [5, 8, 5]

    """

    __slots__ = ("_function", "block", "offset")

    what = "hook"

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        function: Block,
        replacement: Any = None,
        *,
        offset: SupportsIndex = 0,
        size: SupportsIndex = 0,
        before: SupportsIndex = 0,
        domain: Domain | None = None,
        priority: SupportsIndex = 0,
        quiet: bool = False,
        veneer: bool = True,
    ) -> None:
        """Look at the function and, with a replacement, attach it."""
        entry = to_site(to_block(function), offset)
        home = function.domain if domain is None else domain
        out = ffi.new("execmem_hook *[1]")
        options = ffi.new("execmem_hook_options *")
        options.size = to_size(size, "size")
        options.before = min(to_size(before, "before"), 0xFFFFFFFF)
        with GATE:
            hold = Hold(function, self.what)
            options.domain = to_handle(home)
            refuse(lib.execmem_hook_make(ffi.cast(VOID_P, entry), options, out))
            super().__init__(home, out[0], int(ffi.cast(WORD, lib.execmem_hook_original(out[0]))), function.name)
        self.block = function
        self.offset = entry - function.address
        self._function = hold
        if replacement is not None:
            try:
                self.attach(replacement, priority, quiet=quiet, veneer=veneer)
            except BaseException:
                self.close()
                raise

    def __del__(self) -> None:
        """Free its code, when nobody holds it; an attached hook does not come here before the end of Python."""
        if getattr(self, "_handle", None) is None:
            return
        if self._holders:
            self._lost = True
        elif not self.domain.closed and not lib.execmem_hook_is_attached(self._handle):
            self.close()

    def attach(
        self, replacement: Any, priority: SupportsIndex = 0, *, quiet: bool = False, veneer: bool = True
    ) -> None:
        """Run a replacement for every call of the function that begins after this.

        Of several hooks the one of higher priority is run first, among equals the one attached last.

        Parameters
        ----------
        replacement
            What runs instead.
        priority
            Of several hooks.
        quiet
            You know that no thread runs the function, nor will until the return. It is needed where several
            instructions have to give way, the first time.
        veneer
            Reach what is too far for a branch through an indirect jump; else that is a ``ReachError``.

        """
        flags = (lib.EXECMEM_PATCH_QUIET if quiet else 0) | (lib.EXECMEM_PATCH_VENEER if veneer else 0)
        sys.audit("execmem.patch", "hook", self, replacement)
        with GATE:
            kept = hold_code(replacement, self.what)
            refuse(lib.execmem_hook_attach(self._use(), to_address(replacement), index(priority), flags))
            self._kept.append(kept)
            KEPT.add(self)

    def detach(self, *, quiet: bool = False) -> None:
        """Run it no more for calls that begin after this; other threads may still be inside.

        With the last hook the function is what it was, byte for byte. Where several instructions gave way, ``quiet``
        is needed for that; else the function jumps to a copy of them, which does the same.
        """
        sys.audit("execmem.patch", "hook", self, None)
        with GATE:
            refuse(lib.execmem_hook_detach(self._use(), lib.EXECMEM_PATCH_QUIET if quiet else 0))
            KEPT.discard(self)

    @property
    def attached(self) -> bool:
        """Whether it is run."""
        with GATE:
            return self._handle is not None and bool(lib.execmem_hook_is_attached(self._handle))

    def original(self, signature: str) -> Function:
        """Return the function without this hook and those before it as a callable, which keeps the hook."""
        return self._make_function(signature)

    def check(self) -> None:
        """Raise ``BrokenLawError`` when the function's hooks do not lead where they should: somebody changed it."""
        refuse_law(lib.execmem_hook_check(self._use()))

    def close(self) -> None:
        """Detach it, put the function back, and free its code: no thread is inside the function or its hooks."""
        with GATE:
            if self._handle is None:
                return
            self._refuse_held()
            self.detach(quiet=True)
            self._forget(lib.execmem_hook_free)
            del self._function

    @staticmethod
    def prepare(block: Block, size: SupportsIndex, offset: SupportsIndex = 0) -> None:
        """Make the nops that a function begins with, ``size`` bytes, one: then it can be hooked while it runs.

        For functions that gcc compiled with ``-fpatchable-function-entry=5``, before anybody runs them.
        """
        entry = to_site(to_block(block), offset)
        sys.audit("execmem.fill", entry, to_size(size, "size"))
        hold = Hold(block, "call in flight")
        try:
            refuse(lib.execmem_hook_prepare(ffi.cast(VOID_P, entry), to_size(size, "size")))
        finally:
            del hold

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; an error on its way is not hidden behind a holder."""
        with GATE:
            if kind and self._holders:
                self.detach()
            else:
                self.close()

    def __repr__(self) -> str:
        """Tell the function and the state."""
        state = "closed" if self._handle is None else "attached" if self.attached else "detached"
        return f"<Hook of {self.block.name or 'a block'} + {self.offset} {state}>"
