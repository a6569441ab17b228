"""Static keys, static calls and hooks from Python; what they change is tested in C (``tests/c/``)."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import execmem
from execmem import patch
from execmem._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(execmem.arch() != "x86_64", reason="the code is x86-64 code")

# Nothing here knows of modes. In flip, on a busy machine, threads may get no turn to be stopped; the C tests try again.
MODES = ["syscall", "alias", "procmem"]
RET = bytes.fromhex("c3")
NOP5 = bytes.fromhex("0f1f440000")
FIVE = bytes.fromhex("b805000000c3")  # mov eax, 5; ret
EIGHT = bytes.fromhex("b808000000c3")


@pytest.fixture(params=MODES)
def domain(request: pytest.FixtureRequest) -> Iterator[execmem.Domain]:
    with execmem.Domain("patch", write_mode=request.param) as opened:
        yield opened
        gc.collect()


def give(number: int) -> bytes:
    """Return ``mov eax, number; ret``."""
    return b"\xb8" + number.to_bytes(4, "little") + RET


def asker(size: int = 5) -> bytes:
    """Return code that gives 1 where the key is off, and where it is on goes ``size + 6`` bytes on and gives 2."""
    return execmem.encode("nop", size) + give(1) + give(2)


def caller(domain: execmem.Domain, target: Any, instruction: str = "call", by: int = 10) -> execmem.Block:
    """Place code that calls a target and adds a number, or that only jumps there."""
    block = domain.alloc(16)
    after = b"\x83\xc0" + bytes([by]) + RET  # add eax, by; ret
    block.fill(execmem.encode(instruction, 5, block, target) + after)
    return block


def run(block: execmem.Block, offset: int = 0) -> int:
    """Call code of a block."""
    assert not offset or offset < len(block)
    function: Any = ctypes.CFUNCTYPE(ctypes.c_int32)(block.address + offset)
    value: int = function()
    return value


# ---- static keys ----


def test_a_key_switches_its_sites(domain: execmem.Domain) -> None:
    key = execmem.StaticKey()
    block = domain.place(asker())
    key.add(block, [(0, 11)])
    assert (run(block), key.enabled, len(key)) == (1, False, 1)
    key.enable()
    assert (run(block), bool(key)) == (2, True)
    key.enable()
    assert bytes(block)[:5] == execmem.encode("jump", 5, block, block.address + 11)
    assert repr(key) == "<StaticKey on 1 sites>"
    key.disable()
    assert (run(block), bytes(block)) == (1, asker())
    key.check()


def test_a_table_is_added_in_any_order(domain: execmem.Domain) -> None:
    stride = 32
    choice = random.Random(3)
    sizes = [choice.choice([2, 5]) for _ in range(300)]
    rows = [
        (number * stride, number * stride + size + 6, size, bool(number % 3 == 0)) for number, size in enumerate(sizes)
    ]
    block = domain.place(b"".join(asker(size).ljust(stride, b"\xcc") for size in sizes))
    choice.shuffle(rows)
    key = execmem.StaticKey(enabled=True)
    key.add(block, rows)
    for enabled in (True, False, True):
        key.set(enabled)
        assert all(run(block, row[0]) == (2 if enabled != row[3] else 1) for row in rows)
    other = domain.place(asker())
    key.add(other, np.array([[0, 11]]))
    assert run(other) == 2
    key.drop(block)
    key.disable()
    assert (run(other), run(block, rows[0][0]), len(key)) == (1, 1 if rows[0][3] else 2, 1)
    key.drop(block)


def test_a_key_holds_its_blocks(domain: execmem.Domain) -> None:
    key = execmem.StaticKey()
    block, address = domain.place(asker()), 0
    key.add(block, [(0, 11)])
    with pytest.raises(execmem.BlockBusyError, match="1 static key"):
        block.free()
    address = block.address
    del block
    key.enable()
    assert bytes(domain.find(address).name, "ascii") == b""
    del key
    with pytest.raises(execmem.FreedAddressError):
        domain.find(address)


def test_sites_that_are_refused_change_nothing(domain: execmem.Domain) -> None:
    key = execmem.StaticKey(enabled=True)
    block = domain.place(asker() * 2)
    before = bytes(block)
    size = len(asker())
    cases: list[tuple[list[Any], type[Exception], int | None]] = [
        ([(0, 11), (6, 11)], execmem.ChangedError, 1),
        ([(0, 11), (0, 11)], execmem.InvalidArgumentError, 1),
        ([(0, 11), (size, 1 << 40)], execmem.ReachError, 1),
        ([(0, 11), (size, 11, 3)], execmem.InvalidArgumentError, 1),
        ([(0, 11), (size, 11, 2)], execmem.ChangedError, 1),
        ([(0, 11), (size, 11, 1 << 70)], execmem.InvalidArgumentError, None),
        ([(0, 11), (1 << 20, 11)], execmem.BoundsError, None),
        ([(0, 11), (-1, 11)], execmem.InvalidArgumentError, None),
        ([(0,)], execmem.InvalidArgumentError, None),
        ([(0, 11, 5, False, 1)], execmem.InvalidArgumentError, None),
    ]
    for rows, error, number in cases:
        with pytest.raises(error) as caught:
            key.add(block, rows)
        assert getattr(caught.value, "index", None) == number
        assert (bytes(block), len(key)) == (before, 0)
        del caught
    gc.collect()
    block.free()
    with pytest.raises(execmem.FreedAddressError):
        key.add(block, [(0, 11)])
    with pytest.raises(execmem.InvalidArgumentError, match="no Block"):
        key.add(5, [(0, 11)])  # type: ignore[arg-type]


def test_a_site_that_somebody_changed_is_told(domain: execmem.Domain) -> None:
    key = execmem.StaticKey()
    block = domain.place(asker())
    key.add(block, [(0, 11)])
    block.poke(0, NOP5, bytes.fromhex("b809000000"))
    with pytest.raises(execmem.BrokenLawError, match="should do nothing"):
        key.check()
    with pytest.raises(execmem.ChangedError):
        key.enable()
    assert not key


def test_threads_see_a_switch_at_once(domain: execmem.Domain) -> None:
    block = domain.place(asker())
    ask = block.function("i32()")
    key = execmem.StaticKey()
    key.add(block, [(0, 11)])
    done, wrong, epoch = threading.Event(), [], 0

    def look() -> None:
        while not done.is_set():
            before, value, after = epoch, ask(), epoch
            if before == after and before % 2 == 0 and value != (2 if before // 2 % 2 else 1):
                wrong.append((before, value))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        epoch += 1
        key.set(not key)
        epoch += 1
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- static calls ----


def test_a_call_goes_where_it_was_set_last(domain: execmem.Domain) -> None:
    five, eight = domain.place(FIVE, name="five"), domain.place(EIGHT)
    with execmem.StaticCall(domain, five, name="number") as call:
        number = call.function("i32()")
        assert (number(), call.target, int(call)) == (5, five, call.address)
        assert repr(call) == f"<StaticCall 'number' {call.address:#x} to {five.address:#x}>"
        assert domain.find(call.address).name == "number"
        call.set(eight)
        assert number() == 8
        call.set(five.function("i32()"))
        assert number() == 5
        call.set(None)
        assert number() == 0
        assert repr(call).endswith("to nothing>")
        call.check()
        del number
    with pytest.raises(execmem.ClosedError, match="static call 'number'"):
        call.set(five)
    call.close()
    assert call.address
    five.free()


def test_what_is_far_needs_a_veneer(domain: execmem.Domain) -> None:
    five = domain.place(FIVE)
    far = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    with execmem.Domain("near", parent=domain) as near, execmem.StaticCall(near, None, veneer=False) as call:
        blocks = near.stats().live_blocks
        for target in (far, five):
            if abs(int(target or 0) - call.address) > 1 << 32:
                with pytest.raises(execmem.ReachError, match="veneer"):
                    call.set(target)
        assert (near.stats().live_blocks, call.target) == (blocks, None)
    with execmem.StaticCall(domain, far) as call:
        number = call.function("i32()")
        assert number() == os.getpid()
        call.set(five)
        assert number() == 5
        blocks = domain.stats().live_blocks
        call.set(far)
        assert (number(), domain.stats().live_blocks) == (os.getpid(), blocks)
        del number


def test_sites_go_to_the_target_itself(domain: execmem.Domain) -> None:
    five, eight = domain.place(FIVE), domain.place(EIGHT)
    call = execmem.StaticCall(domain, five)
    blocks = [caller(domain, call), caller(domain, call, "jump"), caller(domain, five)]
    for block in blocks:
        call.add(block, [0])
    assert [run(block) for block in blocks] == [15, 5, 15]
    assert bytes(blocks[0])[:5] == execmem.encode("call", 5, blocks[0], five)
    call.set(eight)
    assert [run(block) for block in blocks] == [18, 8, 18]
    call.check()
    with pytest.raises(execmem.ChangedError):
        call.add(caller(domain, five), [0])
    with pytest.raises(execmem.BlockBusyError, match="1 static call"):
        blocks[0].free()
    with pytest.raises(execmem.BusyError, match="3 sites"):
        call.close()
    with call:
        pass
    assert [run(block) for block in blocks] == [18, 8, 18]
    blocks[0].free()


def test_a_call_with_sites_is_kept(domain: execmem.Domain) -> None:
    five = domain.place(FIVE)
    call = execmem.StaticCall(domain, five)
    block, address = caller(domain, call), five.address
    call.add(block, [0])
    del call, five
    gc.collect()
    assert run(block) == 15
    assert domain.find(address).size == len(FIVE)
    (kept,) = patch.KEPT
    kept.drop(block)
    del kept
    with pytest.raises(execmem.FreedAddressError):
        domain.find(address)


def test_former_targets_are_held_until_they_are_released(domain: execmem.Domain) -> None:
    five, eight = domain.place(FIVE), domain.place(EIGHT)
    with execmem.StaticCall(domain, five) as call:
        call.set(eight)
        with pytest.raises(execmem.BlockBusyError, match="1 static call"):
            five.free()
        call.release()
        five.free()
        with pytest.raises(execmem.BlockBusyError, match="1 static call"):
            eight.free()


def test_a_callable_keeps_the_call_and_the_domain(domain: execmem.Domain) -> None:
    call = execmem.StaticCall(domain, domain.place(FIVE))
    number = call.function("i32()")
    with pytest.raises(execmem.BlockBusyError, match="1 callable"):
        call.close()
    with pytest.raises(execmem.BusyError, match="static call"):
        domain.close(force=True)
    del call
    gc.collect()
    assert number() == 5
    del number
    gc.collect()
    assert len(domain) == 0


def test_a_call_is_refused_with_nothing_placed(domain: execmem.Domain) -> None:
    for wrong, error in (("text", execmem.InvalidAddressError), (-1, execmem.InvalidAddressError)):
        with pytest.raises(error):
            execmem.StaticCall(domain, wrong)
    with pytest.raises(execmem.InvalidArgumentError, match="must be a Domain"):
        execmem.StaticCall(None, None)  # type: ignore[arg-type]
    gc.collect()
    assert len(domain) == 0


# ---- hooks ----

# What gcc 12 and clang 14 make of SOURCE.
EMBEDDED: dict[str, str] = {
    "gcc -O2 -fpatchable-function-entry=5": "9090909090488d4707c3",
    "gcc -O2 -fcf-protection=branch -fpatchable-function-entry=5": "f30f1efa9090909090488d4707c3",
    "gcc -O2 -fpatchable-function-entry=7,5": "90909090909090488d4707c3",
    "clang -O2 -fpatchable-function-entry=5": "0f1f440008488d4707c3",
    "clang -O2 -fpatchable-function-entry=7,5": "90909090906690488d4707c3",
    "gcc -O0": "554889e548897df8488b45f84883c0075dc3",
}
# By options: bytes before the function, nops to be made one, whether hooking needs quiet.
HOOKABLE: dict[str, tuple[int, int, bool]] = {
    "gcc -O2 -fpatchable-function-entry=5": (0, 5, False),
    "gcc -O2 -fcf-protection=branch -fpatchable-function-entry=5": (0, 5, False),
    "gcc -O2 -fpatchable-function-entry=7,5": (5, 2, False),
    "clang -O2 -fpatchable-function-entry=5": (0, 0, False),
    "clang -O2 -fpatchable-function-entry=7,5": (5, 0, False),
    "gcc -O0": (0, 0, True),
}
SOURCE = "long add7(long x) { return x + 7; }\n"


def compile_text(path: Path, command: str) -> bytes:
    """Compile the source and return the code, or skip."""
    tool, *options = command.split()
    paths = [shutil.which(need) for need in (tool, "objcopy")]
    for need, found in zip((tool, "objcopy"), paths, strict=True):
        if found is None:
            pytest.skip(f"{need} is not installed")
    source, made, text = path / "f.c", path / "f.o", path / "f.bin"
    source.write_text(SOURCE, encoding="utf-8")
    if "protection" not in command and tool == "gcc":
        options.append("-fcf-protection=none")
    compiler, copier = map(str, paths)
    subprocess.run([compiler, *options, "-fPIC", "-c", str(source), "-o", str(made)], check=True)
    subprocess.run([copier, "-O", "binary", "-j", ".text", str(made), str(text)], check=True)
    return text.read_bytes()


def hook_and_unhook(domain: execmem.Domain, code: bytes, command: str) -> None:
    """Hook a function that adds 7, so that it adds 107, and give it back."""
    before, nops, quiet = HOOKABLE[command]
    block = domain.place(code, name="add7")
    add7 = block.function("i64(i64)") if before == 0 else None
    raw: Any = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(block.address + before)
    assert raw(35) == 42
    if nops:
        execmem.Hook.prepare(block, nops, offset=before)
        code = bytes(block)
    hook = execmem.Hook(block, offset=before, before=before)
    more = domain.alloc(16)
    more.fill(execmem.encode("call", 5, more, hook) + bytes.fromhex("4883c064c3"))  # add rax, 100; ret
    if quiet:
        with pytest.raises(execmem.EntryError, match="a thread may stand between them"):
            hook.attach(more)
    for number in range(3):
        hook.attach(more, number, quiet=quiet and number == 0)
        assert (raw(35), hook.attached) == (142, True)
        assert add7 is None or add7(1) == 108
        hook.check()
        hook.detach()
        assert (raw(35), hook.attached) == (42, False)
        assert quiet or bytes(block)[before:] == code[before:]
    original = hook.original("i64(i64)")
    assert original(3) == 10
    with pytest.raises(execmem.BlockBusyError, match="1 callable"):
        hook.close()
    del original, add7
    hook.close()
    assert (bytes(block), raw(35)) == (code, 42)
    more.free()
    block.free()


@pytest.mark.parametrize("command", HOOKABLE)
def test_functions_are_hooked(domain: execmem.Domain, command: str) -> None:
    hook_and_unhook(domain, bytes.fromhex(EMBEDDED[command]), command)
    assert len(domain) == 0


@pytest.mark.parametrize("command", HOOKABLE)
def test_what_compilers_make_is_hooked(tmp_path: Path, command: str) -> None:
    code = compile_text(tmp_path, command)
    with execmem.Domain("compiled") as domain:
        hook_and_unhook(domain, code, command)


def test_hooks_of_one_function_run_in_order(domain: execmem.Domain) -> None:
    block = domain.place(NOP5 + FIVE)
    hooks = [execmem.Hook(block) for _ in range(3)]
    # original; shl eax, 4; or eax, n; ret
    for number, hook in enumerate(hooks, 1):
        code = domain.alloc(16)
        code.fill(execmem.encode("call", 5, code, hook) + bytes.fromhex("c1e00483c8") + bytes([number]) + RET)
        hook.attach(code, priority=-1 if number == 3 else 0)
    assert run(block) == 0x5312  # the last digit is of who runs first and is done last
    hooks[1].detach()
    assert run(block) == 0x531
    hooks[2].detach()
    assert run(block) == 0x51
    hooks[0].detach()
    assert (run(block), bytes(block)) == (5, NOP5 + FIVE)


def test_a_python_function_is_a_replacement(run_child: Callable[..., str]) -> None:
    """In a child, for what ctypes makes of a Python function may lie in memory that is writable and executable."""
    told = run_child(
        """
        import ctypes, execmem

        @ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
        def replacement(number):
            calls.append(number)
            return 2 * original(number)

        calls = []
        block = execmem.Domain().place(execmem.encode("nop", 5) + bytes.fromhex("488d4707c3"))
        add7 = block.function("i64(i64)")
        hook = execmem.Hook(block)
        original = hook.original("i64(i64)")
        hook.attach(ctypes.cast(replacement, ctypes.c_void_p).value)
        print(add7(35), calls)
        hook.detach()
        print(add7(35), calls)
        """
    )
    assert told.splitlines() == ["84 [35]", "42 [35]"]


def test_an_attached_hook_is_kept_and_holds(domain: execmem.Domain) -> None:
    five, eight = domain.place(FIVE), domain.place(EIGHT)
    execmem.Hook(five, eight)
    gc.collect()
    assert run(five) == 8
    for block in (five, eight):
        with pytest.raises(execmem.BlockBusyError, match="1 hook"):
            block.free()
    with pytest.raises(execmem.BusyError, match="hook"):
        domain.close(force=True)
    (hook,) = patch.KEPT
    assert re.fullmatch(r"<Hook of a block \+ 0 attached>", repr(hook))
    hook.close()
    hook.close()
    assert repr(hook).endswith("closed>")
    with pytest.raises(execmem.ClosedError, match="the hook"):
        hook.attach(eight)
    del hook
    five.free()
    eight.free()


def test_a_with_gives_the_function_back(domain: execmem.Domain) -> None:
    five, eight = domain.place(bytes.fromhex("554889e5b8050000005dc3")), domain.place(EIGHT)
    before = bytes(five)
    with execmem.Hook(five, eight, quiet=True) as hook:
        assert run(five) == 8
    assert (bytes(five), hook.attached) == (before, False)
    message = "an error"
    hook = execmem.Hook(five, eight, quiet=True)
    held = hook.original("i32()")
    with pytest.raises(RuntimeError, match=message), hook:
        raise RuntimeError(message)
    assert (run(five), held()) == (5, 5)
    del held


def test_a_function_that_cannot_be_hooked_is_as_it_was(domain: execmem.Domain) -> None:
    eight = domain.place(EIGHT)
    for code, words in (
        ("c3", "over before"),
        ("b805000000ebf9c3", "leads back"),
        ("0606060606", "no known instruction"),
        ("554889e5b8050000005dc3", "several instructions"),
    ):
        block = domain.place(bytes.fromhex(code))
        with pytest.raises(execmem.EntryError, match=words) as caught:
            execmem.Hook(block, eight)
        del caught
        gc.collect()
        assert bytes(block) == bytes.fromhex(code)
        block.free()
    five = domain.place(FIVE)
    with pytest.raises(execmem.InvalidAddressError):
        execmem.Hook(five, "text")
    with pytest.raises(execmem.BoundsError):
        execmem.Hook(five, eight, offset=6)
    with pytest.raises(execmem.BoundsError):
        execmem.Hook(five, eight, before=5)
    with pytest.raises(execmem.BoundsError):
        execmem.Hook(five, eight, size=7)
    with pytest.raises(execmem.EntryError):
        execmem.Hook.prepare(five, 5)
    gc.collect()
    assert run(five) == 5
    five.free()
    eight.free()
    assert len(domain) == 0


def test_what_lies_far_is_its_own_error() -> None:
    with execmem.Domain("one") as one, execmem.Domain("two") as two:
        five, eight = one.place(FIVE), two.place(EIGHT)
        if abs(five.address - eight.address) < 1 << 32:
            pytest.skip("the windows of both domains lie side by side")
        with pytest.raises(execmem.ReachError):
            execmem.Hook(five, eight, veneer=False)
        assert bytes(five) == FIVE
        with execmem.Hook(five, eight):
            assert run(five) == 8
        assert bytes(five) == FIVE


def test_many_threads_patch_at_once(domain: execmem.Domain) -> None:
    """Each has a key, a call and a hook of its own, of code that all of them run; blocks come and go beside them."""
    five, eight = domain.place(FIVE), domain.place(EIGHT)
    shared = execmem.StaticKey()
    failed: list[BaseException] = []

    def work() -> None:
        key, block, function = execmem.StaticKey(), domain.place(asker()), domain.place(NOP5 + FIVE)
        key.add(block, [(0, 11)])
        mine = domain.place(asker())
        with execmem.StaticCall(domain) as call:
            site = caller(domain, call)
            call.add(site, [0])
            for number in range(8):
                key.set(number % 2 == 0)
                call.set((five, eight, None)[number % 3])
                with execmem.Hook(function, eight):
                    domain.place(EIGHT).free()
                    assert (run(block), run(function)) == (2 - number % 2, 8)
                assert (run(site), run(function)) == ((15, 18, 10)[number % 3], 5)
                shared.add(mine, [(0, 11)])
                shared.set(number % 2 == 0)
                shared.drop(mine)
                mine = domain.place(asker())
        assert bytes(function) == NOP5 + FIVE
        key.check()

    def tell() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(shared) == 0


# ---- with the rest ----


def test_audit_hooks_hear_of_patches(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, execmem
        domain = execmem.Domain()
        code = execmem.encode("nop", 5) + bytes.fromhex("c3")
        one, two = domain.place(code), domain.place(code)
        sys.addaudithook(lambda event, args: print(event, args[0], args[2]) if event == "execmem.patch" else None)
        key = execmem.StaticKey()
        key.add(one, [(0, 5)])
        key.enable()
        execmem.StaticCall(domain).set(None)
        hook = execmem.Hook(two, 4096)
        hook.detach()
        """
    )
    lines = ["key 1", "key True", "call None", "call None", "hook 4096", "hook None"]
    assert [" ".join(line.split()[1:]) for line in told.splitlines()] == lines


def test_the_end_of_python_leaves_patches_alone(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import execmem
        domain = execmem.Domain()
        code = execmem.encode("nop", 5) + bytes.fromhex("b805000000c3")
        one, two = domain.place(code), domain.place(code)
        key = execmem.StaticKey(enabled=True)
        key.add(one, [(0, 5)])
        call = execmem.StaticCall(domain, one)
        number = call.function("i32()")
        hook = execmem.Hook(two, one)
        spare = execmem.Hook(two)
        class Cycle: pass
        cycle = Cycle()
        cycle.me, cycle.all = cycle, (domain, key, call, number, hook, spare)
        print(number(), two.function("i32()")())
        """
    )
    assert told.split() == ["5", "5"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_child_has_its_own_patches(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import os, execmem
        domain = execmem.Domain(write_mode="syscall")
        code = execmem.encode("nop", 5) + bytes.fromhex("b801000000c3b802000000c3")
        key, block = execmem.StaticKey(), domain.place(code)
        key.add(block, [(0, 11)])
        if os.fork() == 0:
            try:
                key.enable()
            except execmem.ForkedError:
                own, mine = execmem.StaticKey(True), domain.place(code)
                own.add(mine, [(0, 11)])
                print(mine.function("i32()")(), block.function("i32()")(), key.enabled, flush=True)
            os._exit(0)
        os.wait()
        key.enable()
        print(block.function("i32()")())
        """
    )
    assert told.split() == ["2", "1", "False", "2"]


def test_every_flag_is_known() -> None:
    assert {name for name in dir(lib) if name.startswith("EXECMEM_PATCH_")} == {
        "EXECMEM_PATCH_VENEER",
        "EXECMEM_PATCH_QUIET",
    }
    assert sys.getrefcount(patch.KEPT) >= 1
    assert not patch.KEPT
