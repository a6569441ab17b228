"""Exceptions: one class for each error code of ``csrc/execmem.h``.

The core's calls return a negative code and keep a text for the calling thread; ``raise_last`` turns both into one
exception. A call that raised has changed nothing. Every class is an ``ExecmemError``, which is an ``OSError``, and most
are also the builtin exception a Python programmer would expect, so that ``except MemoryError`` works.

>>> issubclass(LimitError, MemoryError), issubclass(InvalidAddressError, ValueError)
(True, True)
"""

from __future__ import annotations

import errno
from typing import ClassVar, NoReturn

from execmem._core import ffi, lib


class ExecmemError(OSError):
    """Base of all errors of this package.

    Attributes
    ----------
    code
        The number in ``enum execmem_error`` of the core, or 0 when the Python layer found the mistake itself.
    index
        Which element of a batch was refused, or None.
    errno
        The nearest number of the operating system.

    """

    nearest_errno: ClassVar[int] = errno.EIO

    def __init__(self, message: str, code: int = 0, index: int | None = None) -> None:
        """Keep the message, which tells the cause and the remedy."""
        super().__init__(message)
        self.code = code
        self.index = index
        self.errno = self.nearest_errno


class InvalidArgumentError(ExecmemError, ValueError):
    """An argument can never be right: a size of 0, an alignment that is no power of two, a wrong type."""

    nearest_errno = errno.EINVAL


class OutOfMemoryError(ExecmemError, MemoryError):
    """The system gave no memory."""

    nearest_errno = errno.ENOMEM


class LimitError(ExecmemError, MemoryError):
    """The limit of the domain, or of one of its ancestors, is reached."""

    nearest_errno = errno.ENOMEM


class OutOfWindowError(ExecmemError):
    """The window of the domain is full, or none could be had within reach."""

    nearest_errno = errno.ENOSPC


class InvalidAddressError(ExecmemError, ValueError):
    """No domain of this process owns the address."""

    nearest_errno = errno.EFAULT


class InteriorAddressError(InvalidAddressError):
    """The address is inside a live block, not at its start."""


class FreedAddressError(InvalidAddressError):
    """No live block is at the address: it was freed before, or never given out."""


class DoubleFreeError(FreedAddressError):
    """The block to be freed was freed before, or never given out."""


class BoundsError(ExecmemError, ValueError):
    """The write would leave its block."""

    nearest_errno = errno.EFAULT


class ExecDeniedError(ExecmemError, PermissionError):
    """A policy of the system refuses executable memory."""

    nearest_errno = errno.EACCES


class BusyError(ExecmemError):
    """Something stands in the way: blocks, children, views, callables, threads that did not stop, keys all taken."""

    nearest_errno = errno.EBUSY


class BlockBusyError(BusyError):
    """A view, a callable or a call in flight holds the block."""


class SystemCallError(ExecmemError):
    """A system call failed in a way that no other error tells."""


class ClosedError(ExecmemError):
    """The domain is closed."""

    nearest_errno = errno.EBADF


class ForkedError(ExecmemError):
    """The block was placed before a ``fork()``: the other process runs it too, so it cannot be written."""

    nearest_errno = errno.EPERM


class SealedError(ExecmemError, PermissionError):
    """The domain is sealed: nothing in it changes any more."""

    nearest_errno = errno.EPERM


class ChangedError(ExecmemError, ValueError):
    """The bytes at a site are not those that were to be replaced."""

    nearest_errno = errno.EAGAIN


class MisalignedError(ExecmemError, ValueError):
    """This CPU changes no instruction that lies at such an address."""

    nearest_errno = errno.EINVAL


class InstructionError(ExecmemError, ValueError):
    """Not one instruction for one of the same length, or one that cannot be changed while it may run."""

    nearest_errno = errno.EILSEQ


class ReachError(ExecmemError, ValueError):
    """No branch of this length reaches the target."""

    nearest_errno = errno.ERANGE


class EntryError(ExecmemError, ValueError):
    """A function that begins so cannot be hooked, or not while it may be running."""

    nearest_errno = errno.ENOEXEC


class UnsupportedError(ExecmemError):
    """The CPU or the kernel cannot do what was asked."""

    nearest_errno = errno.ENOSYS


class BrokenLawError(AssertionError):
    """A structure of the core broke one of its own laws: a bug of execmem, never the caller's mistake.

    It is no ``ExecmemError`` on purpose, so that nobody handles it by accident.
    """


CLASSES: dict[int, type[ExecmemError]] = {
    lib.EXECMEM_EINVAL: InvalidArgumentError,
    lib.EXECMEM_ENOMEM: OutOfMemoryError,
    lib.EXECMEM_ELIMIT: LimitError,
    lib.EXECMEM_EWINDOW: OutOfWindowError,
    lib.EXECMEM_EFOREIGN: InvalidAddressError,
    lib.EXECMEM_EINTERIOR: InteriorAddressError,
    lib.EXECMEM_EFREED: FreedAddressError,
    lib.EXECMEM_EBOUNDS: BoundsError,
    lib.EXECMEM_EDENIED: ExecDeniedError,
    lib.EXECMEM_EBUSY: BusyError,
    lib.EXECMEM_ESYSTEM: SystemCallError,
    lib.EXECMEM_ECLOSED: ClosedError,
    lib.EXECMEM_EFORKED: ForkedError,
    lib.EXECMEM_EUNSUPPORTED: UnsupportedError,
    lib.EXECMEM_ESEALED: SealedError,
    lib.EXECMEM_ECHANGED: ChangedError,
    lib.EXECMEM_EMISALIGNED: MisalignedError,
    lib.EXECMEM_EINSN: InstructionError,
    lib.EXECMEM_EREACH: ReachError,
    lib.EXECMEM_EENTRY: EntryError,
}


def raise_last(code: int, *, batch: bool = False, freeing: bool = False) -> NoReturn:
    """Raise the exception of a code that the core has just returned on this thread.

    Parameters
    ----------
    code
        What the call returned, negative.
    batch
        The call was a batch; the exception tells which element was refused.
    freeing
        The call was to free, so that a block no longer live is a ``DoubleFreeError``.

    """
    # A code without a text (a probe may give one) still gets its name.
    text: str = ffi.string(lib.execmem_error_text()).decode("utf-8", "replace")
    message = text or ffi.string(lib.execmem_error_name(code)).decode()
    cls = CLASSES.get(code, ExecmemError)
    if freeing and cls is FreedAddressError:
        cls = DoubleFreeError
    raise cls(message, code, lib.execmem_error_index() if batch else None)
