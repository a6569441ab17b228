"""``execmem bench``: its loops do what they say, blocks keep their bytes, and words and JSON tell it."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pytest
from conftest import MODES

import execmem
from execmem import bench_cli, bench_crew, bench_loops, cli, demo_code
from execmem.bench_loops import PEERS, PeerError, Population, write_script
from execmem.draw import Paint

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCH = platform.machine()
pytestmark = pytest.mark.skipif(ARCH not in bench_loops.MACHINES, reason="there are no loops for this CPU")
SMALL = ("--live", "60", "--runs", "2", "--rounds", "2", "--round-ms", "0.2", "--quiet")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
BY_NAME = {peer.name: peer for peer in PEERS}
PLACED_FIRST = 300


def loops(choice: str = "shipped") -> bytes:
    return bench_loops.choose_code(choice, ARCH).functions[bench_loops.NAME]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# ---- machine code ----


def test_the_shipped_loops_are_of_the_source_at_hand() -> None:
    shipped = json.loads(bench_loops.SHIPPED.read_text(encoding="utf-8"))
    assert shipped["source_sha256"] == demo_code.digest(bench_loops.read_source()), f"run {bench_loops.REGENERATE}"
    assert list(shipped["machines"]) == list(bench_loops.MACHINES)
    for arch, machine in bench_loops.MACHINES.items():
        assert shipped["machines"][arch]["flags"] == [*demo_code.FLAGS, *machine.flags], f"run {bench_loops.REGENERATE}"


def test_the_structure_is_that_of_the_c_file() -> None:
    body = re.search(r"struct bench \{(.*?)\n\};", bench_loops.read_source(), re.DOTALL)
    assert body
    text = body[1].replace("struct twin floor;", "uint64_t floor_code; uint64_t floor_writable;")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    names = [re.search(r"\(\*(\w+)\)|(\w+)$", line.strip()) for line in text.split(";") if line.strip()]
    assert [match[1] or match[2] for match in names if match] == list(bench_loops.STATE.names or ())
    for enum, first in (("peer", bench_loops.EXECMEM), ("verb", bench_loops.PLACE)):
        listed = re.search(rf"enum {enum} \{{(.*?)\}}", bench_loops.read_source())
        assert listed
        assert [getattr(bench_loops, name.strip()) for name in listed[1].split(",")] == list(
            range(first, first + listed[1].count(",") + 1)
        )


def test_without_a_compiler_the_loops_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert bench_loops.choose_code("auto", ARCH).origin.startswith("shipped with the package")
    with pytest.raises(demo_code.DemoError, match="no C compiler"):
        bench_loops.choose_code("compile", ARCH)
    with pytest.raises(demo_code.DemoError, match="there are no loops for vax"):
        bench_loops.choose_code("auto", "vax")
    with pytest.raises(demo_code.DemoError, match="no machine code of the loops ships for vax"):
        bench_loops.shipped_code("vax")


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_regenerating_writes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_loops.COMPILERS, ARCH, "cc")
    monkeypatch.setenv("CC", "")  # put back afterwards
    target = tmp_path / "loops.json"
    bench_loops.regenerate(target, (ARCH,))
    monkeypatch.setattr(bench_loops, "SHIPPED", target)
    assert loops() == loops("compile")


def test_a_source_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loops, "SOURCE", tmp_path / "gone.c")
    monkeypatch.setattr(bench_loops, "SHIPPED", tmp_path / "gone.json")
    assert bench_loops.main() == 1


# ---- the loops ----


@pytest.fixture
def script() -> bench_loops.Script:
    return write_script(PLACED_FIRST, 1_000, 3)


@pytest.fixture(autouse=True)
def no_twins_left() -> Iterator[None]:
    """Unmap what peers leave to the end of their processes: code that is mapped twice, which other tests look for."""
    yield
    unmap = ctypes.CDLL(None).munmap
    unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "/memfd:bench " in line:
            start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            assert unmap(start, end - start) == 0


def open_peer(name: str, script: bench_loops.Script) -> Population:
    try:
        it = Population(BY_NAME[name], script, loops())
        it.grow(10)
    except PeerError as error:
        if BY_NAME[name].library is None:
            raise
        pytest.skip(f"{name}: {error}")
    return it


def expected(script: bench_loops.Script, cycles: int) -> list[tuple[int, int]]:
    """Return size and source of each block after so many replacements, as plain Python has it."""
    blocks = [(int(block["size"]), int(block["source"])) for block in script.blocks]
    for op in script.ops[np.arange(cycles) % len(script.ops)]:
        blocks[op["slot"]] = (int(op["size"]), int(op["source"]))
    return blocks


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.holds and peer.mode in {None, *MODES}])
def test_blocks_hold_their_bytes_after_cycles(name: str, script: bench_loops.Script) -> None:
    it = open_peer(name, script)
    assert it.grow().steps == PLACED_FIRST - 10
    assert [it.cycle(count).steps for count in (1, 0, 1_400)] == [1, 0, 1_400]
    source = script.source.tobytes()
    found = [ctypes.string_at(int(block["code"]), int(block["size"])) for block in it.blocks]
    assert found == [source[at : at + size] for size, at in expected(script, 1_401)]
    starts = np.sort(it.blocks["code"])
    assert (np.diff(starts) > 0).all()
    assert it.verify() == 0
    if it.peer.executable and (it.peer.mode or ARCH == "x86_64"):
        assert it.call_blocks(200).steps == 200
    took = it.drain()
    assert took.steps == PLACED_FIRST
    assert took.cpu_ns > 0
    it.close()


def test_the_floor_counts_and_stays_within_its_memory(script: bench_loops.Script) -> None:
    it = open_peer("floor", script)
    it.grow()
    assert it.cycle(5_000).steps == 5_000
    low, size = int(it.blocks["code"].min()), int(it.blocks["size"].max())
    assert int(it.blocks["code"].max()) + size - low <= script.chunk_bytes + 2 * bench_loops.LARGEST
    assert it.verify() == 0
    it.close()


@pytest.mark.parametrize("name", ["glibc", "progpack", "execmem-syscall"])
def test_a_block_that_lost_its_bytes_is_found(name: str, script: bench_loops.Script) -> None:
    it = open_peer(name, script)
    it.grow()
    it.blocks["source"][7] += 1
    assert it.verify() == 1
    it.blocks["source"][7] -= 1
    it.close()


def test_the_packs_of_progpack_are_taken_from_their_start_and_given_back(script: bench_loops.Script) -> None:
    it = open_peer("progpack", script)
    it.grow()
    chunks = -(-script.blocks["size"].astype(np.int64) // 64)
    in_order = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * 64
    assert (it.blocks["code"] - it.blocks["code"][0] == in_order).all()
    it.drain()
    assert it._get("first") == 0


def test_a_loop_that_fails_says_where_and_why(script: bench_loops.Script) -> None:
    it = open_peer("execmem-syscall", script)
    it.grow()
    it.cycle(10)
    slot = int(script.ops["slot"][10])
    kept = int(it.blocks["code"][slot])
    it.blocks["code"][slot] = kept + 64 * 10_000
    with pytest.raises(PeerError, match=r"replacing block 1 of 5 failed: .+"):
        it.cycle(5)
    it.blocks["code"][slot] = kept


def test_sites_change_and_are_as_they_were(script: bench_loops.Script) -> None:
    del script
    made, changes = bench_crew.change_script()
    for name in ("execmem-syscall", "mmap"):
        it = open_peer(name, made)
        it.set_changes(changes)
        assert it.change(6).steps == 6
        assert it.change(1).steps == 2
        assert it.verify() == 0
        it.close()


def test_sizes_are_lognormal() -> None:
    sizes = bench_loops.draw_sizes(100_000, np.random.default_rng(1))
    assert np.median(sizes) == pytest.approx(500, rel=0.02)
    assert sizes.mean() == pytest.approx(820, rel=0.03)
    assert (sizes.min(), sizes.max()) == (64, 32_768)


def test_a_seed_gives_the_same_script() -> None:
    first, again, other = (write_script(50, 100, seed) for seed in (1, 1, 2))
    assert (first.ops == again.ops).all()
    assert (first.source == again.source).all()
    assert (first.ops != other.ops).any()


# ---- processes ----


class Odd:
    """A subject that does what its name says."""

    def open(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def round(self) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def finish(self) -> dict[str, Any]:
        message = "\x1b[2Jbroken"
        raise ValueError(message)


def test_a_child_that_dies_or_breaks_is_told() -> None:
    with bench_crew.Crew(None) as crew:
        one, two = crew.start("one", Odd()), crew.start("two", Odd())
        assert one.tell("open")["pid"] == one.pid != two.pid
        with pytest.raises(PeerError, match=r"ValueError: .*broken"):
            one.tell("finish")
        with pytest.raises(PeerError, match="its process died: Killed"):
            one.tell("round")
        pid = two.tell("open")["pid"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ---- whole runs ----

FIGURES = {
    "type": "object",
    "required": ["median", "low", "high", "least", "most", "count"],
    "properties": {"count": {"type": "integer", "minimum": 1}},
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
}
TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "required": [
        *("schema", "version", "machine", "loops", "cpu_number", "base", "options", "seconds", "cycles", "python"),
    ],
    "properties": {
        "schema": {"const": "execmem-bench"},
        "version": {"const": 1},
        "machine": {"type": "object", "required": ["cpu", "kernel", "architecture", "libc", "execmem", "date"]},
        "cycles": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["peer", "live", "about", "executable"],
                "properties": {
                    "peer": TEXT,
                    "about": TEXT,
                    "failed": TEXT,
                    "executable": {"type": "boolean"},
                    "verified": {"type": "boolean"},
                    **{name: {"type": "integer"} for name in ("live", "aged", "cycles", "wrong_blocks")},
                    **dict.fromkeys((*bench_cli.Tally.KINDS, *bench_cli.RATIOS.values()), FIGURES),
                },
                "oneOf": [{"required": ["failed"]}, {"required": ["cpu_ns", "wall_ns", "drain_ns", "wrong_blocks"]}],
                "additionalProperties": False,
            },
        },
        "python": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["what", "base", "mode"],
                "properties": {
                    "what": TEXT,
                    "base": TEXT,
                    "mode": {},
                    "failed": TEXT,
                    "cpu_ns": FIGURES,
                    "ratio": FIGURES,
                },
                "oneOf": [{"required": ["failed"]}, {"required": ["cpu_ns"]}],
                "additionalProperties": False,
            },
        },
        "against": {"type": "object", "required": ["date", "other", "rows"]},
    },
    "additionalProperties": True,
}


@pytest.fixture(scope="module")
def whole() -> tuple[int, dict[str, Any], str]:
    """Return exit code, report and progress of one small run of everything."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        code = cli.main(["bench", "--json", *SMALL[:-1]])
        told, progress = sys.stdout.getvalue(), sys.stderr.getvalue()
    finally:
        sys.stdout, sys.stderr = out, err
    return code, json.loads(told), progress


def test_the_json_is_as_documented(whole: tuple[int, dict[str, Any], str]) -> None:
    code, report, progress = whole
    assert code == 0
    jsonschema.validate(report, SCHEMA)
    assert "60 live" in progress
    page = (Path(__file__).parent.parent / "benchmarks" / "README.md").read_text(encoding="utf-8")
    names = {*report, *report["machine"], *report["options"], *(name for row in report["cycles"] for name in row)}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_every_peer_is_measured_or_says_why(whole: tuple[int, dict[str, Any], str]) -> None:
    _, report, _ = whole
    rows = {row["peer"]: row for row in report["cycles"]}
    assert list(rows) == [peer.name for peer in PEERS if peer.name != "page"]
    works = {f"execmem-{mode.mode}": mode.works for mode in execmem.probe().modes}
    for name, row in rows.items():
        assert ("failed" in row) is not works.get(name, "failed" not in row), row
        if "failed" not in row:
            assert (row["ratio"]["count"], row["wrong_blocks"]) == (4, 0)
            assert row["ratio"]["least"] <= row["ratio"]["median"] <= row["ratio"]["most"]
    assert rows[report["base"]]["ratio"]["most"] == rows[report["base"]]["ratio"]["least"] == 1
    assert [row["what"] for row in report["python"]] == list(bench_crew.ROWS)
    assert [row for row in report["python"] if "failed" in row] == []


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("colour", [False, True])
def test_the_tables_keep_their_width(whole: tuple[int, dict[str, Any], str], width: int, colour: bool) -> None:
    report = whole[1] | {"against": bench_cli.compare(whole[1], whole[1])}
    shown = bench_cli.Tables(report, Paint(colour=colour, unicode=True), width).text()
    text = ESCAPE.sub("", shown)
    assert (shown != text) is colour
    assert max(map(len, text.splitlines())) <= width
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "60 live blocks" in text
    assert re.search(r"^execmem-syscall +[\d.,]+ ", text, re.MULTILINE)
    assert ("█" in text) is (width == 120)
    plain = bench_cli.Tables(report, Paint(colour=False, unicode=False), width).text()
    assert plain.isascii()


def test_ratios_are_of_the_same_round() -> None:
    base = bench_cli.Tally(BY_NAME["glibc"], 5)
    other = bench_cli.Tally(BY_NAME["floor"], 5)
    base.figures["cpu_ns"] = {(0, 0): 10.0, (0, 1): 100.0, (1, 0): 1.0}
    other.figures["cpu_ns"] = {(0, 1): 200.0, (0, 0): 20.0, (1, 1): 7.0}
    assert other.row(base)["ratio"] == {"median": 2, "low": 2, "high": 2, "least": 2, "most": 2, "count": 2}


# ---- against an earlier run ----


def make_report(**ratios: tuple[float, float, float]) -> dict[str, Any]:
    def row(name: str, ends: tuple[float, float, float]) -> dict[str, Any]:
        figures = dict(zip(("least", "median", "most"), ends, strict=True))
        return {"peer": name, "live": 60, "ratio": figures, "cpu_ns": figures}

    machine = dict.fromkeys(("cpu", "architecture", "kernel", "execmem", "python", "libc", "governor", "date"), "same")
    head = {"schema": "execmem-bench", "version": 1, "machine": machine, "base": "execmem-alias"}
    head["options"] = {"seed": 1, "rounds": 5, "round_ms": 15, "budget_s": 1}
    return head | {"cycles": [row(name, ends) for name, ends in ratios.items()], "python": []}


@pytest.mark.parametrize(
    ("then", "now", "differs", "median"),
    [
        ((1.0, 2.0, 3.0), (2.9, 4.0, 5.0), False, 2.0),
        ((1.0, 2.0, 3.0), (3.1, 4.0, 5.0), True, 2.0),
        ((3.1, 4.0, 5.0), (1.0, 2.0, 3.0), True, 0.5),
        ((1.0, 2.0, 3.0), (3.0, 4.0, 5.0), False, 2.0),
    ],
)
def test_what_overlaps_does_not_differ(
    then: tuple[float, float, float], now: tuple[float, float, float], differs: bool, median: float
) -> None:
    changed = bench_cli.compare(make_report(floor=then), make_report(floor=now))
    assert changed["other"] == {}
    (row,) = changed["rows"]
    assert (row["differs"], row["change"]["median"]) == (differs, median)


def test_of_one_round_nothing_is_said() -> None:
    old, new = make_report(floor=(1.0, 1.0, 1.0)), make_report(floor=(1.1, 1.1, 1.1))
    new["cycles"][0]["ratio"]["count"] = 1
    (row,) = bench_cli.compare(old, new)["rows"]
    assert (row["differs"], row["few_rounds"]) == (False, True)


def test_a_comparison_fits_in_80_columns() -> None:
    from_python = {
        row: {"what": row, "base": "x", "ratio": {"least": 0.1111, "median": 1111.4, "most": 2222.2}}
        for row in bench_crew.ROWS
    }
    old, new = make_report(floor=(100.0, 200.0, 300.0)), make_report(floor=(3100.0, 4100.0, 5100.0), glibc=(1, 2, 3))
    for report in (old, new):
        report["python"] = list(from_python.values())
        for row in report["cycles"]:
            row["live"] = bench_cli.LIVE_MOST
    against = bench_cli.compare(old, new)
    lines = bench_cli.Tables(new, Paint(colour=False, unicode=True), 80)._against(against)
    assert max(map(len, lines)) <= 80
    assert any(line.endswith(" dearer") for line in lines)
    assert any(line.endswith("not measured then") for line in lines)


def test_another_machine_and_other_options_are_told() -> None:
    old, new = make_report(floor=(1, 2, 3)), make_report(floor=(1, 2, 3))
    old["machine"], old["options"] = None, {"seed": 2, "round_ms": 15}
    other = bench_cli.compare(old, new)["other"]
    assert (other["cpu"], other["seed"]) == ([None, "same"], [2, 1])
    assert "round_ms" not in other


def test_what_one_run_lacks_is_told_once() -> None:
    changed = bench_cli.compare(make_report(floor=(1, 2, 3)), make_report(glibc=(1, 2, 3)))
    assert changed["rows"] == [{"what": "glibc", "live": 60, "failed": "not measured then"}]


def test_an_earlier_run_is_compared_with(
    whole: tuple[int, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(json.dumps(whole[1]))
    report["machine"]["cpu"] = "\x1b[2J</script>" * 9
    for row in report["cycles"]:
        if row["peer"] == "floor":
            row["ratio"] = dict.fromkeys(("least", "median", "most"), 1e9)
    path = tmp_path / "before.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    base = report["base"].removeprefix("execmem-")
    code, out, err = run(capsys, "--against", str(path), "--mode", base, "--peers", "floor", "--no-python", *SMALL)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "another cpu: then" in out
    assert re.search(r"floor, 60 live .* cheaper\n", out)
    assert "1 of 1 differ" in " ".join(out.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is not a whole JSON file"),
        (b'{"schema": "execmem-bench", "ver', "is not a whole JSON file"),
        (b"[" * 100_000, "is not a whole JSON file"),
        (b"[]", "is not of `execmem bench --json`"),
        (b'{"schema": "execmem-trace"}', "is not of `execmem bench --json`"),
        (b'{"schema": "execmem-bench", "version": "\x1b[2J"}', "is not a whole JSON file"),
        (b'{"schema": "execmem-bench", "version": "\\u001b[2J"}', r"is of version \x1b[2J, and this is version 1"),
        (b'{"schema": "execmem-bench", "version": 1}', "is damaged"),
        (b'{"schema": "execmem-bench", "version": 1, "cycles": [], "python": [{"peer": "x"}]}', "is damaged"),
        (b'{"schema": "execmem-bench", "version": 1, "cycles": [{"what": "x"}], "python": []}', "is damaged"),
        (b'{"schema": "execmem-bench", "version": 1, "cycles": [{"peer": "x"}], "python": []}', "is damaged"),
        *(
            (
                b'{"schema": "execmem-bench", "version": 1, "python": [],'
                b' "cycles": [{"peer": "x", "live": 1, "ratio": %s}]}' % ratio,
                "is damaged",
            )
            for ratio in (
                *(b"1", b"{}", b'{"least": 1, "median": 2, "most": NaN}', b'{"least": 0, "median": 2, "most": 3}'),
                *(b'{"least": 1e-300, "median": 2, "most": 3}', b'{"least": 1, "median": 2, "most": 3, "count": "x"}'),
                *(b'{"least": 3, "median": 2, "most": 1}', b'{"least": 1, "median": 2, "most": 1%s}' % (b"0" * 400)),
            )
        ),
    ],
)
def test_a_file_that_will_not_do_is_refused_before_anything_is_measured(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "before.json"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run(capsys, "--against", str(path))
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_ratios_to_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(make_report() | {"base": "floor"}), encoding="utf-8")
    code, _, err = run(capsys, "--against", str(path), "--mode", "syscall")
    assert code == 2
    assert "has ratios to floor, and this run would have them to execmem-syscall: give --base floor" in err


# ---- failures ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peers", "no-such-\x1b[2J"), r"there is no peer 'no-such-\\x1b[2J': there are execmem-alias"),
        (("--base", "floor", "--peers", "--mode", "syscall"), "--base floor: it is not measured, execmem-syscall are"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--live", "0"),
        ("--live", "2,000,001"),
        ("--rounds", "x"),
        ("--round-ms", "nan"),
        ("--seed", "-1"),
        ("--mode", "rwx"),
    ],
)
def test_options_are_checked(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    assert left.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


DENIED = """
import json, sys
from execmem import _core, cli
_core.lib.execmem_test_script(b"memfd=F* view=F* mmap=F* write=F* protect=F*")
sys.exit(cli.main(["bench", "--live", "50", "--quiet", "--no-python", *sys.argv[1:]]))
"""


def test_modes_that_are_denied_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    denied = [mode for mode in execmem.probe().modes if not mode.works]
    if not denied:
        pytest.skip("every write mode works here")
    mode = denied[0].mode
    code, out, _ = run(capsys, "--mode", mode, "--peers", "glibc", "--no-python", *SMALL)
    assert code == 1  # it was asked for by name
    assert f"execmem-{mode}: {(denied[0].reason or '')[:30]}" in " ".join(out.split())
    assert "times: glibc is 1" in out


def test_where_the_system_refuses_everything_nothing_is_measured() -> None:
    command = [sys.executable, "-c", DENIED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "nothing was measured" in done.stdout
    assert "execmem-syscall: " in done.stdout


def test_a_population_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cli, "read_text", lambda _: "MemTotal: 9 kB MemAvailable: 100000 kB")
    tallies = [bench_cli.Tally(BY_NAME[name], 10_000) for name in ("glibc", "mmap")]
    bench_cli.fit_memory(tallies, 10_000)
    assert tallies[0].failed == ""
    assert re.match(r"its population would need \d+ MB, and beside the others \d+ are left", tallies[1].failed)


def test_a_slow_peer_is_foretold() -> None:
    subject = bench_crew.Cycles(BY_NAME["mmap"], write_script(20_000, 10, 1), loops(), bench_crew.Pace(1, 1e-3))
    with pytest.raises(
        PeerError, match=r"placing 20,000 blocks would take some .* s, and a peer has 0.001 s \(--budget\)"
    ):
        subject.open()
    subject.it.close()


def test_wrong_blocks_fail_and_are_told(whole: tuple[int, dict[str, Any], str]) -> None:
    report = json.loads(json.dumps(whole[1]))
    parser = argparse.ArgumentParser()
    bench_cli.add_arguments(parser)
    options = parser.parse_args([])
    assert bench_cli.is_good(report, options)
    row = next(row for row in report["cycles"] if row["peer"] == "glibc")
    row["wrong_blocks"] = 3
    assert not bench_cli.is_good(report, options)
    text = bench_cli.Tables(report, Paint(colour=False, unicode=True), 80).text()
    assert "WRONG: glibc: 3 of 60 blocks lost their bytes" in text


def test_a_process_that_is_refused_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    make_pipe, made = os.pipe, set[tuple[int, int]]()

    def make_known_pipe() -> tuple[int, int]:
        ends = make_pipe()
        made.update((os.fstat(end).st_dev, os.fstat(end).st_ino) for end in ends)
        return ends

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(os, "pipe", make_known_pipe)
    code, out, err = run(capsys, *SMALL)
    assert (code, err) == (1, "")
    assert "the system refuses it a process: Resource temporarily unavailable" in " ".join(out.split())
    left = set()
    for end in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            left.add((end.stat().st_dev, end.stat().st_ino))
    assert made
    assert not made & left
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_ctrl_c_ends_every_process() -> None:
    command = [sys.executable, "-m", "execmem", "bench", "--live", "2,000", "--rounds", "1000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 30
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (pids := children.read_text(encoding="ascii").split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=30)
    assert pids
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "exit code:" in out
    assert max(map(len, out.splitlines())) <= 120
