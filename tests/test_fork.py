"""Forks: what both processes run stays as it is, both go on, and what was held comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import MODES

if TYPE_CHECKING:
    from collections.abc import Callable

START = """
import os, sys, time, traceback, warnings, execmem
warnings.simplefilter("ignore", DeprecationWarning)  # some Python warns of fork beside numpy's threads

def code(number):
    return b"\\xb8" + number.to_bytes(4, "little") + b"\\xc3"  # mov eax, number; ret

def result(block):
    return block.function("u32()")()

def child(run):
    process = os.fork()
    if process == 0:
        try:
            run()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process

def wait(*processes):
    for process in processes or (-1,):
        assert os.waitpid(process, 0)[1] == 0

# The kernel gives the memory of a process back a moment after its end while somebody reads its mappings, as `ps` does.
def count_held(domain):
    deadline = time.monotonic() + 60
    while domain.stats().held_blocks and time.monotonic() < deadline:
        time.sleep(0.001)
    return domain.stats().held_blocks

def fill_when_nobody_is_left(block, code):
    deadline = time.monotonic() + 60
    while True:
        try:
            return block.fill(code)
        except execmem.ForkedError:
            assert time.monotonic() < deadline
            time.sleep(0.001)
"""

x86_64 = pytest.mark.skipif("__import__('platform').machine() != 'x86_64'", reason="the code is for x86-64")
SHARED = [mode for mode in MODES if mode not in {"procmem", "flip"}]  # modes whose packs both processes see


@x86_64
@pytest.mark.parametrize("mode", MODES)
def test_a_child_goes_on_with_what_it_inherits(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        START
        + f"""
mode, shared = {mode!r}, {mode in SHARED!r}
domain = execmem.Domain("inherited", write_mode=mode, limit="1M")
block, named, batch = domain.place(code(1)), domain.place(code(2), name="two"), domain.place_many([code(3)] * 5)
data = domain.place(b"before", kind="data")
address = execmem.execmem_alloc(6)  # of the default domain: never filled
execmem.execmem_fill(execmem.execmem_alloc(6), code(4))

def run():
    assert result(block) == 1 and result(batch[4]) == 3 and named.name == "two"
    assert domain.stats().live_blocks == 8 and block.state == "filled"
    try:
        block.fill(code(9))
    except execmem.ForkedError as error:
        assert shared and "fork" in str(error)
    else:
        assert not shared and result(block) == 9
    data.fill(b"after!")
    new = domain.place(code(10))
    assert result(new) == 10 and domain.find(new.address).size == 6
    with execmem.Domain("own", parent=domain) as own:
        assert result(own.place(code(11))) == 11
    own = execmem.execmem_alloc(6)
    execmem.execmem_fill(own, code(12))
    execmem.execmem_free(own)
    where = block.address
    block.free()
    try:
        execmem.execmem_free(where)
    except execmem.DoubleFreeError:
        pass
    else:
        raise AssertionError
    batch.free()
    domain.check()
    execmem.default_domain().check()
    assert domain.stats().live_blocks == 3 and domain.stats().held_blocks == (6 if shared else 0)
    assert domain.header()["pid"][0] == os.getpid()
    domain.close(force=True)

wait(child(run))
assert result(block) == 1 and result(batch[0]) == 3 and bytes(data) == b"before"
assert domain.stats().live_blocks == 8 and domain.stats().frees == 0
fill_when_nobody_is_left(block, code(21))
assert result(block) == 21
batch.free()
domain.check()
print(count_held(domain))
"""
    )
    assert told == "0"


@x86_64
@pytest.mark.parametrize("mode", SHARED)
def test_a_parent_holds_what_a_child_may_run_until_it_ends(run_child: Callable[..., str], mode: str) -> None:
    told = run_child(
        START
        + f"""
domain = execmem.Domain("parent", write_mode={mode!r})
block, other, empty = domain.place(code(1)), domain.place(code(2)), domain.alloc(6)
address, function = block.address, block.function("u32()")
ready, go = os.pipe(), os.pipe()

def run():
    os.closerange(3, ready[1])  # as daemons do: what counts is memory, not descriptors
    os.closerange(go[1] + 1, 100)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    print(function(), result(other), end=" ")

process = child(run)
os.read(ready[0], 1)
empty.fill(code(3))  # nobody can run what holds traps
assert result(empty) == 3
try:
    other.fill(code(9))
except execmem.ForkedError as error:
    assert "child" in str(error)
else:
    raise AssertionError
del function
block.free()
new = [domain.place(code(5)) for _ in range(100)]
assert address not in [each.address for each in new]
assert bytes(memory := (__import__("ctypes").c_char * 6).from_address(address)) == code(1)
assert domain.stats().held_blocks == 1
domain.check()
os.write(go[1], b"x")
wait(process)
assert count_held(domain) == 0
assert bytes(memory) == b"\\xcc" * 6
other.fill(code(9))
domain.check()
print(result(other))
"""
    )
    assert told == "1 2 9"


@x86_64
def test_each_of_several_children_and_grandchildren_counts(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
domain = execmem.Domain("tree")
blocks = [domain.place(code(number)) for number in range(20)]
gate, done = os.pipe(), os.pipe()
processes = []

def grandchild():
    os.read(gate[0], 1)
    assert [result(block) for block in blocks] == list(range(20))
    domain.place(code(77))
    domain.check()

def run():
    inner = child(grandchild)
    mine = [domain.place(code(1000 + number)) for number in range(10)]
    blocks[3].free()  # this process's books alone
    processes.append(child(lambda: mine and result(mine[4]) == 1004 or sys.exit(1)))
    os.read(gate[0], 1)
    os.write(done[1], b"x")
    wait(inner, processes[-1])

children = [child(run) for _ in range(8)]
for block in blocks:
    assert result(block) == block.size - 6 + blocks.index(block)
held = blocks[5:15]
del blocks[5:15], block
while held:
    held.pop().free()
assert (domain.stats().held_blocks, domain.stats().held_bytes) == (10, 640)
blocks[5:5] = [domain.place(code(number)) for number in range(5, 15)]
os.write(gate[1], b"x" * 16)
wait(*children)
assert count_held(domain) == 0
domain.check()
print(len(os.read(done[0], 100)), len(domain))
"""
    )
    assert told == "8 20"


@x86_64
def test_a_program_that_is_executed_sees_nothing(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
import subprocess
domain = execmem.Domain("kept")
block = domain.place(code(1))
process = child(lambda: os.execv("/bin/sleep", ["sleep", "30"]))
while os.readlink(f"/proc/{process}/exe").endswith("sleep") is False:
    pass
fill_when_nobody_is_left(block, code(2))  # the kernel gives the old memory back a moment after the link has changed
assert result(block) == 2 and count_held(domain) == 0
os.kill(process, 9)
os.waitpid(process, 0)
names = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True).stdout
assert "execmem" not in names
print(subprocess.run(["/bin/true"], preexec_fn=lambda: result(block), check=True).returncode)
"""
    )
    assert told == "0"


@x86_64
def test_a_fork_within_a_callback_of_placed_code(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
import ctypes
domain = execmem.Domain("callbacks")
seen = []

@ctypes.CFUNCTYPE(ctypes.c_int)
def callback():
    process = os.fork()
    if process == 0:
        return 5
    wait(process)
    return 6

target = ctypes.cast(callback, ctypes.c_void_p).value
block = domain.place(b"\\x48\\xb8" + target.to_bytes(8, "little") + b"\\xff\\xe0")  # mov rax, target; jmp rax
value = result(block)
domain.check()
assert result(domain.place(code(value))) == value
if value == 5:
    os._exit(0)
block.free()
print(value, count_held(domain))
"""
    )
    assert told == "6 0"


@x86_64
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_of_multiprocessing(tmp_path: object, run_child: Callable[..., str], method: str) -> None:
    told = run_child(
        START
        + f"""
import multiprocessing, types
# What a child imports must be in a module.
path = {str(tmp_path)!r} + "/worker.py"
with open(path, "w") as file:
    file.write('''
import execmem
def work(number):
    code = bytes([0xb8]) + number.to_bytes(4, "little") + bytes([0xc3])
    domain = execmem.default_domain()
    blocks = [domain.place(code) for _ in range(50)]
    values = [block.function("u32()")() for block in blocks]
    domain.check()
    return set(values) == {{number}}
''')
sys.path.insert(0, {str(tmp_path)!r})
import worker
kept = execmem.default_domain().place(code(1))
with multiprocessing.get_context({method!r}).Pool(3) as pool:
    answers = pool.map(worker.work, range(40))
    pool.close()
    pool.join()
assert all(answers) and result(kept) == 1
kept.free()
execmem.default_domain().check()
print(len(answers), count_held(execmem.default_domain()))
"""
    )
    assert told == "40 0"


@x86_64
def test_eight_workers_that_come_and_go_like_a_servers(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
import random
domain = execmem.Domain("server")
common = [domain.place(code(number)) for number in range(200)]

def serve():
    random.seed(os.getpid())
    mine = []
    for request in range(30):
        number = random.randrange(200)
        assert result(common[number]) == number
        mine.append(domain.place(code(10_000 + request)))
        assert result(random.choice(mine)) >= 10_000
        if random.random() < 0.5:
            mine.pop(0).free()
    domain.check()

workers = {child(serve) for _ in range(8)}
for turn in range(40):  # a worker ends, another takes its place; meanwhile the parent changes code
    process, status = os.wait()
    assert status == 0
    workers.remove(process)
    number = turn * 5
    common[number].free()
    common[number] = domain.place(code(number))
    workers.add(child(serve))
wait(*workers)
assert [result(block) for block in common] == list(range(200)) and count_held(domain) == 0
domain.check()
stats = domain.stats()
print(stats.live_blocks, stats.packs)
"""
    )
    assert told == "200 1"


def test_calls_of_threads_that_a_child_does_not_have_hold_nothing_there(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
import threading
domain = execmem.Domain("calls", write_mode="procmem")
block, data, go_on = domain.alloc(1 << 20), b"\\x90" * (1 << 20), True

def fill():
    while go_on:
        block.fill(data)

def run():
    block.free()
    domain.close()

thread = threading.Thread(target=fill)
thread.start()
for _ in range(10):
    wait(child(run))
go_on = False
thread.join()
print(len(domain))
"""
    )
    assert told == "1"


def test_a_child_without_memory_for_the_books_says_so(run_child: Callable[..., str]) -> None:
    told = run_child(
        START
        + """
from execmem._core import ffi, lib
root = execmem.default_domain()
domain = execmem.Domain("poor")
block = domain.place(b"kept")

def run():
    lib.execmem_test_script(ffi.NULL)
    child_of = lambda: execmem.Domain(parent=domain)
    for use in (lambda: domain.place(b"x"), domain.stats, block.free, child_of, domain.close):
        try:
            use()
        except execmem.ForkedError as error:
            assert "could not be" in str(error)
        else:
            raise AssertionError
    assert bytes(block) == b"kept" and block.state == "frozen"
    assert execmem.default_domain() is not root
    with execmem.Domain("own") as own:
        own.place(b"x")
        own.check()

lib.execmem_test_script(b"memfd=.F*")  # a witness can be had, no copy of a ledger
process = child(run)
lib.execmem_test_script(ffi.NULL)
wait(process)
block.free()
domain.check()
print(count_held(domain))
"""
    )
    assert told == "0"
