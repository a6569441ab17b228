"""``execmem completion``: scripts that their shells accept, and what a real bash then completes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import execmem
from execmem import cli, completion

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("shtab", reason="the extra execmem[completion] is not installed")

TRY = """
source {script}
cd {folder}
try() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _shtab_execmem; echo "${{COMPREPLY[*]}}"; }}
"""


def script_of(shell: str, path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["completion", shell]) == 0
    told = capsys.readouterr()
    assert not told.err
    path.write_text(told.out, encoding="utf-8")
    return path


def walk(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Give each command and action with its parser."""
    for word, sub in cli.choices_of(parser)[1].items():
        yield f"{name} {word}".strip(), sub
        yield from walk(sub, f"{name} {word}".strip())


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_shell_accepts_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script_of(shell, tmp_path / "script", capsys)
    names = [command.name for command in cli.COMMANDS]
    assert all(name in path.read_text(encoding="utf-8") for name in names)
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_bash_completes_commands_options_files_and_processes(
    domain: execmem.Domain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("bash is not installed")
    path = script_of("bash", tmp_path / "script", capsys)
    (tmp_path / "some.trace").touch()
    asked: dict[tuple[str, ...], set[str]] = {
        ("dire",): {"directmap"},
        ("directmap", "re"): {"record", "report"},
        ("directmap", "report", "so"): {"some.trace"},
        ("replay", "tools", "--buddyinfo", "so"): {"some.trace"},
        ("demo", "--mode", "a"): {"alias"},
        ("completion", ""): set(completion.SHELLS),
        ("zzz",): set(),
    }
    for name, parser in walk(cli.make_parser([command.name for command in cli.COMMANDS])):
        options = {word for action in parser._actions for word in action.option_strings if word.startswith("--")}
        asked[(*name.split(), "--")] = options
    tries = "".join(f"try execmem {shlex.join(words)}\n" for words in asked)
    source = TRY.format(script=path, folder=tmp_path) + tries + "try execmem map ''\n"
    block = domain.place(b"\xc3")
    done = subprocess.run([bash, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    *lines, pids = done.stdout.splitlines()
    assert {words: set(line.split()) for words, line in zip(asked, lines, strict=True)} == asked
    assert str(os.getpid()) in pids.split()
    del block


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert capsys.readouterr() == ("", "execmem completion: it needs shtab: pip install 'execmem[completion]'\n")
