"""Hardened hosts, set up for real: a process for each, and what execmem does there.

    python tests/hosts.py            what every host gives, as JSON, a line each
    python tests/hosts.py --table    the table of docs/hardening.md drawn anew from that

A host is a name and steps that take rights away from the process that runs them: prctl, a seccomp filter written here,
namespaces, limits. Each runs in a process forked from this one, which opens no domain itself. A step that this system
cannot take raises ``CannotSetUpError``, and the host is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import resource
import select
import signal
import struct
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one thread is one thread

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "hardening.md"
MODES: Final = ("syscall", "alias", "procmem", "flip")  # a host that has protection keys has pkey where it has alias
ADD7: Final = bytes.fromhex("488d4707c3")  # lea rax, [rdi + 7]; ret
PATIENCE: Final = 60  # seconds; a host that takes longer hangs
LIBC: Final = ctypes.CDLL(None, use_errno=True)
TRACES: Final = re.compile(r"(<!-- table:hosts -->\n).*?(\n<!-- end -->)", re.DOTALL)


class CannotSetUpError(Exception):
    """This system cannot be made such a host."""


def call(name: str, *arguments: object) -> int:
    """Call a function of libc and return its result, or tell why it failed."""
    result = int(getattr(LIBC, name)(*arguments))
    if result < 0:
        message = f"{name}: {os.strerror(ctypes.get_errno())}"
        raise CannotSetUpError(message)
    return result


# ---- steps: namespaces and mounts ----

NEW_MOUNTS, NEW_USER, NEW_PIDS = 0x20000, 0x10000000, 0x20000000
RECURSIVE, PRIVATE = 0x4000, 1 << 18
READ_ONLY, NO_EXEC = 1, 8  # of mount_setattr
MOUNT_SETATTR = 442


def unshare(what: int) -> None:
    """Enter new namespaces; who is not root becomes root of a user namespace first."""
    if os.geteuid() != 0:
        user, group = os.getuid(), os.getgid()
        call("unshare", NEW_USER)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
    call("unshare", what | NEW_MOUNTS)
    call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)


def change_mounts(attribute: int, path: bytes = b"/", *, below: bool = True, clear: bool = False) -> None:
    """Set or clear an attribute of a mount and those below it."""
    wanted = struct.pack("QQQQ", 0 if clear else attribute, attribute if clear else 0, 0, 0)
    flags = 0x8000 if below else 0  # AT_RECURSIVE
    call("syscall", MOUNT_SETATTR, -100, path, flags, wanted, len(wanted))


def read_only_proc() -> None:
    """Make every file system read-only, /proc too."""
    unshare(0)
    change_mounts(READ_ONLY)


def read_only() -> None:
    """Make every file system read-only but /proc, as containers and systemd's ProtectSystem=strict do."""
    read_only_proc()
    change_mounts(READ_ONLY, b"/proc", clear=True)


def no_exec() -> None:
    """Mount everything noexec."""
    unshare(0)
    change_mounts(NO_EXEC)


def no_exec_shm() -> None:
    """Mount /dev/shm noexec, as many do, and leave a tmpfs elsewhere."""
    unshare(0)
    call("mount", b"tmpfs", b"/run", b"tmpfs", 0, None)
    change_mounts(NO_EXEC, b"/dev/shm", below=False)


def only_a_disk() -> None:
    """Mount every tmpfs noexec, so that only a disk is left."""
    unshare(0)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        path, system = line.split()[4], line.partition(" - ")[2].split()[0]
        if system in {"tmpfs", "ramfs"}:
            change_mounts(NO_EXEC, path.encode(), below=False)
    if all(os.statvfs(path).f_flag & os.ST_NOEXEC for path in ("/tmp", "/run", "/var/tmp")):  # noqa: S108
        message = "no directory for files is on a disk here"
        raise CannotSetUpError(message)


def no_proc() -> None:
    """Take /proc away."""
    unshare(0)
    if LIBC.umount2(b"/proc", 2) < 0:  # locked in a user namespace: something empty goes over it
        call("mount", b"tmpfs", b"/proc", b"tmpfs", 0, None)
    if Path("/proc/self").exists():
        message = "/proc is still there"
        raise CannotSetUpError(message)


def hand_on(worker: int) -> None:
    """End as the worker ends, where this is not the worker."""
    if worker:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) & 0xFF)


def memfd_noexec(value: int) -> Callable[[], None]:
    """Set vm.memfd_noexec, in a new namespace of processes, where alone it counts."""

    def step() -> None:
        unshare(NEW_PIDS)
        hand_on(os.fork())
        hand_on(os.fork())  # the first process of a namespace takes signals otherwise than others do
        call("mount", b"proc", b"/proc", b"proc", 0, None)
        try:
            Path("/proc/sys/vm/memfd_noexec").write_text(str(value), encoding="ascii")
        except OSError as error:
            message = f"vm.memfd_noexec: {error.strerror}"
            raise CannotSetUpError(message) from error

    return step


# ---- steps: prctl, limits, seccomp ----


def mdwe() -> None:
    """Set PR_SET_MDWE."""
    call("prctl", 65, 1, 0, 0, 0)


def no_huge_pages() -> None:
    """Set PR_SET_THP_DISABLE."""
    call("prctl", 41, 1, 0, 0, 0)


def nobody() -> None:
    """Become a user without rights."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def file_size(limit: int) -> Callable[[], None]:
    """Set RLIMIT_FSIZE."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def address_space(spare: int) -> Callable[[], None]:
    """Set RLIMIT_AS to what is used and so much more."""

    def step() -> None:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))

    return step


def open_files() -> None:
    """Set RLIMIT_NOFILE to what is open."""
    used = os.dup(0)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))


def second_thread() -> None:
    """Start another thread."""
    threading.Thread(target=time.sleep, args=(PATIENCE,), daemon=True).start()


CALLS: Final = {  # x86-64
    "mmap": 9,
    "mprotect": 10,
    "madvise": 28,
    "openat": 257,
    "unshare": 272,
    "memfd_create": 319,
    "userfaultfd": 323,
    "membarrier": 324,
    "pkey_mprotect": 329,
    "process_madvise": 440,
}
LOAD, AND, EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06  # of classic BPF, on words and constants
X86_64, ALLOW, ERRNO = 0xC000003E, 0x7FFF0000, 0x00050000
EPERM, PROT_WRITE, PROT_EXEC = 1, 2, 4


def refuse(*calls: str, error: int = EPERM, third: int = 0) -> Callable[[], None]:
    """Install a filter that refuses calls; only those whose third argument has all bits of `third`."""

    def step() -> None:
        if platform.machine() != "x86_64":
            message = "the filter's numbers are those of x86-64"
            raise CannotSetUpError(message)
        lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, X86_64), (RETURN, 0, 0, ALLOW)]
        for name in calls:
            lines += [
                (LOAD, 0, 0, 0),
                (EQUAL, 0, 4, CALLS[name]),
                (LOAD, 0, 0, 32),  # low half of args[2]
                (AND, 0, 0, third),
                (EQUAL, 0, 1, third),
                (RETURN, 0, 0, ERRNO | error),
            ]
        lines.append((RETURN, 0, 0, ALLOW))
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
        filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(program)))
        call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        call("prctl", 22, 2, filter_, 0, 0)  # PR_SET_SECCOMP, a filter

    return step


def deny_write_execute() -> None:
    """Do what MemoryDenyWriteExecute=yes does: prctl where the kernel has it, and a filter."""
    mdwe()
    refuse("mmap", third=PROT_WRITE | PROT_EXEC)()
    refuse("mprotect", "pkey_mprotect", third=PROT_EXEC)()


no_memfd = refuse("memfd_create")
ENOSYS, EOPNOTSUPP, O_TMPFILE = 38, 95, 0o20200000

# ---- hosts ----


@dataclass(frozen=True)
class Host:
    """A name, steps that make it, and what must come of it: default, the modes in order, 2 MB pages."""

    name: str
    steps: tuple[Callable[[], None], ...]
    default: str
    modes: tuple[str, str, str, str]
    huge: str = "yes"


MEMFD: Final = ("memfd", "memfd", "private", "private")
TMPFS: Final = ("tmpfs", "tmpfs", "private", "private")
HOSTS: Final = (
    Host("plain", (), "syscall", MEMFD),
    Host("PR_SET_MDWE", (mdwe,), "syscall", (*MEMFD[:3], "no: mdwe")),
    Host("memfd_noexec=1", (memfd_noexec(1),), "syscall", MEMFD),
    Host("memfd_noexec=2", (memfd_noexec(2),), "syscall", MEMFD),
    Host("seccomp: memfd_create", (no_memfd,), "syscall", TMPFS),
    Host("seccomp: memfd_create, ENOSYS", (refuse("memfd_create", error=ENOSYS),), "syscall", TMPFS),
    Host(
        "seccomp: mprotect(PROT_EXEC)",
        (refuse("mprotect", "pkey_mprotect", third=PROT_EXEC),),
        "syscall",
        (*MEMFD[:3], "no: seccomp"),
    ),
    Host(
        "seccomp: memfd_create, O_TMPFILE",
        (refuse("openat", error=EOPNOTSUPP, third=O_TMPFILE), no_memfd),
        "syscall",
        TMPFS,
    ),
    Host("seccomp: process_madvise", (refuse("process_madvise"),), "syscall", MEMFD),
    Host("seccomp: membarrier", (refuse("membarrier"),), "syscall", MEMFD),
    Host("seccomp: userfaultfd", (refuse("userfaultfd"),), "syscall", MEMFD),
    Host("seccomp: madvise", (refuse("madvise"),), "syscall", MEMFD, "no"),
    Host(
        "seccomp: mmap(PROT_EXEC)",
        (refuse("mmap", third=PROT_EXEC),),
        "flip",
        ("no: seccomp", "no: seccomp", "no: seccomp", "private"),
    ),
    Host("RLIMIT_FSIZE 0", (file_size(0),), "procmem", ("no: file_size", "no: file_size", "private", "private")),
    Host("RLIMIT_FSIZE 64 MB", (file_size(64 << 20),), "syscall", MEMFD),
    Host("RLIMIT_AS 512 MB more", (address_space(512 << 20),), "syscall", MEMFD),
    Host("RLIMIT_AS 1 MB more", (address_space(1 << 20),), "none", ("no: address_space",) * 4, "-"),
    Host("RLIMIT_NOFILE reached", (open_files,), "flip", (*("no: open_files",) * 3, "private"), "not told"),
    Host("no /proc", (no_proc,), "syscall", ("memfd", "memfd", "no: proc", "private"), "not told"),
    Host(
        "no /proc, two threads",
        (no_proc, second_thread),
        "syscall",
        ("memfd", "memfd", "no: proc", "no: proc"),
        "not told",
    ),
    Host("read-only file systems", (read_only,), "syscall", MEMFD),
    Host(
        "read-only file systems, /proc too",
        (read_only_proc,),
        "syscall",
        ("memfd", "memfd", "no: read_only", "private"),
    ),
    Host("noexec file systems", (no_exec,), "syscall", MEMFD),
    Host("no huge pages", (no_huge_pages,), "syscall", MEMFD, "no"),
    Host("MDWE, memfd_noexec=1", (memfd_noexec(1), mdwe), "syscall", (*MEMFD[:3], "no: mdwe")),
    Host("MDWE, memfd_noexec=2", (memfd_noexec(2), mdwe), "syscall", (*MEMFD[:3], "no: mdwe")),
    Host("systemd MDWE", (deny_write_execute,), "syscall", (*MEMFD[:3], "no: seccomp")),
    Host(
        "systemd MDWE, memfd_noexec=2",
        (memfd_noexec(2), deny_write_execute),
        "syscall",
        (*MEMFD[:3], "no: seccomp"),
    ),
    Host(
        "systemd MDWE, no memfd",
        (deny_write_execute, no_memfd),
        "syscall",
        (*TMPFS[:3], "no: seccomp"),
    ),
    Host(
        "systemd MDWE, no memfd, noexec /dev/shm",
        (no_exec_shm, deny_write_execute, no_memfd),
        "syscall",
        (*TMPFS[:3], "no: seccomp"),
    ),
    Host(
        "systemd MDWE, no memfd, read-only",
        (read_only, deny_write_execute, no_memfd),
        "procmem",
        ("no: seccomp", "no: seccomp", "private", "no: seccomp"),
    ),
    Host(
        "systemd MDWE, no memfd, noexec",
        (no_exec, deny_write_execute, no_memfd),
        "procmem",
        ("no: seccomp", "no: seccomp", "private", "no: seccomp"),
    ),
    Host(
        "systemd MDWE, no memfd, read-only, no /proc",
        (read_only, no_proc, deny_write_execute, no_memfd),
        "none",
        ("no: seccomp", "no: seccomp", "no: proc", "no: seccomp"),
        "-",
    ),
    Host("changed to nobody", (nobody,), "syscall", ("memfd", "memfd", "no: dumpable", "private")),
    Host("changed to nobody, no memfd", (nobody, no_memfd), "syscall", ("tmpfs", "tmpfs", "no: dumpable", "private")),
    Host(
        "no memfd, only a disk",
        (only_a_disk, no_memfd),
        "syscall",
        ("disk", "disk", "private", "private"),
        "no",
    ),
    Host(
        "no memfd, RLIMIT_FSIZE 0",
        (no_memfd, file_size(0)),
        "procmem",
        ("no: file_size", "no: file_size", "private", "private"),
    ),
    Host("no memfd, no huge pages", (no_memfd, no_huge_pages), "syscall", TMPFS, "no"),
    Host(
        "container",
        (read_only, no_proc, refuse("process_madvise", "userfaultfd", "membarrier")),
        "syscall",
        ("memfd", "memfd", "no: proc", "private"),
        "not told",
    ),
    Host(
        "container, no memfd",
        (read_only, no_proc, refuse("process_madvise", "userfaultfd", "membarrier", "memfd_create")),
        "flip",
        ("no: seccomp", "no: seccomp", "no: proc", "private"),
        "not told",
    ),
    Host(
        "container, no memfd, two threads",
        (read_only, no_proc, refuse("process_madvise", "userfaultfd", "membarrier", "memfd_create"), second_thread),
        "none",
        ("no: seccomp", "no: seccomp", "no: proc", "no: proc"),
        "-",
    ),
)


# ---- what happens there ----


def fork_beside(function: execmem.Function, mode: str | None) -> None:
    """Fork a child that calls what was there and places code of its own; it must end well."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), execmem.Domain("child", write_mode=mode) as domain:
            assert function(35) == 44
            assert domain.place(ADD7).function("i64(i64)")(1) == 8
            domain.check()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the forked child did not end well"


def use(mode: str | None) -> dict[str, Any]:
    """Place code in a domain of a mode, call it, look, free it; return what was seen, or the error."""
    try:
        with execmem.Domain("host", write_mode=mode) as domain:
            block = domain.place(ADD7, name="add7")
            add7 = block.function("i64(i64)")
            assert add7(35) == 42
            large = domain.place_many([ADD7 + bytes(300_000)] * 24)
            assert large[23].function("i64(i64)")(1) == 8
            block.fill(bytes.fromhex("488d4709c3"))
            assert add7(35) == 44
            domain.check()
            fork_beside(add7, mode)
            stats = domain.stats()
            del large
            domain.check()
            del add7
            block.free()
            assert not len(domain)
            domain.check()
            near = execmem.Domain("near", parent=domain, near=execmem.LIBC, window="16M", write_mode=mode)
            near.place(ADD7)
            near.close(force=True)
    except execmem.ExecmemError as error:
        return {"works": False, "error": type(error).__name__, "text": str(error)}
    told = {"works": True, "mode": stats.write_mode, "backing": stats.backing, "resident": stats.resident_bytes}
    huge = None if stats.huge_packs is None else stats.huge_packs == stats.full_packs
    return told | {"full": stats.full_packs, "huge": huge, "vmas": stats.vmas, "failures": stats.collapse_failures}


def outgrow() -> dict[str, Any]:
    """Place 4 MB after 4 MB until it is refused, as far as 96 MB; then free all."""
    blocks: list[execmem.Block] = []
    refusal = None
    try:
        with execmem.Domain("outgrow") as domain:
            try:
                while len(blocks) < 24:
                    blocks.append(domain.place(ADD7 + bytes(4 << 20)))
            except execmem.ExecmemError as error:
                refusal = f"{type(error).__name__}: {error}"
            domain.check()
            placed = len(blocks)
            blocks.clear()
            domain.check()
    except execmem.ExecmemError as error:
        return {"placed": 0, "refusal": f"{type(error).__name__}: {error}"}
    return {"placed": placed, "refusal": refusal}


def work() -> dict[str, Any]:
    """Return what the host gives, by use and as `probe` tells."""
    probe = execmem.probe().as_dict()
    probe["modes"] = [one for one in probe["modes"] if one["mode"] in MODES]
    told = {"probe": probe, "default": use(None), "modes": {mode: use(mode) for mode in MODES}}
    policies = told["probe"]["policies"]
    if policies["file_size"] is not None or policies["address_space"] is not None:
        told["outgrown"] = outgrow()
    return told


def live(host: Host, out: int) -> NoReturn:
    """Become the host, work there, and write what came of it."""
    told: dict[str, Any]
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; who is not Python does not
    try:
        try:
            for step in host.steps:
                step()
        except (CannotSetUpError, OSError) as error:
            told = {"skip": str(error)}
        else:
            told = work()
    except BaseException:  # noqa: BLE001 - it goes to who reads
        told = {"crash": traceback.format_exc()}
    os.write(out, json.dumps(told).encode())
    os._exit(0)


def visit(host: Host) -> dict[str, Any]:
    """Return what came of a host; a hang or a crash is told as such."""
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reader)
        live(host, writer)
    os.close(writer)
    text, end = b"", time.monotonic() + PATIENCE
    while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        text += part
    else:
        os.kill(worker, signal.SIGKILL)
        text = b'{"crash": "it hangs"}'
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    told: dict[str, Any] = json.loads(text) if text else {"crash": f"it ended with {status}"}
    return {"host": host.name, **told}


def visit_all() -> Iterator[dict[str, Any]]:
    """Visit every host, one after the other."""
    return map(visit, HOSTS)


# ---- the table ----


def tell_mode(one: dict[str, Any]) -> str:
    """Return a cell: where pages come from, or who refused."""
    return str(one["backing"]) if one["works"] else f"no: {one['policy']}"


def tell_row(told: dict[str, Any]) -> list[str]:
    """Return what the table says of a host."""
    default = told["default"]
    huge = {True: "yes", False: "no", None: "not told"}[default["huge"]] if default["works"] else "-"
    modes = [tell_mode(one) for one in told["probe"]["modes"]]
    return [told["host"], default["mode"] if default["works"] else "none", *modes, huge]


def draw_table(rows: list[list[str]]) -> str:
    """Return the table as the page has it."""
    head = ["host", "default", *(f"`{mode}`" for mode in MODES), "2 MB pages"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> int:
    """Visit, and print or draw."""
    seen = list(visit_all())
    if "--table" not in sys.argv:
        for told in seen:
            print(json.dumps(told))  # noqa: T201 - it is what it is run for
        return 0
    lost = [told for told in seen if "probe" not in told]
    for told in lost:
        print(told, file=sys.stderr)  # noqa: T201
    if not lost:
        page = PAGE.read_text(encoding="utf-8")
        table = draw_table([tell_row(told) for told in seen])
        PAGE.write_text(TRACES.sub(lambda match: match[1] + "\n" + table + "\n" + match[2], page), encoding="utf-8")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
