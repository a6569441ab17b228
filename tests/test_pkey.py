"""Write mode pkey: as it is met here, and, on an emulated CPU that has protection keys, what it promises."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import ADD7, MODES

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).resolve().parent.parent


def test_the_mode_works_or_says_what_it_lacks() -> None:
    if "pkey" in MODES:
        with execmem.Domain(write_mode="pkey") as domain:
            assert bytes(domain.place(ADD7)) == ADD7
        return
    with pytest.raises(execmem.UnsupportedError, match=r"protection keys.*ospke.*Use write mode syscall"):
        execmem.Domain(write_mode="pkey")


def test_the_default_is_pkey_where_it_works(run_child: Callable[..., str]) -> None:
    told = run_child("import execmem; print(execmem.default_domain().write_mode)", EXECMEM_WRITE_MODE="")
    assert told == ("pkey" if "pkey" in MODES else "syscall")


def test_the_environment_may_ask_for_it(run_child: Callable[..., str]) -> None:
    source = """
    import execmem
    try:
        print(execmem.default_domain().write_mode)
    except execmem.UnsupportedError as error:
        print(error)
    """
    told = run_child(source, EXECMEM_WRITE_MODE="pkey")
    assert told == "pkey" if "pkey" in MODES else "protection keys" in told


def emulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the test of mode pkey on an emulated CPU."""
    command = ["make", "-s", "test-pkey", "EMULATED=test_pkey", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


needs_emulator = pytest.mark.skipif(
    not (shutil.which("qemu-system-x86_64") and shutil.which("make") and shutil.which("apt-get")),
    reason="needs make and, on Debian, qemu-system-x86 to emulate a CPU that has protection keys",
)


@needs_emulator
@pytest.mark.unsanitized
def test_an_emulated_cpu_keeps_the_alias_shut() -> None:
    done = emulate()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    begin = lines.index("== run test_pkey")
    end = next(i for i, line in enumerate(lines) if line.startswith("== passed test_pkey: exit 0"))
    assert lines[begin + 1 : end] == [
        "every key is taken",
        "a key of the kernel's",
        "calls are refused",
        "only its key opens it",
        "rights stay as they were",
        "threads are not trusted",
        "nobody else during a write",
        "a write that faults",
        "forks",
        "ok",
    ]
    assert lines[end + 1] == "== end: 1 run, 0 failed"
