from __future__ import annotations

import contextlib
import mmap
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from kernel_code import as_nobody, have, needs_x86_linux, secret_memory

from execmem.directmap import region, source
from execmem.directmap.region import PAGE, Btf, State, Tables, Walker

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

P, W, LARGE, NX = 1, 2, 1 << 7, 1 << 63
TABLE: Final = P | W
DATA: Final = P | W | NX
GIGABYTE, REGION = 1 << 30, 2 << 20

# ---- tables made up here ----


class Memory:
    """Page tables of a machine of 3 GB with four or five levels, in a dictionary."""

    def __init__(self, base: int) -> None:
        self.base, self.free = base, 8 << 20
        self.pages: dict[int, Words] = {}
        self.root = self.table()
        at = self.root
        if base < region.FOUR_LEVELS:
            at = self.below(at, base >> 48 & 511)
        self.gigabytes = self.below(at, base >> 39 & 511)
        self.first = base >> 30 & 511

    def table(self) -> int:
        self.free += PAGE
        self.pages[self.base + self.free] = np.zeros(512, np.uint64)
        return self.base + self.free

    def below(self, table: int, index: int, bits: int = TABLE) -> int:
        new = self.table()
        self.pages[table][index] = new - self.base | bits
        return new

    def read(self, addresses: Words) -> Words:
        return np.array([self.pages[int(at)] for at in addresses], np.uint64).reshape(-1, 512)

    def tables(self) -> Tables:
        return Tables(self.read, self.root, self.base, 3 * GIGABYTE, (1 << 46) - PAGE)

    def gigabyte(self, number: int, entry: int) -> None:
        self.pages[self.gigabytes][self.first + number] = number * GIGABYTE | entry | LARGE

    def whole(self, table: int, number: int, entry: int) -> None:
        self.pages[table][number % 512] = number * REGION | entry | LARGE

    def split(self, table: int, number: int, *entries: tuple[int, int]) -> int:
        """Split a region into runs of so many pages with these bits."""
        small = self.below(table, number % 512)
        page = 0
        for count, bits in entries:
            for _ in range(count):
                self.pages[small][page] = number * REGION + page * PAGE | bits if bits & P else bits
                page += 1
        return small


BASES: Final = (0xFFFF_8880_0000_0000, 0xFFFF_9ABC_C000_0000, 0xFF11_0000_0000_0000, 0xFF1F_1234_4000_0000)


@pytest.fixture(params=BASES, ids=hex)
def memory(request: pytest.FixtureRequest) -> Memory:
    return Memory(request.param)


def test_each_state_is_told(memory: Memory) -> None:
    memory.gigabyte(0, DATA)
    middle = memory.below(memory.gigabytes, memory.first + 1)
    memory.whole(middle, 512, DATA)
    memory.split(middle, 513, (512, DATA))
    memory.split(middle, 514, (100, DATA), (12, P | NX), (400, DATA))
    memory.split(middle, 515, (511, DATA), (1, W | NX))
    memory.split(middle, 516)
    walk = memory.tables().walk()
    assert len(walk.state) == 3 * 512
    assert set(walk.state[:512]) == {State.GIGABYTE}
    states = [State.WHOLE, State.UNIFORM, State.MIXED, State.HOLED, State.HOLED, State.ABSENT]
    assert walk.state[512:518].tolist() == states
    assert set(walk.state[517:]) == {State.ABSENT}
    assert walk.permissions[[0, 512, 513, 514, 515, 516, 517]].tolist() == [1, 1, 1, 0, 1, 0, 0]
    runs = walk.runs[["region", "page", "pages", "present", "permissions"]].tolist()
    assert runs == [
        (513, 0, 512, True, 1),
        *((514, 0, 100, True, 1), (514, 100, 12, True, 0), (514, 112, 400, True, 1)),
        *((515, 0, 511, True, 1), (515, 511, 1, False, 0)),
        (516, 0, 512, False, 0),
    ]
    assert (walk.split, walk.absent_pages) == (4, 513)
    assert "512 gigabyte, 1 whole, 1 uniform, 1 mixed, 2 holed; 4 split" in walk.summary()


def test_what_an_upper_entry_forbids_is_forbidden(memory: Memory) -> None:
    middle = memory.below(memory.gigabytes, memory.first, P | NX)
    memory.whole(middle, 0, P | W)
    memory.split(middle, 1, (512, P | W))
    executable = memory.below(memory.gigabytes, memory.first + 1)
    memory.whole(executable, 512, P)
    walk = memory.tables().walk()
    assert walk.permissions[[0, 1, 512]].tolist() == [0, 0, region.EXECUTABLE]


def test_caching_parts_runs(memory: Memory) -> None:
    middle = memory.below(memory.gigabytes, memory.first)
    memory.split(middle, 0, (500, DATA), (12, DATA | 1 << 4))
    walk = memory.tables().walk()
    assert walk.state[0] == State.MIXED
    assert walk.runs["caching"].tolist() == [0, 2]


def test_bits_of_memory_encryption_are_no_address(memory: Memory) -> None:
    memory.gigabyte(1, DATA | 1 << 51)
    assert memory.tables().walk().state[512] == State.GIGABYTE


@pytest.mark.parametrize("level", ["gigabyte", "whole", "page"])
def test_what_is_no_linear_map_is_not_told(memory: Memory, level: str) -> None:
    middle = memory.below(memory.gigabytes, memory.first)
    small = memory.split(middle, 3, (512, DATA))
    if level == "gigabyte":
        memory.pages[memory.gigabytes][memory.first + 1] = 2 * GIGABYTE | DATA | LARGE
    elif level == "whole":
        memory.pages[middle][0] = REGION | DATA | LARGE
    else:
        memory.pages[small][5] = 3 * REGION + 6 * PAGE | DATA
    with pytest.raises(source.NotAvailable, match="no linear map"):
        memory.tables().walk()


def test_tables_that_change_meanwhile_are_not_told(memory: Memory) -> None:
    middle = memory.below(memory.gigabytes, memory.first)
    memory.whole(middle, 0, DATA)

    def read(addresses: Words) -> Words:
        rows = memory.read(addresses)
        if middle in addresses:
            memory.pages[middle][0] ^= np.uint64(P)
        return rows

    tables = Tables(read, memory.root, memory.base, GIGABYTE, (1 << 46) - PAGE)
    with pytest.raises(source.NotAvailable, match="changed each of the 5 times"):
        tables.walk()
    memory.pages[middle][0] |= np.uint64(P)
    steady = memory.tables()
    assert steady.walk().state[0] == State.WHOLE


def test_tables_that_changed_once_are_read_again(memory: Memory) -> None:
    middle = memory.below(memory.gigabytes, memory.first)
    memory.whole(middle, 0, DATA)
    left = [np.uint64(P)]

    def read(addresses: Words) -> Words:
        if middle in addresses and left:
            rows = memory.read(addresses)
            memory.pages[middle][0] ^= left.pop()
            return rows
        return memory.read(addresses)

    assert Tables(read, memory.root, memory.base, GIGABYTE, (1 << 46) - PAGE).walk().state[0] == State.ABSENT


def test_a_large_machine_is_read_in_parts(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.gigabyte(0, DATA)
    middle = memory.below(memory.gigabytes, memory.first + 1)
    memory.whole(middle, 512, DATA)
    memory.split(middle, 1023, (511, DATA), (1, P | NX))
    memory.gigabyte(2, P | NX)
    whole = memory.tables().walk()
    monkeypatch.setattr(region, "PART", 1)
    parts = memory.tables().walk()
    assert np.array_equal(parts.state, whole.state)
    assert np.array_equal(parts.permissions, whole.permissions)
    assert parts.runs.tolist() == whole.runs.tolist()
    assert parts.runs["region"].tolist() == [1023, 1023]


def test_accessed_and_dirty_bits_are_no_change(memory: Memory) -> None:
    middle = memory.below(memory.gigabytes, memory.first)
    memory.whole(middle, 0, DATA)

    def read(addresses: Words) -> Words:
        rows = memory.read(addresses)
        memory.pages[middle][0] ^= np.uint64(3 << 5)
        return rows

    assert Tables(read, memory.root, memory.base, GIGABYTE, (1 << 46) - PAGE).walk().state[0] == State.WHOLE


# ---- BTF made up here ----


def make_btf() -> bytes:
    texts = b"\0outer\0plain\0inner\0wide\0"
    name = {text: texts.index(b"\0" + text.encode() + b"\0") + 1 for text in ("outer", "plain", "inner", "wide")}
    integer = struct.pack("<IIII", 0, 1 << 24, 8, 64)
    nameless = struct.pack("<III", 0, 5 << 24 | 1, 8) + struct.pack("<III", name["inner"], 1, 0)
    fields = (name["plain"], 1, 64, 0, 2, 128, name["wide"], 1, 8 << 24 | 200)
    outer = struct.pack("<III", name["outer"], 1 << 31 | 4 << 24 | 3, 40) + struct.pack("<9I", *fields)
    types = integer + nameless + outer
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(texts)) + types + texts


def test_members_are_found_also_in_nameless_unions() -> None:
    btf = Btf(make_btf())
    assert [btf.offset("outer", member) for member in ("plain", "inner", "wide")] == [8, 16, 25]
    assert (btf.size("outer"), btf.has("outer"), btf.has("inner")) == (40, True, False)


@pytest.mark.parametrize(("structure", "member"), [("outer", "x"), ("inner", "plain"), ("nowhere", "plain")])
def test_a_member_that_is_not_there_is_an_error(structure: str, member: str) -> None:
    with pytest.raises(LookupError, match=f"no {structure}.{member}"):
        Btf(make_btf()).offset(structure, member)


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(60), make_btf()[:10]])
def test_what_is_no_btf_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no BTF"):
        Btf(data)


def test_a_kernel_without_btf_is_told(tmp_path: Path) -> None:
    with pytest.raises(source.NotAvailable, match="CONFIG_DEBUG_INFO_BTF"):
        region.running_btf(tmp_path / "vmlinux")


# ---- the kernel that runs ----


@pytest.fixture
def walker() -> Iterator[Walker]:
    with have(Walker) as found:
        yield found


@needs_x86_linux
def test_the_map_of_this_machine_is_lawful(walker: Walker) -> None:
    walk = walker.walk()
    assert walk.base % GIGABYTE == 0
    assert len(walk.state) == -(-region.memory_end() // REGION)
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE
    assert walk.count(State.GIGABYTE, State.WHOLE) * REGION + walk.split * REGION >= memory
    assert set(walk.runs["region"]) == set(np.flatnonzero(np.isin(walk.state, region.SPLIT)))
    assert walk.runs["pages"].sum(dtype=np.int64) == 512 * walk.split
    for index in np.flatnonzero(walk.state == State.UNIFORM):
        assert (walk.runs["region"] == index).sum() == 1


def steady(walker: Walker) -> tuple[dict[int, int], region.Walk]:
    """Return counters and state of one moment: the counters are the same before and after."""
    for _ in range(1000):
        before = source.read_directmap().sizes
        walk = walker.walk()
        if source.read_directmap().sizes == before:
            return dict(before), walk
    pytest.skip("the direct map changes here all the time")


@dataclass
class Split:
    """What was seen before, while and after some pages were taken out of the map."""

    before: tuple[dict[int, int], region.Walk]
    during: tuple[dict[int, int], region.Walk]
    after: tuple[dict[int, int], region.Walk]

    @classmethod
    def make(cls, walker: Walker, pages: int) -> Split:
        before = steady(walker)
        file, size = secret_memory(pages)
        with contextlib.closing(os.fdopen(file, "r+b", buffering=0)), mmap.mmap(file, size) as secret:
            for page in range(pages):
                secret[page * PAGE] = 1
            during = steady(walker)
        return cls(before, during, steady(walker))

    def counted(self) -> dict[int, int]:
        return {size: self.during[0][size] - count for size, count in self.before[0].items()}

    def walked(self) -> dict[int, int]:
        before, during = self.before[1], self.during[1]
        changes = {
            PAGE: during.split - before.split,
            REGION: during.count(State.WHOLE) - before.count(State.WHOLE),
            GIGABYTE: during.count(State.GIGABYTE) - before.count(State.GIGABYTE),
        }
        return {size: changes[size] * REGION for size in self.before[0]}

    def missing(self) -> tuple[int, int]:
        before, during, after = (walk.absent_pages for _, walk in (self.before, self.during, self.after))
        return during - before, after - before

    def states(self) -> tuple[set[int], set[int]]:
        """Return the states of regions split anew, while pages of them were missing and after."""
        before, during, after = (walk.state for _, walk in (self.before, self.during, self.after))
        new = np.isin(during, region.SPLIT) & (before != during)
        return set(during[new].tolist()), set(after[new].tolist())

    def is_lawful(self, pages: int) -> bool:
        wanted = {int(State.HOLED)}, {int(State.UNIFORM)}
        return (
            self.counted() == self.walked()
            and self.missing() == (pages, 0)
            and self.after[0] == self.during[0]  # nothing joins regions again
            and all(found <= expected for found, expected in zip(self.states(), wanted, strict=True))
        )


@needs_x86_linux
def test_the_walk_agrees_with_the_counters_around_a_split(walker: Walker) -> None:
    pages = 3  # each splits a region, for good, if it is not split already
    split = Split.make(walker, pages)
    for _ in range(4):  # others may change the map at the same moment
        if split.is_lawful(pages):
            break
        split = Split.make(walker, pages)
    assert split.is_lawful(pages), (split.counted(), split.walked(), split.missing(), split.states())


@needs_x86_linux
def test_its_program_lives_as_long_as_the_walker(walker: Walker) -> None:
    own = source.read_program(walker._reader._program)
    assert own.name == "directmap"
    assert own in source.read_programs()
    walker.close()
    walker.close()
    assert own.id not in {program.id for program in source.read_programs()}


@needs_x86_linux
def test_a_walker_is_of_its_process(walker: Walker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(source.NotAvailable, match="before the fork"):
        walker.walk()


def test_another_cpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(source.NotAvailable, match="only x86-64 page tables are known"):
        Walker()


@needs_x86_linux
def test_a_user_without_rights_is_refused_politely() -> None:
    why, remedy = as_nobody(
        """
        try:
            region.walk()
        except source.NotAvailable as error:
            result = error.why, error.remedy
        """
    )
    assert "may not call bpf()" in why
    assert remedy.startswith("run as root")


# ---- what may be missing ----


def test_the_end_of_memory_is_that_of_the_last_zone(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    zones = ((1, 4095), (4096, 1044480), (1048576, 5505024), (0, 0))
    text = "".join(
        f"Node 0, zone X\n        spanned  {spanned}\n        present  1\n  start_pfn:           {start}\n"
        for start, spanned in zones
    )
    (tmp_path / "proc/zoneinfo").write_text(text)
    assert region.memory_end(tmp_path) == (1048576 + 5505024) * PAGE


def test_the_size_of_an_address_is_read(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags : fpu\naddress sizes\t: 46 bits physical, 48 bits virtual\n")
    assert region.address_bits(tmp_path) == 46
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\n")
    with pytest.raises(source.NotAvailable, match="size of a physical address"):
        region.address_bits(tmp_path)


def test_a_kernel_of_other_structures_is_told() -> None:
    with pytest.raises(source.NotAvailable, match=r"no task_struct\.mm"):
        region.Layout.of(Btf(make_btf()))


def open_files() -> dict[str, str]:
    """Return what each descriptor points at; not those of the list of mappings, which another thread reads."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = str(path.readlink())
    return {name: target for name, target in found.items() if not target.startswith("/proc/")}


@needs_x86_linux
@pytest.mark.parametrize("step", ["physical_address", "copy_program", "pointer_program"])
def test_what_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    have(Walker).close()

    def refuse(*_: object) -> None:
        raise source.NotAvailable(why="scripted", remedy="none")

    monkeypatch.setattr(region, step, refuse)
    before = open_files()
    with pytest.raises(source.NotAvailable, match="scripted"):
        Walker()
    assert open_files() == before


@needs_x86_linux
def test_a_page_directory_that_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    have(Walker).close()
    monkeypatch.setattr(region, "physical_address", lambda _: 0)
    with pytest.raises(source.NotAvailable, match="were not found"):
        Walker()
