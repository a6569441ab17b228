"""region: the state of each 2 MB region of the direct map, read from the page tables.

    page directory of this process, whose kernel half is everybody's
      1 GB entry --- a 1 GB page: 512 regions that were never split
        2 MB entry - a 2 MB page: one region
          4 KB entries: a split region; runs of equal permissions within it

A small BPF program, made here, copies pages of page tables into a map that this process reads; what the entries mean is
worked out in numpy. Where the direct map begins no file says, and it is random: `Reader._find_root` finds it. For that
nine pointers are read that lead from this task to its page directory and to the descriptor of a page of its own, and
one word of the descriptor of one page in each GB; beside them page tables, and nothing else of the kernel's memory.

Laws: (1) a table is read only if it is the root, or a present entry of a table already read points at it.
(2) Every page found is mapped where a linear map has it, or nothing is returned. (3) Tables that changed while they
were read are read again, 32 GB at a time.

Only x86-64 is known, with 4 or 5 levels. 0.5 ms for 24 GB with 11 regions split, 1.5 ms with 60; docs/directmap.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import functools
import mmap
import os
import platform
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from execmem.directmap import source
from execmem.directmap.source import NotAvailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from typing_extensions import Self

    Words = npt.NDArray[np.uint64]
    Bytes = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]
    Indices = npt.NDArray[np.intp]

# ---- BTF: where members lie in the running kernel's structures ----

BTF_HEADER: Final = struct.Struct("<HBBIIIII")
BTF_MAGIC: Final = 0xEB9F
STRUCT, UNION = 4, 5
# What follows the 12 bytes of a type, by its kind: so many bytes, and so many for each of its elements.
BTF_TAIL: Final = {
    1: (4, 0),  # an integer
    3: (12, 0),  # an array
    STRUCT: (0, 12),
    UNION: (0, 12),
    6: (0, 8),  # an enumeration
    13: (0, 8),  # the parameters of a function
    14: (4, 0),  # a variable
    15: (0, 12),  # a section
    17: (4, 0),  # a tag
    19: (0, 12),  # an enumeration of 64 bits
}


class Btf:
    """The types a kernel tells of itself (/sys/kernel/btf/vmlinux): 70 ms to go through, once."""

    def __init__(self, data: bytes) -> None:
        """Note where each type begins, and which structures have names; raise ValueError on what is no BTF."""
        if len(data) < BTF_HEADER.size or data[:2] != BTF_MAGIC.to_bytes(2, "little"):
            message = "this is no BTF of a little-endian kernel"
            raise ValueError(message)
        _, _, _, header, type_at, type_size, text_at, text_size = BTF_HEADER.unpack_from(data)
        self.data = data
        self.texts = data[header + text_at : header + text_at + text_size]
        self.at: list[int] = [0]  # by number of the type; 0 is void
        self.named: dict[int, int] = {}  # offset of the name -> number of the structure
        read = struct.Struct("<II").unpack_from
        at, end = header + type_at, header + type_at + type_size
        while at < end:
            name, info = read(data, at)
            kind = info >> 24 & 31
            if kind in {STRUCT, UNION} and name:
                self.named[name] = len(self.at)
            self.at.append(at)
            fixed, each = BTF_TAIL.get(kind, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def offset(self, structure: str, member: str) -> int:
        """Return where a member begins in a structure, in bytes; LookupError if there is none."""
        name = self.texts.find(b"\0" + structure.encode() + b"\0") + 1
        found = self._find(self.named[name], member.encode()) if name in self.named else None
        if found is None:
            message = f"the kernel's types have no {structure}.{member}"
            raise LookupError(message)
        return found

    def has(self, structure: str) -> bool:
        """Tell whether there is a structure of this name."""
        return self.texts.find(b"\0" + structure.encode() + b"\0") + 1 in self.named

    def size(self, structure: str) -> int:
        """Return how many bytes a structure has."""
        name = self.texts.find(b"\0" + structure.encode() + b"\0") + 1
        if name not in self.named:
            message = f"the kernel's types have no {structure}"
            raise LookupError(message)
        size: int = struct.unpack_from("<III", self.data, self.at[self.named[name]])[2]
        return size

    def _find(self, number: int, member: bytes) -> int | None:
        """Return the offset of a member, also one of a nameless structure or union inside."""
        at = self.at[number]
        _, info, _ = struct.unpack_from("<III", self.data, at)
        if info >> 24 & 31 not in {STRUCT, UNION}:
            return None
        name: int
        inner: int
        bits: int
        for index in range(info & 0xFFFF):
            name, inner, bits = struct.unpack_from("<III", self.data, at + 12 + 12 * index)
            bits = bits & 0xFFFFFF if info >> 31 else bits  # the top byte is the width of a bit field
            text = self.texts[name : self.texts.index(b"\0", name)]
            if text == member:
                return bits // 8
            within = None if text else self._find(inner, member)
            if within is not None:
                return bits // 8 + within
        return None


@functools.lru_cache(maxsize=1)
def running_btf(path: Path) -> Btf:
    """Read the types of the running kernel; they stay in memory (6 MB)."""
    try:
        return Btf(path.read_bytes())
    except OSError as error:
        why = f"{path} cannot be read ({error.strerror})"
        raise NotAvailable(why=why, remedy="boot a kernel built with CONFIG_DEBUG_INFO_BTF") from error


# ---- the programs ----

MAP_CREATE, PROG_LOAD, PROG_TEST_RUN = 0, 5, 10
ARRAY_MAP, MAPPABLE = 2, 1 << 10
SYSCALL_PROGRAM, SLEEPABLE = 31, 1 << 4
LICENSE: Final = b"Dual MIT/GPL\0"
GET_CURRENT_TASK, PROBE_READ_KERNEL = 35, 113
PAGE: Final = 4096
GIGABYTE: Final = 1 << 30
TABLES: Final = 256  # read in one run
# The map's one value: so many addresses, as many results, as many pages.
RESULTS_AT: Final = 8 * TABLES
PAGES_AT: Final = PAGE
VALUE_SIZE: Final = PAGES_AT + TABLES * PAGE


def instruction(code: int, to: int = 0, by: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """Encode one BPF instruction: 8 bytes."""
    return struct.pack("<BBhi", code, by << 4 | to, offset, value)


def load_value(to: int, file: int, offset: int) -> bytes:
    """Encode the load of an address within an array map's first value."""
    return instruction(0x18, to, 2, 0, file) + instruction(0, 0, 0, 0, offset)


def move(to: int, by: int) -> bytes:
    """Encode to = by."""
    return instruction(0xBF, to, by)


def copy_program(file: int, size: int) -> bytes:
    """Make the program that copies `size` bytes from each address in the map, up to the first address that is 0.

    r6: 8 times the index; r7: the value; r8: where the bytes go.
    """
    start = load_value(7, file, 0) + move(8, 7) + instruction(0x07, 8, 0, 0, PAGES_AT) + instruction(0xB7, 6)
    loop = (
        move(9, 7)
        + instruction(0x0F, 9, 6)
        + instruction(0x79, 3, 9)  # r3 = addresses[index]
        + instruction(0x15, 3, 0, 7, 0)  # 0: done
        + move(1, 8)
        + instruction(0xB7, 2, 0, 0, size)
        + instruction(0x85, 0, 0, 0, PROBE_READ_KERNEL)
        + instruction(0x7B, 9, 0, RESULTS_AT)  # results[index] = r0
        + instruction(0x07, 8, 0, 0, size)
        + instruction(0x07, 6, 0, 0, 8)
        + instruction(0xA5, 6, 0, -11, 8 * TABLES)
    )
    return start + loop + instruction(0xB7) + instruction(0x95)


def pointer_program(file: int, chains: Sequence[Sequence[int]]) -> bytes:
    """Make the program that follows chains of offsets from this task to pointers that go to the map, 0: a dead end."""
    body = load_value(7, file, 0)
    for index, chain in enumerate(chains):
        body += instruction(0x85, 0, 0, 0, GET_CURRENT_TASK)
        for offset in chain:
            body += (
                instruction(0x07, 0, 0, 0, offset)
                + move(3, 0)
                + instruction(0xB7, 2, 0, 0, 8)
                + move(1, 10)
                + instruction(0x07, 1, 0, 0, -8)
                + instruction(0x85, 0, 0, 0, PROBE_READ_KERNEL)
                + instruction(0x79, 0, 10, -8)  # a read that fails fills with zeros
            )
        body += instruction(0x7B, 7, 0, 8 * index)
    return body + instruction(0xB7) + instruction(0x95)


def load_program(program: bytes, name: bytes) -> int:
    """Load a program into the kernel and return its file; one the kernel does not know is NotAvailable."""
    text, license_text = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(LICENSE)
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "<IIQQIIQII16s",
            *(SYSCALL_PROGRAM, len(program) // 8, ctypes.addressof(text), ctypes.addressof(license_text)),
            *(0, 0, 0, 0, SLEEPABLE, name),
        ),
        128,
    )
    try:
        return source.bpf(PROG_LOAD, attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = "the kernel refuses the program that reads page tables"
        raise NotAvailable(why=why, remedy="boot Linux 5.14 or later, not locked down to confidentiality") from error


@dataclass(frozen=True)
class Layout:
    """Where the members lie that lead from a task to its page tables, in bytes."""

    to_memory: int  # task_struct.mm
    to_root: int  # mm_struct.pgd
    to_page: tuple[int, ...]  # from a task to the descriptor of the first page of its file 0
    to_owner: int  # from the descriptor of a page directory to whose it is
    descriptor_size: int

    @classmethod
    def of(cls, btf: Btf) -> Layout:
        """Look them up; a kernel that has others is NotAvailable."""
        try:
            descriptor = "ptdesc" if btf.has("ptdesc") else "page"  # from 6.6 on it has a type of its own
            return cls(
                btf.offset("task_struct", "mm"),
                btf.offset("mm_struct", "pgd"),
                (
                    btf.offset("task_struct", "files"),
                    btf.offset("files_struct", "fdt"),
                    btf.offset("fdtable", "fd"),
                    btf.offset("file", "f_mapping"),
                    btf.offset("address_space", "i_pages") + btf.offset("xarray", "xa_head"),
                ),
                btf.offset(descriptor, "pt_mm"),
                btf.size("page"),
            )
        except LookupError as error:
            raise NotAvailable(why=str(error.args[0]), remedy="none: this kernel is not known") from error


class Reader:
    """Reads pages of page tables: a BPF program and a map, loaded at first and kept until `close`. 1 MB."""

    def __init__(self, layout: Layout, end: int) -> None:
        """Load the program and find the page directory; what cannot be done here is NotAvailable, nothing is left then.

        `end` is where physical memory ends.
        """
        with contextlib.ExitStack() as undo:
            attributes = struct.pack("<IIIII8x16s", ARRAY_MAP, 4, VALUE_SIZE, 1, MAPPABLE, b"directmap")
            self._map = source.bpf(MAP_CREATE, ctypes.create_string_buffer(attributes, 72))
            undo.callback(os.close, self._map)
            self._words: Words = np.frombuffer(mmap.mmap(self._map, VALUE_SIZE), np.uint64)
            self.root, self.base = self._find_root(layout, end)
            self._program = load_program(copy_program(self._map, PAGE), b"directmap")
            undo.callback(os.close, self._program)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Unload the program; a second time does nothing."""
        self._undo.close()

    def read(self, addresses: Words) -> Words:
        """Copy the pages at these addresses: a row of 512 entries each. 1 us a page."""
        out = np.empty((len(addresses), 512), np.uint64)
        for start in range(0, len(addresses), TABLES):
            part = addresses[start : start + TABLES]
            self._ask(self._program, part)
            if np.any(self._words[RESULTS_AT // 8 : RESULTS_AT // 8 + len(part)]):
                raise ChangedError
            out[start : start + len(part)] = self._words[PAGES_AT // 8 :].reshape(TABLES, 512)[: len(part)]
        return out

    def _ask(self, program: int, addresses: Words) -> None:
        """Run a program that copies from up to `TABLES` addresses."""
        self._words[: len(addresses)] = addresses
        self._words[len(addresses) : TABLES] = 0
        source.bpf(PROG_TEST_RUN, ctypes.create_string_buffer(struct.pack("<I", program), 80))

    def _find_root(self, layout: Layout, end: int) -> tuple[int, int]:
        """Return the addresses of this process's page directory and of the direct map's first byte.

        A page of ours has a descriptor, to whose address this task's pointers lead, and a physical address, which the
        kernel tells: so the descriptors of all pages are known. The page directory lies at one of a few physical
        addresses, 1 GB from each other; its descriptor is the one that names our memory as its owner.
        """
        for _ in range(TRIES):  # the page may move between the two looks at it
            memory, root, owner = self._find_owners(layout)
            candidates = [root % GIGABYTE + start for start in range(0, end, GIGABYTE)]
            with loaded(copy_program(self._map, 8), b"directmap_root") as program:
                for start in range(0, len(candidates), TABLES):
                    part = candidates[start : start + TABLES]
                    addresses = [owner + at // PAGE * layout.descriptor_size for at in part]
                    self._ask(program, np.array(addresses, np.uint64))
                    for at, found in zip(part, self._words[PAGES_AT // 8 :], strict=False):
                        if memory and found == memory:
                            return root, root - at
        why = "the page tables of this process were not found"
        raise NotAvailable(why=why, remedy="none: this kernel is not known")

    def _find_owners(self, layout: Layout) -> tuple[int, int, int]:
        """Return the addresses of our memory's description, of our page directory, and of page 0's owner."""
        file = os.memfd_create("directmap")
        try:
            os.ftruncate(file, PAGE)
            with mmap.mmap(file, PAGE) as page:
                with contextlib.suppress(OSError):  # a kernel without large pages
                    page.madvise(mmap.MADV_NOHUGEPAGE)
                page[0] = 1
                physical = physical_address(page)
                to_page = (*layout.to_page[:3], 8 * file, *layout.to_page[3:])
                chains = ((layout.to_memory,), (layout.to_memory, layout.to_root), to_page)
                with loaded(pointer_program(self._map, chains), b"directmap_root") as program:
                    self._ask(program, np.zeros(0, np.uint64))
                memory, root, descriptor = (int(word) for word in self._words[:3])
        finally:
            os.close(file)
        return memory, root, descriptor - physical // PAGE * layout.descriptor_size + layout.to_owner


@contextlib.contextmanager
def loaded(program: bytes, name: bytes) -> Iterator[int]:
    """Keep a program loaded for as long as it is needed."""
    file = load_program(program, name)
    try:
        yield file
    finally:
        os.close(file)


class ChangedError(Exception):
    """Page tables changed while they were read."""


def physical_address(page: mmap.mmap) -> int:
    """Return where a mapped page of this process lies in physical memory, as /proc/self/pagemap tells."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(address // PAGE * 8)
            (entry,) = struct.unpack("<Q", pagemap.read(8))
    except OSError as error:
        why = f"/proc/self/pagemap cannot be read ({error.strerror})"
        raise NotAvailable(
            why=why, remedy="boot a kernel built with CONFIG_PROC_PAGE_MONITOR, and mount /proc"
        ) from error
    frame: int = entry & (1 << 55) - 1
    if not frame:
        raise NotAvailable(why="/proc/self/pagemap hides physical addresses", remedy="run as root (CAP_SYS_ADMIN)")
    return frame * PAGE


def memory_end(root: Path = source.ROOT) -> int:
    """Return where physical memory ends, as /proc/zoneinfo tells anybody; 0.1 ms."""
    frames = start = spanned = 0
    for line in source.read_text(root, "proc/zoneinfo", "mount /proc").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "spanned":
            spanned = int(value)
        elif name == "start_pfn:" and spanned:
            start = int(value)
            frames = max(frames, start + spanned)
    return frames * PAGE


# ---- the walk ----


class State(enum.IntEnum):
    """How a 2 MB region is mapped."""

    ABSENT = 0  # not at all: no memory, or all of it taken out of the map
    GIGABYTE = 1  # by a page of 1 GB
    WHOLE = 2  # by a page of 2 MB
    UNIFORM = 3  # split, but with the same permissions everywhere: it could be one page
    MIXED = 4  # split, with several permissions
    HOLED = 5  # split, and some of it is not mapped


SPLIT: Final = (State.UNIFORM, State.MIXED, State.HOLED)
LETTERS: Final = ".GMuxo"  # of states, by their numbers
COUNT_MAX: Final = 1 << 25  # regions of 64 TB: what a direct map with four levels of page tables can have
WRITABLE, EXECUTABLE = 1, 2  # bits of permissions

RUN: Final = np.dtype(
    [("region", "<u4"), ("page", "<u2"), ("pages", "<u2"), ("present", "?"), ("permissions", "u1"), ("caching", "u1")]
)


def encode_states(state: Bytes) -> str:
    """Return the states of regions as text: runs of a count and a letter.

    >>> encode_states(np.array([0, 0, 2, 3], np.uint8))
    '2. 1M 1u'
    """
    ends = np.flatnonzero(np.diff(state, append=255)) + 1
    letters = (LETTERS[known] for known in state[ends - 1].tolist())
    return " ".join(f"{count}{letter}" for count, letter in zip(np.diff(ends, prepend=0), letters, strict=True))


def decode_states(text: str) -> Bytes:
    """Return the states that a text tells; ValueError if it is none, or of more regions than can be.

    >>> decode_states("2. 1M 1u").tolist()
    [0, 0, 2, 3]
    """
    runs = text.split(" ") if text else []
    if not all(re.fullmatch(r"[1-9]\d{0,7}[.GMuxo]", run, re.ASCII) for run in runs):
        message = "states of regions are runs of a count and a letter, such as '2. 1M 1u'"
        raise ValueError(message)
    counts = [int(run[:-1]) for run in runs]
    if sum(counts) > COUNT_MAX:
        message = f"{sum(counts):,} regions cannot be: {COUNT_MAX:,} are the most"
        raise ValueError(message)
    return np.repeat(np.array([LETTERS.index(run[-1]) for run in runs], np.uint8), counts)


@dataclass(frozen=True)
class Walk:
    """The state of every 2 MB region of the direct map at one moment; region i begins at physical address i * 2 MB.

    `permissions` has WRITABLE and EXECUTABLE bits of each region: of a split one those that all its mapped pages have.
    `runs` has a row for each run of equal pages of each split region; `caching` is 0 for ordinary memory.
    """

    ns: int  # CLOCK_MONOTONIC, when it began
    took_ns: int
    base: int  # the address of the direct map's first byte
    tables: int  # pages of page tables that were read
    state: Bytes
    permissions: Bytes
    runs: npt.NDArray[np.void]

    def count(self, *states: State) -> int:
        """Return how many regions are in one of these states."""
        return int(np.isin(self.state, states).sum())

    @property
    def split(self) -> int:
        """How many regions are mapped by 4 KB pages."""
        return self.count(*SPLIT)

    @property
    def absent_pages(self) -> int:
        """How many 4 KB pages are missing in split regions."""
        return int(self.runs["pages"][~self.runs["present"]].sum(dtype=np.int64))

    def summary(self) -> str:
        """Tell it in one line."""
        parts = [f"{self.count(state):,} {state.name.lower()}" for state in State]
        return f"{len(self.state):,} regions of 2 MB: {', '.join(parts)}; {self.split:,} split"


TRIES: Final = 5
PART: Final = 32  # GB: 64 MB of tables if all of it is split
REGION: Final = 2 << 20
FOUR_LEVELS: Final = 0xFFFF_8000_0000_0000  # with four levels the kernel's half begins here, with five far below
PRESENT, WRITE, LARGE, NO_EXECUTE = 1 << 0, 1 << 1, 1 << 7, 1 << 63
SETTLED = ~np.uint64(1 << 5 | 1 << 6)  # accessed and dirty change without a change of the map


def is_present(entries: Words) -> Flags:
    """Tell which entries are in use."""
    used: Flags = entries & np.uint64(PRESENT) != 0
    return used


def is_leaf(entries: Words) -> Flags:
    """Tell which entries above the lowest level are large pages."""
    leaves: Flags = entries & np.uint64(PRESENT | LARGE) == PRESENT | LARGE
    return leaves


def is_table(entries: Words) -> Flags:
    """Tell which entries above the lowest level point at a table."""
    tables: Flags = entries & np.uint64(PRESENT | LARGE) == PRESENT
    return tables


def permissions_of(entries: Words) -> Bytes:
    """Return the WRITABLE and EXECUTABLE bits of entries."""
    writable: Bytes = (entries & np.uint64(WRITE) != 0) * np.uint8(WRITABLE)
    executable: Bytes = (entries & np.uint64(NO_EXECUTE) == 0) * np.uint8(EXECUTABLE)
    return writable | executable


TOLD: Final = PRESENT | WRITE | 1 << 3 | 1 << 4 | 1 << 7 | NO_EXECUTE  # and how it is cached, of a page of 4 KB


def split_states(regions: Indices, entries: Words) -> tuple[Bytes, Bytes, npt.NDArray[np.void]]:
    """Return state, permissions and runs of split regions from their rows of 512 entries."""
    if not len(regions):
        return np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0, RUN)
    bits = (entries & np.uint64(TOLD)) * (entries & np.uint64(PRESENT))
    first = np.ones(bits.shape, np.bool_)
    np.not_equal(bits[:, 1:], bits[:, :-1], out=first[:, 1:])
    starts = np.flatnonzero(first)
    chosen = bits.reshape(-1)[starts]
    runs = np.zeros(len(starts), RUN)
    runs["region"], runs["page"] = regions[starts // 512], starts % 512
    runs["pages"] = np.diff(starts, append=bits.size)
    runs["present"] = is_present(chosen)
    runs["permissions"] = np.where(runs["present"], permissions_of(chosen), np.uint8(0))
    runs["caching"] = chosen >> np.uint64(3) & np.uint64(3) | chosen >> np.uint64(5) & np.uint64(4)
    opening = np.flatnonzero(starts % 512 == 0)  # the first run of each region
    states = np.where(np.diff(opening, append=len(runs)) == 1, np.uint8(State.UNIFORM), np.uint8(State.MIXED))
    states[~np.logical_and.reduceat(runs["present"], opening)] = State.HOLED
    mapped = np.logical_or.reduceat(runs["present"], opening)
    allowed = np.bitwise_and.reduceat(np.where(runs["present"], runs["permissions"], np.uint8(3)), opening)
    return states, np.where(mapped, allowed, np.uint8(0)), runs


def address_bits(root: Path = source.ROOT) -> int:
    """Return how many bits a physical address has, as /proc/cpuinfo tells; memory encryption uses bits above."""
    text = source.read_text(root, "proc/cpuinfo", "mount /proc")
    found = re.search(r"^address sizes\s*: (\d+) bits physical", text, re.MULTILINE)
    if found is None:
        raise NotAvailable(
            why="/proc/cpuinfo does not tell the size of a physical address", remedy="none: not an x86-64 kernel"
        )
    return int(found[1])


@dataclass(frozen=True)
class Tables:
    """The page tables of a machine: how pages of them are read, where they begin, and what they map."""

    read: Callable[[Words], Words]  # addresses -> a row of 512 entries each
    root: int  # the address of the page directory
    base: int  # of the first byte of the direct map
    end: int  # of physical memory
    mask: int  # the bits of an entry that are an address

    def walk(self) -> Walk:
        """Read the state of every region, some GB after the other: what is told of those is of one moment."""
        ns = time.monotonic_ns()
        count = -(-self.end // GIGABYTE)
        parts = [self._part(first, min(first + PART, count)) for first in range(0, count, PART)]
        tables, states, permissions, runs = zip(*parts, strict=True)
        regions = -(-self.end // REGION)
        joined = np.concatenate(states)[:regions], np.concatenate(permissions)[:regions], np.concatenate(runs)
        return Walk(ns, time.monotonic_ns() - ns, self.base, sum(tables), *joined)

    def _part(self, first: int, last: int) -> tuple[int, Bytes, Bytes, npt.NDArray[np.void]]:
        """Return how many tables were read, and states, permissions and runs, from one GB up to another."""
        for _ in range(TRIES):
            with contextlib.suppress(ChangedError):
                seen: list[tuple[Words, Words]] = []
                gigabytes = self._gigabytes(first, last, seen)
                middles = self._below(gigabytes, seen).reshape(-1)
                at = np.flatnonzero(is_table(middles))
                small = self._below(middles[at], [])
                if any(np.any((self.read(addresses) ^ rows) & SETTLED) for addresses, rows in seen):
                    continue
                start = first * 512
                self._check(first, gigabytes, middles, at, small)
                of_region = np.repeat(gigabytes, 512)
                state = np.where(is_leaf(middles), np.uint8(State.WHOLE), np.uint8(State.ABSENT))
                state[is_leaf(of_region)] = State.GIGABYTE
                large = np.where(is_leaf(of_region), of_region, middles)
                permissions = np.where(is_leaf(large), permissions_of(large), np.uint8(0))
                state[at], permissions[at], runs = split_states(start + at, small)
                return 1 + len(at) + sum(len(rows) for _, rows in seen), state, permissions, runs
        raise NotAvailable(why=f"the page tables changed each of the {TRIES} times they were read", remedy="try again")

    def _gigabytes(self, first: int, last: int, seen: list[tuple[Words, Words]]) -> Words:
        """Return the entries of some GB of the direct map."""
        number = np.uint64(self.base // GIGABYTE) + np.arange(first, last, dtype=np.uint64)
        upper, place = np.unique(number >> 9, return_inverse=True)
        entries = self.read(np.array([self.root], np.uint64))[0]
        if self.base < FOUR_LEVELS:
            top, place_of_upper = np.unique(upper >> 9, return_inverse=True)
            entries = self._below(entries[top & 511], seen)[place_of_upper, upper & 511]
        else:
            entries = entries[upper & 511]
        gigabytes: Words = self._below(entries, seen)[place, number & 511]
        return gigabytes

    def _below(self, entries: Words, seen: list[tuple[Words, Words]]) -> Words:
        """Return the tables that entries point at, a row each (zeros: none), with what the entries forbid forbidden."""
        at = np.flatnonzero(is_table(entries))
        addresses = np.uint64(self.base) + (entries[at] & np.uint64(self.mask))
        rows = self.read(addresses)
        seen.append((addresses, rows))
        out = np.zeros((len(entries), 512), np.uint64)
        upper = entries[at]
        if np.any(upper & np.uint64(WRITE | NO_EXECUTE) != WRITE):  # most forbid nothing
            rows = (rows & (upper | ~np.uint64(WRITE))[:, np.newaxis]) | (upper & np.uint64(NO_EXECUTE))[:, np.newaxis]
        out[at] = rows
        return out

    def _check(self, first: int, gigabytes: Words, middles: Words, at: Indices, small: Words) -> None:
        """Raise NotAvailable if a page is not where a linear map has it (law 2)."""
        small_at = (at * REGION).astype(np.uint64)[:, np.newaxis] + np.arange(0, REGION, PAGE, dtype=np.uint64)
        for entries, used, starts, size in (
            (gigabytes, is_leaf(gigabytes), np.arange(len(gigabytes), dtype=np.uint64) << np.uint64(30), GIGABYTE),
            (middles, is_leaf(middles), np.arange(len(middles), dtype=np.uint64) << np.uint64(21), REGION),
            (small, is_present(small), small_at, PAGE),
        ):
            mapped = entries & np.uint64(self.mask & -size)
            if np.any(used & (mapped != starts + np.uint64(first * GIGABYTE))):
                why = "what was found is no linear map of memory"
                raise NotAvailable(why=why, remedy="none: this kernel is not known")


class Walker:
    """Walks as often as it is asked: making one takes 0.1 s (types are parsed, programs loaded), a walk 0.5 ms.

    Its program, 200 bytes of machine code, lives in the kernel until `close`. Use it as a context manager,
    in one thread at a time.
    """

    def __init__(self, root: Path = source.ROOT) -> None:
        """Get ready to read the direct map of the running kernel, or raise NotAvailable."""
        machine = platform.machine()
        if machine != "x86_64":
            raise NotAvailable(why="only x86-64 page tables are known", remedy=f"none on {machine}")
        end, mask = memory_end(root), (1 << address_bits(root)) - PAGE
        self._reader = Reader(Layout.of(running_btf(root / "sys/kernel/btf/vmlinux")), end)
        self._tables = Tables(self._reader.read, self._reader.root, self._reader.base, end, mask)
        self._mine = os.getpid()  # the page directory is this process's

    def close(self) -> None:
        """Unload the program; a second time does nothing."""
        self._reader.close()

    def __enter__(self) -> Self:
        """Return the walker."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def walk(self) -> Walk:
        """Read the state of every region: 0.5 to 2 ms here."""
        if os.getpid() != self._mine:
            why = "this walker is of the process before the fork"
            raise NotAvailable(why=why, remedy="make one in this process")
        return self._tables.walk()


def walk(root: Path = source.ROOT) -> Walk:
    """Read the state of every region once: 0.1 s, most of it to get ready; a `Walker` walks again in 0.5 ms."""
    with Walker(root) as walker:
        return walker.walk()


SOURCE: Final = source.Source(
    "regions",
    "state of each 2 MB region",
    "CAP_SYS_ADMIN; x86-64, Linux 5.14 with BTF",
    "0.1 s, then 0.5 to 2 ms",
    walk,
)
