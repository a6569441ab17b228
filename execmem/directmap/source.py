"""source: what the running kernel tells about the direct map and the executable memory in it.

    file or call          what                                            who may
    /proc/meminfo         how much is mapped by 4 KB, 2 MB, 1 GB pages    anybody
    /proc/vmstat          splits and joins since boot                     anybody
    /proc/buddyinfo       free memory by size                             anybody
    /proc/vmallocinfo     areas of kernel memory, by who asked for them   root
    bpf()                 programs that live                              CAP_SYS_ADMIN
    /proc/sys/net/core    how much code BPF may have                      root
    /proc/PID/smaps       2 MB pages of a process's code                  its user, root
    PAGEMAP_SCAN          the same, asked of the page tables              its user, root

Each reader returns a frozen value or raises `NotAvailable`, which says why and what to do: nothing that could not be
read is ever zero, a single number that this kernel does not have is None. Readers of files take the root of the file
system they read, so that copies of another machine's files can be read too. `SOURCES` has them all, with their costs;
`region.SOURCE` and `perf.SOURCE` go beside them.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import os
import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

# ---- what is missing, and how the kernel is asked ----


class NotAvailable(Exception):  # noqa: N818 - an answer, not a mistake
    """A source cannot be read here: `why`, and `remedy`, what to do about it.

    >>> str(NotAvailable("/proc/kcore is missing", "none: this kernel is built without it"))
    'not available: /proc/kcore is missing; none: this kernel is built without it'
    """

    def __init__(self, why: str, remedy: str) -> None:
        """Keep both; the text of the exception has them in one line."""
        super().__init__(f"not available: {why}; {remedy}")
        self.why = why
        self.remedy = remedy


BPF, PERF_EVENT_OPEN = "bpf", "perf_event_open"
NUMBERS: Final = {
    "x86_64": {BPF: 321, PERF_EVENT_OPEN: 298},
    "aarch64": {BPF: 280, PERF_EVENT_OPEN: 241},
    "riscv64": {BPF: 280, PERF_EVENT_OPEN: 241},
}
LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def system_call(name: str, *arguments: int) -> int:
    """Make a system call that Python has no function for; an error is an OSError. 2 us.

    On a CPU whose numbers are not known here nothing is called: NotAvailable.
    """
    machine = platform.machine()
    number = NUMBERS.get(machine, {}).get(name)
    if number is None:
        why = f"the number of {name}() on {machine} is not known here"
        raise NotAvailable(why=why, remedy=f"known are {', '.join(NUMBERS)}")
    result: int = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


MAY_BPF: Final = "run as root (CAP_SYS_ADMIN), not in a container; before Linux 5.11 with a larger RLIMIT_MEMLOCK"


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Make the system call bpf, which reads and writes `attributes`; what this process may not do is NotAvailable."""
    try:
        return system_call(BPF, command, ctypes.addressof(attributes), len(attributes))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise NotAvailable(
                why="this kernel has no bpf()", remedy="boot one built with CONFIG_BPF_SYSCALL"
            ) from error
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise NotAvailable(why="this process may not call bpf()", remedy=MAY_BPF) from error
        raise


WAKE: Final = 1 << 14  # whoever waits, from so many bytes on
DUMMY: Final = (1, 9)  # a software event that never happens: it carries records of what the kernel did


def perf_event(flags: int, sample: int, cpu: int, clock: int) -> int:
    """Open a dummy event that listens to all processes on a CPU, and return its file: 48 us."""
    kind, config = DUMMY
    words = struct.pack("<IIQQQQQI40xi16x", kind, 112, config, 0, sample, 0, flags | WAKE, 1, clock)
    attributes = ctypes.create_string_buffer(words, 112)
    try:
        return system_call(PERF_EVENT_OPEN, ctypes.addressof(attributes), -1, cpu, -1, 8)  # 8: close on exec
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            why = "this process may not open perf events of the system"
            raise NotAvailable(why=why, remedy="run as root, or with CAP_PERFMON") from error
        if error.errno in {errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG}:
            why = f"this kernel refuses such perf events ({error.strerror})"
            raise NotAvailable(why=why, remedy="boot Linux 5.1 or later, built with CONFIG_PERF_EVENTS") from error
        raise


def read_text(root: Path, path: str, remedy: str) -> str:
    """Read a file of the kernel's; one that is missing or refused is NotAvailable, the remedy being for the first."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAvailable(why=f"/{path} is missing", remedy=remedy) from error
    except PermissionError as error:
        raise NotAvailable(why=f"/{path} is not for this user", remedy="run as root") from error
    except ProcessLookupError as error:
        raise NotAvailable(why=f"/{path} is of a process that ended", remedy="none") from error


def number(text: str, where: str) -> int:
    """Return the number that a file of one number has."""
    if not text.strip().isdecimal():
        raise NotAvailable(why=f"/{where} has no number", remedy="none: this kernel is not known")
    return int(text)


ROOT: Final = Path("/")

# ---- counters of the direct map ----


@dataclass(frozen=True)
class DirectMap:
    """How many bytes of the direct map are mapped by pages of each size, {4096: ..., 2 << 20: ..., 1 << 30: ...}.

    Never add them up: the kernel counts some of what it maps twice, and the sum can exceed memory. Their changes are
    right: a 2 MB page that is split moves 2 MB from the second to the first.
    """

    sizes: Mapping[int, int]


UNITS: Final = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_directmap(root: Path = ROOT) -> DirectMap:
    """Read /proc/meminfo: 30 us, anybody; x86, s390 and powerpc only."""
    text = read_text(root, "proc/meminfo", "mount /proc")
    found = re.findall(r"^DirectMap(\d+)([kMG]):\s+(\d+) kB$", text, re.MULTILINE)
    if not found:
        why = "/proc/meminfo has no DirectMap lines"
        raise NotAvailable(why=why, remedy="none: kernels of x86, s390 and powerpc have them")
    return DirectMap({int(size) * UNITS[unit]: int(kilobytes) << 10 for size, unit, kilobytes in found})


@dataclass(frozen=True)
class Splits:
    """How often pages of the direct map were split and joined since boot; level 2 is 2 MB, level 3 is 1 GB."""

    level2_splits: int
    level3_splits: int
    level2_collapses: int | None  # None: before Linux 6.15, which could not join
    level3_collapses: int | None


def read_splits(root: Path = ROOT) -> Splits:
    """Read /proc/vmstat: 60 us, anybody; x86 from Linux 5.13 on. Splits made while booting are not all counted."""
    text = read_text(root, "proc/vmstat", "mount /proc")
    found = {name: int(value) for name, value in re.findall(r"^direct_map_(\w+) (\d+)$", text, re.MULTILINE)}
    if "level2_splits" not in found or "level3_splits" not in found:
        remedy = (
            "boot Linux 5.13 or later on x86-64, or watch DirectMap4k of /proc/meminfo: 2,048 kB more for each split"
        )
        raise NotAvailable(why="/proc/vmstat does not count splits", remedy=remedy)
    joins = found.get("level2_collapses"), found.get("level3_collapses")
    return Splits(found["level2_splits"], found["level3_splits"], *joins)


@dataclass(frozen=True)
class Zone:
    """Free blocks of a memory zone: `free[n]` is how many of 4 KB << n there are."""

    node: int
    name: str
    free: tuple[int, ...]


def read_buddyinfo(root: Path = ROOT) -> tuple[Zone, ...]:
    """Read /proc/buddyinfo: 40 us, anybody."""
    text = read_text(root, "proc/buddyinfo", "mount /proc")
    found = re.findall(r"^Node (\d+), zone\s+(\S+)\s+([\d ]+?)\s*$", text, re.MULTILINE)
    if not found:
        raise NotAvailable(why="/proc/buddyinfo lists no zones", remedy="none: this kernel is not known")
    return tuple(Zone(int(node), name, tuple(map(int, free.split()))) for node, name, free in found)


# ---- areas of kernel memory ----


class Use(enum.Enum):
    """What an area of kernel memory is for, told by the function that asked for it."""

    PACK = "pack"  # code of many clients
    CODE = "code"  # code of one BPF program
    MODULE = "module"
    TRAMPOLINE = "trampoline"
    PROGRAM = "program"  # the instructions of one BPF program, or function of one: no machine code
    OTHER = "other"


# The first that the caller's name begins with. In order: Linux 7; 5.18; 5.11; before.
CALLERS: Final = (
    (Use.PACK, ("bpf_prog_pack_alloc", "alloc_new_pack", "execmem_cache", "execmem_alloc", "execmem_vmalloc")),
    (Use.TRAMPOLINE, ("bpf_jit_alloc_exec_page", "bpf_trampoline", "arch_alloc_bpf_trampoline", "bpf_image")),
    (Use.TRAMPOLINE, ("arch_ftrace_update_trampoline", "create_trampoline", "alloc_insn_page", "alloc_tramp")),
    (Use.CODE, ("bpf_jit_alloc_exec", "bpf_jit_binary_alloc")),
    (Use.MODULE, ("load_module", "layout_and_allocate", "move_module", "module_alloc", "module_memory_alloc")),
    (Use.PROGRAM, ("bpf_prog_alloc", "bpf_prog_realloc")),
)
GUARD: Final = 4096  # the kernel keeps a page free behind each area, and counts it


@dataclass(frozen=True)
class Area:
    """An area of kernel memory; `address` is None where the kernel hides it, `size` is without the guard page."""

    address: int | None
    size: int
    caller: str
    use: Use


@dataclass(frozen=True)
class Areas:
    """All areas that somebody asked for; `hidden` tells how their addresses are: "" (real), "hashed" or "zero"."""

    areas: tuple[Area, ...]
    hidden: str

    def total(self, use: Use) -> tuple[int, int]:
        """Return how many areas are for a use, and their bytes."""
        sizes = [area.size for area in self.areas if area.use is use]
        return len(sizes), sum(sizes)


AREA: Final = re.compile(r"^0x([0-9a-f]+)-0x([0-9a-f]+) +(\d+) (\S+)\+0x", re.MULTILINE)


def use_of(caller: str) -> Use:
    """Return what a function asks memory for.

    >>> use_of("bpf_prog_pack_alloc"), use_of("kernel_clone")
    (<Use.PACK: 'pack'>, <Use.OTHER: 'other'>)
    """
    return next((use for use, starts in CALLERS if caller.startswith(starts)), Use.OTHER)


def read_areas(root: Path = ROOT) -> Areas:
    """Read /proc/vmallocinfo: 12 ms here, most of it the kernel's, root.

    Addresses are real with kernel.kptr_restrict=1 and CAP_SYSLOG; with 0 they are hashed, with 2 zero.
    """
    text = read_text(root, "proc/vmallocinfo", "mount /proc")
    found = AREA.findall(text)
    if not found and text.strip():
        raise NotAvailable(why="/proc/vmallocinfo is in a form not known here", remedy="none: this kernel is not known")
    starts = [int(start, 16) for start, _, _, _ in found]
    real = bool(starts) and all(
        start >> 63 and int(end, 16) - start == int(size)
        for start, (_, end, size, _) in zip(starts, found, strict=True)
    )
    hidden = "" if real else "hashed" if any(starts) else "zero"
    areas = (
        Area(start if real else None, int(size) - GUARD, caller, use_of(caller))
        for start, (_, _, size, caller) in zip(starts, found, strict=True)
    )
    return Areas(tuple(areas), hidden)


# ---- programs ----

PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD = 11, 13, 15
# The kernel's bpf_prog_info, as far as it is wanted: type, id, tag, code and instructions (bytes), time, user, name,
# how many addresses and lengths of functions, and where they go.
INFO: Final = struct.Struct("<II8sII16xQI12x16s24xIIQQ")
FUNCTIONS: Final = 64  # that are told at first; a program with more is asked again


@dataclass(frozen=True)
class Program:
    """A BPF program that lives: `code` and `instructions` in bytes; `functions`: address and length of each.

    What the kernel hides is None: addresses and lengths with kernel.kptr_restrict=2. So is `code` of one that is
    interpreted.
    """

    id: int
    type: int
    name: str
    tag: str
    code: int | None
    instructions: int | None
    functions: tuple[tuple[int | None, int | None], ...]
    loaded_ns: int  # CLOCK_BOOTTIME
    uid: int
    locked: int | None  # bytes of memory for its instructions, as its file tells


def each_program() -> Generator[int, None, None]:
    """Give a file of each BPF program that lives, closed at the next one; those that go meanwhile are left out."""
    last = 0
    while True:
        attributes = ctypes.create_string_buffer(struct.pack("<I", last), 12)
        try:
            bpf(PROG_GET_NEXT_ID, attributes)
        except FileNotFoundError:
            return
        (last,) = struct.unpack_from("<I", attributes, 4)
        try:
            file = bpf(PROG_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("<I", last), 12))
        except FileNotFoundError:
            continue
        try:
            yield file
        finally:
            os.close(file)


def read_program(file: int) -> Program:
    """Ask the kernel about one program."""
    room = FUNCTIONS
    while True:
        addresses, lengths = (ctypes.c_uint64 * room)(), (ctypes.c_uint32 * room)()
        where = ctypes.addressof(addresses), ctypes.addressof(lengths)
        info = ctypes.create_string_buffer(INFO.pack(0, 0, b"", 0, 0, 0, 0, b"", room, room, *where), INFO.size)
        request = struct.pack("<IIQ", file, len(info), ctypes.addressof(info))
        bpf(OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(request, 16))
        kind, program, tag, code, size, born, uid, name, symbols, count, _, _ = INFO.unpack(info.raw)
        if count <= room:
            break
        room = count
    functions = tuple((addresses[i] or None if i < symbols else None, lengths[i] or None) for i in range(count))
    return Program(
        id=program,
        type=kind,
        name=name.split(b"\0")[0].decode(errors="replace"),
        tag=tag.hex(),
        code=code or None,
        instructions=size or None,
        functions=functions,
        loaded_ns=born,
        uid=uid,
        locked=read_locked(file),
    )


def read_locked(file: int) -> int | None:
    """Return the memory that a program's file says it holds for instructions; None where there is no /proc to ask."""
    try:
        text = Path(f"/proc/self/fdinfo/{file}").read_text("ascii")
    except OSError:
        return None
    found = re.search(r"^memlock:\s+(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else None


def read_programs() -> tuple[Program, ...]:
    """Ask bpf() for every program that lives: 60 us a program, root. Classic BPF is not among them."""
    return tuple(read_program(file) for file in each_program())


@dataclass(frozen=True)
class Unseen:
    """BPF programs that have no number, by difference: classic ones (of sockets, of seccomp), and some that go.

    `programs` is how many there are, `bytes` the memory of their instructions; their machine code lies in the packs,
    and no file tells where. `bytes` takes further functions of a program with a number as a page each.
    """

    programs: int
    bytes: int


def read_unseen(root: Path = ROOT) -> Unseen:
    """Take programs with numbers off the areas that hold instructions: 12 ms and 60 us a program, root.

    Programs that come meanwhile make it wrong by as many. One that is being loaded has no number yet, and one that goes
    has none any more while the kernel clears it up.
    """
    seen = read_programs()
    count, total = read_areas(root).total(Use.PROGRAM)
    areas = known = 0
    for program in seen:
        further = len(program.functions) if len(program.functions) > 1 else 0  # the first is there twice
        areas += 1 + further
        known += (program.locked or GUARD) + further * GUARD
    return Unseen(max(0, count - areas), max(0, total - known))


@dataclass(frozen=True)
class Jit:
    """How much machine code BPF may have, in bytes, and what is known of how much it has.

    The kernel's own count is in no file. `programs` is that of programs with numbers, in the 64 byte pieces they are
    given: the kernel's count is at least that; classic ones come on top. `packs` is what holds them all. None: hidden.
    """

    limit: int
    enabled: bool
    programs: int | None
    packs: int | None


CHUNK: Final = 64
CODE_HEADER: Final = 20  # bytes before the code: how long it is, and traps


def read_jit(root: Path = ROOT) -> Jit:
    """Read /proc/sys/net/core/bpf_jit_*, and what there is of code: 12 ms and 60 us a program, root."""
    folder = "proc/sys/net/core"
    remedy = "boot a kernel built with CONFIG_BPF_JIT"
    limit = number(read_text(root, f"{folder}/bpf_jit_limit", remedy), f"{folder}/bpf_jit_limit")
    enabled = number(read_text(root, f"{folder}/bpf_jit_enable", remedy), f"{folder}/bpf_jit_enable")
    areas = read_areas(root)
    pieces: list[int | None] = []
    for program in read_programs():
        lengths = [length for _, length in program.functions]
        pieces += lengths if all(lengths) else [program.code]  # hidden: their sum, which takes as much or less
    known = [-(-(length + CODE_HEADER) // CHUNK) * CHUNK for length in pieces if length]
    code = sum(known) if len(known) == len(pieces) else None
    return Jit(limit, bool(enabled), code, areas.total(Use.PACK)[1] + areas.total(Use.CODE)[1])


# ---- processes ----


@dataclass(frozen=True)
class Mapping2M:
    """An executable mapping of a process, and how many bytes of it are mapped by 2 MB pages, by what backs them."""

    start: int
    end: int
    permissions: str
    name: str
    resident: int
    anonymous: int
    shared: int
    file: int


HEX: Final = frozenset("0123456789abcdef")  # fields begin with a capital
MAPPING: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)$")


def read_smaps(pid: int | str = "self", root: Path = ROOT) -> tuple[Mapping2M, ...]:
    """Read /proc/PID/smaps: 11 ms for a Python with numpy, the process's user or root."""
    found: list[Mapping2M] = []
    current: tuple[str, ...] = ()
    fields: dict[str, int] = {}
    for line in [
        *read_text(root, f"proc/{pid}/smaps", "mount /proc, and name a process").splitlines(),
        "0-0 ---- 0 0 0",
    ]:
        new = MAPPING.match(line) if line[:1] in HEX else None
        if new is None:
            name, _, value = line.partition(":")
            fields[name] = int(value[:-2]) << 10 if value.endswith(" kB") else 0
            continue
        if current and "x" in current[2]:
            sizes = (fields.get(name, 0) for name in ("Rss", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"))
            found.append(Mapping2M(int(current[0], 16), int(current[1], 16), current[2], current[3], *sizes))
        current, fields = new.groups(), {}
    return tuple(found)


@dataclass(frozen=True)
class Scanned:
    """An executable mapping, and how many bytes of it the page tables map, in all and by 2 MB entries."""

    start: int
    end: int
    name: str
    present: int
    huge: int


PAGEMAP_SCAN: Final = 0xC0606610
IS_PRESENT, IS_HUGE = 1 << 3, 1 << 6
SCAN: Final = struct.Struct("<12Q")
RANGES: Final = 512


def read_pagemap(pid: int | str = "self", root: Path = ROOT) -> tuple[Scanned, ...]:
    """Ask the page tables of a process about its executable mappings: 1 ms, its user or root, from Linux 6.7 on."""
    lines = read_text(root, f"proc/{pid}/maps", "mount /proc, and name a process").splitlines()
    try:
        with (root / f"proc/{pid}/pagemap").open("rb", buffering=0) as file:
            found = []
            for start, end, permissions, name in (match.groups() for match in map(MAPPING.match, lines) if match):
                if "x" in permissions and not int(start, 16) >> 63:  # the vsyscall page is the kernel's
                    found.append(scan(file.fileno(), int(start, 16), int(end, 16), name))
            return tuple(found)
    except FileNotFoundError as error:
        remedy = "boot a kernel built with CONFIG_PROC_PAGE_MONITOR"
        raise NotAvailable(why=f"/proc/{pid}/pagemap is missing", remedy=remedy) from error
    except PermissionError as error:
        raise NotAvailable(why=f"/proc/{pid}/pagemap is not for this user", remedy="run as root") from error
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EINVAL}:
            raise
        raise NotAvailable(why="this kernel has no PAGEMAP_SCAN", remedy="boot Linux 6.7 or later") from error


def scan(file: int, start: int, end: int, name: str) -> Scanned:
    """Add up what the page tables have between two addresses."""
    ranges = (ctypes.c_uint64 * (3 * RANGES))()
    sums = {False: 0, True: 0}
    at = start
    while at < end:
        words = (SCAN.size, 0, at, end, 0, ctypes.addressof(ranges), RANGES, 0, 0, 0, IS_PRESENT, IS_PRESENT | IS_HUGE)
        argument = bytearray(SCAN.pack(*words))
        count = fcntl.ioctl(file, PAGEMAP_SCAN, argument)
        for index in range(count):
            first, last, categories = ranges[3 * index : 3 * index + 3]
            sums[bool(categories & IS_HUGE)] += last - first
        at = SCAN.unpack(argument)[4]
    return Scanned(start, end, name, sums[False] + sums[True], sums[True])


# ---- all of them ----


@dataclass(frozen=True)
class Source:
    """A source: what it tells, what it needs, what reading it costs, and how. `read` takes a root, or ignores it."""

    name: str
    tells: str
    needs: str
    cost: str
    read: Callable[[Path], object]

    def missing(self, root: Path = ROOT) -> NotAvailable | None:
        """Read it once and return why it is not available, or None."""
        try:
            self.read(root)
        except NotAvailable as error:
            return error
        return None


SOURCES: Final = (
    Source("directmap", "bytes mapped by each size of page", "nothing", "30 us", read_directmap),
    Source("splits", "splits and joins since boot", "nothing; Linux 5.13, x86-64", "60 us", read_splits),
    Source("buddyinfo", "free memory by size", "nothing", "40 us", read_buddyinfo),
    Source("vmallocinfo", "packs, modules, programs, trampolines", "root", "12 ms", read_areas),
    Source("programs", "BPF programs that live", "CAP_SYS_ADMIN", "60 us a program", lambda _: read_programs()),
    Source("unseen", "BPF programs without number", "root, CAP_SYS_ADMIN", "12 ms + 60 us a program", read_unseen),
    Source("jit", "limit of BPF's code, and its use", "root, CAP_SYS_ADMIN", "12 ms + 60 us a program", read_jit),
    Source("smaps", "2 MB pages of code", "the process's user", "11 ms", lambda root: read_smaps(root=root)),
    Source(
        *("pagemap", "the same, from its page tables", "the process's user; Linux 6.7", "1 ms"),
        lambda root: read_pagemap(root=root),
    ),
)
