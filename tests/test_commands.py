"""Every command: its help, its text, its JSON, and how it ends when something is wrong. A new command is a new row.

MATRIX has a row for each command and each action of one; a command of ``cli.COMMANDS`` without a row fails the first
test. What a row says is run in this process, in a folder with a trace, a ledger and a kernel in it, and once more as
nobody. A failure that another file tests already is named, and looked for there.
"""

from __future__ import annotations

import ast
import copy
import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import pytest
from test_directmap_kernels import RELEASE, make_deb
from test_directmap_lab import make_script, step
from test_watch import poke_header

import execmem
from execmem import cli, completion
from execmem.directmap.trace import Client, Event, Kind, Writer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parent.parent
SCHEMAS: Final = ROOT / "docs" / "schemas"
NOBODY: Final = 65534
COLOUR: Final = re.compile(r"\x1b\[[\d;]*m")
NO_VERSION: Final = "none: what it reads has no version"


@dataclass(frozen=True)
class Failure:
    """Arguments that must fail, how, and what is told on stderr."""

    arguments: str
    words: str
    code: int = 1


@dataclass(frozen=True)
class Row:
    """What is expected of a command.

    In arguments {pid} is a process with a domain "watched", {new} a file that is not there. ``interrupt`` is what
    Ctrl-C comes in, or the test of it. A failure is tried, or is the name of the test that tries it, or a reason.
    """

    arguments: str
    words: str  # what its text must have, for root and for nobody
    interrupt: str
    schema: str = ""  # of docs/schemas
    json: tuple[str, ...] = ("--json",)
    no_json: str = ""  # why it has none
    lines: bool = False  # an object a line
    draws: bool = True  # with colours, on a terminal
    wraps: bool = True  # it keeps to the terminal's width
    nobody: str = ""  # what nobody is told too
    reads: str = ""  # the files it reads
    failures: Mapping[str, Failure | str] = field(default_factory=dict)


MATRIX: Final = {
    "demo": Row(
        "--count 200 --calls 50 --code shipped --quiet",
        r"results +ok +100 of 100 calls gave exactly Python's result",
        "execmem.demo.Demo.free_half",
        schema="demo",
    ),
    "run": Row(
        "c3 --sig void() --repeat 10",
        "10 calls of .* each",
        "test_run_cli.py::test_an_interrupt_ends_code_that_never_returns",
        schema="run",
        draws=False,
        reads="machine code",
        failures={
            "foreign": "test_run_cli.py::test_a_file_without_code_is_told",
            "truncated": "none: code of any length may be meant",
            "version": NO_VERSION,
            "permission": Failure("secret --sig void()", "secret cannot be read: Permission denied"),
        },
    ),
    "doctor": Row("", r"default +yes write mode \w+", "execmem.doctor.examine", schema="doctor"),
    "bench": Row(
        "--live 100 --mode syscall --peers --runs 1 --rounds 1 --round-ms 1 --budget 0.01 --code shipped --quiet",
        "100 live blocks +1 x 1 rounds",
        "execmem.bench_cli.choose_peers",
        schema="bench",
        failures={
            "foreign": Failure("--against a.trace", "a.trace is not a whole JSON file"),
            "truncated": Failure("--against cut.jsonl", "cut.jsonl is not a whole JSON file"),
            "permission": Failure("--against secret", "secret cannot be read: Permission denied"),
        },
    ),
    "soak": Row(
        "--minutes 0.003 --threads 2 --quiet",
        "ok  every result was right",
        "test_soak.py::test_ctrl_c_ends_it_with_the_report",
        schema="soak",
        json=("--json -",),
        failures={
            "permission": Failure("--minutes 0.001 --json locked/x", "locked/x cannot be written: .*not permitted")
        },
    ),
    "map": Row(
        "{pid} --domain watched --interval 0.01",
        r"domain watched \(\d+\): ",
        "execmem.map_cli.survey_domain",
        schema="map",
        json=("--limit 1 --json", "--pack 0 --json", "--pack 0 --row 0 --json"),
        reads="ledgers",
        failures={
            "process": "test_map_cli.py::test_a_process_that_is_not_there",
            "somebody else": "test_map_cli.py::test_a_process_of_somebody_else",
            "foreign": "test_map_cli.py::test_a_file_that_is_no_ledger",
            "truncated": Failure("--from cut.ledger", "cut.ledger is truncated: 5,000 of"),
            "version": Failure("--from old.ledger", "version 2, older than 3, .*: look with the execmem that wrote it"),
            "permission": Failure("--from secret", "secret cannot be read: Permission denied"),
        },
    ),
    "top": Row(
        "{pid} --domain watched --count 2 --every 0.01",
        r"domain watched \(\d+\): ",
        "test_map_cli.py::test_top_leaves_the_terminal_as_it_was",
        schema="map",
        lines=True,
        failures={
            "process": "test_map_cli.py::test_a_process_that_is_not_there",
            "somebody else": "test_map_cli.py::test_a_process_of_somebody_else",
        },
    ),
    "export": Row(
        "{pid} --machine",
        "execmem_build_info",
        "execmem.export.measure_machine",
        schema="export",
        draws=False,
        wraps=False,
        failures={
            "process": Failure("2147483647", "there is no process 2147483647"),
            "somebody else": "test_map_cli.py::test_a_process_of_somebody_else",
            "permission": Failure("--out locked/x", "Permission denied"),
        },
    ),
    "directmap watch": Row(
        "--count 2 --every 0.01",
        "direct map of Linux",
        "execmem.directmap_watch.wait",
        schema="directmap-watch",
        lines=True,
        failures={"permission": "test_directmap_cli.py::test_what_is_not_available_is_said_and_is_no_failure"},
    ),
    "directmap show": Row(
        "",
        "direct map of Linux",
        "execmem.directmap_cli.tell_value",
        schema="directmap-show",
        nobody=r"events +no  not available: [^;]*; ",
        failures={"permission": "test_directmap_cli.py::test_what_is_not_available_is_said_and_is_no_failure"},
    ),
    "directmap record": Row(
        "{new} --seconds 0.01",
        r"[\d,]+ rows, \d+ loads",
        "test_directmap_cli.py::test_ctrl_c_ends_a_recording_that_is_whole",
        no_json="what it writes is a trace; report tells it as JSON",
        draws=False,
        nobody="events: not available: .*; ",
        failures={"permission": Failure("locked/x --seconds 0.01", "Permission denied: 'locked/x'")},
    ),
    "directmap report": Row(
        "a.trace",
        "1 x 2.0 MB split",
        "execmem.directmap_cli.summarise",
        schema="directmap-report",
        reads="traces",
        failures={
            "foreign": "test_directmap_cli.py::test_what_is_no_trace_is_one_line",
            "truncated": Failure("cut.trace", "cut.trace: .*not whole"),
            "version": Failure("new.trace", "version 2, this reader knows 1: a newer execmem reads it"),
            "permission": Failure("secret", "Permission denied: 'secret'"),
        },
    ),
    "replay": Row(
        "a.trace --memory 512M --policy 5.10 ours",
        "Regions split",
        "execmem.directmap.replay.run",
        schema="replay",
        reads="traces",
        failures={
            "foreign": "test_replay_cli.py::test_what_cannot_be_replayed_is_one_line",
            "truncated": Failure("cut.trace", "cut.trace: .*not whole"),
            "version": Failure("new.trace", "version 2, this reader knows 1: a newer execmem reads it"),
            "permission": Failure("secret", "Permission denied: 'secret'"),
        },
    ),
    "lab fetch": Row(
        "--deb x_1-2_amd64.deb --quiet",
        f"6.1 +{re.escape(RELEASE)} +1-2 +unpacked",
        "execmem.directmap.kernels.keep",
        schema="lab-kernel",
        lines=True,
        draws=False,
        reads="packages",
        failures={
            "foreign": "test_directmap_kernels.py::test_a_damaged_package_is_refused",
            "truncated": Failure("--quiet --deb cut.deb", "cut.deb.* cut off or damaged"),
            "version": NO_VERSION,
            "permission": Failure("--quiet --deb secret", "secret cannot be read: .*Permission denied"),
        },
    ),
    "lab list": Row(
        "", "kernels in .*cache", "execmem.directmap.kernels.cached", schema="lab-kernel", lines=True, draws=False
    ),
    "lab run": Row(
        "--kernel 6.1 --qemu ./qemu --accel tcg --quiet",
        r"load1 +1 +24 MB",
        "test_directmap_lab.py::test_whatever_ends_the_lab_ends_the_machine",
        schema="lab-run",
        lines=True,
        draws=False,
        failures={
            "permission": Failure(
                "--kernel 6.1 --qemu ./qemu --accel tcg --quiet -o locked/x", "locked/x cannot be written: .*Permission"
            )
        },
    ),
    "lab compare": Row(
        "rows.jsonl rows.jsonl",
        "5.10, 1G, scn=ramp n=4000\n +boot +0 +0",
        "execmem.directmap.lab.compare",
        schema="lab-compare",
        lines=True,
        draws=False,
        reads="rows",
        failures={
            "foreign": "test_directmap_lab.py::test_files_that_are_not_rows_are_refused",
            "truncated": Failure("rows.jsonl cut.jsonl", "cut.jsonl:2 is no row of the lab"),
            "version": NO_VERSION,
            "permission": Failure("rows.jsonl secret", "secret cannot be read: .*Permission denied"),
        },
    ),
    "completion": Row(
        "bash",
        "complete .*execmem",
        "execmem.completion.mark",
        no_json="a script is for a shell",
        draws=False,
        wraps=False,
    ),
}
# Which failures a command must have: who is looked at, what is read.
OF_PROCESSES: Final = {"process", "somebody else"}
OF_FILES: Final = {"foreign", "truncated", "version", "permission"}

each_row: Final = pytest.mark.parametrize("name", MATRIX)


# ---- the table is whole ----


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of execmem (of no name), of each command and each action, with all their options."""
    found = {"": cli.make_parser([command.name for command in cli.COMMANDS])}
    todo = [""]
    while todo:
        name = todo.pop()
        for word, parser in cli.choices_of(found[name])[1].items():
            found[f"{name} {word}".strip()] = parser
            todo.append(f"{name} {word}".strip())
    return found


PARSERS: Final = parsers()


def test_every_command_and_action_has_a_row_and_a_group() -> None:
    runs = {name for name, parser in PARSERS.items() if not cli.choices_of(parser)[1]}
    assert runs == set(MATRIX), "give it a row in MATRIX, and remove rows of what is gone"
    assert {command.group for command in cli.COMMANDS} == set(cli.GROUPS)


@each_row
def test_a_row_has_all_that_applies(name: str) -> None:
    row, arguments = MATRIX[name], PARSERS[name]._actions
    assert bool(row.schema) is not bool(row.no_json)
    assert bool(row.schema) is any("--json" in one.option_strings for one in arguments)
    if any(one.metavar == "PID" for one in arguments):
        assert set(row.failures) >= OF_PROCESSES
    if row.reads:
        assert set(row.failures) >= OF_FILES
    inputs = [one for one in arguments if one.metavar in completion.FILES and not one.option_strings]
    assert bool(row.reads) or not inputs or "{new}" in row.arguments, "say what it reads"


def test_tests_that_rows_name_are_there() -> None:
    named = {
        one
        for row in MATRIX.values()
        for one in (row.interrupt, *row.failures.values())
        if isinstance(one, str) and one.startswith("test_")
    }
    there = {
        f"{path.name}::{node.name}"
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert named <= there, named - there


# ---- where commands are run ----


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that everybody may use (those of pytest are its user's), with files in it."""
    with tempfile.TemporaryDirectory(prefix="execmem-commands-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        put_files(folder)
        yield folder


def put_files(folder: Path) -> None:
    """Put files of each kind there: whole, cut off, of another version, secret."""
    with Writer(folder / "a.trace", {"start_ns": 0, "kernel": "6.12.1 #1 SMP", "machine": "x86_64"}) as writer:
        load = Event(Kind.LOAD, 1, 1, 700, 1, Client.BPF, "pid 7 tc", "cls")
        sample = Event(Kind.SAMPLE, 2, 30, name="direct_map_level2_splits")
        split = Event(Kind.SPLIT, 3, 4 << 20, 2 << 20, 1, owner="pid 7 tc", name="it loaded cls")
        writer.add([load, sample, split, load._replace(kind=Kind.UNLOAD, ns=4)])
    trace = (folder / "a.trace").read_bytes()
    (folder / "cut.trace").write_bytes(trace[:100])
    (folder / "new.trace").write_bytes(trace.replace(b'"version": 1', b'"version": 2'))
    results = (ROOT / "benchmarks" / "results" / "direct_map_lab.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(results[:2]) + "\n", encoding="utf-8")
    (folder / "cut.jsonl").write_text("\n".join(results[:2])[:-20], encoding="utf-8")
    (folder / "x_1-2_amd64.deb").write_bytes(make_deb())
    (folder / "cut.deb").write_bytes(make_deb()[:-7])
    steps = (step("boot", dm4k_kB=22528), step("load1", live=1, dm4k_kB=24576), "== end 2")
    (folder / "steps").write_text("".join(f"{line}\r\n" for line in steps), encoding="utf-8")
    make_script(folder / "qemu", f"cat {folder}/steps\n")
    make_script(folder / "cc", r"while [ $1 != -o ]; do shift; done; printf '%18s\076\000' > $2")
    (folder / "secret").write_bytes(b"\xc3")
    (folder / "secret").chmod(0 if os.geteuid() else 0o600)
    (folder / "locked").mkdir(mode=0o555)


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Path]:
    """The folder as the working directory, a domain "watched" in this process, a cache with a kernel."""
    with pytest.MonkeyPatch.context() as patch, execmem.Domain("watched") as domain:
        patch.chdir(folder)
        patch.setenv("EXECMEM_LAB_CACHE", str(folder / "cache"))
        patch.setenv("CC", str(folder / "cc"))
        patch.delenv("NO_COLOR", raising=False)
        assert cli.main(["lab", "fetch", "--deb", "x_1-2_amd64.deb", "--quiet"]) == 0
        blocks = [domain.place(bytes(9000), name=f"numba:f{number}") for number in range(300)]
        for copied in ("cut.ledger", "old.ledger"):
            assert cli.main(["map", str(os.getpid()), "--domain", "watched", "--save", copied]) == 0
        os.truncate("cut.ledger", 5000)
        poke_header(folder / "old.ledger", "version", 2)
        yield folder
        blocks.clear()


numbers: Final = itertools.count()


def words_of(name: str, arguments: str, pid: object = "") -> list[str]:
    """Return the command line of a row."""
    text = f"{name} {arguments}".format(pid=pid or os.getpid(), new=f"new{next(numbers)}.trace") if arguments else name
    return shlex.split(text.replace("void()", "'void()'"))


def run(capsys: pytest.CaptureFixture[str], name: str, arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(words_of(name, arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


# ---- help ----


def command_lines(text: str) -> Iterator[list[str]]:
    """Give the words after each `execmem` of a shell's line: up to the end of that command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for ends, words in itertools.groupby(lexer, key=lambda word: set(word) <= set("();<>|&")):
        found = list(words)
        if not ends and "execmem" in found:
            yield found[found.index("execmem") + 1 :]


def check_examples(lines: list[str]) -> None:
    """Parse each example as it would be when typed."""
    for line in lines:
        (first, *others) = command_lines(re.split(r"\s{2,}", line.strip())[0])
        for words in (first, *others):
            assert cli.parse(words, words[0]).command == words[0], line


@pytest.mark.parametrize("name", PARSERS)
def test_help_has_examples_that_work_and_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: execmem {name}".rstrip())
    assert max(map(len, text.splitlines())) <= 80
    examples = re.search(r"^examples:\n((?: {2}.*\n)+)exit code: 0", text, re.MULTILINE)
    assert examples, text
    lines = examples[1].splitlines()
    assert all(f"execmem {name}".rstrip() in line for line in lines)
    check_examples(lines)


def test_commands_in_the_pages_can_be_given() -> None:
    lines = [
        line.partition("#")[0]
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if re.match(r"(sudo )?execmem ", line)
    ]
    assert len(lines) > 10
    check_examples(lines)


def test_execmem_alone_tells_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert all(f"  {command.name:<10} {command.summary}\n" in told.err for command in cli.COMMANDS)
    assert max(map(len, told.err.splitlines())) <= 80


@pytest.mark.parametrize(
    ("word", "nearest"), [("hlep", "help"), ("direcmap", "directmap"), ("mpa", "map"), ("docter", "doctor")]
)
def test_a_misspelt_command_is_told_the_nearest(word: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([word])
    assert ended.value.code == 2
    assert f"there is no command {word!r}: did you mean {nearest!r}?" in capsys.readouterr().err


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words, usage in (
        (["help"], "usage: execmem [-h]"),
        (["help", "directmap", "show"], "usage: execmem directmap show"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(usage)


@each_row
def test_an_unknown_option_is_told_with_the_usage_of_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words_of(name, MATRIX[name].arguments), "--frobnicate\x1b[2J"])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith(f"usage: execmem {name} ")
    assert told.err.count("usage:") == 1
    assert told.err.endswith("unrecognized arguments: --frobnicate\\x1b[2J\n")


# ---- text ----


@pytest.mark.parametrize("columns", [80, 120])
@each_row
def test_text_keeps_its_width_and_has_no_escapes(
    name: str, columns: int, stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.exists()
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = run(capsys, name, MATRIX[name].arguments)
    assert code == 0, err
    assert re.search(MATRIX[name].words, out), out
    assert "\x1b" not in out + err
    if MATRIX[name].wraps:
        assert max(map(len, out.replace(str(stage), "").splitlines())) <= columns


class Terminal(io.StringIO):
    """What is written to a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
@pytest.mark.parametrize("name", [name for name, row in MATRIX.items() if row.draws])
def test_a_terminal_gets_colours_unless_they_are_unwanted(
    name: str, no_color: str, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage.exists()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(words_of(name, MATRIX[name].arguments)) == 0
    assert bool(COLOUR.search(terminal.getvalue())) is not bool(no_color)


# ---- JSON ----


def read_schema(name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Give the paths of all parts of a document; of a list's elements those of the first."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def shorten(document: dict[str, Any], validator: Any) -> None:
    """Leave one element of each list that may be so short: for speed."""
    for path in list(places(document)):
        whole = at(document, path)
        if isinstance(whole, list) and len(whole) > 1:
            rest = whole[1:]
            del whole[1:]
            if not validator.is_valid(document):
                whole += rest


def mutants(document: dict[str, Any], required: Iterable[str]) -> Iterator[tuple[object, dict[str, Any]]]:
    """Give the document with each part in turn of another kind, objects with one key more, and a key less."""
    for path in places(document):
        changed = copy.deepcopy(document)
        whole = at(changed, path)
        if isinstance(whole, dict):
            whole["not known"] = {"not": {"known": 1}}
        else:
            at(changed, path[:-1])[path[-1]] = {"not": {"known": 1}}
        yield path, changed
    for key in required:
        yield f"without {key}", {name: part for name, part in document.items() if name != key}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, row in MATRIX.items() if row.schema for options in row.json]
)
def test_json_is_as_its_schema_says(name: str, options: str, stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.exists()
    row = MATRIX[name]
    validator = read_schema(row.schema)
    code, out, err = run(capsys, name, f"{row.arguments} {options}".strip())
    assert code == 0, err
    documents = [json.loads(line) for line in out.splitlines()] if row.lines else [json.loads(out)]
    assert documents
    for document in documents:
        assert not [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(document)]
    shorten(documents[0], validator)
    for what, mutant in mutants(documents[0], validator.schema.get("required", documents[0])):
        assert not validator.is_valid(mutant), what


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Give the objects that a schema describes."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" or "properties" in schema:
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)


def test_schemas_are_closed_used_and_linked() -> None:
    names = {path.stem for path in SCHEMAS.glob("*.json")}
    assert names == {row.schema for row in MATRIX.values() if row.schema}
    page = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    for name in names:
        schema = read_schema(name).schema
        assert schema["description"]
        assert f"({name}.json)" in page, name
        for one in objects(schema):
            assert one["additionalProperties"] is False or one["additionalProperties"].keys() & {"type", "properties"}
            assert set(one.get("required", [])) <= one.get("properties", {}).keys()
            assert "required" in one or "properties" not in one


# ---- as nobody, and for readers who have left ----

CHILD: Final = """
import contextlib, ctypes, io, json, os, sys
from pathlib import Path
asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
from execmem import cli
import execmem
domain = execmem.Domain("watched")
blocks = [domain.place(bytes(9000), name=f"numba:f{number}") for number in range(300)]
if asked["uid"]:  # once as root: what is imported late may not be theirs to read
    cache = os.environ["EXECMEM_LAB_CACHE"]
    os.environ["EXECMEM_LAB_CACHE"] = cache + ".root"
    nowhere = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(io.StringIO()):
        for words in asked["first"]:
            assert cli.main([word.replace("PID", str(os.getpid())) for word in words]) == 0, words
    os.environ["EXECMEM_LAB_CACHE"] = cache
    os.setgroups([])
    os.setgid(asked["uid"])
    os.setuid(asked["uid"])
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as a program of theirs is
told = os.fdopen(os.dup(1), "w")
for words in asked["commands"]:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    words = [word.replace("PID", str(os.getpid())) for word in words]
    with contextlib.redirect_stderr(err):
        if asked["stdout"] == "kept":
            with contextlib.redirect_stdout(out):
                code = cli.main(words)
        elif asked["stdout"] == "broken":
            reader, writer = os.pipe()
            os.dup2(writer, 1)
            os.close(writer)
            os.close(reader)
            sys.stdout = open(1, "w", closefd=False)
            code = cli.main(words)
            sys.stdout.close()
        else:
            with contextlib.suppress(OSError):
                os.close(1)
            sys.stdout = None
            code = cli.main(words)
            sys.stdout.close()
    told.write(json.dumps([code, out.buffer.getvalue().decode(), err.getvalue()]) + "\\n")
    told.flush()
os._exit(0)
"""


def commands_of_rows() -> list[list[str]]:
    return [words_of(name, row.arguments, "PID") for name, row in MATRIX.items()]


def run_apart(stage: Path, commands: list[list[str]], *, stdout: str = "kept", uid: int = 0) -> list[list[Any]]:
    """Run commands in a process with a domain "watched"; return code, stdout and stderr of each."""
    package = ROOT
    if uid:  # where the package lies may not be theirs to read
        package = stage / "package"
        for part in ("execmem", "examples"):
            ignored = shutil.ignore_patterns("__pycache__", "*.o")
            shutil.copytree(ROOT / part, package / part, dirs_exist_ok=True, ignore=ignored)
    path = stage / "asked.json"
    asked = {"uid": uid, "stdout": stdout, "commands": commands, "first": commands_of_rows()}
    path.write_text(json.dumps(asked), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "EXECMEM_LAB_CACHE": str(stage / f"cache{uid}"),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=stage,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(commands)
    return told


@pytest.mark.unsanitized
def test_a_user_without_rights_gets_useful_answers(stage: Path) -> None:
    tried = {name: row.failures.get("permission") for name, row in MATRIX.items()}
    refused = {name: one for name, one in tried.items() if isinstance(one, Failure)}
    commands = [words_of(name, one.arguments) for name, one in refused.items()]
    told = run_apart(stage, commands_of_rows() + commands, uid=0 if os.geteuid() else NOBODY)
    for (name, row), (code, out, err) in zip(MATRIX.items(), told, strict=False):
        assert code == 0, (name, err)
        assert re.search(row.words, out), (name, out)
        assert re.search(row.nobody, out + err), (name, out, err)
    for (name, one), (code, out, err) in zip(refused.items(), told[len(MATRIX) :], strict=True):
        assert (code, re.sub(r"recording into .*\n|\w+: not available: .*\n", "", err).count("\n")) == (1, 1), (
            name,
            err,
        )
        assert re.search(f"execmem {name.partition(' ')[0]}.*: .*{one.words}", err), (name, out, err)


@pytest.mark.parametrize("stdout", ["broken", "closed"])
def test_a_reader_who_has_left_ends_a_command_quietly(stage: Path, stdout: str) -> None:
    told = run_apart(stage, commands_of_rows(), stdout=stdout)
    for (name, row), (code, _, err) in zip(MATRIX.items(), told, strict=True):
        assert code == (1 if stdout == "broken" else 0), (name, err)
        assert not re.sub(rf"recording into .*\n|{row.nobody or 'nobody'}.*\n|\w+: not available.*\n", "", err), name


# ---- what ends badly ----


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, row in MATRIX.items()
        for kind, one in row.failures.items()
        if isinstance(one, Failure) and kind != "permission"
    ],
)
def test_a_failure_is_one_line_that_says_why(
    name: str, kind: str, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.exists()
    failure = MATRIX[name].failures[kind]
    assert isinstance(failure, Failure)
    code, out, err = run(capsys, name, failure.arguments)
    assert (code, out, err.count("\n")) == (failure.code, "", 1), err
    assert re.match(f"execmem {name.partition(' ')[0]}( {name.partition(' ')[2]})?: .*{failure.words}", err), err


@pytest.mark.parametrize(
    "arguments",
    [
        *("run --sig void()", "soak --minutes 0.001 --quiet --json", "map --from", "map {pid} --domain watched --save"),
        *("directmap report", "directmap record --seconds 0.01", "replay", "replay tools --buddyinfo"),
        *("lab compare rows.jsonl", "lab fetch --deb", "lab run --kernel", "lab run --kernel x --workload"),
    ],
)
def test_a_name_of_a_file_does_nothing_to_a_terminal(
    arguments: str, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for number, name in enumerate((stage / "no\x1b[2J" / "a", stage / "a\x1b[2J\x9b2J\u202e")):
        code = cli.main([*words_of(*arguments.partition(" ")[::2]), str(name)])
        told = capsys.readouterr()
        name.unlink(missing_ok=True)
        assert not set("\x1b\x9b\u202e") & set(told.out + told.err)
        assert code or number, "there is no such folder"


@pytest.mark.parametrize("name", [name for name, row in MATRIX.items() if not row.interrupt.startswith("test_")])
def test_an_interrupt_ends_a_command_without_a_traceback(
    name: str, stage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = sorted(path.name for path in stage.iterdir())
    importlib.import_module(MATRIX[name].interrupt.split(".")[0] + "." + MATRIX[name].interrupt.split(".")[1])
    monkeypatch.setattr(MATRIX[name].interrupt, interrupt)
    code, _, err = run(capsys, name, MATRIX[name].arguments)
    assert (code, err) == (cli.INTERRUPTED, "")
    assert sorted(path.name for path in stage.iterdir()) == before
