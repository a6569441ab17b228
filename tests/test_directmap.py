"""directmap works where the compiled core is missing, and the front page says what is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import execmem
from execmem import cli

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "execmem", "examples")  # no csrc: nothing is compiled


@pytest.fixture(scope="module")
def without_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package without its core and return the folder it can be imported from."""
    tree = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, tree / part)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "out"],
        cwd=tree,
        env={**os.environ, "EXECMEM_WITHOUT_CORE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list((tree / "out").rglob("*.so"))
    return tree / "out"


# An editable install looks for every part of the package in its own tree, whatever folder the package came from.
LEAVE_INSTALLED = (
    "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in str(finder)]\n"
)


def run(folder: Path, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LEAVE_INSTALLED + textwrap.dedent(program)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_module_can_be_imported_without_the_core(without_core: Path) -> None:
    modules = sorted(path.stem for path in (without_core / "execmem" / "directmap").glob("*.py"))
    assert {"__init__", "trace", "convert"} <= set(modules)
    program = f"""
        import importlib, sys
        for name in {modules}:
            importlib.import_module(f"execmem.directmap.{{name}}")
        import execmem
        from execmem import directmap
        print(execmem.__file__, "execmem._core" in sys.modules, "cffi" in sys.modules)
    """
    assert run(without_core, program) == f"{without_core / 'execmem' / '__init__.py'} False False"


def test_the_commands_of_directmap_work_without_the_core(without_core: Path, tmp_path: Path) -> None:
    program = f"""
        from execmem import directmap_cli
        raise SystemExit(directmap_cli.main(["record", {str(tmp_path / "a.trace")!r}, "--seconds", "0.01"]))
    """
    assert "rows" in run(without_core, program)


def test_what_needs_the_core_says_so(without_core: Path) -> None:
    program = """
        import execmem
        for name in execmem.__all__:
            try:
                getattr(execmem, name)
            except ImportError as error:
                assert f"execmem.{name} needs the compiled core" in str(error), error
                assert "EXECMEM_WITHOUT_CORE=1" in str(error), error
                assert "pip install" in str(error), error
            else:
                raise AssertionError(name)
        try:
            from execmem import Domain
        except ImportError as error:
            assert "execmem.Domain needs the compiled core" in str(error), error
        else:
            raise AssertionError
        print(hasattr(execmem, "nothing"))
    """
    assert run(without_core, program) == "False"


def test_the_front_page_is_whole_where_the_core_is() -> None:
    assert all(name in vars(execmem) for name in execmem.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        execmem.nothing  # type: ignore[attr-defined]  # noqa: B018 - that it raises is the point


def test_the_command_line_works_without_the_core(without_core: Path) -> None:
    program = """
        from execmem import cli
        assert cli.main(["directmap", "show", "--json"]) == 0
    """
    assert '"sources"' in run(without_core, program)


def test_every_command_tells_its_options_without_the_core(
    without_core: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    program = """
        from execmem import cli
        for command in cli.COMMANDS:
            try:
                cli.main([command.name, "--help"])
            except SystemExit as ended:
                assert ended.code == 0, command
            print("----")
    """
    told = run(without_core, program).split("----")
    for command, shown in zip(cli.COMMANDS, told, strict=False):
        with pytest.raises(SystemExit):
            cli.main([command.name, "--help"])
        assert shown.strip() == capsys.readouterr().out.strip(), command.name


def test_a_command_that_needs_the_core_says_so(without_core: Path) -> None:
    program = """
        import contextlib, sys
        from execmem import cli
        with contextlib.redirect_stderr(sys.stdout):
            assert cli.main(["doctor"]) == 1
            assert cli.main(["map", "1"]) == 1
            for words in (["top", "1"], ["demo"], ["run", "c3", "--sig", "void()"], ["bench"], ["soak"]):
                assert cli.main(words) == 1
    """
    told = run(without_core, program).splitlines()
    for name, line in zip(("doctor", "map", "top", "demo", "run", "bench", "soak"), told, strict=True):
        assert line.startswith(
            f"execmem {name}: it needs the compiled core: execmem was installed with EXECMEM_WITHOUT"
        )
