"""Blocks as far as they are C: made in one crossing, freed once, lost to no signal, and to no collection."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ADD7

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "code", [bytearray(ADD7), memoryview(ADD7), np.frombuffer(ADD7, np.uint8), type("B", (bytes,), {})(ADD7)]
)
@pytest.mark.parametrize(("name", "kind", "align"), [(None, "text", np.int8(64)), (Text("n"), Text("data"), 64)])
def test_what_has_to_be_converted_is_placed_alike(
    code: Any, name: Any, kind: Any, align: Any, domain: execmem.Domain
) -> None:
    block = domain.place(code, name, kind, align)
    assert (bytes(block), block.size, block.name, block.kind) == (ADD7, 5, name or "", kind)
    other = domain.alloc(np.uint8(5), name, kind, align)
    assert (other.size, other.name, other.kind, other.state) == (5, name or "", kind, "reserved")
    assert not block.address % 64
    assert not other.address % 64
    del block, other
    assert len(domain) == 0


def test_a_block_is_made_by_its_domain_alone(domain: execmem.Domain) -> None:
    block = domain.place(ADD7)
    cls: Any = execmem.Block
    for make in (cls, lambda: cls.__new__(cls), lambda: object.__new__(cls), lambda: copy.copy(block)):
        with pytest.raises(TypeError):
            make()
    for field in ("address", "size", "domain", "name", "kind", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(block, field, 1)
    assert weakref.ref(block)() is block


def test_blocks_leave_no_objects_behind(domain: execmem.Domain) -> None:
    def work() -> None:
        for _ in range(200):
            domain.place(ADD7, name="named").free()
            domain.place(bytearray(ADD7))
            domain.place_many([ADD7] * 3)[1].free()
            with pytest.raises(execmem.InvalidArgumentError):
                domain.place(b"")
            block = domain.alloc(5)
            block.free()
            with pytest.raises(execmem.DoubleFreeError):
                block.free()

    def count() -> tuple[int, int, int]:
        gc.collect()
        return sys.getrefcount(domain), sys.getrefcount(execmem.Block), sys.getallocatedblocks()

    counts = []
    for _ in range(6):
        work()
        counts.append(count())
    assert len({(one, two) for one, two, _ in counts}) == 1
    assert min(after[2] - before[2] for before, after in itertools.pairwise(counts)) < 50  # caches grow too, less often


def test_a_hook_may_close_the_domain(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        todo = []
        sys.addaudithook(lambda name, args: todo.pop()() if name.startswith("execmem.") and todo else None)
        for use in (
            lambda domain: domain.place(b"a"), lambda domain: domain.alloc(1), lambda domain: domain.place_many([b"a"]),
            lambda domain: domain.place(bytearray(b"a")), lambda domain: block.free(), lambda domain: blocks.free(),
        ):
            domain = execmem.Domain("shut", window="2M")
            block, blocks = domain.place(b"b"), domain.place_many([b"c"])
            todo.append(lambda: domain.close(force=True))
            try:
                use(domain)
            except execmem.ClosedError:
                print("closed", len(execmem.default_domain()))
            todo.append(lambda: domain.close(force=True))
            del block, blocks
            todo.clear()
        """
    )
    assert told.split("\n") == ["closed 0"] * 6


# ---- signals ----


def test_ctrl_c_loses_no_block(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import gc, random, signal, sys, time, execmem

        def stop(*_):
            raise KeyboardInterrupt

        def work():
            for _ in range(100):
                domain.place(code).free()
                domain.alloc(64)
                domain.place(bytearray(code), name="named")
                blocks = domain.place_many([code] * 20)
                blocks.free(slice(0, 10))
                blocks.free()

        sys.unraisablehook = lambda told: None  # an interrupt within a __del__ is told to nobody
        domain, code, hits = execmem.Domain(), b"code" * 16, 0
        signal.signal(signal.SIGALRM, stop)
        began = time.monotonic()
        while (spent := time.monotonic() - began) < 0.5 or (hits <= 10 and spent < 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 2e-4))
                work()
                time.sleep(0.01)
            except KeyboardInterrupt:
                hits += 1
        gc.collect()
        domain.check()
        print(len(domain), hits > 10)
        """
    )
    assert told == "0 True"


# ---- threads ----


def test_a_view_and_a_free_exclude_each_other(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, threading, time, execmem
        sys.setswitchinterval(1e-6)
        domain, wrong = execmem.Domain(), []
        blocks = [domain.alloc(8) for _ in range(4)]
        seen, freed, began = [0], [0], time.monotonic()

        def more():  # a busy machine may need longer until enough has met
            spent = time.monotonic() - began
            return spent < 0.6 or (min(seen[0], freed[0]) <= 100 and spent < 60)

        def look():
            while more():
                for block in list(blocks):
                    try:
                        view = block.view
                    except execmem.FreedAddressError:
                        continue
                    seen[0] += 1
                    if block.state == "freed":
                        wrong.append(repr(block))
                    del view

        def free():
            while more():
                for place, block in enumerate(blocks):
                    try:
                        block.free()
                    except execmem.BlockBusyError:
                        continue
                    freed[0] += 1
                    blocks[place] = domain.place(b"another")

        threads = [threading.Thread(target=work) for work in (look, look, free)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        domain.check()
        print(wrong, len(domain), seen[0] > 100, freed[0] > 100)
        """
    )
    assert told == "[] 4 True True"
