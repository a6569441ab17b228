"""Memory: the three calls, their batches, and everything that can be wrong with what they are given."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ADD7, MODES, PACK, TRAP

import execmem
from execmem._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def lawful() -> Iterator[None]:
    """Check the default domain after each test, which must leave no block behind."""
    root = execmem.default_domain()
    before = len(root)
    yield
    root.check()
    assert len(root) == before


def read(address: int, size: int) -> bytes:
    return bytes(ffi.buffer(ffi.cast("char *", address), size))


# ---- the three calls ----


def test_alloc_fill_free() -> None:
    address = execmem.execmem_alloc(100)
    assert read(address, 100) == bytes([TRAP]) * 100
    execmem.execmem_fill(address, ADD7)
    assert read(address, 100) == ADD7 + bytes([TRAP]) * 95
    execmem.execmem_fill(address + 95, b"tail!")
    assert read(address + 95, 5) == b"tail!"
    execmem.execmem_free(address)
    assert read(address, 64) == bytes([TRAP]) * 64


@pytest.mark.parametrize("size", [1, 64, 200, PACK + 1])
def test_data_that_was_written_where_it_lies_is_gone_when_freed(mode: str, size: int) -> None:
    with execmem.Domain(write_mode=mode) as domain:
        for free_many in (False, True):
            blocks = domain.alloc_many([size] * 3, kind="data")
            addresses = blocks.addresses.tolist()
            for address in addresses:
                ffi.memmove(ffi.cast("char *", address), b"A" * size, size)  # data needs no fill
            if free_many:
                blocks.free()
            else:
                for block in blocks:
                    block.free()
            domain.check()
            later = domain.alloc_many([size] * 3, kind="data")
            assert [bytes(block) for block in later] == [bytes(size)] * 3
            later.free()


@pytest.mark.parametrize("align", [1 << power for power in range(13)])
def test_an_alignment_is_kept(align: int) -> None:
    addresses = [execmem.execmem_alloc(65, align) for _ in range(5)]
    assert all(address % align == 0 for address in addresses)
    for address in addresses:
        execmem.execmem_free(address)


@pytest.mark.parametrize("size", [0, -1, -(2**63), 2**32, 2**63, 2**64, 2**80, 1.0, "8", None, b"8", np.float32(3.7)])
def test_a_wrong_size_is_refused(size: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match=r"bytes?|positive"):
        execmem.execmem_alloc(size)


@pytest.mark.parametrize("align", [0, 3, 24, 8192, -16, 2**64, 16.0, None])
def test_a_wrong_alignment_is_refused(align: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="align"):
        execmem.execmem_alloc(8, align)


@pytest.mark.parametrize("size", [np.uint8(200), np.int64(200), True])
def test_integers_of_any_kind_are_sizes(size: Any) -> None:
    address = execmem.execmem_alloc(size)
    assert execmem.find(address).size == int(size)
    execmem.execmem_free(address)


def test_a_size_beyond_the_window_is_told() -> None:
    with pytest.raises(execmem.OutOfWindowError, match="window"):
        execmem.execmem_alloc(3 << 30)


def test_a_fill_stays_in_its_block() -> None:
    first, second = execmem.execmem_alloc(64), execmem.execmem_alloc(64)
    for start, data in ((0, b"x" * 65), (60, b"x" * 5), (63, b"xx")):
        with pytest.raises(execmem.BoundsError, match="leave its block"):
            execmem.execmem_fill(first + start, data)
    assert read(first, 64) == read(second, 64) == bytes([TRAP]) * 64
    execmem.execmem_free(first)
    execmem.execmem_free(second)


def test_a_fill_stays_before_the_end_of_what_was_asked_for() -> None:
    address = execmem.execmem_alloc(10)
    for start in (10, 11, 40):
        with pytest.raises(execmem.ExecmemError):
            execmem.execmem_fill(address + start, b"x")
    execmem.execmem_free(address)


def test_a_freed_block_is_neither_filled_nor_freed() -> None:
    address = execmem.execmem_alloc(64)
    execmem.execmem_free(address)
    with pytest.raises(execmem.FreedAddressError, match="freed"):
        execmem.execmem_fill(address, b"x")
    with pytest.raises(execmem.DoubleFreeError, match="freed"):
        execmem.execmem_free(address)
    with pytest.raises(execmem.FreedAddressError, match="freed"):
        execmem.find(address)


@pytest.mark.parametrize("size", [100, 3 << 20])
def test_an_interior_address_is_not_freed(size: int) -> None:
    address = execmem.execmem_alloc(size)
    for inside in (1, 64, size - 1):
        with pytest.raises(execmem.InteriorAddressError, match=str(inside)):
            execmem.execmem_free(address + inside)
        assert execmem.find(address + inside).address == address
    execmem.execmem_free(address)


@pytest.mark.parametrize("address", [0, 1, 4096, id(object), 2**47, 2**63, 2**64 - 1])
def test_a_foreign_address_is_refused(address: int) -> None:
    for call in (execmem.execmem_free, execmem.find, lambda at: execmem.execmem_fill(at, b"x")):
        with pytest.raises(execmem.InvalidAddressError, match="lies in no window") as caught:
            call(address)
        assert type(caught.value) is execmem.InvalidAddressError


@pytest.mark.parametrize("address", [-1, 2**64, 1.5, None, "0x1000", b"1"])
def test_what_is_no_address_is_refused(address: Any) -> None:
    for call in (execmem.execmem_free, execmem.find, lambda at: execmem.execmem_fill(at, b"x")):
        with pytest.raises(execmem.InvalidAddressError, match="no address"):
            call(address)


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2], np.zeros(8, np.uint8)[::2]])
def test_what_has_no_plain_bytes_is_refused(data: Any) -> None:
    address = execmem.execmem_alloc(64)
    with pytest.raises(execmem.InvalidArgumentError, match="contiguous buffer"):
        execmem.execmem_fill(address, data)
    assert execmem.find(address).state == "reserved"
    execmem.execmem_free(address)


@pytest.mark.parametrize("data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), np.frombuffer(b"abcd", np.uint32)])
def test_bytes_come_from_any_buffer(data: Any) -> None:
    address = execmem.execmem_alloc(4)
    execmem.execmem_fill(address, data)
    assert read(address, 4) == b"abcd"
    execmem.execmem_free(address)


def test_an_empty_fill_changes_nothing() -> None:
    address = execmem.execmem_alloc(4)
    execmem.execmem_fill(address, b"")
    assert execmem.find(address).state == "reserved"
    execmem.execmem_free(address)


def test_a_block_of_another_domain_is_filled_and_freed_by_address(domain: execmem.Domain) -> None:
    block = domain.alloc(64)
    execmem.execmem_fill(block, b"from outside")
    assert bytes(block)[:12] == b"from outside"
    with pytest.raises(execmem.InvalidAddressError, match="root"):
        execmem.execmem_free_many([block.address])
    neighbour = domain.alloc(64)
    with pytest.raises(execmem.BoundsError):
        execmem.execmem_fill(block, b"x" * (abs(neighbour.address - block.address) + 1))
    assert bytes(neighbour) == bytes([TRAP]) * 64


# ---- batches ----


def test_batches_do_what_single_calls_do() -> None:
    sizes = np.array([1, 64, 65, 1000, 40_000], dtype=np.int32)
    addresses = execmem.execmem_alloc_many(sizes, align=64)
    assert addresses.dtype == np.uint64
    assert [execmem.find(address).size for address in addresses] == sizes.tolist()
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    data = np.random.default_rng(1).integers(0, 256, offsets[-1], dtype=np.uint8)
    execmem.execmem_fill_many(addresses, data, offsets)
    for number, address in enumerate(addresses.tolist()):
        assert read(address, int(sizes[number])) == data[offsets[number] : offsets[number + 1]].tobytes()
    execmem.execmem_free_many(addresses)


def test_empty_batches_are_fine() -> None:
    assert len(execmem.execmem_alloc_many([])) == 0
    assert len(execmem.execmem_place_many(b"", [0])) == 0
    execmem.execmem_fill_many([], b"", [0])
    execmem.execmem_free_many([])


@pytest.mark.parametrize(
    "sizes", [[-1], [1.5], [None], ["8"], 5, [[1, 2]], [2**64], np.array([1.0]), np.array([-1]), [True, "x"]]
)
def test_wrong_sizes_of_a_batch_are_refused(sizes: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="sizes"):
        execmem.execmem_alloc_many(sizes)


def test_words_are_taken_without_loss() -> None:
    words = execmem.memory.to_words([1, 2**63, 2**64 - 1, 2**53 + 1], "numbers")
    assert words.tolist() == [1, 2**63, 2**64 - 1, 2**53 + 1]


def test_a_batch_tells_which_element_is_wrong_and_does_nothing() -> None:
    root = execmem.default_domain()
    before = len(root)
    with pytest.raises(execmem.InvalidArgumentError, match="at least 1 byte") as caught:
        execmem.execmem_alloc_many([8, 8, 0, 8])
    assert caught.value.index == 2
    assert len(root) == before
    good = execmem.execmem_alloc_many([8, 8, 8])
    for bad, cls in ((good[1] + 1, execmem.InteriorAddressError), (good[0], execmem.DoubleFreeError)):
        with pytest.raises(cls) as wrong:
            execmem.execmem_free_many([good[0], good[1], bad])
        assert wrong.value.index == 2
        assert len(root) == before + 3
        assert [execmem.find(address).state for address in good] == ["reserved"] * 3
    with pytest.raises(execmem.BoundsError) as caught_bounds:
        execmem.execmem_fill_many(good, b"x" * 25, [0, 8, 16, 25])
    assert caught_bounds.value.index == 2
    assert read(int(good[0]), 8) == bytes([TRAP]) * 8
    execmem.execmem_free_many(good)


@pytest.mark.parametrize(
    ("data", "offsets", "cls"),
    [
        (b"abc", [0, 4], execmem.BoundsError),
        (b"abc", [2, 1], execmem.InvalidArgumentError),
        (b"abc", [0, 3, 1], execmem.InvalidArgumentError),
        (b"abc", [], execmem.InvalidArgumentError),
        (b"abc", [0, 1, 1], execmem.InvalidArgumentError),
        ("abc", [0, 3], execmem.InvalidArgumentError),
        (b"abc", [0.0, 3.0], execmem.InvalidArgumentError),
        (b"abc", [0, 2**64 - 1], execmem.BoundsError),
    ],
)
def test_wrong_offsets_are_refused(data: Any, offsets: Any, cls: type[Exception]) -> None:
    with pytest.raises(cls):
        execmem.execmem_place_many(data, offsets)


def test_a_batch_to_fill_needs_one_more_offset_than_blocks() -> None:
    addresses = execmem.execmem_alloc_many([8])
    with pytest.raises(execmem.InvalidArgumentError, match="one more"):
        execmem.execmem_fill_many(addresses, b"abc", [0, 1, 2])
    execmem.execmem_free_many(addresses)


# ---- threads ----


def test_threads_share_the_default_domain() -> None:
    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        live: list[tuple[int, bytes]] = []
        try:
            for _ in range(300):
                data = bytes([seed]) * int(random.integers(1, 3000))
                address = execmem.execmem_alloc(len(data))
                execmem.execmem_fill(address, data)
                live.append((address, data))
                if len(live) > 20:
                    address, data = live.pop(int(random.integers(len(live))))
                    assert read(address, len(data)) == data
                    execmem.execmem_free(address)
            for address, data in live:
                assert read(address, len(data)) == data
                execmem.execmem_free(address)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            wrong.append(error)

    wrong: list[BaseException] = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- audit ----


def test_audit_events(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        told = []
        sys.addaudithook(lambda name, args: told.append((name, *args)) if name.startswith("execmem.") else None)
        address = execmem.execmem_alloc(100, 64)
        execmem.execmem_fill(address + 1, b"abc")
        execmem.execmem_free(address)
        domain = execmem.Domain()
        block = domain.place(b"12345")
        place = block.address
        del block
        assert told == [
            ("execmem.alloc", 1, 100, 64), ("execmem.fill", address + 1, 3), ("execmem.free", address),
            ("execmem.alloc", domain.number, 5, 16), ("execmem.fill", None, 5), ("execmem.free", place),
        ], told
        told.clear()
        many = execmem.execmem_place_many(b"abcd", [0, 1, 4])
        execmem.execmem_free_many(many)
        assert [event[0] for event in told] == ["execmem.alloc", "execmem.fill", "execmem.free"], told
        assert told[0][2] == 4 and told[2][1].tolist() == many.tolist()
        print("told")
        """
    )
    assert told == "told"


def test_a_hook_may_refuse(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        def refuse(name, args):
            if name == "execmem.alloc" and args[1] > 100:
                raise PermissionError("not that large")
        sys.addaudithook(refuse)
        execmem.execmem_free(execmem.execmem_alloc(100))
        try:
            execmem.execmem_alloc(101)
        except PermissionError as error:
            print(error, len(execmem.default_domain()))
        """
    )
    assert told == "not that large 0"


def test_a_hook_that_refuses_a_free_changes_nothing(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        domain, veto, unraisable = execmem.Domain(), [], []
        sys.unraisablehook = lambda told: unraisable.append(str(told.exc_value))

        def hook(name, args):
            if name == "execmem.free" and veto:
                raise RuntimeError("veto")

        sys.addaudithook(hook)
        block, blocks = domain.place(b"a"), domain.place_many([b"b"] * 3)
        element = blocks[0]
        veto.append(1)
        for free in (block.free, blocks.free, element.free):
            try:
                free()
            except RuntimeError:
                continue
            raise SystemExit("not refused")
        veto.clear()
        assert len(domain) == 4 and block.state == element.state == "filled"
        element.free()
        assert len(domain) == 3
        veto.append(1)
        del element, block, blocks, free  # a collection cannot be refused
        print(len(domain), unraisable)
        """
    )
    assert told == "0 ['veto', 'veto']"


def test_a_hook_may_free_first(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        domain = execmem.Domain()
        block, blocks = domain.place(b"a"), domain.place_many([b"b"] * 3)
        todo, victims = [], []

        def hook(name, args):
            if name == "execmem.free" and todo:
                todo.pop()()
                victims.append(domain.place(b"victim"))

        sys.addaudithook(hook)
        for free in (block.free, blocks.free, domain.alloc_many([1])[0].free):
            todo.append(free)
            try:
                free()
            except execmem.DoubleFreeError:
                print(victims[-1].state)
        """
    )
    assert told.split() == ["filled"] * 3


# ---- trouble: system calls that fail, limits and policies of the system ----

TROUBLE = ("F", ".F", "..F", "...F", "F*")
FAILING = ("memfd", "resize", "reserve", "view", "write", "collapse", "random", "maps", "populate", "sync", "protect",
           "stop", "hide", "scan", "discard", "unview")  # fmt: skip


@pytest.mark.parametrize("steps", TROUBLE)
@pytest.mark.parametrize("op", FAILING)
def test_a_failing_system_call_leaves_nothing_half_done(
    op: str, steps: str, mode: str, script: Callable[[str], None]
) -> None:
    codes = [bytes([number]) * (1 + 997 * number % 5000) for number in range(1, 120)]
    script(f"{op}={steps}")
    try:
        domain = execmem.Domain("trouble", write_mode=mode)
    except execmem.ExecmemError as error:
        assert str(error)  # noqa: PT017 - it need not fail
        lib.execmem_test_script(ffi.NULL)
        return
    kept: list[tuple[execmem.Block, bytes]] = []
    for code in codes:
        try:
            kept.append((domain.place(code), code))
        except execmem.ExecmemError as error:
            assert str(error)  # noqa: PT017 - it need not fail
        assert len(domain) == len(kept)
    for block, _ in kept[::2]:
        try:
            block.free()
        except execmem.ExecmemError:  # noqa: PERF203 - each may fail
            assert block.state == "filled"
    kept = [(block, code) for block, code in kept if block._live]
    assert len(domain) == len(kept)
    lib.execmem_test_script(ffi.NULL)
    domain.check()
    assert all(bytes(block) == code for block, code in kept)
    more = domain.place(ADD7)
    assert bytes(more) == ADD7
    domain.stats()
    domain.close(force=True)


@pytest.mark.parametrize("steps", TROUBLE)
@pytest.mark.parametrize("op", ["view", "write", "collapse", "resize", "protect", "stop", "sync"])
def test_a_batch_with_a_failing_system_call_is_all_or_nothing(
    op: str, steps: str, mode: str, domain: execmem.Domain, script: Callable[[str], None]
) -> None:
    del domain
    with execmem.Domain("trouble", write_mode=mode) as trouble:
        codes = [bytes([number % 200]) * (1 + 997 * number % 5000) for number in range(300)]
        first = trouble.place(ADD7)
        script(f"{op}={steps}")
        try:
            blocks = trouble.place_many(codes)
        except execmem.ExecmemError as error:
            lib.execmem_test_script(ffi.NULL)
            if "F*" not in steps:  # else what was half written could not be made blank and stays taken
                assert len(trouble) == 1
            assert str(error)  # noqa: PT017 - it need not fail
        else:
            lib.execmem_test_script(ffi.NULL)
            assert [bytes(block) for block in blocks] == codes
            del blocks
        trouble.check()
        assert bytes(first) == ADD7


@pytest.mark.parametrize("steps", TROUBLE)
def test_a_batch_that_cannot_be_made_blank_stays_consistent(
    steps: str, mode: str, domain: execmem.Domain, script: Callable[[str], None]
) -> None:
    del domain
    with execmem.Domain("trouble", write_mode=mode) as trouble:
        codes = [bytes([number]) * 5000 for number in range(1, 9)]
        blocks = trouble.place_many(codes)
        elements = list(enumerate(blocks))
        script(f"write={steps} protect={steps} stop={steps}")
        try:
            blocks.free()
        except execmem.ExecmemError as error:
            assert str(error)  # noqa: PT017 - modes without a system call to write cannot fail
        lib.execmem_test_script(ffi.NULL)
        trouble.check()
        live = [(number, block) for number, block in elements if block._live]
        assert len(trouble) == len(live)
        assert all(bytes(block) == codes[number] for number, block in live)
        blocks.free()
        assert len(trouble) == 0


def count_open() -> tuple[int, int, int]:
    """Count files of the library, their mappings, and large reservations of this process."""
    files = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            target = str(entry.readlink())
            files += "memfd:" in target or target.endswith("/mem")
    rows = Path("/proc/self/maps").read_text().splitlines()
    spans = [(row, [int(edge, 16) for edge in row.split()[0].split("-")]) for row in rows]
    reserved = sum(end - start >= PACK for row, (start, end) in spans if " ---p " in row)
    return files, sum("/memfd:" in row for row in rows), reserved


@pytest.mark.unsanitized  # what C does then is walked there by test_faults
@pytest.mark.parametrize("steps", TROUBLE)
@pytest.mark.parametrize("op", [op for op in FAILING if op != "unview"])
def test_a_failing_system_call_leaks_nothing(op: str, steps: str, mode: str, script: Callable[[str], None]) -> None:
    gc.collect()
    before = count_open()
    script(f"{op}={steps}")
    with suppress(execmem.ExecmemError):
        domain = execmem.Domain("leak", write_mode=mode, window="64M")
        kept: list[object] = []
        for code in (b"x", b"x" * 300_000, b"x" * (5 * PACK + 1), b"x" * (65 << 20)):
            for kind in ("text", "rodata", "data"):
                with suppress(execmem.ExecmemError):
                    kept.append(domain.place(code, kind=kind))
                with suppress(execmem.ExecmemError):
                    kept.append(domain.place_many([code[:5000]] * 10, kind=kind))
        lib.execmem_test_script(ffi.NULL)
        domain.check()
        domain.close(force=True)
    lib.execmem_test_script(ffi.NULL)
    assert count_open() == before


def test_a_failing_barrier_is_told(script: Callable[[str], None]) -> None:
    execmem.sync()
    script("sync=F")
    with pytest.raises(execmem.ExecmemError, match="membarrier"):
        execmem.sync()


@pytest.mark.parametrize("write_mode", ["wrong", 1, ["syscall"]])
def test_an_unknown_mode_cannot_be_probed(write_mode: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="write_mode"):
        execmem.probe(write_mode)


USE = """
    code = bytes.fromhex("488d4707c3")
    address = execmem.execmem_alloc(8)
    execmem.execmem_fill(address, code)
    blocks = execmem.default_domain().place_many([code] * 5000)
    import platform
    if platform.machine() == "x86_64":
        assert blocks[4321].function("i64(i64)")(35) == 42
    del blocks
    execmem.execmem_free(address)
    execmem.default_domain().check()
    print(execmem.default_domain().write_mode)
"""


def test_the_environment_chooses_the_mode(run_child: Callable[..., str], mode: str) -> None:
    assert run_child("    import execmem" + USE, EXECMEM_WRITE_MODE=mode) == mode


def test_a_wrong_mode_in_the_environment_is_told(run_child: Callable[..., str]) -> None:
    source = """
    import execmem
    try:
        execmem.execmem_alloc(8)
    except execmem.InvalidArgumentError as error:
        print(error)
    """
    assert "EXECMEM_WRITE_MODE=sysfall" in run_child(source, EXECMEM_WRITE_MODE="sysfall")


@pytest.mark.parametrize("name", ["", *MODES])
def test_memory_deny_write_execute(name: str, run_child: Callable[..., str]) -> None:
    source = f"""
    import ctypes, execmem
    if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
        print("no MDWE")
        raise SystemExit
    try:
        execmem.probe({name!r} or execmem.probe().default.mode)
    except execmem.ExecDeniedError as error:
        print("denied:", error)
        raise SystemExit
    """
    told = run_child(source + USE, EXECMEM_WRITE_MODE=name)
    if told == "no MDWE":
        pytest.skip("this kernel has no PR_SET_MDWE")
    if name == "flip":
        assert told.startswith("denied: ")
    else:
        assert told == (name or "syscall")


@pytest.mark.unsanitized
@pytest.mark.parametrize("spare", [0, 1 << 20, 64 << 20])
def test_a_limit_of_address_space(spare: int, run_child: Callable[..., str]) -> None:
    source = f"""
    import execmem, pathlib, re, resource
    size = int(re.search(r"VmSize:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + {spare}, size + {spare}))
    blocks = []
    try:
        for _ in range(200):
            blocks.append(execmem.default_domain().place(b"x" * 1_000_000))
    except (execmem.OutOfMemoryError, execmem.OutOfWindowError) as error:
        assert str(error)  # noqa: PT017 - it need not fail
        print("refused")
    if blocks:
        execmem.default_domain().check()
    """
    assert run_child(source) == "refused"


def test_the_last_reference_may_go_with_the_interpreter(run_child: Callable[..., str]) -> None:
    source = """
    import execmem
    block = execmem.default_domain().place(b"bytes")
    view = block.view
    domain = execmem.Domain("left open")
    other = domain.place_many([b"a", b"b"])
    element = other[1]
    packs = domain.packs()
    """
    assert not run_child(source)


def test_module_names_and_numbers_match_the_core() -> None:
    for name, number in execmem.memory.MODES.items():
        assert ffi.string(lib.execmem_mode_name(number)).decode() == (name or "auto")
    assert set(execmem.memory.KINDS.values()) == set(range(lib.EXECMEM_KINDS))
    assert execmem.arch() in {"x86_64", "none"}
    assert sys.maxsize == 2**63 - 1
