"""What all tests share: a watch over this process's mappings, domains checked at their end, child processes."""

from __future__ import annotations

import contextlib
import os
import platform
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import execmem
from execmem._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADD7 = bytes.fromhex("488d4707c3")  # lea rax, [rdi + 7]; ret
TRAP = 0xCC
SHORT = "EXECMEM_TEST_SHORT" in os.environ  # asked of tests in slow builds
PACK = 2 << 20
LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) (.{4}) ([0-9a-f]+) \S+ (\d+) +/memfd:execmem \(deleted\)$", re.MULTILINE)
WRITABLE_CODE = re.compile(rb"^\S+ .wx.*$", re.MULTILINE)


def find_modes() -> tuple[tuple[str, ...], str]:
    """Return the write modes that tests go through; and why pkey, which needs a CPU that has it, is not one of them."""
    every = ("syscall", "alias", "procmem", "flip")
    try:
        execmem.probe("pkey")
    except execmem.UnsupportedError as error:
        return every, f"not pkey (`make test-pkey` emulates a CPU that has it): {error}"
    return (*every, "pkey"), ""


MODES, LEFT_OUT = find_modes()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of who runs tests in the background; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Tell which write modes are tested on this host, and which not."""
    return f"write modes: {', '.join(MODES)}; {LEFT_OUT}".rstrip("; ")


needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the bytes are x86-64 machine code")


def find_writable_code(maps: bytes) -> list[str]:
    """Return the lines of mappings that can be written and executed."""
    return [line.decode() for line in WRITABLE_CODE.findall(maps)]


def find_writable_views(maps: bytes, windows: dict[int, int]) -> list[str]:
    """Return writable mappings of code in one of the windows (start: size), whose domains are of mode syscall."""
    code: list[tuple[int, bytes]] = []
    writable: list[tuple[int, int, bytes]] = []
    for first, last, protection, offset, inode in LINE.findall(maps):
        start, end, at = int(first, 16), int(last, 16), int(offset, 16)
        if b"w" in protection:
            writable.append((at, at + end - start, inode))
        elif b"x" in protection and any(window <= start < window + size for window, size in windows.items()):
            code += [(place, inode) for place in range(at, at + end - start, 4096)]
    return [
        f"file {inode.decode()} is writable at {start:#x}..{end:#x} and executable at {place:#x}"
        for start, end, inode in writable
        for place, other in code
        if inode == other and start <= place < end
    ]


class Watch(threading.Thread):
    """Reads the list of mappings again and again and keeps what must never be seen."""

    def __init__(self, pause: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.windows: dict[int, int] = {}
        self.seen: list[str] = []
        self.readings = 0
        self._pause = pause
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(self._pause):
            maps = Path("/proc/self/maps").read_bytes()
            self.seen += find_writable_code(maps)
            # Copied after the mappings were read: a window handed on meanwhile is not in it any more.
            self.seen += find_writable_views(maps, self.windows.copy())
            self.readings += 1

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@pytest.fixture(scope="session", autouse=True)
def watch() -> Iterator[Watch]:
    """Fail the run at its end when a mapping was ever writable and executable, or code of mode syscall writable."""
    watch = Watch(pause=0.01)
    take = execmem.Domain._take

    def take_and_tell(domain: execmem.Domain, *arguments: object) -> None:
        take(domain, *arguments)  # type: ignore[arg-type]
        header = domain._header
        start, end = header.window, header.window + header.packs_max * PACK
        # The kernel may give the addresses of a domain that was closed to one of another mode.
        for other, size in list(watch.windows.items()):
            if other < end and start < other + size:
                del watch.windows[other]
        if domain.write_mode == "syscall":
            watch.windows[start] = end - start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execmem.Domain, "_take", take_and_tell)
        watch.start()
        yield watch
        watch.stop()
    assert watch.readings
    assert not watch.seen


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Each write mode that works here."""
    name: str = request.param
    try:
        execmem.probe(name)
    except execmem.ExecmemError as error:
        pytest.skip(f"write mode {name}: {error}")
    return name


@pytest.fixture
def domain() -> Iterator[execmem.Domain]:
    """Open a domain that is lawful at the end of the test."""
    domain = execmem.Domain("test")
    yield domain
    if not domain.closed:
        domain.check()
        domain.close(force=True)


@pytest.fixture
def script() -> Iterator[Callable[[str], None]]:
    """Return a function that makes chosen system calls fail for the rest of the test."""

    def start(text: str) -> None:
        lib.execmem_test_script(text.encode())

    yield start
    lib.execmem_test_script(ffi.NULL)


@pytest.fixture(scope="session")
def run_child() -> Callable[..., str]:
    """Return a function that runs a program in a Python of its own and returns what it printed; it must end well."""

    def run(source: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
            env={**os.environ, **environment},
            cwd=Path(execmem.__file__).parents[1],  # where this process found the package
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout.strip()

    return run


@contextlib.contextmanager
def on_terminal(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command on a terminal; give it and the terminal's other end. It does not outlive a test that fails."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as shown:
        os.close(terminal)
        try:
            yield shown, main
        finally:
            shown.kill()
            os.close(main)


def read_until(descriptor: int, mark: bytes) -> bytes:
    """Return what a terminal showed up to a mark; it must come within a minute."""
    shown, end = b"", time.monotonic() + 60
    while mark not in shown:
        left = end - time.monotonic()
        assert left > 0, shown
        assert select.select([descriptor], [], [], left)[0], shown
        shown += os.read(descriptor, 65536)
    return shown
