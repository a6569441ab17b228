"""Any sequence of placing, filling and freeing by threads, with forks in between, leaves everybody's code right.

Hypothesis chooses the steps. A block is made by one thread and freed by another; a forked child runs what it inherits
and places code in a domain of its own, and the parent finds its blocks as they were. After every step all is lawful.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from conftest import MODES, SHORT, needs_x86
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import execmem
from execmem.soak import adder

CHILD_SECONDS = 60
numbers = st.integers(0, 1 << 30)


def works(mode: str) -> bool:
    try:
        execmem.probe(mode)
    except execmem.ExecmemError:
        return False
    return True


class Shared(RuleBasedStateMachine):
    """One domain, three threads, and children now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[tuple[execmem.Block, int]] = []
        self.threads = [ThreadPoolExecutor(1) for _ in range(2)]  # each a thread, so a home in the domain, of its own

    @initialize(mode=st.sampled_from([mode for mode in MODES if works(mode)]))
    def open_domain(self, mode: str) -> None:
        self.domain = execmem.Domain("shared", write_mode=mode)

    def place_one(self, number: int, size: int) -> tuple[execmem.Block, int]:
        return self.domain.place(adder(number).ljust(size, b"\xcc")), number

    @rule(number=numbers, size=st.sampled_from([8, 64, 500, 5000, 70_000]), thread=st.integers(0, 2))
    def place(self, number: int, size: int, thread: int) -> None:
        if thread == 2:
            self.live.append(self.place_one(number, size))
        else:
            self.live.append(self.threads[thread].submit(self.place_one, number, size).result())

    @precondition(lambda self: self.live)
    @rule(which=numbers, thread=st.integers(0, 1))
    def free_elsewhere(self, which: int, thread: int) -> None:
        block, _ = self.live.pop(which % len(self.live))
        self.threads[thread].submit(block.free).result()
        assert block.state == "freed"

    @precondition(lambda self: self.live)
    @rule(which=numbers, thread=st.integers(0, 1))
    def drop_elsewhere(self, which: int, thread: int) -> None:
        before = len(self.domain)
        block, _ = self.live.pop(which % len(self.live))
        self.threads[thread].submit(lambda kept: kept.pop(), [block])
        del block
        self.threads[thread].submit(int).result()  # it has let go of the last reference
        assert len(self.domain) == before - 1

    @precondition(lambda self: self.live)
    @rule(which=numbers, number=numbers, thread=st.integers(0, 1))
    def fill_elsewhere(self, which: int, number: int, thread: int) -> None:
        place = which % len(self.live)
        block, _ = self.live[place]
        self.threads[thread].submit(block.fill, adder(number)).result()
        self.live[place] = (block, number)

    @rule(first=numbers, count=st.integers(1, 30))
    def trade_at_once(self, first: int, count: int) -> None:
        """Two threads at once: each frees half of what is live, and places as many as it is told."""

        def trade(mine: list[execmem.Block], start: int) -> list[tuple[execmem.Block, int]]:
            for block in mine:
                block.free()
            return [self.place_one(start + i, 8 + i % 900) for i in range(count)]

        blocks = [block for block, _ in self.live]
        self.live.clear()
        halves = [blocks[0::2], blocks[1::2]]
        working = [thread.submit(trade, half, first // 2) for thread, half in zip(self.threads, halves, strict=True)]
        self.live = [placed for work in working for placed in work.result()]

    @rule(number=numbers)
    def fork(self, number: int) -> None:
        functions = [(block.function("i64(i64)"), mine) for block, mine in self.live[:5]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # some Python warns of fork beside threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if self.live_as_child(functions, number) else 2
            except BaseException:  # noqa: BLE001 - the child must not run the parent's tests
                traceback.print_exc()
            finally:
                os._exit(code)
        end = time.monotonic() + CHILD_SECONDS
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
            time.sleep(0.001)
        hung = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        if hung:
            os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        assert not hung
        assert os.waitstatus_to_exitcode(status) == 0

    @staticmethod
    def live_as_child(functions: list[tuple[Any, int]], number: int) -> bool:
        good = all(function(1) == mine + 1 for function, mine in functions)
        with execmem.Domain("child's own") as domain:
            block = domain.place(adder(number))
            good &= block.function("i64(i64)")(2) == number + 2
            domain.check()
            block.free()
        return bool(good)

    @invariant()
    def all_is_right(self) -> None:
        if not hasattr(self, "domain"):
            return
        self.domain.check()
        assert len(self.domain) == len(self.live)
        for block, number in self.live:
            assert bytes(block)[:8] == adder(number)
        if self.live:
            block, number = self.live[-1]
            assert block.function("i64(i64)")(3) == number + 3

    def teardown(self) -> None:
        for thread in self.threads:
            thread.shutdown()
        self.live.clear()
        if hasattr(self, "domain"):
            self.domain.close(force=True)


Shared.TestCase.settings = settings(
    max_examples=10 if SHORT else 25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestShared = needs_x86(Shared.TestCase)
