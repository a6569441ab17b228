"""Retiring: when code that was replaced may be freed. ``docs/retire.md`` has the rule and what it needs.

Beside ``csrc/retire.c``. ``Block.retire`` is in ``csrc/pyblock.h``. Calls through ``Block.function`` are counted by
their callables and need nothing from here. What is here is for threads that run placed code in ways that nobody counts:
by its address, or because other code jumps to it.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from execmem._core import ffi, lib
from execmem.errors import InvalidArgumentError, raise_last
from execmem.ledger import GATE

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

SLICE_MS: Final = 50  # of a wait, between two looks for Ctrl-C
# Handles of domains that were collected while blocks waited, and their parents, which must not be collected before.
ADRIFT: Final[list[tuple[Any, object]]] = []


class Online:
    """A context manager: the thread is online inside. ``online`` returns the one that there is."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Come online."""
        code = lib.execmem_thread_online()
        if code:
            raise_last(code)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take one ``__enter__`` of the thread back."""
        code = lib.execmem_thread_offline()
        if code:
            raise_last(code)


ONLINE: Final = Online()


def online() -> Online:
    """Return a context manager inside which the calling thread may run placed code that nobody counts.

    What the thread finds inside - an address, code that leads to other code - stays until it has left, or has called
    ``quiescent``, also when it is retired meanwhile. Contexts within one another are one. Cost: about 0.3 us.

    >>> import execmem
    >>> with execmem.online():
    ...     execmem.retirement().online
    1
    """
    return ONLINE


def quiescent() -> None:
    """Tell that the calling thread runs no placed code right now and has forgotten every address it found before.

    It counts for nothing within two contexts: the inner one cannot speak for the outer. Cost: about 0.1 us.
    """
    lib.execmem_quiescent()


def retire_poll() -> None:
    """Free what is due, without waiting. An error is the system's, which refused to write to a block: it waits on."""
    code = lib.execmem_retire_poll()
    close_adrift()
    if code:
        raise_last(code)


def retire_wait(timeout: float | None = None) -> None:
    """Return when all is freed that was given up to threads' grace before the call; ``timeout`` is in seconds.

    Blocks that a view or a callable holds are not waited for. Raises ``BusyError`` when the time is over, with the
    number of a thread that is late, or when the calling thread is online itself.
    """
    if timeout is not None and not timeout >= 0:
        message = f"a timeout is a number of seconds from 0 on, or None, not {timeout!r}"
        raise InvalidArgumentError(message)
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = SLICE_MS if end is None else (end - time.monotonic()) * 1000
        code = lib.execmem_retire_wait(int(max(0, min(SLICE_MS, left))))
        if code == 0:
            close_adrift()
            return
        if code != lib.EXECMEM_EBUSY or lib.execmem_thread_is_online() or (end is not None and left <= SLICE_MS):
            raise_last(code)


@dataclass(frozen=True)
class Retirement:
    """Numbers of the process, of blocks that wait for threads.

    ``waiting`` blocks were retired and are not freed yet, of ``retired`` ever. ``periods`` grace periods have passed.
    ``threads`` were online once and have not ended, ``online`` of them are now; ``late_thread`` is the system's number
    of one that the present period waits for, 0 for none. ``fences``: ``membarrier`` is refused, so ``online`` and
    ``quiescent`` cost a fence.
    """

    waiting: int
    retired: int
    periods: int
    threads: int
    online: int
    late_thread: int
    fences: bool

    def as_dict(self) -> dict[str, int | bool]:
        """Return the same as a dict."""
        return asdict(self)


def retirement() -> Retirement:
    """Return how many blocks wait for threads, and which threads there are. Cost: about 1 us and 10 ns a thread."""
    raw = ffi.new("execmem_retirement *")
    code = lib.execmem_retire_count(raw)
    if code:
        raise_last(code)
    values = {field.name: getattr(raw, field.name) for field in fields(Retirement)}
    values["fences"] = bool(raw.fences)
    return Retirement(**values)


# ---- domains that are collected ----


def let_go(handle: Any, parent: object) -> int:  # noqa: ANN401 - cffi values have no type
    """Close by force a domain that nobody can reach any more, or leave that to a later call while a block waits.

    Nobody asked for the close, so no thread may pay for it that is inside what was retired. Returns an error, or 0.
    ``GATE`` is held.
    """
    raw = ffi.new("execmem_retirement *")
    lib.execmem_retire_count(raw)
    code: int = lib.execmem_domain_close(handle, raw.waiting == 0)
    if code != lib.EXECMEM_EBUSY or raw.waiting == 0:
        return code
    ADRIFT.append((handle, parent))
    return 0


def close_adrift() -> None:
    """Close what was left to later, as far as it can be."""
    with GATE:
        waiting = ADRIFT.copy()
        ADRIFT.clear()
        for handle, parent in waiting:
            let_go(handle, parent)
