"""The soak verb: a few seconds of it hold, its report says so, and it can fail."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import execmem
from execmem import cli, soak
from execmem.draw import Paint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def make_soak(minutes: float = 0.02) -> soak.Soak:
    return soak.Soak(argparse.Namespace(minutes=minutes, threads=2, seed=3), lambda *_: None)


@pytest.mark.unsanitized  # a sanitizer keeps what was freed
def test_a_soak_of_seconds_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "soak.json"
    for minutes in ("0.05", "0.3", "1"):  # a busy machine needs longer until there was time for a fork
        code = cli.main(["soak", "--minutes", minutes, "--threads", "3", "--seed", "5", "--quiet", "--json", str(told)])
        shown = capsys.readouterr().out
        report = json.loads(told.read_text(encoding="utf-8"))
        assert (code, report["wrong"], report["ok"]) == (0, [], True)
        assert "every result was right" in shown
        assert report["modes"]
        assert report["mappings"][0] == report["mappings"][1]
        assert report["files"][0] == report["files"][1]
        assert max(len(line) for line in shown.splitlines()) <= 120
        if report["forks"]:
            break
    assert report["operations"] > 0 < report["checks"]
    assert report["forks"] > 0


def test_a_wrong_result_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.Worker, "expect", lambda self, *_: self.soak.fail("not what it was"))
    report = make_soak(1.0).run()
    assert not report.ok
    assert "FAILED" in soak.tell(report, Paint(colour=False, unicode=False), 80)


def test_what_is_left_behind_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[execmem.Domain] = []
    close = soak.Soak._close

    def leave_one(self: soak.Soak) -> None:
        left.append(execmem.Domain("left behind"))
        close(self)

    monkeypatch.setattr(soak.Soak, "_close", leave_one)
    report = make_soak().run()
    left[0].close()
    assert any("left" in text or "open at the start" in text for text in report.wrong)


def test_what_cannot_be_read_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Callable[[], int]:
        def read() -> int:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

        return read

    monkeypatch.setattr(soak, "resident_bytes", refuse("/proc/self/statm"))
    monkeypatch.setattr(soak, "count_mappings", refuse("/proc/self/maps"))
    monkeypatch.setattr(soak, "count_files", refuse("/proc/self/fd"))
    report = make_soak().run()
    assert (report.resident, report.mappings, report.files) == ([None] * 3, [None] * 2, [None] * 2)
    assert report.wrong == []
    shown = soak.tell(report, Paint(colour=False, unicode=False), 80)
    why = "No such file or directory; it needs /proc, readable by this process\n"
    assert f"resident memory        not available: /proc/self/statm: {why}" in shown
    assert f"mappings               not available: /proc/self/maps: {why}" in shown
    assert f"file descriptors       not available: /proc/self/fd: {why}" in shown
    assert "nothing was left behind that can be seen here" in shown


@pytest.mark.unsanitized  # a sanitizer keeps what was freed
def test_ctrl_c_ends_it_with_the_report() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "execmem", "soak", "--minutes", "5", "--threads", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
    ) as process:
        assert process.stderr
        began = process.stderr.readline()  # its first line of progress: the soak has taken the signal over
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert "soak" in began
    assert process.returncode == 0, out + err
    assert "ended early by Ctrl-C" in out


def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["soak", "--minutes", "never"])
    assert "'never' is not a number of minutes above 0" in capsys.readouterr().err
