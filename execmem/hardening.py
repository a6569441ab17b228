"""Hardening: what works on this host, who refuses what does not, and what an administrator would allow.

Speaks for the probing calls of ``csrc/execmem.h``. The matrix of hosts that were tried is ``docs/hardening.md``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, overload

from execmem._core import ffi, lib
from execmem.errors import CLASSES, ExecmemError, raise_last
from execmem.memory import MODE_NAMES, MODES, WORD_MAX, to_mode

SECCOMP: Final = {0: "none", 1: "strict", 2: "filter"}
SELINUX: Final = {0: "off", 1: "permissive", 2: "enforcing"}


@dataclass(frozen=True)
class ModeProbe:
    """What came of trying one write mode on one page.

    Attributes
    ----------
    mode
        The write mode, in ``Probe.default`` the one that a domain gets which asks for none.
    works
        Whether code can be placed in it here.
    backing
        Where its pages come from: ``"memfd"``, ``"tmpfs"``, ``"disk"`` or ``"private"``; None where it does not work.
    policy
        The name of who refused, such as ``"seccomp"`` or ``"mdwe"``; None where it works or where nobody in particular
        did.
    reason
        The error in full, None where it works.
    remedy
        What to do about it; None likewise.
    error
        The class of the exception that a domain of this mode would meet, or None.

    """

    mode: str
    works: bool
    backing: str | None
    policy: str | None
    reason: str | None
    remedy: str | None
    error: type[ExecmemError] | None


@dataclass(frozen=True)
class Policies:
    """What this host has that may refuse; None is what cannot be told here, never a no.

    Attributes
    ----------
    mdwe
        ``PR_SET_MDWE``, which systemd's ``MemoryDenyWriteExecute=`` sets: no memory becomes executable later.
    seccomp
        ``"none"``, ``"strict"`` or ``"filter"``; what a filter refuses cannot be read, only tried.
    memfd_noexec
        ``vm.memfd_noexec``: 0, 1 or 2.
    selinux
        ``"off"``, ``"permissive"`` or ``"enforcing"``.
    apparmor
        Whether AppArmor is on.
    label
        The SELinux context or AppArmor profile of this process.
    proc
        Whether ``/proc`` of this process can be read.
    file_size, address_space, open_files
        ``RLIMIT_FSIZE``, ``RLIMIT_AS``, ``RLIMIT_NOFILE``; None for no limit.
    huge_pages, huge_shmem
        The choices in ``transparent_hugepage/enabled`` and ``shmem_enabled``.
    huge_disabled
        ``PR_SET_THP_DISABLE``: this process gets no huge pages.

    """

    mdwe: bool | None
    seccomp: str | None
    memfd_noexec: int | None
    selinux: str | None
    apparmor: bool | None
    label: str | None
    proc: bool
    file_size: int | None
    address_space: int | None
    open_files: int | None
    huge_pages: str | None
    huge_shmem: str | None
    huge_disabled: bool | None


@dataclass(frozen=True)
class Probe:
    """The matrix: each write mode, what a domain gets by default, and the policies found.

    Attributes
    ----------
    default
        What came of the automatic choice.
    modes
        One ``ModeProbe`` a write mode, in the order in which ``docs/hardening.md`` has them.
    sync
        Why other threads cannot be made to see new code (``execmem.sync``), or None where they can.
    policies
        What was found on this host.

    """

    default: ModeProbe
    modes: tuple[ModeProbe, ...]
    sync: str | None
    policies: Policies

    def __getitem__(self, mode: str) -> ModeProbe:
        """Return what came of a write mode, by its name; ``KeyError`` when there is none of that name."""
        return {one.mode: one for one in self.modes}[mode]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as dicts, lists, texts and numbers, as JSON has them; an error is its class's name."""
        told = asdict(self)
        for one in (told["default"], *told["modes"]):
            one["error"] = one["error"] and one["error"].__name__
        told["modes"] = list(told["modes"])
        return told


def text(chars: Any) -> str:  # noqa: ANN401 - a cffi value
    """Return the text of a C string."""
    found: str = ffi.string(chars).decode("utf-8", "replace")
    return found


def probe_mode(number: int) -> ModeProbe:
    """Try a write mode, given by its number in the core, on one page."""
    verdict = ffi.new("execmem_verdict *")
    code = lib.execmem_probe_mode(number, verdict)
    if code:
        raise_last(code)
    refused = verdict.code != 0
    blamed = refused and verdict.policy != lib.EXECMEM_POLICY_NONE
    return ModeProbe(
        mode=MODE_NAMES[verdict.write_mode],
        works=not refused,
        backing=None if refused else text(lib.execmem_backing_name(verdict.backing)),
        policy=text(lib.execmem_policy_name(verdict.policy)) if blamed else None,
        reason=text(verdict.reason) if refused else None,
        remedy=text(lib.execmem_policy_remedy(verdict.policy)) if blamed else None,
        error=CLASSES.get(verdict.code, ExecmemError) if refused else None,
    )


def read_policies() -> Policies:
    """Read what this host has that may refuse. Cost: about 60 us."""
    raw = ffi.new("execmem_policies *")
    code = lib.execmem_probe_policies(raw)
    if code:
        raise_last(code)

    def flag(value: int) -> bool | None:
        return None if value < 0 else bool(value)

    def limit(value: int) -> int | None:
        return None if value == WORD_MAX else value

    return Policies(
        mdwe=flag(raw.mdwe),
        seccomp=SECCOMP.get(raw.seccomp),
        memfd_noexec=None if raw.memfd_noexec < 0 else raw.memfd_noexec,
        selinux=SELINUX.get(raw.selinux),
        apparmor=flag(raw.apparmor),
        label=text(raw.label) or None,
        proc=bool(raw.proc),
        file_size=limit(raw.file_size),
        address_space=limit(raw.address_space),
        open_files=limit(raw.open_files),
        huge_pages=text(raw.huge) or None,
        huge_shmem=text(raw.huge_shmem) or None,
        huge_disabled=flag(raw.huge_disabled),
    )


@overload
def probe(write_mode: None = None) -> Probe: ...
@overload
def probe(write_mode: str) -> ModeProbe: ...
def probe(write_mode: str | None = None) -> Probe | ModeProbe:
    """Try every write mode and return the matrix; or try one, and raise the error that a new domain of it would meet.

    Without a mode nothing is raised: what does not work is in the answer, with who refused it and what to do. Nothing
    stays behind. Cost: about 0.3 ms for all, 50 us for one.

    >>> found = probe()
    >>> found.default.works, found["syscall"].mode
    (True, 'syscall')
    >>> probe("syscall").backing in {"memfd", "tmpfs", "disk"}
    True
    """
    if write_mode is not None:
        code = lib.execmem_probe(to_mode(write_mode))
        if code:
            raise_last(code)
        return probe_mode(to_mode(write_mode))
    code = lib.execmem_sync()
    sync = text(lib.execmem_error_text()) if code else None
    return Probe(
        default=probe_mode(lib.EXECMEM_MODE_AUTO),
        modes=tuple(probe_mode(number) for mode, number in MODES.items() if mode),
        sync=sync,
        policies=read_policies(),
    )
