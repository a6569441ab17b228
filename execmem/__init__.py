"""execmem: executable memory for programs that make machine code at run time.

Many small blobs of code share 2 MB packs. Memory that can be executed is never writable through the same view, and what
is free holds traps.

>>> import execmem
>>> with execmem.Domain("plugins", limit="64M") as domain:
...     block = domain.place(bytes.fromhex("488d4707c3"), name="add7")  # lea rax, [rdi + 7]; ret
...     block.function("i64(i64)")(35) if execmem.arch() == "x86_64" else 42
42

Audit events (``sys.addaudithook``): ``execmem.alloc`` (number of the domain, size, align), ``execmem.fill`` (address,
length; the address is None when the block is made in the same call), ``execmem.free`` (address), ``execmem.retire``
(address; ``execmem.free`` follows when the last holder leaves, unless there is none). A batch raises one of
each, with sizes summed and addresses as an array. ``execmem.seal`` (number of the domain).
``execmem.poke`` (address, length). ``execmem.patch`` (``"key"``, ``"call"`` or ``"hook"``, the object, its new
state).
"""

from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

_NO_CORE = (
    "execmem was installed with EXECMEM_WITHOUT_CORE=1, or its source tree was never built. Install it without that "
    "variable where there is a C compiler: python -m pip install --force-reinstall execmem, or . in the source tree"
)

if TYPE_CHECKING or _find_spec("execmem._core"):
    from execmem.domain import Block, Blocks, Domain, Stats, default_domain
    from execmem.errors import (
        BlockBusyError,
        BoundsError,
        BrokenLawError,
        BusyError,
        ChangedError,
        ClosedError,
        DoubleFreeError,
        EntryError,
        ExecDeniedError,
        ExecmemError,
        ForkedError,
        FreedAddressError,
        InstructionError,
        InteriorAddressError,
        InvalidAddressError,
        InvalidArgumentError,
        LimitError,
        MisalignedError,
        OutOfMemoryError,
        OutOfWindowError,
        ReachError,
        SealedError,
        SystemCallError,
        UnsupportedError,
    )
    from execmem.function import Function
    from execmem.hardening import ModeProbe, Policies, Probe, probe
    from execmem.memory import (
        LIBC,
        Info,
        arch,
        execmem_alloc,
        execmem_alloc_many,
        execmem_fill,
        execmem_fill_many,
        execmem_free,
        execmem_free_many,
        execmem_place_many,
        find,
        report_faults,
        sync,
    )
    from execmem.patch import Hook, StaticCall, StaticKey
    from execmem.retire import Retirement, online, quiescent, retire_poll, retire_wait, retirement
    from execmem.site import encode, execmem_poke, execmem_poke_many
else:  # what needs no compiled core, such as execmem.directmap, can be imported all the same

    def __getattr__(name: str) -> object:
        """Refuse what needs the compiled core."""
        if name not in __all__:
            message = f"module 'execmem' has no attribute {name!r}"
            raise AttributeError(message)
        message = f"execmem.{name} needs the compiled core, which is missing: {_NO_CORE}"
        raise ImportError(message)


__all__ = [
    "LIBC",
    "Block",
    "BlockBusyError",
    "Blocks",
    "BoundsError",
    "BrokenLawError",
    "BusyError",
    "ChangedError",
    "ClosedError",
    "Domain",
    "DoubleFreeError",
    "EntryError",
    "ExecDeniedError",
    "ExecmemError",
    "ForkedError",
    "FreedAddressError",
    "Function",
    "Hook",
    "Info",
    "InstructionError",
    "InteriorAddressError",
    "InvalidAddressError",
    "InvalidArgumentError",
    "LimitError",
    "MisalignedError",
    "ModeProbe",
    "OutOfMemoryError",
    "OutOfWindowError",
    "Policies",
    "Probe",
    "ReachError",
    "Retirement",
    "SealedError",
    "StaticCall",
    "StaticKey",
    "Stats",
    "SystemCallError",
    "UnsupportedError",
    "arch",
    "default_domain",
    "encode",
    "execmem_alloc",
    "execmem_alloc_many",
    "execmem_fill",
    "execmem_fill_many",
    "execmem_free",
    "execmem_free_many",
    "execmem_place_many",
    "execmem_poke",
    "execmem_poke_many",
    "find",
    "online",
    "probe",
    "quiescent",
    "report_faults",
    "retire_poll",
    "retire_wait",
    "retirement",
    "sync",
]
