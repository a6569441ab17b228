"""The end of the interpreter, with blocks that live, callables that are held, and daemon threads inside the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import MODES

if TYPE_CHECKING:
    from collections.abc import Callable

x86_64 = pytest.mark.skipif("__import__('platform').machine() != 'x86_64'", reason="the code is for x86-64")
CODE = 'bytes.fromhex("488d4707c3")'  # lea rax, [rdi + 7]; ret


@x86_64
def test_live_blocks_and_callables_at_the_end(run_child: Callable[..., str]) -> None:
    told = run_child(
        f"""
        import atexit, execmem
        domain = execmem.Domain("left")
        kept = [domain.place({CODE}, name=f"f{{n}}") for n in range(1000)]
        add7 = kept[3].function("i64(i64)")
        view = kept[4].view
        batch = domain.place_many([{CODE}] * 100)
        table = domain.packs()
        class Late:
            def __init__(self): self.self = self  # a cycle: collected last
            def __del__(self): assert add7 is None or add7(35) == 42
        late = Late()
        atexit.register(lambda: print(add7(35), len(view), len(table)))
        """
    )
    assert told == "42 5 1"


@x86_64
@pytest.mark.parametrize("mode", MODES)
def test_daemon_threads_inside_the_library_at_the_end(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        f"""
        import threading, time, execmem
        domain = execmem.Domain("busy", write_mode={mode!r})
        started = threading.Barrier(5)

        def work():
            mine = []
            started.wait()
            while True:
                block = domain.place({CODE})
                assert block.function("i64(i64)")(35) == 42
                mine.append(block)
                if len(mine) > 50:
                    mine.pop(0).free()
                    domain.place_many([{CODE}] * 20).free()

        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        started.wait()
        time.sleep(0.1)
        print("left")
        """
    )
    assert told == "left"


@x86_64
def test_a_call_in_flight_holds_its_block(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import ctypes, threading, execmem
        domain = execmem.Domain("flight")
        inside, go = threading.Event(), threading.Event()

        @ctypes.CFUNCTYPE(ctypes.c_int)
        def callback():
            inside.set()
            go.wait()
            return 5

        target = ctypes.cast(callback, ctypes.c_void_p).value
        block = domain.place(b"\\x48\\xb8" + target.to_bytes(8, "little") + b"\\xff\\xe0")  # mov rax, target; jmp rax
        answers = []

        def call(function):
            answers.append(function())

        thread = threading.Thread(target=call, args=(block.function("i32()"),))
        thread.start()
        inside.wait()
        refused = 0
        for stop in (block.free, domain.close, lambda: domain.close(force=True)):
            try:
                stop()
            except execmem.BusyError:
                refused += 1
        go.set()
        thread.join()
        del thread
        block.free()
        domain.close()
        print(refused, answers)
        """
    )
    assert told == "3 [5]"
