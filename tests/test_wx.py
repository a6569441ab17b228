"""Writable and executable: never both, not for an instant, as the kernel tells it while the library is busy."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ADD7, PACK, Watch, find_writable_code, find_writable_views, needs_x86

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable

ROW = "{start:x}-{end:x} {protection} {offset:08x} 00:01 {inode}                 /memfd:execmem (deleted)\n"


def row(start: int, protection: str, offset: int = 0, inode: int = 7) -> str:
    return ROW.format(start=start, end=start + PACK, protection=protection, offset=offset, inode=inode)


def test_the_watch_sees_a_writable_and_executable_mapping() -> None:
    lines = row(PACK, "r-xs") + "7f00-7f01 rwxp 00000000 00:00 0 [stack]\n" + row(2 * PACK, "rw-s")
    assert find_writable_code(lines.encode()) == ["7f00-7f01 rwxp 00000000 00:00 0 [stack]"]
    assert not find_writable_code(row(PACK, "r-xs").encode())


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        (row(9 * PACK, "rw-s"), True),
        (row(9 * PACK, "rw-s", offset=4096), True),
        (row(9 * PACK, "rw-s", offset=PACK), False),
        (row(9 * PACK, "rw-s", inode=8), False),
        (row(9 * PACK, "r--s"), False),
    ],
)
def test_the_watch_sees_a_writable_view_of_code(other: str, seen: bool) -> None:
    lines = (row(PACK, "r-xs") + other).encode()
    assert bool(find_writable_views(lines, {PACK: PACK})) is seen
    assert not find_writable_views(lines, {3 * PACK: PACK})


def test_the_watch_sees_the_alias_of_a_running_domain() -> None:
    with execmem.Domain(write_mode="alias") as domain:
        block = domain.place(ADD7)
        stats = domain.stats()
        control = Watch(pause=0.001)
        control.windows[stats.window] = stats.window_bytes  # as if it were of mode syscall
        control.start()
        while not control.readings:
            time.sleep(0.001)
        control.stop()
        assert control.seen
        assert bytes(block) == ADD7


def be_busy(write_mode: str, seed: int) -> None:
    """Make and return packs of all kinds, one block at a time, in batches, and larger than a pack."""
    random = np.random.default_rng(seed)
    with execmem.Domain("busy", write_mode=write_mode) as domain:
        for _ in range(2 if write_mode == "flip" else 6):  # flip stops the other threads for each write
            kept = [
                domain.place(b"x" * int(random.integers(1, 5000)), kind=kind)
                for kind in ("text", "rodata", "data") * 40
            ]
            batch = domain.place_many([b"y" * 3000] * 1000)
            large = domain.place(b"z" * (PACK + 5000))
            for block in kept[::3]:
                block.fill(b"filled again"[: block.size])
                block.free()
            del batch, large, kept
        domain.check()


def test_no_mapping_is_writable_and_executable(mode: str, watch: Watch) -> None:
    closer = Watch(pause=0.0005)
    closer.windows = watch.windows
    closer.start()
    while closer.readings <= 20 and not closer.seen:
        threads = [threading.Thread(target=be_busy, args=(mode, seed)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    closer.stop()
    assert not closer.seen


def test_the_watch_knows_the_windows_of_mode_syscall(watch: Watch) -> None:
    for write_mode in ("syscall", "alias"):
        with execmem.Domain(write_mode=write_mode) as domain:
            assert (domain.stats().window in watch.windows) is (write_mode == "syscall")


@needs_x86
def test_code_cannot_be_written_where_it_runs(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import ctypes, os, signal, execmem
        for attempt in ("write", "call"):
            child = os.fork()
            if child == 0:
                with execmem.Domain(write_mode={mode!r}) as domain:
                    block = domain.place(bytes.fromhex("{ADD7.hex()}"))
                    if attempt == "write":
                        ctypes.memset(block.address, 0x90, 1)
                    address = block.address
                    block.free()
                    ctypes.CFUNCTYPE(None)(address)()
                os._exit(0)
            print(signal.Signals(-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).name)
        """
    )
    assert told.split() == ["SIGSEGV", "SIGTRAP"]


@needs_x86
def test_a_forked_child_inherits_no_door_to_its_parents_code(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import ctypes, os, execmem

        def other_memory(link):
            return link.endswith("/mem") and str(os.getpid()) not in link

        def doors():
            names = [f"/proc/self/fd/{{fd}}" for fd in os.listdir("/proc/self/fd")]
            links = [os.readlink(name) for name in names if os.path.islink(name)]  # the list's own is gone by now
            return [link for link in links if link == "/memfd:execmem (deleted)" or other_memory(link)]

        domain = execmem.Domain(write_mode={mode!r})
        inner = execmem.Domain(parent=domain, write_mode={mode!r})
        blocks = [domain.place(bytes.fromhex("{ADD7.hex()}")), inner.place(bytes.fromhex("{ADD7.hex()}"))]
        print(len(doors()))
        for _ in range(2):  # and a child of a child
            child = os.fork()
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        added = [ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(block.address)(35) for block in blocks]
        print(len(doors()), *added, flush=True)
        os._exit(0)
        """,
        PYTHONUNBUFFERED="1",
    )
    before, after = told.splitlines()
    assert int(before) >= (3 if mode in {"syscall", "alias"} else 1)  # the default domain has one in any case
    assert after == "0 42 42"
