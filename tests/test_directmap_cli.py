"""execmem directmap: what it shows, records and reports, how it ends, and what it says when something is missing."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pytest

from execmem import cli, directmap_cli, draw_directmap
from execmem.directmap import convert, record
from execmem.directmap.region import State
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import ROWS_AT, Client, Event, Kind, Lexicon, Texts, Trace, Writer
from execmem.draw import Paint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

S = 1_000_000_000


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main(["directmap", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Return a trace of a minute in which something happened."""
    path = tmp_path / "a.trace"
    header = {"start_ns": 100 * S, "kernel": "6.12.1 #1 SMP", "machine": "x86_64", "sources": {"perf": "available"}}
    load = Event(Kind.LOAD, 90 * S, 1, 100, 1, Client.BPF, "uid 0", "old")
    with Writer(path, header) as writer:
        writer.add(
            [
                load,
                Event(Kind.SAMPLE, 100 * S, 30, name="direct_map_level2_splits"),
                Event(Kind.SAMPLE, 100 * S, 7 << 20, name="directmap_4k"),
                load._replace(ns=101 * S, id=2, owner="pid 7 tc\x1b[2J", name="cls"),
                load._replace(ns=102 * S, id=3, owner="pid 7 tc\x1b[2J", name="cls"),
                load._replace(ns=103 * S, id=4, owner="pid 8 sh", name="x", size=1000),
                load._replace(kind=Kind.UNLOAD, ns=104 * S),
                Event(Kind.SPLIT, 105 * S, 4 << 20, 2 << 20, 1, owner="pid 7 tc\x1b[2J", name="it loaded cls"),
                Event(Kind.SPLIT, 106 * S, 0, 2 << 20, 3, owner="pid 7 tc\x1b[2J", name="it loaded cls"),
                Event(Kind.SPLIT, 106 * S, 0, 1 << 30, 1, name="nobody was seen"),
                Event(Kind.SAMPLE, 160 * S, 34, name="direct_map_level2_splits"),
            ]
        )
    return path


# ---- report ----


def test_a_report_tells_what_happened(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "report", trace, "--json")
    found = json.loads(out)
    assert code == 0
    assert {name: found[name] for name in ("kernel", "machine", "state", "rows", "seconds", "sources")} == {
        "kernel": "6.12.1 #1 SMP",
        "machine": "x86_64",
        "state": "closed",
        "rows": 11,
        "seconds": 60.0,
        "sources": {"perf": "available"},
    }
    assert found["counters"] == {
        "direct_map_level2_splits": {"first": 30, "last": 34},
        "directmap_4k": {"first": 7 << 20, "last": 7 << 20},
    }
    assert found["code"] == {
        "bpf": {
            "before": 1,
            "loads": 3,
            "unloads": 1,
            "before_bytes": 100,
            "loads_bytes": 1200,
            "unloads_bytes": 100,
        }
    }
    assert found["owners"] == [
        {"owner": "pid 7 tc\x1b[2J", "loads": 2, "bytes": 200},
        {"owner": "pid 8 sh", "loads": 1, "bytes": 1000},
    ]
    by_owner = {"kind": "split", "size": 2 << 20, "count": 4, "owner": "pid 7 tc\x1b[2J", "why": "it loaded cls"}
    assert found["splits"] == [
        by_owner | {"first_s": 5.0, "at": [4 << 20]},
        {
            "kind": "split",
            "size": 1 << 30,
            "count": 1,
            "owner": None,
            "why": "nobody was seen",
            "first_s": 6.0,
            "at": [],
        },
    ]


def test_a_report_is_read_by_people(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "report", trace)
    assert code == 0
    assert "\x1b" not in out
    for words in (
        r"60\.0 s of Linux 6\.12\.1 x86_64",
        r"direct_map_level2_splits +30 +34 +\+4\n",
        r"directmap_4k +7\.0 MB +7\.0 MB\n",
        r"bpf +1 there before \(100 B\), 3 came \(1\.2 kB\), 1 went \(100 B\)",
        r"4 x 2\.0 MB split +pid 7 tc\\x1b\[2J, first at 5\.0 s\n +it loaded cls",
        r"1 x 1\.0 GB split +unattributed, first at 6\.0 s\n +nobody was seen",
    ):
        assert re.search(words, out), words


def test_numbers_stay_whole_and_splits_of_before_the_start_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = Event(Kind.SPLIT, 90 * S, 4 << 20, 2 << 20, 1, owner="pid 7 tc", name="it loaded cls")
    with Writer(tmp_path / "a.trace", {"start_ns": 100 * S}) as writer:
        writer.add(
            [
                early,
                Event(Kind.SAMPLE, 100 * S, (1 << 53) + 1, name="direct_map_level2_splits"),
                Event(Kind.SAMPLE, 101 * S, (1 << 54) + 3, name="direct_map_level2_splits"),
            ]
        )
    code, out, _ = run(capsys, "report", tmp_path / "a.trace")
    assert code == 0
    assert "pid 7 tc, first before the start\n" in out
    assert re.search(r"_splits +9,007,199,254,740,993 18,014,398,509,481,987 \+9,007,199,254,740,994\n", out), out
    assert json.loads(run(capsys, "report", tmp_path / "a.trace", "--json")[1])["splits"][0]["first_s"] == -10.0
    sums = directmap_cli.sum_whole(np.zeros(3, np.intp), np.array([1 << 53, 1, 1 << 53], np.uint64), 2)
    assert sums.tolist() == [(1 << 54) + 1, 0]


def test_an_empty_trace_is_reported_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Writer(tmp_path / "a.trace").close()
    code, out, _ = run(capsys, "report", tmp_path / "a.trace")
    assert code == 0
    assert "nothing was split" in out
    assert "no code came or went" in out
    code, out, _ = run(capsys, "report", tmp_path / "a.trace", "--json")
    assert json.loads(out)["splits"] == []


def test_rows_are_written_for_other_tools(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(capsys, "report", trace, "--csv", tmp_path / "a.csv")
    assert code == 0
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)].count("split") == 3


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_trace_is_written_for_perfetto(
    name: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    code, _, err = run(capsys, "report", trace, "--perfetto", out)
    assert (code, err) == (0, "")
    text = gzip.decompress(out.read_bytes()) if name.endswith(".gz") else out.read_bytes()
    begun = [one for one in json.loads(text)["traceEvents"] if one["ph"] == "b"]
    assert [(one["name"], one["ts"]) for one in begun][:2] == [("old", 0), ("cls", 1_000_000)]
    assert sorted(tmp_path.iterdir()) == sorted([trace, out])


def test_a_perfetto_file_that_cannot_be_written_is_not_there(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(capsys, "report", trace, "--perfetto", trace)
    assert (code, "is what is read" in err) == (1, True)

    def fail(_rows: object, _header: object, file: TextIO) -> None:
        file.write("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(convert, "write_perfetto", fail)
    code, _, err = run(capsys, "report", trace, "--perfetto", tmp_path / "full.json")
    assert (code, err.count("\n"), "No space left" in err) == (1, 1, True)
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize("option", ["--svg", "--html", "--csv", "--perfetto"])
def test_a_file_that_has_no_room_is_told_by_its_name(
    option: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "report", trace, option, "/dev/full")
    assert (code, err) == (1, "execmem directmap report: [Errno 28] No space left on device: '/dev/full'\n")


def test_parquet_without_pyarrow_is_one_line(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run(capsys, "report", trace, "--parquet", tmp_path / "a.parquet")
    assert code == 1
    assert err.startswith("execmem directmap report: Parquet is not available: pyarrow is not installed;")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"", "is empty"), (b"ELF", "not a trace")])
def test_what_is_no_trace_is_one_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    code, out, err = run(capsys, "report", path)
    assert (code, out) == (1, "")
    assert words in err
    assert str(path) in err
    assert err.count("\n") == 1


# ---- record ----


def test_a_recording_of_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.trace"
    code, out, err = run(capsys, "record", path, "--seconds", "0.05", "--every", "0.02")
    assert code == 0
    told = re.fullmatch(rf"{re.escape(str(path))}: ([\d,]+) rows, \d+ loads, .* joins in .*\n", out)
    assert told
    assert f"recording into {path} until 0.05 s have gone, or Ctrl-C" in err
    code, out, _ = run(capsys, "report", path, "--json")
    found = json.loads(out)
    assert f"{found['rows']:,}" == told[1], "rows that hold texts are not counted by either"
    assert found["counters"]["recorder_cpu_ns"]["last"] > 0
    code, _, err = run(capsys, "record", path)
    assert code == 1
    assert "exists" in err


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--every", "-1"], ["--every", "nan"], ["--seconds", "inf"]])
def test_times_that_are_none_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["directmap", "record", "x", *arguments])
    assert ended.value.code == 2
    assert "is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_recording_that_is_whole(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "execmem", "directmap", "record", str(path), "--every", "3600"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as child:
        os.close(theirs)
        shown = b""
        while b"rows" not in shown:  # the first sample is written, and its progress shown
            shown += os.read(ours, 4096)
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 0
    assert "joins in" in out
    assert re.search(rb"\r +\d+ s  \d+ rows, \d+ loads", shown)
    with Trace.open(path) as trace:
        assert trace.state() == "closed"
        assert len(trace.rows()) > 3


def test_no_more_room_ends_a_recording_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "QUIET", 0)  # every sample is written
    path = tmp_path / "a.trace"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROWS_AT + (8 << 10), before[1]))
    try:
        code, out, err = run(capsys, "record", path, "--seconds", "60", "--every", "0.0001")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (1, "")
    assert "no room for more rows (File too large); the 255 before are whole: make room and record to" in err
    with Trace.open(path) as trace:
        assert trace.state() == "closed"
        assert len(trace.rows()) == 255


def test_a_wait_is_ended_by_whoever_asks() -> None:
    with directmap_cli.Stop() as stop:
        assert not stop.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(600)
        assert stop.wait(600)
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_other_signals_do_not_end_a_wait() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with directmap_cli.Stop() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            began = time.monotonic()
            assert not stop.wait(0.05)
            assert time.monotonic() - began >= 0.05
    finally:
        signal.signal(signal.SIGUSR1, before)


# ---- show ----


def show_with(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    """Let all sources answer, or none."""

    def refuse(*_: object) -> Any:
        raise NotAvailable(why="it is for root\x1b[2J", remedy="run as root")

    def count(*_: object) -> Mapping[str, int]:
        return {"directmap_4k": 5 << 20, "direct_map_level2_splits": 12345}

    for name in ("count_directmap", "count_splits", "count_areas", "count_unseen"):
        monkeypatch.setattr(record, name, count if available else refuse)
    sources = tuple(
        type(one)(one.name, one.tells, one.needs, one.cost, count if available else refuse)
        for one in directmap_cli.SOURCES
    )
    monkeypatch.setattr(directmap_cli, "SOURCES", sources)
    if not available:
        monkeypatch.setattr("execmem.directmap.region.walk", refuse)


def test_what_is_not_available_is_said_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_with(monkeypatch, available=False)
    code, out, _ = run(capsys, "show")
    assert code == 0
    assert out.count("not available: it is for root") == len(directmap_cli.SOURCES)
    assert "\x1b" not in out
    code, out, _ = run(capsys, "show", "--json")
    found = json.loads(out)
    assert (code, found["counters"], found["regions"], found["split_regions"]) == (0, {}, None, None)
    assert set(found["sources"]) == {one.name for one in directmap_cli.SOURCES}


def test_counters_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    show_with(monkeypatch, available=True)
    code, out, _ = run(capsys, "show")
    assert code == 0
    assert re.search(r"directmap_4k +5\.0 MB\n", out)
    assert re.search(r"direct_map_level2_splits +12,345\n", out)
    assert out.count(" yes ") == len(directmap_cli.SOURCES)


def test_this_machine_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "show", "--json")
    found = json.loads(out)
    assert code == 0
    for name, why in found["sources"].items():
        assert why == "available" or why.startswith("not available: "), name
    if found["sources"]["directmap"] == "available":
        assert found["counters"]["directmap_4k"] > 0
    if found["regions"]:
        split = sum(found["regions"][name] for name in ("uniform", "mixed", "holed"))
        assert len(found["split_regions"]) == split > 0


def test_the_atlas_shows_the_worst_of_each_cell() -> None:
    state = np.full(64 * 24 * 2, State.GIGABYTE, dtype=np.uint8)
    state[:3] = State.WHOLE, State.UNIFORM, State.MIXED
    state[4:6] = State.ABSENT, State.HOLED
    state[-2:] = State.ABSENT
    plain = Paint(colour=False, unicode=False)
    lines = draw_directmap.draw_atlas(state, plain)
    assert lines[0].split() == ["0", "B", "uxo" + "G" * 61]
    assert lines[1].split()[:2] == ["256.0", "MB"]
    assert lines[23].endswith("GG.")
    assert len(lines[23].split()[-1]) == 64
    legend = " ".join(lines[24:])
    assert legend.startswith("a letter is 4 MB, the worst of it: . no memory (3), G 1 GB page (3,065), M 2 MB page (1)")
    small = draw_directmap.draw_atlas(np.full(70, State.WHOLE, dtype=np.uint8), plain)
    assert [line.split()[-1] for line in small[:2]] == ["M" * 64, "M" * 6]
    assert "\x1b[1;31mx\x1b[0m" in draw_directmap.draw_atlas(state, Paint(colour=True, unicode=False))[0]


# ---- alone ----


def test_the_commands_work_by_themselves(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert directmap_cli.main(["report", str(trace)]) == 0
    assert "60.0 s of Linux" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--csv", "--svg", "--html"])
def test_a_report_is_never_written_over_its_trace(
    trace: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trace.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(trace)
    for out in (trace, link):
        code, _, err = run(capsys, "report", trace, option, out)
        assert (code, err.count("\n")) == (1, 1)
        assert "is what is read" in err
    assert trace.read_bytes() == before


@pytest.mark.parametrize("arguments", [["--seconds", "1e300"], ["--every", "1e300"], ["--every", "1e-7"]])
def test_times_that_cannot_be_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["directmap", "record", str(tmp_path / "x"), *arguments])
    assert ended.value.code == 2
    assert not (tmp_path / "x").exists()


def test_thousands_of_kinds_of_splits_are_told_at_the_price_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    told = [
        Event(Kind.SPLIT, n, n << 21, 2 << 20, n % 5, owner=f"o{n % 7}", name=f"w{n % 700}") for n in range(1, 3000)
    ]
    rows = Lexicon().pack(told)
    take = Texts.take

    def count(self: Texts, numbers: object) -> object:
        asked.append(numbers)
        return take(self, numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(Texts, "take", count)
    found = directmap_cli.sum_splits(rows, Texts(rows), 0)
    assert len(asked) < 10
    sums: Counter[tuple[str, str]] = Counter()
    for one in told:
        sums[one.owner, one.name] += one.id
    assert {(one["owner"], one["why"]): one["count"] for one in found} == sums
    places = [at for one in found for at in one["at"]]
    assert sorted(places) == [one.at for one in told]
