from __future__ import annotations

import contextlib
import mmap
import os
import platform
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kernel_code import MINE, as_nobody, classic_filters, have, load_functions, load_program, programs

from execmem.directmap import source
from execmem.directmap.source import Area, NotAvailable, Splits, Use, Zone

if TYPE_CHECKING:
    from collections.abc import Callable

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads files of Linux")


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that writes a file below a root of its own, and returns the root."""

    def write(path: str, text: str) -> Path:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return tmp_path

    return write


# ---- files as other kernels have them ----

MEMINFO = "MemTotal:       24647720 kB\nDirectMap4k:       30720 kB\nDirectMap2M:     2066432 kB\n{}"


def test_directmap_is_told_by_size(put: Callable[[str, str], Path]) -> None:
    root = put("proc/meminfo", MEMINFO.format("DirectMap1G:    25165824 kB\n"))
    sizes = {4096: 30720 << 10, 2 << 20: 2066432 << 10, 1 << 30: 25165824 << 10}
    assert source.read_directmap(root).sizes == sizes


def test_a_size_the_cpu_does_not_have_is_left_out(put: Callable[[str, str], Path]) -> None:
    assert set(source.read_directmap(put("proc/meminfo", MEMINFO.format(""))).sizes) == {4096, 2 << 20}


def test_a_kernel_without_the_lines_is_told(put: Callable[[str, str], Path]) -> None:
    with pytest.raises(NotAvailable, match="no DirectMap lines"):
        source.read_directmap(put("proc/meminfo", "MemTotal:       24647720 kB\n"))


SPLITS = "nr_free_pages 12\ndirect_map_level2_splits 5\ndirect_map_level3_splits 2\n"
COLLAPSES = "direct_map_level2_collapses 1\ndirect_map_level3_collapses 0\n"


def test_splits_are_told_and_joins_where_the_kernel_can(put: Callable[[str, str], Path]) -> None:
    assert source.read_splits(put("proc/vmstat", SPLITS + COLLAPSES)) == Splits(5, 2, 1, 0)
    assert source.read_splits(put("proc/vmstat", SPLITS)) == Splits(5, 2, None, None)


def test_a_kernel_that_counts_no_splits_is_told(put: Callable[[str, str], Path]) -> None:
    with pytest.raises(NotAvailable, match=r"2,048 kB more for each split"):
        source.read_splits(put("proc/vmstat", "nr_free_pages 12\n"))


def test_free_blocks_are_told_by_order(put: Callable[[str, str], Path]) -> None:
    root = put(
        "proc/buddyinfo", "Node 0, zone      DMA      0      1      3 \nNode 1, zone   Normal    809    770   6 \n"
    )
    assert source.read_buddyinfo(root) == (Zone(0, "DMA", (0, 1, 3)), Zone(1, "Normal", (809, 770, 6)))
    with pytest.raises(NotAvailable, match="lists no zones"):
        source.read_buddyinfo(put("proc/buddyinfo", ""))


REAL = """\
0xffffc90000000000-0xffffc90000005000   20480 irq_init_percpu_irqstack+0xca/0x100 vmap
0xffffffffc0000000-0xffffffffc0201000 2101248 bpf_prog_pack_alloc+0x28b/0x3a0 pages=512 vmalloc N0=512
0xffffffffc0400000-0xffffffffc0402000    8192 bpf_jit_alloc_exec+0x10/0x20 [x] pages=1 vmalloc
0xffffffffc0500000-0xffffffffc0502000    8192 bpf_jit_alloc_exec_page+0x10/0x20 pages=1 vmalloc
0xffffffffc0600000-0xffffffffc0605000   20480 load_module+0x10/0x20 pages=4 vmalloc
0xffffc90000010000-0xffffc90000012000    8192 bpf_prog_alloc_no_stats+0x39/0x230 pages=1 vmalloc N0=1
0xffffc90000020000-0xffffc90000022000    8192 unpurged vm_area
"""


def test_areas_are_told_by_who_asked_for_them(put: Callable[[str, str], Path]) -> None:
    areas = source.read_areas(put("proc/vmallocinfo", REAL))
    assert areas.hidden == ""
    assert [area.use for area in areas.areas] == [
        *(Use.OTHER, Use.PACK, Use.CODE, Use.TRAMPOLINE, Use.MODULE, Use.PROGRAM)
    ]
    assert areas.areas[1] == Area(0xFFFFFFFFC0000000, 2 << 20, "bpf_prog_pack_alloc", Use.PACK)
    assert (areas.total(Use.PACK), areas.total(Use.MODULE)) == ((1, 2 << 20), (1, 16384))


@pytest.mark.parametrize(
    ("word", "hidden"),
    [("0x00000000b52db5fb-0x0000000003f01c71", "hashed"), ("0x0000000000000000-0x0000000000000000", "zero")],
)
def test_hidden_addresses_are_no_addresses(put: Callable[[str, str], Path], word: str, hidden: str) -> None:
    areas = source.read_areas(put("proc/vmallocinfo", f"{word}   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4\n"))
    assert areas.hidden == hidden
    assert areas.areas == (Area(None, 16384, "kernel_clone", Use.OTHER),)


def test_areas_in_a_form_not_known_are_not_told(put: Callable[[str, str], Path]) -> None:
    with pytest.raises(NotAvailable, match="a form not known here"):
        source.read_areas(put("proc/vmallocinfo", "something else\n"))


SMAPS = """\
5600-6600 r--p 00000000 fe:00 123                        /usr/bin/prog
Rss:                   4 kB
200000-600000 r-xs 00000000 00:01 7                      /memfd:execmem (deleted)
Rss:                4096 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
VmFlags: rd ex mr
700000-900000 r-xp 00000000 00:00 0
Rss:                2048 kB
AnonHugePages:      2048 kB
"""


def test_executable_mappings_are_told_with_their_large_pages(put: Callable[[str, str], Path]) -> None:
    root = put("proc/42/smaps", SMAPS)
    first, second = source.read_smaps(42, root)
    assert (first.start, first.end, first.name) == (0x200000, 0x600000, "/memfd:execmem (deleted)")
    assert (first.resident, first.anonymous, first.shared, first.file) == (4 << 20, 0, 2 << 20, 0)
    assert (second.name, second.anonymous, second.shared) == ("", 2 << 20, 0)


FILES = [one for one in source.SOURCES if one.name != "programs"]  # that is a system call


@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
def test_nothing_is_told_without_its_file(one: source.Source, tmp_path: Path) -> None:
    missing = one.missing(tmp_path)
    assert missing is not None
    assert missing.why
    assert missing.remedy
    assert str(missing) == f"not available: {missing.why}; {missing.remedy}"


def test_a_jit_without_numbers_is_not_told(put: Callable[[str, str], Path]) -> None:
    with pytest.raises(NotAvailable, match="bpf_jit_limit has no number"):
        source.read_jit(put("proc/sys/net/core/bpf_jit_limit", "none\n"))


def test_a_cpu_whose_calls_are_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(NotAvailable, match=r"number of bpf\(\) on vax"):
        source.read_programs()


# ---- the kernel that runs ----


@linux
def test_what_anybody_may_read_is_read() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * 4096
    assert have(source.read_directmap).sizes[4096] > 0
    assert have(source.read_splits).level2_splits >= 0
    zones = have(source.read_buddyinfo)
    assert 0 < sum(blocks << order + 12 for zone in zones for order, blocks in enumerate(zone.free)) < memory * 2


@linux
def test_areas_of_this_kernel_are_found() -> None:
    areas = have(source.read_areas)
    assert len(areas.areas) > 10
    assert all(area.size > 0 for area in areas.areas if area.caller == "kernel_clone")
    assert areas.hidden or all(area.address for area in areas.areas)


@linux
def test_programs_are_told_while_they_live() -> None:
    have(source.read_programs)
    with programs(3, f"{MINE}s") as names:
        found = {one.name: one for one in source.read_programs() if one.name in names}
    assert sorted(found) == names
    one = found[names[2]]
    assert (one.type, one.instructions, one.uid, len(one.tag)) == (1, 8 * 5, 0, 16)
    assert one.code is not None
    assert len(one.functions) == 1
    assert {length for _, length in one.functions} <= {one.code, None}
    assert one.loaded_ns > 0
    assert not [one for one in source.read_programs() if one.name in names]


def settle() -> source.Unseen:
    """Return what is unseen when it has stopped to change: the kernel clears up a little later."""
    last = source.read_unseen()
    for _ in range(100):
        time.sleep(0.2)
        before, last = last, source.read_unseen()
        if last == before:
            return last
    pytest.skip("programs come and go here all the time")


@linux
def test_classic_filters_are_seen_by_difference() -> None:
    have(source.read_unseen)
    end = time.monotonic() + 60
    while time.monotonic() < end:  # others may load programs meanwhile
        before = settle()
        with classic_filters(20):
            during = source.read_unseen()
            functions = load_functions(5, "emfunctions")
            try:
                with programs(5, "emclassic"):
                    beside = source.read_unseen()
            finally:
                os.close(functions)
        after = settle()
        new = during.programs - before.programs, during.bytes - before.bytes
        if (new, beside, after) == ((20, 20 * 4096), during, before):
            break
    assert new == (20, 20 * 4096)
    assert beside == during  # those with numbers are not among them
    assert after == before


@linux
def test_code_of_programs_counts_against_the_limit() -> None:
    have(source.read_jit)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        before = source.read_jit()
        file = load_program(3000, "emlong")
        try:
            then = source.read_jit()
        finally:
            os.close(file)
        settle()
        if source.read_jit().programs == before.programs:  # else others loaded or freed programs meanwhile
            break
    assert then.enabled
    assert then.limit > 1 << 20
    assert before.programs is not None
    assert then.programs is not None
    assert then.packs is not None
    assert then.programs - before.programs > 3000
    assert then.packs >= then.programs


@linux
def test_large_pages_of_code_are_seen_both_ways() -> None:
    file = os.memfd_create("directmap")
    try:
        os.ftruncate(file, 4 << 20)
        with mmap.mmap(file, 4 << 20, prot=mmap.PROT_READ | mmap.PROT_WRITE) as pages:
            pages[:] = b"\xcc" * len(pages)
        with mmap.mmap(file, 4 << 20, prot=mmap.PROT_READ | mmap.PROT_EXEC) as pages:
            assert sum(pages[::4096]) == 0xCC * 1024
            own = [one for one in source.read_smaps() if one.name.startswith("/memfd:directmap")]
            assert sum(one.resident for one in own) == 4 << 20
            scanned = [one for one in have(source.read_pagemap) if one.name.startswith("/memfd:directmap")]
            assert [(one.start, one.end) for one in scanned] == [(one.start, one.end) for one in own]
            assert sum(one.present for one in scanned) == 4 << 20
            assert sum(one.huge for one in scanned) == sum(one.shared for one in own)
    finally:
        os.close(file)


@linux
def test_another_process_is_read_by_who_may() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        while not any("python" in one.name for one in source.read_smaps(child.pid)):
            pass
        assert any(one.present for one in have(lambda: source.read_pagemap(child.pid)))
        child.communicate(b"\n")
    with pytest.raises(NotAvailable):
        source.read_smaps(child.pid)


@linux
def test_a_user_without_rights_reads_what_anybody_may() -> None:
    result = as_nobody(
        """
        result = {}
        for one in (*source.SOURCES, region.SOURCE, perf.SOURCE):
            missing = one.missing()
            result[one.name] = None if missing is None else [missing.why, missing.remedy]
        """
    )
    for name in ("directmap", "splits", "buddyinfo", "smaps", "pagemap"):
        here = next(one for one in source.SOURCES if one.name == name).missing()
        assert (result[name] is None) == (here is None), name
    for name in ("vmallocinfo", "programs", "unseen", "jit", "regions", "events"):
        why, remedy = result[name]
        assert "not for this user" in why or "may not" in why
        assert remedy.startswith("run as root")


def program_files() -> int:
    """Return how many files of BPF programs this process has open."""
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "bpf-prog" in str(file.readlink())
    return count


@linux
def test_reading_leaves_no_files_open() -> None:
    have(source.read_programs)
    with programs(3, "emopen"):
        assert program_files() == 3
        source.read_programs()
        assert program_files() == 3
        each = source.each_program()
        next(each)
        assert program_files() == 4
        each.close()
        assert program_files() == 3


def test_what_is_read_of_a_program_is_where_the_kernel_has_it() -> None:
    assert struct.calcsize(source.INFO.format) == source.INFO.size == 128


def test_a_program_is_told_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    assert source.read_locked(0) is None
