"""``execmem run``: what is given is understood or refused in words, and what becomes of the code is told."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from execmem import cli, run_cli

if TYPE_CHECKING:
    from pathlib import Path

ADD = "488d0437c3"  # lea rax, [rdi + rsi]; ret
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the bytes are x86-64 machine code")


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, for the words of the reporter and of no other handler."""
    command = [sys.executable, "-W", "error", "-m", "execmem", "run", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


# ---- what it runs ----


@needs_x86
@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ([ADD, "--sig", "i64(i64,i64)", "35", "-7"], "28\n"),
        (["--mode", "procmem", "--sig", "i64(i64,i64)", ADD, "0x10", "-0x1"], "15\n"),
        (["f20f58c1c3", "--sig", "f64(f64,f64)", "-1e3", "0.5"], "-999.5\n"),  # addsd xmm0, xmm1
        (["0fb607c3", "--sig", "u8(ptr)", "text:A"], "65\n"),  # movzx eax, byte [rdi]
        (["4889f8c3", "--sig", "ptr(ptr)", "0x1000"], "0x1000\n"),
        (["4889f8c3", "--sig", "bool(bool)", "true"], "True\n"),
        (["c3", "--sig", "void()"], ""),
    ],
)
def test_code_is_called_and_its_result_printed(
    arguments: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *arguments]) == 0
    assert capsys.readouterr() == (out, "")


@needs_x86
def test_code_comes_from_a_file_of_bytes_or_digits_or_from_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, text = tmp_path / "add.bin", tmp_path / "add.hex"
    raw.write_bytes(bytes.fromhex(ADD))
    text.write_text("48 8d 04 37  # lea rax, [rdi + rsi]\n0xc3         ; ret\n", encoding="ascii")
    for path in (raw, text):
        assert cli.main(["run", str(path), "--sig", "i64(i64,i64)", "1", "2"]) == 0
        with path.open(encoding="ascii") as file:
            monkeypatch.setattr(sys, "stdin", file)
            assert cli.main(["run", "-", "--sig", "i64(i64,i64)", "3", "4"]) == 0
    assert capsys.readouterr() == ("3\n7\n" * 2, "")


@needs_x86
def test_json_and_the_time_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", ADD, "--sig", "i64(i64,i64)", "3", "4", "--repeat", "1,000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    types = {"result": int, "type": str, "address": int, "size": int, "mode": str, "calls": int, "seconds": float}
    assert set(report) == set(types)
    assert all(isinstance(report[key], kind) for key, kind in types.items())
    assert (report["result"], report["type"], report["size"], report["calls"]) == (7, "i64", 5, 1000)
    assert cli.main(["run", "c3", "--sig", "void()", "--repeat", "10"]) == 0
    line = r"10 calls of [\d.]+ \w+ each, the way from Python into them included\n"
    assert re.fullmatch(line, capsys.readouterr().out)


# ---- what becomes of code that does not return ----


@needs_x86
@pytest.mark.unsanitized
@pytest.mark.parametrize(
    ("code", "number", "words"),
    [
        ("90cc", signal.SIGTRAP, 'there: live block "code", 2 bytes at 0x'),
        ("31c0488b00c3", signal.SIGSEGV, "was at fault with memory of somebody else, 0x0, by placed code"),
    ],
)
def test_a_crash_is_told_with_its_block(code: str, number: signal.Signals, words: str) -> None:
    done = run(code, "--sig", "i64()")
    assert (done.returncode, done.stdout) == (128 + number, b"")
    assert words in done.stderr.decode()
    last = done.stderr.decode().splitlines()[-1]
    assert last == f"execmem run: {number.name} ended the code before it returned; exit code {128 + number}"


@needs_x86
def test_code_that_ends_its_process_is_told() -> None:
    done = run("bf07000000b8e70000000f05", "--sig", "void()")  # exit_group(7)
    assert (done.returncode, done.stdout) == (7, b"")
    assert done.stderr == b"execmem run: the code ended its process, and did not return; exit code 7\n"


@needs_x86
def test_an_interrupt_ends_code_that_never_returns() -> None:
    command = [sys.executable, "-m", "execmem", "run", "ebfe", "--sig", "void()"]  # jmp to itself
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        children, end = "", time.monotonic() + 60
        while not children and time.monotonic() < end:
            with open(f"/proc/{child.pid}/task/{child.pid}/children", encoding="ascii") as file:  # noqa: PTH123
                children = file.read()
            time.sleep(0.01)
        assert children
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["c3", "--sig", "void"], "signature 'void' is not of the form"),
        (["c3", "--sig", "i99()"], "'i99' is no type"),
        (["c3", "--sig", "void(i64)"], "void(i64) takes 1 argument, 0 given"),
        (["c3", "--sig", "void()", "5"], "void() takes 0 arguments, 1 given"),
        (["--sig", "void()"], "CODE is missing"),
        (["c3c", "--sig", "void()"], "CODE: 3 hex digits, and a byte has two"),
        (["c3 zz", "--sig", "void()"], "'z' is no hex digit"),
        (["there/is.no", "--sig", "void()"], "there is no file 'there/is.no', and it is no code in hex digits"),
        (["# ret", "--sig", "void()"], "there is no code in it"),
        (["c3", "--sig", "void(i8)", "128"], "argument 1, of type i8: 128 is not within -128 and 127"),
        (["c3", "--sig", "void(u8)", "-1"], "argument 1, of type u8: -1 is not within 0 and 255"),
        (
            ["c3", "--sig", "void(i8,i64)", "1", "0x8000000000000000"],
            "argument 2, of type i64: 0x8000000000000000 is not",
        ),
        (["c3", "--sig", "void(i64)", "1.5"], "'1.5' is no whole number"),
        (["c3", "--sig", "void(f64)", "half"], "'half' is no number"),
        (["c3", "--sig", "void(f64)", "1e999"], "1e999 is too large for f64"),
        (["c3", "--sig", "void(f32)", "-1e39"], "-1e39 is too large for f32"),
        (["c3", "--sig", "void(bool)", "2"], "'2' is no bool"),
        (["c3", "--sig", "void(ptr)", "here"], "'here' is no ptr: an address, null, text:... or hex:..."),
        (["c3", "--sig", "void(ptr)", "file:x"], "is no ptr"),
        (["c3", "--sig", "void(ptr)", "hex:4"], "1 hex digits, and a byte has two"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *arguments]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert re.fullmatch(r"execmem run: [^\n]+\n", told.err)
    assert words in told.err


@pytest.mark.parametrize(
    ("content", "form", "words"),
    [
        (b"", "auto", "is empty"),
        (b"\xff\xfe", "hex", "is no text of hex digits"),
        (b"c3 x", "hex", "'x' is no hex digit"),
    ],
)
def test_a_file_without_code_is_told(
    content: bytes, form: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "code"
    path.write_bytes(content)
    assert cli.main(["run", str(path), "--sig", "void()", "--format", form]) == 2
    assert words in capsys.readouterr().err


def test_a_file_without_end_is_not_read_to_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_cli, "CODE_MAX", 1 << 20)
    assert cli.main(["run", "/dev/zero", "--sig", "void()"]) == 2
    assert capsys.readouterr().err == "execmem run: /dev/zero has more than 1.0 MB: that is no code to try\n"


def test_a_closed_standard_input_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["run", "-", "--sig", "void()"]) == 2
    assert capsys.readouterr().err == "execmem run: standard input is closed: there is no code in it\n"


def test_a_file_that_cannot_be_read_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path), "--sig", "void()"]) == 1
    assert capsys.readouterr().err == f"execmem run: {tmp_path} cannot be read: Is a directory\n"


def test_a_system_that_refuses_is_exit_code_1() -> None:
    source = (
        "import sys; from execmem import cli; from execmem._core import lib; lib.execmem_test_script(b'memfd=F*');"
        "sys.exit(cli.main(['run', 'c3', '--sig', 'void()', '--mode', 'alias']))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.match(rb"execmem run: \S+", done.stderr)
    assert b"Traceback" not in done.stderr


def test_raw_bytes_that_look_like_digits_can_be_said_to_be_raw(tmp_path: Path) -> None:
    path = tmp_path / "code"
    path.write_bytes(b"AB")
    assert run_cli.read_code(str(path), "auto") == b"\xab"
    assert run_cli.read_code(str(path), "raw") == b"AB"


def test_values_at_their_edges() -> None:
    assert run_cli.to_value("i64", str(-(2**63)), "") == -(2**63)
    assert run_cli.to_value("u64", str(2**64 - 1), "") == 2**64 - 1
    assert run_cli.to_value("f32", "3.4028235e38", "") == 3.4028235e38
    assert run_cli.to_value("f64", "-inf", "") == float("-inf")
    assert run_cli.to_value("ptr", "null", "") is None
    assert run_cli.to_value("ptr", "text:é", "") == bytearray("é\0".encode())
    assert run_cli.to_value("ptr", "hex:00ff", "") == bytearray(b"\x00\xff")
    assert run_cli.tell_result("ptr", 255) == "0xff"
    assert run_cli.tell_result("f64", float("nan")) == "nan"
