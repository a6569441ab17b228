"""The command line: its table of commands, its exit codes, and what doctor says in health and in trouble."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import execmem
from execmem import cli, doctor
from execmem.directmap import perf, region, source

if TYPE_CHECKING:
    from collections.abc import Callable


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def examine(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["usable"] == (code == 0)
    assert report["probe"]["default"]["works"] == report["usable"]
    assert set(report["probe"]["policies"]) == {field.name for field in dataclasses.fields(execmem.Policies)}
    return code, {finding["topic"]: finding for finding in report["findings"]}


# ---- the table of commands ----


def test_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name for command in cli.COMMANDS]
    assert len(set(names)) == len(names)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert re.search(rf"^ +{command.name}\s+{re.escape(command.summary[:20])}", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "there is no command 'frobnicate': execmem --help has them all"),
        (["demo", "--count", "0"], "'0' is not a number of at least 1"),
        (["demo", "--count", "many"], "'many' is not a number of at least 1"),
        (["demo", "--calls", "-5"], "--calls"),
        (["demo", "--count", "9" * 23], "is more than can be counted: 15 digits at most"),
        (["demo", "--seed", "-1"], "'-1' is not a number of at least 0"),
        (["demo", "--mode", "rwx"], "invalid choice: 'rwx'"),
        (["demo", "--mix", "java"], "invalid choice: 'java'"),
        (["doctor", "extra"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("execmem ")


def test_python_m_execmem_is_the_same_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "execmem", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usable"]


# ---- what can happen to a command ----


def command_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_: object) -> int:
        raise error

    module = types.SimpleNamespace(add_arguments=lambda _: None, run=fail)
    monkeypatch.setitem(sys.modules, "execmem.fail", module)
    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("fail", "fail", "execmem.fail", "try"),))


def test_an_error_of_the_core_is_one_line(run_child: Callable[..., str]) -> None:
    source = """
        import contextlib, sys
        from execmem import cli
        from execmem._core import lib
        lib.execmem_test_script(b"memfd=F*")
        with contextlib.redirect_stderr(sys.stdout):
            code = cli.main(["demo", "--count", "10", "--mode", "alias", "--code", "shipped", "--quiet"])
        assert code == 1
    """
    assert re.fullmatch(r"execmem demo: .+", run_child(source))


def test_an_interrupt_is_what_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, KeyboardInterrupt())
    assert cli.main(["fail"]) == 130


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    command_that(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "execmem", "doctor"]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert not done.stderr


# ---- doctor ----


def test_doctor_tells_every_mode(capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = examine(capsys)
    assert code == 0
    for mode in ("syscall", "alias", "procmem", "flip", "pkey"):
        finding = findings[f"mode {mode}"]
        one = execmem.probe()[mode]
        assert finding["good"] is one.works
        assert finding["text"].endswith(one.reason or f"({one.backing})")
    assert findings["CPU room"]["text"] == execmem.arch()
    for topic in ("PR_SET_MDWE", "seccomp", "memfd_noexec", "SELinux", "AppArmor", "/proc", "limits", "backing"):
        assert findings[topic]["good"] is None
        assert findings[topic]["text"]
    with execmem.Domain("as doctor") as domain:
        assert findings["default"]["text"] == f"write mode {domain.write_mode}"
    assert "full packs are one 2 MB entry" in findings["2 MB pages"]["text"]


def test_doctor_prints_a_line_for_each_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) == 80
    assert "\x1b" not in out
    for topic in (
        "execmem",
        "system",
        "mode syscall",
        "mode pkey",
        "default",
        "2 MB pages",
        "sync",
        "thp anon",
        "backing",
        "seccomp",
    ):
        assert re.search(rf"^{topic} ", out, re.MULTILINE)


def test_doctor_wraps_a_long_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [doctor.Finding("default", "why " * 60, good=False), doctor.Finding("told", "")]
    monkeypatch.setattr(doctor, "examine", lambda _: findings)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    lines = out.splitlines()[2:]
    assert lines[0].startswith("default        no  why why")
    assert lines[1].startswith(" " * 19 + "why")
    assert max(map(len, lines)) <= 80


def test_doctor_tells_why_a_mode_is_refused(run_child: Callable[..., str]) -> None:
    # In a process of its own: the mode that AUTO finds is kept for the life of the process.
    source = """
        from execmem import cli
        from execmem._core import lib
        lib.execmem_test_script(b"memfd=F*")
        cli.main(["doctor", "--json"])
    """
    findings = {finding["topic"]: finding for finding in json.loads(run_child(source))["findings"]}
    for mode in ("syscall", "alias"):
        assert findings[f"mode {mode}"]["good"] is False
        assert len(findings[f"mode {mode}"]["text"]) > 20


def test_doctor_tells_that_huge_pages_are_refused(
    capsys: pytest.CaptureFixture[str], script: Callable[[str], None]
) -> None:
    script("collapse=F*")
    code, findings = examine(capsys)
    assert code == 0
    assert findings["2 MB pages"]["good"] is False
    assert re.match(r"0 of \d+ .* collapses failed", findings["2 MB pages"]["text"])


def test_doctor_fails_when_nothing_works(capsys: pytest.CaptureFixture[str], script: Callable[[str], None]) -> None:
    script("reserve=F*")
    code, findings = examine(capsys)
    assert code == 1
    assert findings["default"]["text"].startswith("no domain can be used: ")
    assert "2 MB pages" not in findings


def test_doctor_runs_where_writable_memory_cannot_become_executable(run_child: Callable[..., str]) -> None:
    source = """
        import ctypes, json
        from execmem import cli
        if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, Linux 6.3
            print("{}")
        else:
            assert cli.main(["doctor", "--json"]) == 0
    """
    report = json.loads(run_child(source))
    if not report:
        pytest.skip("this kernel has no PR_SET_MDWE")
    findings = {finding["topic"]: finding for finding in report["findings"]}
    assert findings["mode syscall"]["good"] or findings["mode procmem"]["good"]
    assert findings["mode flip"]["good"] is False


def test_what_the_system_does_not_tell_is_not_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "HUGE_SETTINGS", tmp_path)
    (tmp_path / "enabled").write_text("always [madvise] never\n", encoding="ascii")
    assert [finding.text for finding in doctor.find_settings()] == ["madvise", "not available"]


@pytest.mark.parametrize("columns", [80, 120])
def test_doctor_tells_what_the_commands_need(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, findings = examine(capsys)
    assert code == 0
    for one in (*source.SOURCES, region.SOURCE, perf.SOURCE):
        finding = findings[one.name]
        assert finding["section"] == "sources"
        assert finding["text"].startswith(one.tells)
        assert finding["good"] is (finding["text"] == one.tells)
    sections = {finding["section"] for finding in findings.values()}
    assert sections == {"", *doctor.SECTIONS}
    assert findings["kernels"]["section"] == findings["QEMU"]["section"] == "lab"
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert max(map(len, out.splitlines())) == columns
    for title in doctor.SECTIONS.values():
        assert f"\n{title}\n" in out


def test_doctor_tells_what_a_source_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise source.NotAvailable(why="it is not for \x1b[2Jthis user", remedy="run as root")

    one = source.Source("jit", "limit of BPF's code", "root", "1 ms", refuse)
    monkeypatch.setattr(source, "SOURCES", (one,))
    found = doctor.find_sources()[0]
    assert (found.good, found.text) == (
        False,
        "limit of BPF's code: it is not for \\x1b[2Jthis user; run as root",
    )


@pytest.mark.parametrize(
    ("effective", "mounts", "scope", "words"),
    [
        (
            0,
            "proc /proc proc rw 0 0",
            None,
            ["that are dumpable; of others too as root", "for root, or with", "no Yama"],
        ),
        (1 << 19 | 1 << 40, "proc /proc proc rw 0 0", "1", ["of all users", "their ledgers", "1; it guards attaching"]),
        (0, "proc /proc proc rw,hidepid=2,gid=7 0 0", "3", ["dumpable", "CAP_CHECKPOINT_RESTORE", "3;", "hidepid=2"]),
    ],
)
def test_doctor_tells_whom_one_may_watch(
    effective: int, mounts: str, scope: str | None, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(f"Name:\tx\nCapEff:\t{effective:016x}\n", encoding="ascii")
    (tmp_path / "self/mounts").write_text(f"{mounts}\n", encoding="ascii")
    if scope:
        (tmp_path / "sys/kernel/yama").mkdir(parents=True)
        (tmp_path / "sys/kernel/yama/ptrace_scope").write_text(f"{scope}\n", encoding="ascii")
    found = doctor.find_watching(tmp_path)
    assert len(found) == len(words)
    assert all(word in finding.text for finding, word in zip(found, words, strict=True))
    assert found[1].good is bool(effective)


def test_doctor_tells_that_there_is_no_way_to_others(tmp_path: Path) -> None:
    (found,) = doctor.find_watching(tmp_path)
    assert (found.good, "there is no /proc" in found.text) == (False, True)


def test_doctor_tells_how_extras_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)
    found = {finding.topic: finding for finding in doctor.find_extras()}
    assert set(found) == {"textual", "resvg", "pyarrow", "shtab"}
    assert not any(finding.good for finding in found.values())
    assert found["resvg"].text == "pictures as PNG: not installed; python -m pip install 'execmem[png]'"
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in declared for extra, _ in doctor.EXTRAS.values())


def test_doctor_tells_what_the_lab_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EXECMEM_LAB_CACHE", str(tmp_path))
    qemu, _, kernels = doctor.find_lab()
    assert (qemu.good, "qemu-system-x86_64 is missing; install" in qemu.text) == (False, True)
    assert (kernels.good, kernels.text) == (False, "none here yet: execmem lab fetch all")
    (tmp_path / "kernels/x").mkdir(parents=True)
    (tmp_path / "kernels/x/kernel.json").write_text("{", encoding="ascii")
    *_, kernels = doctor.find_lab()
    assert (kernels.good, "is not what the lab wrote" in kernels.text) == (False, True)


@pytest.mark.unsanitized
def test_doctor_runs_for_nobody(run_child: Callable[..., str]) -> None:
    if os.geteuid():
        pytest.skip("only root can become nobody")
    source_text = """
        import contextlib, io, os
        from execmem import cli
        with contextlib.redirect_stdout(io.StringIO()):  # what is imported late is not nobody's to read
            cli.main(["doctor"])
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        cli.main(["doctor", "--json"])
    """
    report = json.loads(run_child(source_text))
    found = {finding["topic"]: finding for finding in report["findings"]}
    assert report["usable"]
    assert found["directmap"]["good"] is not None
    for name in ("vmallocinfo", "programs", "jit", "regions"):
        assert (found[name]["good"], "run as root" in found[name]["text"]) == (False, True)
    assert found["processes"]["text"].startswith("of user 65534 that are dumpable")


def test_a_forced_mode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECMEM_WRITE_MODE", "syscall")
    assert any("EXECMEM_WRITE_MODE=syscall" in finding.text for finding in doctor.examine(execmem.probe()))


def test_a_closed_stdout_is_no_traceback() -> None:
    command = [sys.executable, "-m", "execmem", "directmap", "show"]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lab list", "lab"),
        ("directmap watch --count 1", "directmap watch"),
        ("run c3 --sig void() --json", "run"),
        ("help map", "map"),
        ("--version", ""),
    ],
)
def test_a_full_disk_behind_stdout_is_one_line(words: str, told: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as people have it
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "execmem", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=kept,
        )
    assert done.returncode == 1
    assert done.stderr == f"{f'execmem {told}'.strip()}: [Errno 28] No space left on device\n"


def test_a_closed_stderr_changes_no_answer() -> None:
    command = [sys.executable, "-m", "execmem", "demo", "--count", "20", "--calls", "5", "--code", "shipped", "--json"]
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" 2>&-', "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "demo", "--count", "9" * 15, "--quiet", "--code", "shipped")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("execmem demo: there is not enough memory: ")
