"""Live patching from Python; the protocol itself is tested in C (``tests/c/test_live.c``, ``tests/c/test_trap.c``)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest

import execmem
from execmem._core import lib

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(execmem.arch() != "x86_64", reason="the code is x86-64 code")

MODES = ["syscall", "alias", "procmem", "flip"]
RET = bytes.fromhex("c3")


def mov(number: int) -> bytes:
    """Return ``mov eax, number``."""
    return b"\xb8" + number.to_bytes(4, "little")


@pytest.fixture(params=MODES)
def domain(request: pytest.FixtureRequest) -> Iterator[execmem.Domain]:
    with execmem.Domain("site", write_mode=request.param) as opened:
        yield opened


def test_a_block_is_changed_under_its_callable(domain: execmem.Domain) -> None:
    block = domain.place(mov(1) + RET)
    give = block.function("i32()")
    assert give() == 1
    block.poke(0, mov(1), mov(2))
    assert give() == 2
    execmem.execmem_poke(block, mov(2), mov(3))
    assert give() == 3
    assert bytes(block) == mov(3) + RET


def test_a_change_is_seen_by_other_threads_at_once(domain: execmem.Domain) -> None:
    block = domain.place(mov(0) + RET)
    give = block.function("i32()")
    done, wrong = threading.Event(), []
    before = after = 0

    def run() -> None:
        while not done.is_set():
            low, value, high = before, give(), after
            if not low <= value <= max(high, low):
                wrong.append((low, value, high))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        after = number
        while True:  # on a busy machine a thread may get no turn to be stopped, which mode flip tells
            try:
                block.poke(0, mov(number - 1), mov(number))
                break
            except execmem.BusyError:
                continue
        before = number
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_is_changed_in_any_order(domain: execmem.Domain) -> None:
    blocks = list(domain.place_many([mov(number) + RET for number in range(40)]))
    order = sorted(range(40), key=lambda number: number * 7 % 40)
    execmem.execmem_poke_many((blocks[number], mov(number), mov(number + 100)) for number in order)
    assert [block.function("i32()")() for block in blocks] == list(range(100, 140))
    execmem.execmem_poke_many([])


def test_a_refused_batch_changes_nothing_and_names_the_element(domain: execmem.Domain) -> None:
    blocks = list(domain.place_many([mov(number) + RET for number in range(3)]))
    sites = [(blocks[2], mov(2), mov(9)), (blocks[0], mov(7), mov(9)), (blocks[1], mov(1), mov(9))]
    with pytest.raises(execmem.ChangedError, match="b8 00 00 00 00, not b8 07") as caught:
        execmem.execmem_poke_many(sites)
    assert caught.value.index == 1
    assert [bytes(block)[:5] for block in blocks] == [mov(0), mov(1), mov(2)]


@pytest.mark.parametrize(
    ("offset", "pair", "error", "words"),
    [
        (0, (mov(2), mov(3)), execmem.ChangedError, "not b8 02"),
        (0, (mov(1), b"\x90" * 5), execmem.InstructionError, "exactly one instruction"),
        (0, (mov(1)[:4], mov(2)[:4]), execmem.InstructionError, "exactly one instruction"),
        (0, (mov(1), RET), execmem.InvalidArgumentError, "5 bytes cannot become 1"),
        (3, (mov(1), mov(1)), execmem.BoundsError, "would leave block"),
        (0, (b"", b""), execmem.InvalidArgumentError, "1 to 15"),
        (-1, (RET, RET), execmem.InvalidArgumentError, "positive"),
        (0, ("b8", "b8"), execmem.InvalidArgumentError, "buffer"),
    ],
)
def test_what_cannot_be_right_is_refused(
    domain: execmem.Domain, offset: int, pair: tuple[Any, Any], error: type[Exception], words: str
) -> None:
    block = domain.place(mov(1) + RET)
    with pytest.raises(error, match=words):
        block.poke(offset, *pair)
    assert bytes(block) == mov(1) + RET


def test_addresses_are_judged(domain: execmem.Domain) -> None:
    block = domain.place(mov(1) + RET)
    address = block.address
    with pytest.raises(execmem.InvalidAddressError):
        execmem.execmem_poke(4096, mov(1), mov(2))
    with pytest.raises(execmem.BoundsError):
        execmem.execmem_poke(address + 5, mov(1), mov(2))
    with pytest.raises(execmem.InvalidArgumentError):
        execmem.execmem_poke_many([(address, mov(1))])  # type: ignore[list-item]
    with pytest.raises(execmem.InvalidArgumentError, match="overlap"):
        execmem.execmem_poke_many([(address, mov(1), mov(2)), (address + 1, b"\1\0\0", b"\1\0\0")])
    data = domain.place(mov(1), kind="rodata")
    with pytest.raises(execmem.InvalidArgumentError, match="no code"):
        data.poke(0, mov(1), mov(2))
    block.free()
    with pytest.raises(execmem.FreedAddressError):
        block.poke(0, mov(1), mov(2))
    with pytest.raises(execmem.FreedAddressError):
        execmem.execmem_poke(address, mov(1), mov(2))


def test_a_failing_system_changes_nothing() -> None:
    with execmem.Domain("site", write_mode="syscall") as domain:
        block = domain.place(mov(1) + RET)
        lib.execmem_test_script(b"store=F* write=.F")
        try:
            with pytest.raises(execmem.OutOfMemoryError):
                block.poke(0, mov(1), mov(0x02020202))
        finally:
            lib.execmem_test_script(execmem.memory.NULL)
        assert bytes(block) == mov(1) + RET


def test_a_sealed_domain_is_not_changed() -> None:
    sealed = execmem.Domain("sealed site", window="2M")
    block = sealed.place(mov(1) + RET)
    sealed.seal()
    with pytest.raises(execmem.SealedError):
        block.poke(0, mov(1), mov(2))


@pytest.mark.parametrize(
    ("arguments", "hexed"),
    [
        (("nop", 1), "90"),
        (("nop", 5), "0f1f440000"),
        (("jump", 2, 0x1000, 0x1002), "eb00"),
        (("jump", 5, 0x1000, 0x2000), "e9fb0f0000"),
        (("call", 5, 0x2000, 0x1000), "e8fbefffff"),
    ],
)
def test_instructions_are_made(arguments: tuple[Any, ...], hexed: str) -> None:
    assert execmem.encode(*arguments).hex() == hexed


def test_instructions_that_there_are_not_are_refused() -> None:
    with pytest.raises(execmem.ReachError):
        execmem.encode("call", 5, 0, 1 << 40)
    with pytest.raises(execmem.InvalidArgumentError):
        execmem.encode("nop", 10)
    with pytest.raises(execmem.InvalidArgumentError, match="one of nop, jump, call"):
        execmem.encode("leap", 5)


def test_changes_are_told_to_audit_hooks_and_the_ledger() -> None:
    told: list[tuple[Any, ...]] = []
    listening = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "execmem.poke":
            told.append(arguments)

    sys.addaudithook(hook)
    with execmem.Domain("site") as domain:
        block = domain.place(mov(1) + RET)
        block.poke(0, mov(1), mov(2))
        execmem.execmem_poke_many([(block, mov(2), mov(3))])
        listening = False
        events = domain.events()
        assert events["address"][events["op"] == lib.EXECMEM_EVENT_POKE].tolist() == [block.address] * 2
        assert told == [(block.address, 5), ([block.address], 5)]
        del events


# Faulthandler keeps its handlers, Python its signal handlers, and a trap of somebody else's ends the process as ever.
PROGRAM = """
    import ctypes, faulthandler, signal, sys, threading
    import execmem
    from execmem._core import lib

    lib.execmem_test_script(b"store=F*")
    first, when = sys.argv[1:]

    def install():
        if first == "faulthandler":
            faulthandler.enable()
            faulthandler.register(signal.SIGTRAP, chain=True)
        elif first == "reporter":
            execmem.report_faults()
        elif first == "python":
            signal.signal(signal.SIGTRAP, lambda *_: print("trapped", flush=True))

    def mov(number):
        return b"\\xb8" + number.to_bytes(4, "little")

    domain = execmem.Domain("site")
    block = domain.place(mov(1) + b"\\xc3")
    give = block.function("i32()")
    if when == "before":
        install()
    block.poke(0, mov(1), mov(2))
    if when == "after":
        install()
    done = threading.Event()

    def run():
        while not done.is_set():
            give()

    runner = threading.Thread(target=run)
    runner.start()
    for number in range(2, 300):
        block.poke(0, mov(number), mov(number + 1))
    done.set()
    runner.join()
    assert give() == 300
    print("changed", flush=True)
    if first == "python":
        signal.raise_signal(signal.SIGTRAP)
    else:
        domain.place(b"\\xcc\\xc3").function("i32()")()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("first", ["none", "faulthandler", "reporter", "python"])
def test_handlers_of_others_keep_working(first: str, when: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), first, when],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout.startswith("changed\n"), ended.stderr
    if first == "python":
        assert (ended.returncode, ended.stdout) == (0, "changed\ntrapped\n"), ended.stderr
        return
    assert ended.returncode == -5, ended.stderr
    assert ended.stderr.count("most recent call first") == (first == "faulthandler")
    assert ended.stderr.count("execmem: SIGTRAP") == (first == "reporter"), ended.stderr
