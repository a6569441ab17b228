"""Retiring: a block goes when its last holder is gone, and when threads that were online are outside."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import TRAP, needs_x86

import execmem
from execmem._core import ffi
from execmem.retire import ADRIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPIN = bytes.fromhex("803f0074fbb82a000000c3")  # again: cmp byte [rdi], 0; je again; mov eax, 42; ret


def code_for(number: int) -> bytes:
    """Return code that returns a number: mov eax, number; ret."""
    return b"\xb8" + number.to_bytes(4, "little") + b"\xc3"


@pytest.fixture
def domain(mode: str) -> Iterator[execmem.Domain]:
    with execmem.Domain("retire", write_mode=mode) as domain:
        yield domain
        domain.check()


def read(address: int, size: int = 6) -> bytes:
    data: bytes = ffi.buffer(ffi.cast("char *", address), size)[:]
    return data


class Reader:
    """A thread that comes online and leaves when it is told."""

    def __init__(self) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        self.inside.wait()

    def run(self) -> None:
        with execmem.online():
            self.inside.set()
            self.leave.wait()

    def end(self) -> None:
        self.leave.set()
        self.thread.join()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.end()


def test_a_block_that_nobody_holds_is_freed_at_once(domain: execmem.Domain) -> None:
    block = domain.place(code_for(1))
    block.retire()
    assert (block.state, len(domain), domain.stats().retired_blocks) == ("retired", 0, 0)
    assert read(block.address)[0] == TRAP
    assert "retired" in repr(block)


def test_after_retiring_nobody_gets_a_new_hold(domain: execmem.Domain) -> None:
    block = domain.place(code_for(1))
    view = block.view
    block.retire()
    for use in (
        lambda: block.view,
        lambda: block.function("i32()"),
        lambda: block.fill(b"x"),
        lambda: bytes(block),
        block.__index__,
    ):
        with pytest.raises(execmem.FreedAddressError, match="was retired"):
            use()
    with pytest.raises(execmem.DoubleFreeError, match="was retired before"):
        block.retire()
    with pytest.raises(execmem.DoubleFreeError, match="was retired before"):
        block.free()
    assert bytes(view) == code_for(1)
    assert len(domain) == 1
    del view
    assert len(domain) == 0
    assert read(block.address)[0] == TRAP


def test_what_was_freed_is_not_retired(domain: execmem.Domain) -> None:
    block = domain.place(code_for(1))
    block.free()
    with pytest.raises(execmem.DoubleFreeError, match="was freed before"):
        block.retire()
    other = execmem.Domain("closed")
    block = other.place(code_for(1))
    other.close(force=True)
    with pytest.raises(execmem.ClosedError):
        block.retire()


@needs_x86
def test_the_last_callable_to_go_frees_it(domain: execmem.Domain) -> None:
    block = domain.place(code_for(7))
    calls = [block.function("i32()") for _ in range(3)]
    with block:
        block.retire()
    while calls:
        assert [call() for call in calls] == [7] * len(calls)
        assert len(domain) == 1
        calls.pop()
    assert len(domain) == 0
    assert read(block.address)[0] == TRAP


@needs_x86
def test_a_call_in_flight_is_counted(domain: execmem.Domain) -> None:
    block = domain.place(SPIN)
    go, results = bytearray(1), []
    calls = [block.function("i32(ptr)")]
    entered = threading.Event()

    def call() -> None:
        function = calls.pop()
        entered.set()
        results.append(function(go))

    thread = threading.Thread(target=call)
    thread.start()
    entered.wait()
    assert not calls  # nobody but the thread has it
    block.retire()
    time.sleep(0.02)
    assert len(domain) == 1
    assert read(block.address, len(SPIN)) == SPIN
    go[0] = 1
    thread.join()
    assert results == [42]
    assert len(domain) == 0
    assert read(block.address)[0] == TRAP


@needs_x86
def test_threads_call_what_is_replaced_all_the_time(domain: execmem.Domain) -> None:
    rounds = 30 if domain.write_mode == "flip" else 1000
    blocks = [domain.place(code_for(0))]
    table = [blocks[0].function("i32()")]
    wrong: list[BaseException | int] = []
    stop = threading.Event()

    def run() -> None:
        last = 0
        try:
            while not stop.is_set():
                number = table[0]()
                if number < last:
                    wrong.append(number)
                last = number
        except BaseException as error:  # noqa: BLE001 - the main thread shows it
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, rounds + 1):
        blocks.append(domain.place(code_for(number)))
        table[0] = blocks[-1].function("i32()")
        blocks[-2].retire()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    table.clear()
    gc.collect()
    assert domain.stats().live_blocks == 1
    assert {read(block.address)[0] for block in blocks[:-1]} <= {TRAP, 0xB8}


def test_elements_of_a_batch(domain: execmem.Domain) -> None:
    blocks = domain.place_many([code_for(number) for number in range(4)])
    one, two = blocks[1], blocks[2]
    view = two.view
    one.retire()
    two.retire()
    assert (one.state, two.state, len(domain)) == ("retired", "retired", 3)
    with pytest.raises(execmem.DoubleFreeError, match="was retired before"):
        two.retire()
    with pytest.raises(execmem.DoubleFreeError, match="was retired before"):
        two.free()
    with pytest.raises(execmem.FreedAddressError, match="was retired"):
        bytes(two)
    blocks.free()  # the others
    assert len(domain) == 1
    assert bytes(view) == code_for(2)
    del one, two, blocks
    gc.collect()
    assert len(domain) == 1
    del view
    assert len(domain) == 0


def test_a_refusal_changes_nothing(domain: execmem.Domain, script: Callable[[str], None]) -> None:
    refused = {"syscall": "write=F*", "procmem": "write=F*", "flip": "protect=F*"}.get(domain.write_mode)
    block, element = domain.place(code_for(1)), domain.place_many([code_for(2)])[0]
    if refused is not None:  # else blanking makes no system call, and nothing can be refused
        script(refused)
        for each in (block, element):
            with pytest.raises(execmem.ExecmemError):
                each.retire()
        script("")
    assert (block.state, element.state, bytes(block), bytes(element)) == ("filled", "filled", code_for(1), code_for(2))
    block.retire()
    element.retire()
    assert len(domain) == 0


def test_threads_that_are_online_are_waited_for(domain: execmem.Domain, reader: Reader) -> None:
    block, held = domain.place(code_for(1)), domain.place(code_for(2))
    view = held.view
    before = execmem.retirement()
    assert before.online == 1 <= before.threads
    block.retire()
    held.retire()
    assert execmem.retirement().waiting == before.waiting + 1
    del view  # its last holder hands it on
    execmem.retire_poll()
    stats, now = domain.stats(), execmem.retirement()
    assert (stats.retired_blocks, stats.retired_bytes, stats.live_blocks, len(domain)) == (2, 12, 0, 0)
    assert (now.waiting, now.retired) == (before.waiting + 2, before.retired + 2)
    assert now.late_thread == reader.thread.native_id
    assert now.as_dict()["waiting"] == now.waiting
    assert len(domain.blocks()) == 0
    assert (read(block.address), read(held.address)) == (code_for(1), code_for(2))
    domain.check()
    with pytest.raises(execmem.BusyError, match=f"thread {reader.thread.native_id}"):
        execmem.retire_wait(0.06)
    with pytest.raises(execmem.BusyError, match="retired"):
        domain.close()
    reader.leave.set()
    execmem.retire_wait()
    assert (domain.stats().retired_blocks, execmem.retirement().waiting) == (0, 0)
    assert read(block.address)[0] == TRAP


def test_a_thread_does_not_wait_for_itself(domain: execmem.Domain) -> None:
    with execmem.online(), execmem.online():
        block = domain.place(code_for(1))
        block.retire()
        execmem.quiescent()  # of the inner context
        execmem.retire_poll()
        assert read(block.address) == code_for(1)
        with pytest.raises(execmem.BusyError, match="itself"):
            execmem.retire_wait()
    execmem.retire_poll()
    assert read(block.address)[0] == TRAP
    with execmem.online():
        block = domain.place(code_for(1))
        block.retire()
        execmem.quiescent()
        execmem.retire_poll()
        assert read(block.address)[0] == TRAP


def test_offline_is_refused_to_who_is_not_online() -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="not online"):
        execmem.online().__exit__(None, None, None)
    for timeout in (-1.0, float("nan")):
        with pytest.raises(execmem.InvalidArgumentError, match="seconds"):
            execmem.retire_wait(timeout)


def test_what_is_audited(run_child: Callable[..., str]) -> None:
    source = """
        import sys
        import execmem

        seen = []
        sys.addaudithook(lambda name, args: seen.append((name, args)) if name.startswith("execmem.") else None)
        domain = execmem.Domain("audited")
        block, held = domain.place(b"one"), domain.place(b"two")
        view = held.view
        del seen[:]
        block.retire()
        held.retire()
        del view
        assert seen == [
            ("execmem.retire", (block.address,)),
            ("execmem.retire", (held.address,)),
            ("execmem.free", (held.address,)),
        ], seen
    """
    run_child(source)


def test_a_hook_can_stop_it_or_be_quicker(run_child: Callable[..., str]) -> None:
    source = """
        import sys
        import execmem

        what = []
        def hook(name, args):
            if name == "execmem.retire" and what:
                what.pop()()
        sys.addaudithook(hook)
        domain = execmem.Domain("hooked")
        block, element = domain.place(b"one"), domain.place_many([b"two"])[0]

        def refuse():
            raise RuntimeError("no")

        for each in (block, element):
            what.append(refuse)
            try:
                each.retire()
            except RuntimeError:
                assert each.state == "filled", each
            else:
                raise AssertionError
            what.append(each.retire)
            try:
                each.retire()
            except execmem.DoubleFreeError:
                pass
            else:
                raise AssertionError
        assert block.state == "retired"
        assert element.state == "filled"  # the error of the second call stopped the first, which was at work
        element.retire()
        assert len(domain) == 0
        domain.check()
    """
    run_child(source)


A_THREAD_IS_INSIDE = """
        import os, signal, threading
        import execmem

        inside, leave = threading.Event(), threading.Event()
        def run():
            with execmem.online():
                inside.set()
                leave.wait()
        thread = threading.Thread(target=run)
        thread.start()
        inside.wait()
"""


def test_interrupting_a_wait(run_child: Callable[..., str]) -> None:
    source = """
        execmem.Domain("waits").place(b"code").retire()
        domain = execmem.Domain("waits")
        domain.place(b"code").retire()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            execmem.retire_wait()
        except KeyboardInterrupt:
            leave.set()
        execmem.retire_wait()
        assert domain.stats().retired_blocks == 0
    """
    run_child(A_THREAD_IS_INSIDE + source)


def test_a_child_waits_for_its_own_threads_only(run_child: Callable[..., str]) -> None:
    source = """
        domain = execmem.Domain("forked")
        domain.place(b"code").retire()
        child = os.fork()
        if child == 0:
            execmem.retire_wait(1)
            assert execmem.retirement().threads == 0
            assert domain.stats().retired_blocks == 0
            domain.check()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert domain.stats().retired_blocks == 1
        leave.set()
        execmem.retire_wait()
        assert domain.stats().retired_blocks == 0
    """
    run_child(A_THREAD_IS_INSIDE + source)


def test_a_domain_that_is_collected_keeps_what_threads_may_run(reader: Reader) -> None:
    outer = execmem.Domain("outer", window="4M")
    domain = execmem.Domain("inner", parent=outer, window="2M")
    block = domain.place(code_for(1))
    address = block.address
    block.retire()
    del block, domain, outer
    gc.collect()
    execmem.retire_poll()
    assert read(address) == code_for(1)
    outer = execmem.Domain("outer", window="4M")
    inner = execmem.Domain("inner", parent=outer, window="2M")
    inner.place(code_for(1)).retire()
    del inner
    with pytest.raises(execmem.BusyError):
        outer.close()
    outer.close(force=True)
    assert len(ADRIFT) == 1  # the first, which keeps its parent
    reader.leave.set()
    execmem.retire_wait()
    assert not ADRIFT
    with Path("/proc/self/maps").open() as maps:
        ends = [line.split()[0].split("-") for line in maps]
    assert not any(int(start, 16) <= address < int(end, 16) for start, end in ends)


@needs_x86
def test_a_block_is_retired_by_who_leaves_last_while_its_domain_closes(run_child: Callable[..., str]) -> None:
    source = """
        import threading
        import execmem

        def run(go, blocks):
            go.wait()
            for block in blocks:
                try:
                    block.retire()
                except execmem.ClosedError:
                    break

        with execmem.online():
            pass
        for _ in range(200):
            go = threading.Barrier(2)
            domain = execmem.Domain("closes", window="2M")
            thread = threading.Thread(target=run, args=(go, [domain.place(b"one") for _ in range(50)]))
            thread.start()
            go.wait()
            domain.close(force=True)
            with execmem.Domain("follows", window="2M") as other:
                blocks = [other.place(b"other") for _ in range(50)]
                thread.join()
                assert [bytes(block) for block in blocks] == [b"other"] * 50
                other.check()
    """
    run_child(source)


IN_FLIGHT_AT_THE_END = """
    import ctypes, sys, threading
    import execmem

    domain = execmem.Domain("ends")
    block = domain.place(bytes.fromhex({spin!r}), name="spin")
    flag, entered = bytearray(1), threading.Event()
    here = (ctypes.c_char * 1).from_buffer(flag)

    def counted(function=block.function("i32(ptr)")):
        entered.set()
        function(ctypes.addressof(here))

    def uncounted():
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(block.address)
        with execmem.online():
            entered.set()
            function(ctypes.addressof(here))

    threading.Thread(target={which}, daemon=True).start()
    if {which} is uncounted:
        del counted  # it holds a callable
    entered.wait()
    import time
    time.sleep(0.02)  # inside by now, in all likelihood
    {act}
"""


@needs_x86
@pytest.mark.parametrize(
    ("which", "act"),
    [
        ("counted", "block.retire()"),
        ("counted", "block.retire(); del block, domain"),
        ("counted", "del block"),  # uncounted, and not retired, it is freed under the thread
        ("counted", "import atexit; atexit.register(block.retire)"),
        ("uncounted", "block.retire()"),
        ("uncounted", "block.retire(); del block, domain"),
        ("uncounted", "import atexit; atexit.register(block.retire)"),
    ],
)
def test_a_call_in_flight_when_python_ends(run_child: Callable[..., str], which: str, act: str) -> None:
    run_child(IN_FLIGHT_AT_THE_END.format(spin=SPIN.hex(), which=which, act=act))
