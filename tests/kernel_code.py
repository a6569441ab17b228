"""Code in the running kernel, for tests: programs, classic filters, secret memory; and a process without rights.

python tests/kernel_code.py 5      loads and unloads 5 programs, for whoever watches
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

from execmem.directmap import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
SOCKET_FILTER: Final = 1
PROG_LOAD: Final = 5
SO_ATTACH_FILTER: Final = 26
MINE: Final = f"em{os.getpid():x}"  # begins names of programs, with a letter that is no digit: another run has its own
SECRET: Final = 447  # the number of memfd_secret, on every CPU


def have(read: Callable[[], T]) -> T:
    """Return what a source tells, or skip the test with why it tells nothing."""
    try:
        return read()
    except source.NotAvailable as error:
        pytest.skip(str(error))


ONE: Final = struct.pack("<BBhi", 0xB7, 0, 0, 1)  # r0 = 1
ADD: Final = struct.pack("<BBhi", 0x07, 0, 0, 1)  # r0 += 1
EXIT: Final = struct.pack("<BBhi", 0x95, 0, 0, 0)
CALL_NEXT: Final = struct.pack("<BBhi", 0x85, 1 << 4, 0, 1)  # what follows the instruction after this one


def load_program(length: int, name: str) -> int:
    """Load a socket filter of so many instructions and return its file."""
    return load_code(ONE + ADD * length + EXIT, name)


def load_functions(count: int, name: str) -> int:
    """Load a program of so many functions, each of which calls the next."""
    return load_code((CALL_NEXT + EXIT) * (count - 1) + ONE + EXIT, name)


def load_code(code: bytes, name: str) -> int:
    """Load a socket filter."""
    text, license_text = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    fields = (SOCKET_FILTER, len(code) // 8, ctypes.addressof(text), ctypes.addressof(license_text))
    packed = struct.pack("<IIQQIIQII16s", *fields, 0, 0, 0, 0, 0, name.encode())
    return source.bpf(PROG_LOAD, ctypes.create_string_buffer(packed, 128))


@contextlib.contextmanager
def programs(count: int, prefix: str) -> Iterator[list[str]]:
    """Keep programs of many lengths loaded; give their names."""
    names = [f"{prefix}{number}" for number in range(count)]
    files = []
    try:
        files += [load_program(1 + number % 200, name) for number, name in enumerate(names)]
        yield names
    finally:
        for file in files:
            os.close(file)


@contextlib.contextmanager
def classic_filters(count: int) -> Iterator[None]:
    """Keep sockets with a classic filter each."""
    code = struct.pack("<HBBI", 0x06, 0, 0, 0xFFFF)  # take everything
    text = ctypes.create_string_buffer(code, len(code))
    with contextlib.ExitStack() as undo:
        for _ in range(count):
            one = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("<HxxxxxxQ", 1, ctypes.addressof(text)))
        yield


def secret_memory(pages: int) -> tuple[int, int]:
    """Return a file of secret memory and its size; skip where there is none."""
    file = source.LIBC.syscall(ctypes.c_long(SECRET), 0)
    if file < 0:
        pytest.skip(f"no memfd_secret: {os.strerror(ctypes.get_errno())} (boot with secretmem.enable=1)")
    os.ftruncate(file, pages * 4096)
    return file, pages * 4096


NOBODY: Final = """
import ctypes, json, os, sys
from pathlib import Path
from execmem.directmap import perf, region, source
try:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
except PermissionError:
    sys.exit(77)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # it may look at itself
"""


def as_nobody(code: str) -> Any:
    """Run Python code as a user without rights, with the modules there; return what it leaves in `result`."""
    if os.getuid():
        pytest.skip("not root: cannot become another user")
    program = NOBODY + textwrap.dedent(code) + "\nprint(json.dumps(result))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip("root may not become another user here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the direct map of x86-64 Linux"
)

if __name__ == "__main__":
    with programs(int(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "watched"):
        pass
