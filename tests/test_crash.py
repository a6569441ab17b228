"""Crimes: one tiny program each, with its exact end, and what the reporter says of it; docs/crashes.md has the table.

Who is called before and after the reporter, and what it may not wait for, is in tests/c/test_report.c.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import needs_x86

import execmem

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_x86

PRELUDE: Final = """
RET = bytes.fromhex("c3")
ADD7 = bytes.fromhex("488d4707c3")  # lea rax, [rdi + 7]; ret

def call(address):
    ctypes.CFUNCTYPE(None)(address)()

domain = execmem.Domain("crimes", write_mode=mode)
block = domain.place(ADD7, name="add7")
address = block.address
"""
TELL: Final = "\nexecmem.report_faults()\n"

# Forks a child for each crime, so that Python starts once; the child opens its own domain.
SCENE: Final = """
import ctypes, faulthandler, json, os, resource, signal, sys, threading, time, traceback
import execmem

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for line in sys.stdin:
    source, mode, out, told = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # whoever hangs ends with SIGALRM
        for path, descriptor in ((out, 1), (told, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        try:
            exec(source)
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class End:
    """How a program ended: its return code as subprocess gives it, what it wrote to stdout, and to stderr."""

    code: int
    out: str
    told: str


class Scene:
    """Where crimes are committed."""

    def __init__(self, folder: Path) -> None:
        self.paths = [str(folder / name) for name in ("out", "told")]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SCENE],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # no threads that a fork would lose
            cwd=Path(execmem.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def commit(self, source: str, *, tell: bool = True, mode: str | None = None) -> End:
        """Run a crime in a child of its own."""
        assert self.process.stdin
        assert self.process.stdout
        program = PRELUDE + TELL * tell + textwrap.dedent(source)
        self.process.stdin.write(json.dumps([program, mode, *self.paths]) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return End(code, *(Path(path).read_text(encoding="utf-8") for path in self.paths))

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("crimes"))
    yield scene
    scene.close()


def expect_told(end: End, *parts: str) -> None:
    """All parts, as regular expressions, are told one after the other."""
    assert re.search(".*".join(parts), end.told, re.DOTALL), end.told


FREED: Final = "there: free memory; it used to be"
AGE: Final = r"freed \d+ ms ago \(\d+ ms after its domain opened\)"
DOMAIN: Final = r'domain "crimes" \(2\), kind text'

# Program, how it ends, and what is told of it.
CRIMES: Final[dict[str, tuple[str, signal.Signals, tuple[str, ...]]]] = {
    "call_freed": (
        "block.free(); call(address)",
        signal.SIGTRAP,
        (
            r"SIGTRAP: thread \d+ ran 0x",
            FREED,
            'block "add7", 5 bytes at',
            "0 bytes into it",
            AGE,
            DOMAIN,
            "outlived its block",
        ),
    ),
    "call_freed_unnamed": (
        "b = domain.place(RET); a = b.address; b.free(); call(a)",
        signal.SIGTRAP,
        (FREED, "block without a known name, 1 byte at", AGE, DOMAIN),
    ),
    "call_freed_of_a_batch": (
        "b = domain.place_many([RET] * 9, names=[f'part {i}' for i in range(9)]); a = b[4].address; b.free(); call(a)",
        signal.SIGTRAP,
        (FREED, 'block "part 4", 1 byte at', "0 bytes into it", AGE),
    ),
    "call_freed_twice_over": (  # the last one that lay there is told
        "block.free(); b = domain.place(RET, name='later'); assert b.address == address; b.free(); call(address)",
        signal.SIGTRAP,
        (FREED, 'block "later", 1 byte at', AGE),
    ),
    "call_into_freed": (
        "b = domain.place(RET * 1000, name='long'); a = b.address; b.free(); call(a + 700)",
        signal.SIGTRAP,
        (FREED, 'block "long", 1000 bytes at', "700 bytes into it", AGE),
    ),
    "call_free_middle": (
        "call(address + 64 * 20 + 32)",
        signal.SIGTRAP,
        ("there: free memory, never given out", DOMAIN, "a wrong address or offset was called"),
    ),
    "call_reserved": (
        "b = domain.alloc(100, name='empty'); call(b.address + 16)",
        signal.SIGTRAP,
        (
            'there: reserved, never filled: block "empty", 100 bytes at',
            "16 bytes into it",
            DOMAIN,
            "called before it was filled",
        ),
    ),
    "run_past_end": (
        "b = domain.place(bytes.fromhex('9090'), name='no return'); call(b.address)",
        signal.SIGTRAP,
        ('there: live block "no return", 2 bytes at', "0 bytes past its end", DOMAIN, "ran past its end"),
    ),
    "call_rodata": (
        "b = domain.place(ADD7, kind='rodata', name='table'); call(b.address)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ ran", 'live block "table"', "kind rodata", "cannot be executed"),
    ),
    "call_data": (
        "b = domain.place(ADD7, kind='data', name='counters'); call(b.address + 2)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ ran", 'live block "counters"', "2 bytes into it", "kind data", "cannot be executed"),
    ),
    "write_code": (
        "ctypes.memset(address + 3, 0x90, 1)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ wrote to", 'live block "add7"', "3 bytes into it", "never writable", "execmem_fill"),
    ),
    "write_free_code": (
        "block.free(); ctypes.memset(address, 0x90, 1)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ wrote to", FREED, 'block "add7"', "never writable", "execmem_fill"),
    ),
    "write_rodata": (
        "b = domain.place(ADD7, kind='rodata'); ctypes.memset(b.address, 0, 1)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ wrote to", "kind rodata", "never writable"),
    ),
    "code_writes_code": (
        """
        store = domain.place(bytes.fromhex("c60700c3"), name="store")  # mov byte [rdi], 0; ret
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(store.address)(address + 1)
        """,
        signal.SIGSEGV,
        (
            r"wrote to 0x",
            'block "add7"',
            "1 byte into it",
            "never writable",
            "did so by placed code at",
            'live block "store"',
        ),
    ),
    "code_touches_others": (
        """
        load = domain.place(bytes.fromhex("8b07c3"), name="load")  # mov eax, [rdi]; ret
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(load.address)(16)
        """,
        signal.SIGSEGV,
        ("with memory of somebody else, 0x10, by placed code at", 'live block "load"', "the code itself is wrong"),
    ),
    "code_is_privileged": (
        "b = domain.place(bytes.fromhex('f4c3'), name='halt'); call(b.address)  # hlt",
        signal.SIGSEGV,
        ("ran an instruction that may not do what it did", 'live block "halt"'),
    ),
    "code_of_another_cpu": (
        "b = domain.place(bytes.fromhex('0f0bc3'), name='foreign'); call(b.address)  # ud2",
        signal.SIGILL,
        (r"SIGILL: thread \d+ ran", 'live block "foreign"', "another CPU"),
    ),
    "code_has_a_breakpoint": (
        "b = domain.place(bytes.fromhex('90ccc3'), name='stop'); call(b.address)",
        signal.SIGTRAP,
        ('live block "stop"', "1 byte into it", "breakpoint or a trap of its own"),
    ),
    "call_reserved_addresses": (
        "call(address + (64 << 20))",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ ran", "no memory: reserved addresses, never given out"),
    ),
    "read_reserved_addresses": (
        "ctypes.string_at(address + (64 << 20), 1)",
        signal.SIGSEGV,
        (r"SIGSEGV: thread \d+ read", "no memory: reserved addresses, never given out", "a wrong address"),
    ),
    "call_returned_pack": (
        "b = domain.place(RET * (5 << 20), name='large'); a = b.address; b.free(); call(a + (3 << 20))",
        signal.SIGSEGV,
        (
            "reserved addresses of a pack that went back",
            'block "large", 5242880 bytes at',
            "3145728 bytes into it",
            AGE,
        ),
    ),
    "call_inside_large": (
        "b = domain.place(b'\\xcc' * (5 << 20), name='large'); call(b.address + (3 << 20))",
        signal.SIGTRAP,
        ('live block "large", 5242880 bytes at', "3145728 bytes into it"),
    ),
    "call_closed_domain": (
        "domain.close(force=True); call(address)",
        signal.SIGSEGV,
        (
            "went back to the system when their domain was closed, ",
            r"\d+ ms ago",
            r'domain "crimes" \(2\)',
            "outlived the domain",
        ),
    ),
    "call_freed_in_thread": (
        "block.free(); t = threading.Thread(target=call, args=(address,)); t.start(); t.join()",
        signal.SIGTRAP,
        (FREED, 'block "add7"', AGE),
    ),
    "call_freed_by_another_thread": (  # its events are in a ring of its own
        """
        freed = []

        def place_and_free():
            block = domain.place(RET, name="of the thread")
            freed.append(block.address)
            block.free()

        t = threading.Thread(target=place_and_free)
        t.start()
        t.join()
        assert domain.header()["shards"][0] == 2
        call(freed[0])
        """,
        signal.SIGTRAP,
        (FREED, 'block "of the thread", 1 byte at', AGE),
    ),
    "run_past_end_of_retired": (
        """
        with execmem.online():
            b = domain.place(bytes.fromhex("9090"), name="replaced")
            b.retire()
            call(b.address)
        """,
        signal.SIGTRAP,
        ('there: retired block "replaced", 2 bytes at', "0 bytes past its end", DOMAIN, "ran past its end"),
    ),
    "call_freed_after_retiring": (
        """
        with execmem.online():
            block.retire()
            call(address)
        execmem.retire_wait()
        call(address)
        """,
        signal.SIGTRAP,
        (FREED, 'block "add7", 5 bytes at', AGE),
    ),
    "free_while_running": (
        """
        spin = domain.place(bytes.fromhex("ebfe"), name="spin")  # jmp to itself
        runner = threading.Thread(target=call, args=(spin.address,), daemon=True)
        runner.start()
        time.sleep(0.1)
        spin.free()
        runner.join()
        """,
        signal.SIGTRAP,
        (FREED, 'block "spin", 2 bytes at', "0 bytes into it", AGE),
    ),
    "call_quarantined": (
        """
        q = execmem.Domain("waits", quarantine="64K")
        b = q.place(RET, name="waiting")
        a = b.address
        b.free()
        call(a)
        """,
        signal.SIGTRAP,
        ("there: free memory in quarantine; it used to be", 'block "waiting", 1 byte at', AGE, "outlived its block"),
    ),
    "write_sealed": (
        "domain.seal(); ctypes.memset(address, 0x90, 1)",
        signal.SIGSEGV,
        (r"wrote to", 'live block "add7"', DOMAIN + ", sealed", "the domain is sealed"),
    ),
    "name_of_any_bytes": (  # C1 as a byte and in UTF-8, a mark that turns the writing, and a character that is cut
        """
        ffi = execmem._core.ffi
        bad = "9b316d" "c29b" "e280ae" "ed9fbf" "eda080"  # CSI, U+009B, U+202E, U+D7FF, half a pair
        name = bytes.fromhex("c3a9e282ac" + bad) + b"d" * 44 + bytes.fromhex("e282ac")
        out = ffi.new("void **")
        ret = ffi.new("char[]", RET)
        assert execmem._core.lib.execmem_place(ffi.cast("void *", domain._word), 0, ret, 1, 16, name, out) == 0
        execmem.execmem_free(int(ffi.cast("size_t", out[0])))
        call(int(ffi.cast("size_t", out[0])))
        """,
        signal.SIGTRAP,
        ('block "\u00e9\u20ac\\?1m\\?{5}\ud7ff\\?{3}d{44}\\.\\.\\.", 1 byte',),
    ),
    "name_with_escapes": (
        "b = domain.place(RET, name='a\\x1b[2Jb\\n\\x7f' + 'c' * 200); a = b.address; b.free(); call(a)",
        signal.SIGTRAP,
        (r'block "a\?\[2Jb\?\?c+\.\.\.", 1 byte',),
    ),
}


@pytest.mark.parametrize("crime", CRIMES)
def test_a_crime_has_its_end_and_is_told(scene: Scene, crime: str) -> None:
    source, expected, parts = CRIMES[crime]
    end = scene.commit(source)
    assert end.code == -expected, end.told
    expect_told(end, "^execmem: ", *parts)
    assert end.told.count("usually:") <= 1
    assert all(line.startswith("execmem: ") for line in end.told.splitlines())


@pytest.mark.parametrize(
    "crime", ["call_freed", "call_reserved", "write_code", "code_of_another_cpu", "call_closed_domain"]
)
def test_the_end_is_the_same_untold(scene: Scene, crime: str) -> None:
    source, expected, _ = CRIMES[crime]
    assert scene.commit(source, tell=False) == End(-expected, "", "")
    assert scene.commit("execmem.report_faults(on=False)\n" + textwrap.dedent(source)) == End(-expected, "", "")


@pytest.mark.parametrize("crime", ["call_freed", "write_code"])
def test_a_crime_ends_alike_in_every_mode(scene: Scene, crime: str, mode: str) -> None:
    source, expected, parts = CRIMES[crime]
    end = scene.commit(source, mode=mode)
    assert end.code == -expected, end.told
    expect_told(end, *parts)


# ---- what is refused, and changes nothing ----

REFUSED: Final[dict[str, tuple[str, str]]] = {
    "fill_past_end": ("block.fill(bytes(6))", "BoundsError"),
    "fill_address_past_end": ("execmem.execmem_fill(address + 3, bytes(3))", "BoundsError"),
    "free_twice": ("block.free(); block.free()", "DoubleFreeError"),
    "free_address_twice": ("block.free(); execmem.execmem_free(address)", "DoubleFreeError"),
    "free_inner": ("execmem.execmem_free(address + 1)", "InteriorAddressError"),
    "free_foreign": ("execmem.execmem_free(id(domain))", "InvalidAddressError"),
    "free_stack": (
        "v = ctypes.create_string_buffer(9); execmem.execmem_free(ctypes.addressof(v))",
        "InvalidAddressError",
    ),
    "free_null": ("execmem.execmem_free(0)", "InvalidAddressError"),
    "free_never_given_out": ("execmem.execmem_free(address + 64 * 20)", "DoubleFreeError"),
    "fill_freed": ("block.free(); execmem.execmem_fill(address, RET)", "FreedAddressError"),
    "place_in_closed": ("domain.close(force=True); domain.place(RET)", "ClosedError"),
    "free_in_closed": ("domain.close(force=True); block.free()", "ClosedError"),
    "fill_in_closed": ("domain.close(force=True); block.fill(RET)", "ClosedError"),
    "free_address_in_closed": ("domain.close(force=True); execmem.execmem_free(address)", "InvalidAddressError"),
}


@pytest.mark.parametrize("crime", REFUSED)
def test_a_refused_crime_changes_nothing(scene: Scene, crime: str) -> None:
    source, error = REFUSED[crime]
    end = scene.commit(
        f"""
        other = domain.place(ADD7, name="other")
        try:
            {source}
        except execmem.ExecmemError as error:
            print(type(error).__name__)
        if not domain.closed:
            domain.check()
            assert bytes(other) == ADD7
            lives = block.state == "filled"
            assert len(domain) == 1 + lives
            assert not lives or bytes(block) == ADD7
        """
    )
    assert end == End(0, error + "\n", "")


def test_of_threads_that_free_the_same_block_one_does(scene: Scene) -> None:
    end = scene.commit(
        """
        def free(address, ends):
            try:
                execmem.execmem_free(address)
                ends.append("freed")
            except execmem.DoubleFreeError:
                ends.append("refused")

        for _ in range(50):
            address, ends = execmem.execmem_alloc(64), []
            threads = [threading.Thread(target=free, args=(address, ends)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(ends) == ["freed", "refused", "refused", "refused"], ends
        execmem.default_domain().check()
        """
    )
    assert end == End(0, "", "")


# ---- beside others who handle faults ----


@pytest.mark.parametrize("crime", ["write_code", "code_of_another_cpu"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_faulthandler_tells_too(scene: Scene, crime: str, order: str) -> None:
    source, expected, parts = CRIMES[crime]
    enable = "faulthandler.enable()\n"
    both = enable + TELL if order == "before" else TELL + enable
    end = scene.commit(both + textwrap.dedent(source), tell=False)
    assert end.code == -expected, end.told
    expect_told(end, *parts)
    expect_told(end, "Fatal Python error: ", "most recent call first")
    assert (end.told.index("execmem: ") < end.told.index("Fatal Python error")) is (order == "before")


def test_faulthandler_tells_of_other_faults_alone(scene: Scene) -> None:
    end = scene.commit("faulthandler.enable(); ctypes.string_at(16, 1)")
    assert end.code == -signal.SIGSEGV
    assert "Fatal Python error" in end.told
    assert "execmem" not in end.told.replace("execmem._core", "")  # the list of modules names it


def test_a_fault_in_a_forked_child_is_told_there(scene: Scene) -> None:
    end = scene.commit(
        """
        block.free()
        child = os.fork()
        if child == 0:
            call(address)
        ended = os.waitpid(child, 0)[1]
        own = execmem.Domain("of the parent").place(ADD7)
        print(signal.Signals(os.WTERMSIG(ended)).name, own.state)
        """
    )
    assert (end.code, end.out) == (0, "SIGTRAP filled\n")
    expect_told(end, FREED, 'block "add7"', AGE)


def test_a_fault_in_a_childs_own_domain_is_told(scene: Scene) -> None:
    end = scene.commit(
        """
        child = os.fork()
        if child == 0:
            block = execmem.Domain("of the child").place(ADD7, name="child's")
            address = block.address
            block.free()
            call(address)
        print(signal.Signals(os.WTERMSIG(os.waitpid(child, 0)[1])).name)
        """
    )
    assert (end.code, end.out) == (0, "SIGTRAP\n")
    expect_told(end, FREED, '''block "child's"''', AGE, 'domain "of the child"')
    assert "forked" not in end.told


def test_what_is_the_parents_is_told(scene: Scene) -> None:
    end = scene.commit(
        """
        shared = execmem.Domain("shared", write_mode="syscall")
        code, empty = shared.place(ADD7, name="placed"), shared.alloc(64, name="empty")
        held = shared.place(ADD7, name="held")
        addresses = [code.address, held.address]
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            ctypes.memset(addresses[0], 0, 1)
        print(signal.Signals(os.WTERMSIG(os.waitpid(child, 0)[1])).name, flush=True)
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        held.free()
        ctypes.memset(addresses[1], 0, 1)
        """
    )
    assert (end.code, end.out) == (-signal.SIGSEGV, "SIGSEGV\n")
    expect_told(end, 'live block "placed"', "memory of the parent process", "here it cannot be written at all")
    expect_told(end, "freed memory that a forked process may run; it used to be block", '"held"', "never writable")


def test_other_faults_are_passed_on_without_a_word(scene: Scene) -> None:
    assert scene.commit("ctypes.string_at(16, 1)") == End(-signal.SIGSEGV, "", "")
    assert scene.commit("signal.raise_signal(signal.SIGTRAP)") == End(-signal.SIGTRAP, "", "")
    end = scene.commit(  # a breakpoint in memory of somebody else
        """
        import mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        page.write(bytes.fromhex("ccc3"))
        start = ctypes.addressof(ctypes.c_char.from_buffer(page))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), 4096, 5) == 0
        call(start)
        """
    )
    assert end == End(-signal.SIGTRAP, "", "")


def test_python_handlers_are_put_back(scene: Scene) -> None:
    end = scene.commit(
        """
        signal.signal(signal.SIGTRAP, lambda *_: print("handled"))
        for _ in range(2):
            execmem.report_faults()
            execmem.report_faults(on=False)
            os.kill(os.getpid(), signal.SIGTRAP)
        """,
        tell=False,
    )
    assert end == End(0, "handled\nhandled\n", "")
