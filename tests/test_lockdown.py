"""After setup: sealed domains under attack, guard pages, quarantine, random gaps, trust classes."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ADD7, PACK, TRAP, needs_x86

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable

FILE_MODES = ("syscall", "alias", "pkey")  # their code lies in a memory file; that of the others is private memory

# ---- sealing ----


def test_nothing_changes_in_a_sealed_domain(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import execmem
        events = []
        parent = execmem.Domain("parent")
        domain = execmem.Domain("setup", parent=parent, window="16M", write_mode={mode!r}, quarantine="64K")
        block = domain.place(b"code", name="kept")
        data = domain.place(b"data", kind="data")
        batch = domain.place_many([b"one", b"two"])
        assert domain.sealed is None and domain.stats().sealed is None
        import sys
        sys.addaudithook(lambda name, args: events.append(args) if name == "execmem.seal" else None)
        domain.seal()
        domain.seal()
        assert events == [(domain.number,)] * 2
        assert domain.sealed == domain.stats().sealed != None
        before = domain.stats()
        def refused(call, *arguments):
            try:
                call(*arguments)
            except execmem.SealedError as error:
                assert "sealed" in str(error) and error.code == -15, error
                assert isinstance(error, PermissionError)
            else:
                raise AssertionError(call)
        refused(domain.alloc, 10)
        refused(domain.place, b"more")
        refused(domain.alloc_many, [1, 2])
        refused(domain.place_many, [b"1", b"2"])
        refused(block.fill, b"CODE")
        refused(data.fill, b"DATA")
        refused(block.free)
        refused(batch.free)
        refused(batch[1].free)
        refused(execmem.execmem_fill, block.address, b"x")
        refused(execmem.execmem_free, block.address)
        refused(setattr, domain, "limit", "1M")
        refused(domain.close)
        refused(parent.close)
        after = domain.stats()
        assert after == before, (after, before)
        assert bytes(block) == b"code" and block.state == "filled" and bytes(batch[0]) == b"one"
        assert execmem.find(block.address).name == "kept" and len(domain) == 4 == len(domain.blocks())
        domain.check()
        # Children are not sealed, and can still be opened.
        with execmem.Domain("child", parent=domain) as child:
            assert child.sealed is None
            with child.place(b"later") as later:
                assert bytes(later) == b"later"
        # What is dropped stays where it is, without a word; so does the domain.
        address = block.address
        with block:
            pass
        del block, batch, data
        with domain:
            pass
        assert not domain.closed and len(domain) == 4
        import ctypes
        del domain
        assert ctypes.string_at(address, 4) == b"code"
        print("done")
        """
    )
    assert told == "done"


def test_the_default_domain_can_be_sealed(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import execmem
        address = execmem.execmem_alloc(100)
        execmem.execmem_fill(address, b"kept")
        execmem.default_domain().seal()
        try:
            execmem.execmem_alloc(100)
        except execmem.SealedError as error:
            print(error)
        with execmem.Domain("later") as domain:
            domain.place(b"code").free()
        """
    )
    assert told.startswith('domain "root" is sealed')


@needs_x86
def test_both_sides_of_a_fork_keep_the_seal(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import os
        import execmem
        domain = execmem.Domain("setup", window="16M", write_mode={mode!r})
        add7 = domain.place(bytes.fromhex("488d4707c3")).function("i64(i64)")
        block = domain.place(b"kept", name="kept")
        domain.seal()
        sealed = domain.sealed

        def look():
            assert add7(35) == 42 and bytes(block) == b"kept" and domain.sealed == sealed
            for call in (lambda: block.fill(b"more"), block.free, lambda: domain.place(b"new")):
                try:
                    call()
                except execmem.SealedError:
                    continue
                raise AssertionError("not refused")
            domain.check()
            with execmem.Domain("new", write_mode={mode!r}) as own:
                assert own.place(bytes.fromhex("488d4708c3")).function("i64(i64)")(34) == 42
                assert own.sealed is None
                own.check()

        child = os.fork()
        look()
        if child == 0:
            print("child", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        look()
        print("parent")
        """
    )
    assert told.split() == ["child", "parent"]


def test_a_file_without_seals_of_its_own_is_sealed_by_its_mappings_only(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import execmem
        from execmem._core import lib
        lib.execmem_test_script(b"memfd=F*:EPERM")
        domain = execmem.Domain("unlinked", write_mode="syscall", window="16M")
        lib.execmem_test_script(execmem._core.ffi.NULL)
        block = domain.place(b"kept")
        backing = domain.stats().backing
        domain.seal()
        assert bytes(block) == b"kept" and domain.stats().backing == backing
        domain.check()
        other = execmem.Domain("other", write_mode="syscall", window="16M")
        other.seal()
        print(backing, domain.sealed, other.sealed)
        """
    )
    backing, sealed, best = told.split()
    assert backing in {"tmpfs", "disk"}
    assert sealed == {"kernel": "mappings"}.get(best, "library")  # without mseal nothing is promised


ATTACKS = """
import ctypes, json, os, re, signal, sys
import execmem

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
WORD, FAILED = ctypes.c_size_t, ctypes.c_void_p(-1).value
READ, WRITE, EXEC, SHARED, PRIVATE, FIXED, ANONYMOUS = 1, 2, 4, 1, 2, 16, 32

domain = execmem.Domain("attacked", window="16M", write_mode=sys.argv[1])
code = bytes.fromhex("488d4707c3") + bytes(range(256)) * 20
block = domain.place(code, name="add7")
page = block.address // 4096 * 4096
window = domain.stats().window
empty = window + (8 << 20)
expected = ctypes.string_at(page, 4096)
domain.seal()
outcomes = {"sealed": domain.sealed}

def told(result):
    return "refused" if result in (-1, FAILED) else "done"

def attack(name, call):
    # In a process of its own: what it breaks, it breaks there. The memory file is shared, so what it writes there is
    # seen here.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = call()
        changed = ctypes.string_at(page, 4096) != expected
        os.write(write, json.dumps(outcome + (", changed" if changed else "")).encode())
        os._exit(0)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    answer = os.read(read, 100)
    os.close(read)
    outcomes[name] = json.loads(answer) if status == 0 else signal.Signals(-status).name
    assert ctypes.string_at(page, 4096) == expected, name

def mprotect(protection):
    return lambda: told(libc.mprotect(WORD(page), WORD(4096), protection))

def madvise(advice):
    return lambda: told(libc.madvise(WORD(page), WORD(4096), advice))

def over(address):
    return lambda: told(libc.mmap(WORD(address), WORD(4096), READ | WRITE, PRIVATE | ANONYMOUS | FIXED, -1, WORD(0)))

attack("mprotect RW", mprotect(READ | WRITE))
attack("mprotect none", mprotect(0))
attack("pkey_mprotect", lambda: told(libc.syscall(329, WORD(page), WORD(4096), READ | WRITE, -1)))
attack("munmap", lambda: told(libc.munmap(WORD(page), WORD(4096))))
attack("munmap of the window", lambda: told(libc.munmap(WORD(window), WORD(16 << 20))))
attack("mmap FIXED", over(page))
attack("mmap FIXED beside", over(empty))
attack("mremap away", lambda: told(libc.mremap(WORD(page), WORD(4096), WORD(8192), 1)))
advices = {"DONTNEED": 4, "FREE": 8, "REMOVE": 9, "WIPEONFORK": 18, "PAGEOUT": 21, "DONTNEED_LOCKED": 24}
for name, advice in advices.items():
    attack("madvise " + name, madvise(advice))

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_size_t), ("size", ctypes.c_size_t)]

def vm_write():
    source = ctypes.create_string_buffer(b"evil")
    local, remote = Piece(ctypes.addressof(source), 4), Piece(page, 4)
    here, there = ctypes.byref(local), ctypes.byref(remote)
    return told(libc.process_vm_writev(os.getpid(), here, WORD(1), there, WORD(1), WORD(0)))

def store():
    ctypes.memset(page, 0x90, 1)
    return "done"

def proc_mem():
    mem = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(mem, b"evil", page)
    except OSError:
        return "refused"
    return "done"

def mapping_of_page():
    with open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split()
            start, end = (int(part, 16) for part in words[0].split("-"))
            if start <= page < end:
                return start, end, int(words[4])

def own_files():
    # Every descriptor of this process that leads to the memory: none may be left. The root domain has one of its own.
    inode = mapping_of_page()[2]
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink("/proc/self/fd/" + fd)
            if os.fstat(int(fd)).st_ino == inode or re.match("/proc/([0-9]+|self)/mem", link):
                return "found"
        except OSError:
            pass  # the one that lists
    return "none left"

def through_file(use):
    def call():
        start, end, _ = mapping_of_page()
        try:
            fd = os.open(f"/proc/self/map_files/{start:x}-{end:x}", os.O_RDWR)
        except OSError:
            return "no way in"
        try:
            use(fd)
        except OSError:
            return "refused"
        return "done"
    return call

def punch(fd):
    if libc.fallocate(fd, 3, WORD(0), WORD(1 << 20)) < 0:
        raise OSError

def view(fd):
    if libc.mmap(None, WORD(4096), READ | WRITE, SHARED, fd, WORD(0)) == FAILED:
        raise OSError

attack("store", store)
attack("process_vm_writev", vm_write)
attack("own descriptors", own_files)
attack("file: pwrite", through_file(lambda fd: os.pwrite(fd, b"evil", 0)))
attack("file: punch a hole", through_file(punch))
attack("file: cut off", through_file(lambda fd: os.ftruncate(fd, 0)))
attack("file: a writable view", through_file(view))
attack("file: opened", through_file(lambda fd: None))
attack("/proc/self/mem", proc_mem)
if execmem.arch() == "x86_64":
    assert block.function("i64(i64)")(35) == 42
domain.check()
print(json.dumps(outcomes))
"""
KEPT = dict.fromkeys(
    [
        *("mprotect RW", "mprotect none", "pkey_mprotect", "munmap", "munmap of the window", "mmap FIXED"),
        *("mmap FIXED beside", "mremap away", "madvise REMOVE", "madvise WIPEONFORK", "process_vm_writev"),
    ],
    "refused",
)


@needs_x86
def test_what_the_kernel_stops_once_sealed(run_child: Callable[..., str], mode: str) -> None:
    seen: dict[str, Any] = json.loads(run_child(f"import sys\nsys.argv = ['', {mode!r}]\n" + ATTACKS))
    if seen["sealed"] == "library":
        pytest.skip("this kernel has no mseal (before 6.10, or a filter): only the library keeps the seal")
    in_file = mode in FILE_MODES
    privileged = seen["file: pwrite"] != "no way in"  # /proc/self/map_files is for CAP_CHECKPOINT_RESTORE
    through = "refused" if in_file and privileged else "no way in"
    expected: dict[str, str] = {
        "sealed": "kernel" if in_file else "mappings",
        **KEPT,
        "store": "SIGSEGV",
        # Dropping the pages of a file's view is no change: they come back from the file.
        "madvise DONTNEED": "done" if in_file else "refused",
        "madvise DONTNEED_LOCKED": "done" if in_file else "refused",
        "madvise FREE": "refused",
        "madvise PAGEOUT": "done",
        "own descriptors": "none left",
        "file: pwrite": through,
        "file: punch a hole": through,
        "file: cut off": through,
        "file: a writable view": through,
        "file: opened": "done" if in_file and privileged else "no way in",
        # The hole in mseal: private memory can be written as a debugger does it.
        "/proc/self/mem": "refused" if in_file else "done, changed",
    }
    assert seen == expected


def test_sealing_without_the_kernel(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import execmem
        from execmem._core import lib
        domain = execmem.Domain("old kernel", window="2M", write_mode={mode!r})
        block = domain.place(b"code")
        lib.execmem_test_script(b"seal=F fseal=F")
        domain.seal()
        print(domain.sealed)
        try:
            block.fill(b"CODE")
        except execmem.SealedError:
            print(bytes(block))
        domain.check()
        """
    )
    assert told.split("\n") == ["library", "b'code'"]


def test_an_alias_that_stays_is_no_seal(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import execmem
        from execmem._core import ffi, lib
        domain = execmem.Domain("stuck", window="2M", write_mode="alias", small_pages=True)
        block = domain.place(b"code")
        lib.execmem_test_script(b"unview=F*")
        try:
            domain.seal()
        except execmem.OutOfMemoryError as error:
            print(error)
        lib.execmem_test_script(ffi.NULL)
        assert domain.sealed is None
        block.fill(b"CODE")
        domain.seal()
        print(domain.sealed is not None, bytes(block))
        """
    )
    lines = told.split("\n")
    assert "writable alias" in lines[0]
    assert lines[1] == "True b'CODE'"


# ---- guards ----


def test_the_window_has_guards(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import ctypes, os, signal, execmem
        domain = execmem.Domain("full", window="2M", write_mode={mode!r})
        block = domain.alloc({PACK})
        start, end = block.address, block.address + block.size
        assert (start, end - start) == (domain.stats().window, domain.stats().window_bytes)
        for address in (start, end - 1, start - 1, end, start - 65536, end + 65535):
            child = os.fork()
            if child == 0:
                ctypes.string_at(address, 1)
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert [int(line) for line in told.split()] == [0, 0] + [-signal.SIGSEGV] * 4


def test_kinds_have_room_between_them() -> None:
    with execmem.Domain("kinds", window="64M") as domain:
        blocks = [domain.alloc(PACK, kind=kind) for kind in ("text", "rodata", "data")]
        places = sorted(block.address for block in blocks)
        lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
        for low, high in itertools.pairwise(places):
            assert high - low > PACK
            covering = [line for line in lines if int(line.split("-")[0], 16) == low + PACK]
            assert covering
            assert " ---p " in covering[0]


# ---- quarantine ----


def test_freed_blocks_wait(mode: str) -> None:
    with execmem.Domain("q", write_mode=mode, quarantine="64K", limit="1M") as domain:
        blocks = [domain.place(ADD7) for _ in range(10)]
        addresses = [block.address for block in blocks]
        for block in blocks[:9]:
            block.free()
        with pytest.raises(execmem.DoubleFreeError):
            blocks[0].free()
        with pytest.raises(execmem.DoubleFreeError):
            execmem.execmem_free(addresses[0])
        with pytest.raises(execmem.FreedAddressError):
            execmem.find(addresses[0])
        stats = domain.stats()
        assert (stats.live_blocks, stats.used_bytes, stats.charged_bytes) == (1, 64, 64)
        assert (stats.quarantined_blocks, stats.quarantined_bytes) == (9, 9 * 64)
        assert stats.idle_bytes >= stats.quarantined_bytes
        assert domain.blocks()["address"].tolist() == addresses[9:]
        assert domain.shards()["quarantined_blocks"].sum() == 9
        view = blocks[9].view  # the pack's bytes before it: traps
        assert view[0] == ADD7[0]
        later = [domain.place(ADD7) for _ in range(50)]
        assert not {block.address for block in later} & set(addresses)
        del view
        domain.check()


def test_what_waits_traps_at_once(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import ctypes, execmem
        domain = execmem.Domain("q", write_mode={mode!r}, quarantine="1M")
        block = domain.place(b"x" * 100)
        address = block.address
        block.free()
        print(ctypes.string_at(address, 128).count({TRAP}))
        """
    )
    assert int(told) == 128


def test_first_in_first_out() -> None:
    with execmem.Domain("q", quarantine=640) as domain:
        blocks = [domain.alloc(64) for _ in range(30)]
        addresses = [block.address for block in blocks]
        for number in range(30):
            blocks[number].free()
            assert domain.stats().quarantined_blocks == min(number + 1, 10)
        # Twenty came out, and each address is found again; the last ten are not.
        later = [domain.alloc(64) for _ in range(200)]
        again = {block.address for block in later} & set(addresses)
        assert again == set(addresses[:20])


def test_a_full_window_gives_up_the_quarantine() -> None:
    with execmem.Domain("q", window="2M", quarantine="2M") as domain:
        for _ in range(40):
            domain.place(b"x" * (PACK // 8)).free()
            domain.check()
        assert domain.stats().quarantined_bytes <= PACK
        large = domain.place(b"y" * PACK)
        assert bytes(large)[:1] == b"y"
        assert domain.stats().quarantined_bytes == 0


def test_a_quarantine_ends_with_its_domain_and_with_a_batch(mode: str) -> None:
    domain = execmem.Domain("q", write_mode=mode, quarantine="1M")
    batch = domain.place_many([b"x" * 100] * 1000)
    batch.free(slice(0, 600))
    assert domain.stats().quarantined_blocks == 600
    batch.free()
    assert domain.stats().quarantined_blocks == 1000
    domain.check()
    del batch
    domain.close()
    gc.collect()


# ---- gaps ----


def test_gaps_make_places_unpredictable() -> None:
    def distances(**options: Any) -> list[int]:
        with execmem.Domain("gaps", **options) as domain:
            blocks = [domain.alloc(4096) for _ in range(100)]
            addresses = [block.address for block in blocks]
            domain.check()
            # In order but for those that fit into the rest of a pack.
            return [high - low - 4096 for low, high in itertools.pairwise(addresses) if 0 <= high - low - 4096 < 4096]

    assert set(distances()) == {0}
    found = distances(gap="2K")
    assert len(found) > 80
    assert len(set(found)) > 20  # of 33
    assert max(found) <= 2048
    assert all(distance % 64 == 0 for distance in found)
    assert found != distances(gap="2K")


def test_a_gap_follows_the_alignment() -> None:
    with execmem.Domain("gaps", gap="16K") as domain:
        blocks = [domain.alloc(100, align=4096) for _ in range(50)]
        assert all(block.address % 4096 == 0 for block in blocks)
        distances = {high.address - low.address for low, high in itertools.pairwise(blocks)}
        assert len(distances) > 2


def test_a_freed_place_is_not_the_next_one() -> None:
    def repeats(**options: Any) -> int:
        with execmem.Domain("gaps", **options) as domain:
            kept, same = [domain.alloc(64) for _ in range(10)], 0
            for _ in range(100):
                block = domain.alloc(64)
                before = block.address
                block.free()
                again = domain.alloc(64)
                same += again.address == before
                again.free()
            return same if kept else -1

    assert repeats() == 100
    assert repeats(gap="4K") < 30


# ---- trust ----


def test_a_class_is_its_parents_or_less() -> None:
    assert execmem.default_domain().stats().trust == 0
    with execmem.Domain("plugins", trust=3) as plugins:
        assert int(plugins.header()["trust"][0]) == plugins.stats().trust == 3
        with execmem.Domain(parent=plugins) as child, execmem.Domain(parent=plugins, trust=200) as lower:
            assert (child.stats().trust, lower.stats().trust) == (3, 200)
        with pytest.raises(execmem.InvalidArgumentError, match="class 3 of the parent"):
            execmem.Domain(parent=plugins, trust=2)
    for wrong in (256, -1, 2**70, "high"):
        with pytest.raises(execmem.InvalidArgumentError):
            execmem.Domain(trust=wrong)  # type: ignore[arg-type]


def test_classes_share_no_pack_no_window_no_file() -> None:
    with execmem.Domain("trusted") as trusted, execmem.Domain("guest", trust=9) as guest:
        kept = [domain.place(ADD7, kind=kind) for domain in (trusted, guest) for kind in ("text", "rodata", "data")]
        seen: dict[int, set[tuple[int, int]]] = {}
        for domain in (trusted, guest):
            stats = domain.stats()
            start, end = stats.window, stats.window + stats.window_bytes
            mine = seen.setdefault(domain.number, set())
            for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
                found = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) (\d+) +/memfd:execmem ", line)
                if found and start <= int(found[1], 16) < end:
                    assert int(found[2], 16) <= end
                    mine.add((int(found[1], 16) // PACK, int(found[4])))
        first, second = seen.values()
        assert first
        assert second
        assert not {pack for pack, _ in first} & {pack for pack, _ in second}  # nor, with that, a 2 MB page
        assert not {file for _, file in first} & {file for _, file in second}
        assert len({file for _, file in first | second}) == 2
        assert kept


@pytest.mark.parametrize("wrong", [{"gap": "2M"}, {"gap": 0}, {"quarantine": 0}, {"gap": "much"}, {"quarantine": -1}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(execmem.InvalidArgumentError):
        execmem.Domain(**wrong)


def test_options_go_together(mode: str) -> None:
    with execmem.Domain("all", write_mode=mode, quarantine="32K", gap="1K", trust=1, limit="8M") as domain:
        for round_ in range(5):
            batch = domain.place_many([os.urandom(200)] * 300)
            batch.free(slice(round_, None, 2))
            domain.check()
        stats = domain.stats()
        assert stats.quarantined_bytes <= 32 << 10
        assert stats.idle_bytes > 0
