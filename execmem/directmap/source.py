"""source: what the running kernel tells about the direct map and the executable memory in it.

    file or call          what                                            who may
    /proc/meminfo         how much is mapped by 4 KB, 2 MB, 1 GB pages    anybody
    /proc/vmstat          splits and joins since boot                     anybody
    /proc/buddyinfo       free memory by size                             anybody
    /proc/sys/net/core    how much code BPF may have                      root
    /proc/vmallocinfo     areas of kernel memory, by who asked for them   root
    bpf()                 programs that live                              CAP_SYS_ADMIN
    /proc/PID/smaps       2 MB pages of a process's code                  its user
    PAGEMAP_SCAN          the same, asked of the page tables              its user

Each reader returns a frozen value or raises `NotAvailable`, which says why and what to do: nothing that could not be
read is ever zero, a single number that this kernel does not have is None. Readers of files take the root of the file
system they read, so that copies of another machine's files can be read too. `SOURCES` has them all, with their costs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

# ---- what is missing, and how the kernel is asked ----


class NotAvailable(Exception):  # noqa: N818 - an answer, not a mistake
    """A source cannot be read here: `why`, and `remedy`, what to do about it.

    >>> str(NotAvailable("/proc/kcore is missing", "none: this kernel is built without it"))
    'not available: /proc/kcore is missing; none: this kernel is built without it'
    """

    def __init__(self, why: str, remedy: str) -> None:
        """Keep both; the text of the exception has them in one line."""
        super().__init__(f"not available: {why}; {remedy}")
        self.why = why
        self.remedy = remedy


BPF, PERF_EVENT_OPEN = "bpf", "perf_event_open"
NUMBERS: Final = {
    "x86_64": {BPF: 321, PERF_EVENT_OPEN: 298},
    "aarch64": {BPF: 280, PERF_EVENT_OPEN: 241},
    "riscv64": {BPF: 280, PERF_EVENT_OPEN: 241},
}
LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def system_call(name: str, *arguments: int) -> int:
    """Make a system call that Python has no function for; an error is an OSError. 2 us.

    On a CPU whose numbers are not known here nothing is called: NotAvailable.
    """
    machine = platform.machine()
    number = NUMBERS.get(machine, {}).get(name)
    if number is None:
        why = f"the number of {name}() on {machine} is not known here"
        raise NotAvailable(why=why, remedy=f"known are {', '.join(NUMBERS)}")
    result: int = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Make the system call bpf, which reads and writes `attributes`; what this process may not do is NotAvailable."""
    try:
        return system_call(BPF, command, ctypes.addressof(attributes), len(attributes))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise NotAvailable(
                why="this kernel has no bpf()", remedy="boot one built with CONFIG_BPF_SYSCALL"
            ) from error
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise NotAvailable(why="this process may not call bpf()", remedy="run as root") from error
        raise


DUMMY: Final = (1, 9)  # a software event that never happens: it carries records of what the kernel did


def perf_event(flags: int, sample: int, cpu: int, clock: int) -> int:
    """Open a dummy event that listens to all processes on a CPU, and return its file: 48 us."""
    kind, config = DUMMY
    words = struct.pack("<IIQQQQQ44xi16x", kind, 112, config, 0, sample, 0, flags, clock)
    attributes = ctypes.create_string_buffer(words, 112)
    try:
        return system_call(PERF_EVENT_OPEN, ctypes.addressof(attributes), -1, cpu, -1, 8)  # 8: close on exec
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise NotAvailable(
                why="this process may not open perf events of the system", remedy="run as root"
            ) from error
        if error.errno in {errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, errno.E2BIG}:
            why = f"this kernel refuses such perf events ({error.strerror})"
            raise NotAvailable(why=why, remedy="boot Linux 5.1 or later, built with CONFIG_PERF_EVENTS") from error
        raise
