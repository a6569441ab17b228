"""Traces: rows and texts come back, readers follow, killed recorders and full disks lose nothing, damage is told."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import random
import resource
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from execmem.directmap.trace import (
    EVENT,
    HEADER_MAX,
    NAMES_FROM,
    OWNERS_MAX,
    OWNERS_REST,
    ROWS_AT,
    TEXT_MAX,
    Client,
    Event,
    Kind,
    Lexicon,
    Texts,
    Trace,
    TraceError,
    TraceFullError,
    Writer,
    spell,
    write_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

LOAD = Event(Kind.LOAD, ns=5, at=0xFFFFFFFFC0000000, size=213, id=1, client=Client.BPF, owner="pid 7 tc", name="main")


def samples(count: int, start: int = 0) -> npt.NDArray[np.void]:
    """Return rows that can be told from each other and from rows half written."""
    rows = np.zeros(count, dtype=EVENT)
    rows["at"] = rows["ns"] = np.arange(start, start + count) * 0x0101010101010101 + 1
    rows["size"] = rows["id"] = 7
    rows["kind"] = Kind.SAMPLE
    return rows


def read(path: Path) -> npt.NDArray[np.void]:
    with Trace.open(path) as trace:
        return trace.rows()


def read_texts(path: Path) -> list[str]:
    rows = read(path)
    names: list[str] = Texts(rows).take(rows["name"][rows["kind"] != Kind.TEXT]).tolist()
    return names


# ---- rows and texts ----


def test_events_come_back_with_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with Writer(path, {"note": "first"}) as writer:
        writer.add([LOAD, LOAD._replace(kind=Kind.UNLOAD, name="")])
        writer.add([LOAD._replace(owner="pid 8 Ünïcode " + "x" * 100)])
    assert path.stat().st_size == ROWS_AT + writer.count * EVENT.itemsize
    with Trace.open(path) as trace:
        assert trace.header["note"] == "first"
        assert trace.header["page_sizes"][0] == os.sysconf("SC_PAGESIZE")
        rows = trace.rows()
        assert trace.state() == "closed"
    texts = Texts(rows)
    rows = rows[rows["kind"] != Kind.TEXT]
    assert [tuple(row)[:4] for row in rows.tolist()] == [(5, 0xFFFFFFFFC0000000, 213, 1)] * 3
    assert rows["kind"].tolist() == [Kind.LOAD, Kind.UNLOAD, Kind.LOAD]
    assert texts.take(rows["name"]).tolist() == ["main", "", "main"]
    assert texts.take(rows["owner"]).tolist() == ["pid 7 tc", "pid 7 tc", "pid 8 Ünïcode " + "x" * 100]
    assert texts[0] == ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 24, "x" * 24),
        ("x" * 25, "x" * 25),
        ("é" * 5000, "é" * (TEXT_MAX // 2)),
        ("a" + "é" * 5000, "a" + "é" * (TEXT_MAX // 2 - 1)),
        ("\udc80", "\\udc80"),
        ("a\0b", "a\0b"),
    ],
)
def test_any_text_can_be_written(text: str, kept: str) -> None:
    assert Texts(spell(3, text))[3] == kept


def test_names_leave_owners_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.iinfo(EVENT["owner"]).max == OWNERS_MAX < NAMES_FROM
    monkeypatch.setattr("execmem.directmap.trace.OWNERS_MAX", 100)
    lexicon = Lexicon()
    lexicon.pack(Event(Kind.LOAD, name=f"n{number}", owner=f"o{number}") for number in range(110))
    assert lexicon.owner("o0") == 1
    assert lexicon.owner("o98") == 99
    assert lexicon.owner("one more") == lexicon.owner("and another") == lexicon.owner(OWNERS_REST) == 100
    assert lexicon.name("n1") == NAMES_FROM + 1


def test_a_million_rows_with_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "big.trace"
    rows = samples(1_000_000)
    rows["name"] = np.arange(len(rows)) % 5000 + 1
    with Writer(path) as writer:
        writer.append(np.concatenate([spell(number, f"name {number}") for number in range(1, 5001)]))
        writer.append(rows)
    found = read(path)
    texts = Texts(found)
    assert np.array_equal(found[5000:], rows)
    assert texts.take(found["name"][-3:]).tolist() == ["name 4998", "name 4999", "name 5000"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (spell(5, "x" * 60)[[0, 2]], "text 5 lacks a part"),
        (spell(5, "x" * 60)[1:], "text 5 lacks a part"),
        (np.concatenate([spell(5, "x"), spell(5, "x")]), "text 5 is there twice"),
        (spell(0, "x"), "text 0 has number 0"),
        (np.array([(2**64 - 1, 0, 0, 0, 9, 0, Kind.TEXT, 2)], dtype=EVENT), "text 9 is not UTF-8"),
        (np.array([(0, 0, 0, 0, 9, 0, Kind.TEXT, 25)], dtype=EVENT), "text 9 has a part of more than 24"),
    ],
)
def test_unlawful_texts_are_told(rows: npt.NDArray[np.void], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        Texts(rows)


def test_a_missing_text_is_told() -> None:
    texts = Texts(spell(3, "three"))
    for number in (1, 4, 2**32 - 1):
        with pytest.raises(TraceError, match=f"text {number} is not in the file"):
            texts.take([3, number])
    assert Texts(samples(2)).take([0, 0]).tolist() == ["", ""]


def test_rows_that_are_none_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.trace") as writer:
        for rows in (np.zeros(1, dtype=EVENT), np.array(0, dtype=EVENT), np.full(2, 7, dtype="u1").view("u1")):
            with pytest.raises((ValueError, TypeError)):
                writer.append(rows)
        assert writer.count == 0
    with pytest.raises(ValueError, match="closed"):
        writer.append(samples(1))


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        Writer(path)
    assert path.read_text() == "precious"


# ---- readers follow ----


def test_a_reader_follows_until_the_recorder_closes(tmp_path: Path) -> None:
    path, count = tmp_path / "a.trace", 30_000
    writer = Writer(path)

    def record() -> None:
        at = 0
        while at < count:
            step = min(count - at, 1 + at * 7 % 900)
            writer.append(samples(step, at))
            at += step
        writer.close()

    thread = threading.Thread(target=record)
    with Trace.open(path) as trace:
        assert trace.state() == "recording"
        thread.start()
        followed = list(trace.follow(every=0.0005))
        thread.join()
        assert np.array_equal(np.concatenate(followed), samples(count))
        assert trace.state() == "closed"


def test_a_reader_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.trace") as writer, Trace.open(writer.path) as trace:
        writer.append(samples(3))
        assert [len(rows) for rows in trace.follow(stop=lambda: True)] == [3]


# ---- killed recorders ----

KILLED = """
import os, signal, sys, time
import numpy as np
from execmem.directmap.trace import *

def written(path):
    try:
        with Trace.open(path) as trace:
            rows = trace.rows()
    except (FileNotFoundError, TraceError):
        return 0
    return int((rows["kind"] == Kind.LOAD).sum())

def lawful(path):
    try:
        with Trace.open(path) as trace:
            rows, state = trace.rows(), trace.state()
    except (FileNotFoundError, TraceError) as error:
        assert "closed" not in str(error)
        return 0
    texts = Texts(rows)
    rows = rows[rows["kind"] == Kind.LOAD]
    assert rows["at"].tolist() == list(range(len(rows))), "a row is missing"
    names = texts.take(rows["name"]).tolist()
    assert names == [f"the name of number {n // 3}" for n in range(len(rows))], "a name is wrong"
    assert state in {"closed", "cut off"}, state
    return len(rows)

for turn in range(40):
    path = os.path.join(sys.argv[1], f"{turn}.trace")
    child = os.fork()
    if child == 0:
        writer, at = Writer(path), 0
        while True:
            step = 1 + at % 50
            writer.add(Event(Kind.LOAD, at=n, name=f"the name of number {n // 3}") for n in range(at, at + step))
            at += step
    target = max(turn - 15, 0) * 90  # the first are killed while they begin, the last after their file has grown
    while target and written(path) < target:
        time.sleep(0.0001)
    time.sleep(turn % 20 * 0.0001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert lawful(path) >= target
print("whole")
"""


@pytest.mark.unsanitized  # forks that are killed need no second look, and take their time there
def test_a_recorder_that_is_killed_loses_no_row(tmp_path: Path, run_child: Callable[..., str]) -> None:
    program = KILLED.replace("sys.argv[1]", repr(str(tmp_path)))
    assert run_child(program) == "whole"


def test_a_file_cut_at_any_byte_gives_the_rows_before(tmp_path: Path) -> None:
    path, cut = tmp_path / "a.trace", tmp_path / "cut.trace"
    with Writer(path) as writer:
        writer.append(samples(5))
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        if 80 < size < ROWS_AT - 2 and size % 16:
            continue
        cut.write_bytes(whole[:size])
        if size < ROWS_AT:
            with pytest.raises(TraceError, match=r"is empty|not whole"):
                read(cut)
        else:
            assert np.array_equal(read(cut), samples((size - ROWS_AT) // EVENT.itemsize)), size


def test_what_lies_behind_the_end_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with Writer(path) as writer:
        writer.append(samples(3))
    for tail in (bytes(32), bytes(64) + samples(4).tobytes(), bytes(5), b"\xff" * 29 + b"\0\0\0" + b"\xff" * 64):
        path.write_bytes(path.read_bytes()[: ROWS_AT + 96] + tail)
        assert len(read(path)) == 3
        with Trace.open(path) as trace:
            assert trace.state() in {"closed", "cut off"}


def test_a_file_whose_recorder_lives_is_told_from_one_that_was_cut_off(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.trace")
    writer.append(samples(2))
    with Trace.open(writer.path) as trace:
        assert trace.state() == "recording"
        fcntl.flock(writer._fd, fcntl.LOCK_UN)  # as the end of a process does
        assert trace.state() == "cut off"
        assert sum(len(rows) for rows in trace.follow()) == 2
    writer.close()


def test_where_files_have_no_locks_traces_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("execmem.directmap.trace.fcntl.flock", refuse)
    with Writer(tmp_path / "a.trace") as writer:
        writer.append(samples(3))
        with Trace.open(writer.path) as trace:
            assert trace.state() == "recording"
    with Trace.open(writer.path) as trace:
        assert trace.state() == "closed"
        assert np.array_equal(trace.rows(), samples(3))


# ---- full disks ----


@pytest.fixture
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROWS_AT + (200 << 10), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(path: Path) -> tuple[int, TraceFullError]:
    """Write rows until there is no more room; return how many there are, and the error."""
    with Writer(path) as writer, pytest.raises(TraceFullError) as refused:
        deque(map(writer.append, (samples(1, number) for number in range(1 << 20))), maxlen=0)
    assert np.array_equal(read(path), samples(writer.count))
    with Trace.open(path) as trace:
        assert trace.state() == "closed"
    return writer.count, refused.value


@pytest.mark.usefixtures("small_files")
def test_a_limit_on_file_sizes_is_told_and_loses_nothing(tmp_path: Path) -> None:
    count, error = fill(tmp_path / "a.trace")
    assert count == (200 << 10) // EVENT.itemsize - 1  # to the last page, whose last row stays blank
    assert error.errno == errno.EFBIG
    assert f"the {count} before are whole" in str(error)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"execmem", bytes(tmp_path), b"tmpfs", 0, b"size=512k") < 0:
        pytest.skip(f"a small disk needs mount(): {os.strerror(ctypes.get_errno())}")
    try:
        count, error = fill(tmp_path / "a.trace")
        assert count == ((512 << 10) - ROWS_AT) // EVENT.itemsize - 1
        assert error.errno == errno.ENOSPC
        with pytest.raises(TraceFullError):
            Writer(tmp_path / "b.trace")
        assert [path.name for path in tmp_path.iterdir()] == ["a.trace"]
    finally:
        assert libc.umount2(bytes(tmp_path), 2) == 0


# ---- files of others ----

HEADER = json.loads(
    write_header(
        {"machine": "m", "kernel": "k", "page_sizes": [4096], "clock": "CLOCK_MONOTONIC"}
        | {"start_ns": 1, "start_realtime_ns": 2}
    )
)


def line(**changes: Any) -> bytes:
    return json.dumps(HEADER | changes).ljust(ROWS_AT - 1).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (bytes(8192), "header is not written"),
        (b"PERFILE2" + bytes(200), "not a trace"),
        (b"{}\n", "not a trace"),
        (line()[:100], "not whole"),
        (line()[:-1] + b" " * (1 << 17), "not whole"),
        (line(version=2), "version 2, this reader knows 1: a newer execmem reads it"),
        (line(version="1"), "version is '1', not of type int"),
        (line(version=0), "says version 0"),
        (line(version=True), "version is 'True', not of type int"),
        (line(row=16), "rows of 16 bytes"),
        (line(row=0), "rows of 0 bytes"),
        (line(rows_at=64), "from 64"),
        (line(rows_at=-1), "from -1"),
        (line(rows_at=10**3000), "from 1000"),
        (line(start_ns=10**3000), "start 1000"),
        (line(start_ns=1.5), "start_ns is '1.5', not of type int"),
        (line(clock="TAI"), "clock 'TAI'"),
        (line(page_sizes=4096), "page_sizes is '4096', not of type list"),
        (line(kernel=["x" * 3000]), "kernel is"),
        (line().replace(b'"row": 32', b'"row": 3,2'), "not JSON"),
        (line().replace(b'"clock"', b'"\xff\xff"'), "not JSON"),
        (b'{"format": "execmem-directmap-trace", "x": ' + b"[" * 60000 + b"\n", "not JSON"),
        (line() + b"\1" * 64, "text 16843009 is not in the file"),
        (line() + b"\x4d" * 64, "row 0 is of kind 77"),
    ],
)
def test_damaged_and_foreign_files_are_told(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=words) as refused:
        read_texts(path)
    assert len(str(refused.value)) < 600


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(TraceError, match="not a file"):
            Trace.open(path)
    with pytest.raises(FileNotFoundError):
        Trace.open(tmp_path / "none")


def test_a_file_that_claims_to_be_huge_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with Writer(path) as writer:
        writer.append(samples(3))
    os.truncate(path, 1 << 40)
    assert len(read(path)) == 3


def test_random_damage_is_told_or_harmless(tmp_path: Path) -> None:
    path, bad = tmp_path / "a.trace", tmp_path / "bad.trace"
    with Writer(path) as writer:
        writer.add([LOAD._replace(name=f"program {number} of a longer name", id=number) for number in range(20)])
    whole = path.read_bytes()
    chance = random.Random(6)
    told = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            content[chance.choice([chance.randrange(300), chance.randrange(ROWS_AT, len(whole))])] = chance.randrange(
                256
            )
        bad.write_bytes(content)
        try:
            assert len(read_texts(bad)) <= writer.count
        except TraceError:
            told += 1
    assert 0 < told < 100


def test_a_header_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="leave something out"):
        Writer(tmp_path / "a.trace", {"note": "x" * HEADER_MAX})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [3000, ROWS_AT, 2 * ROWS_AT, HEADER_MAX - 1000])
def test_rows_begin_at_the_first_page_after_the_header(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.trace"
    with Writer(path, {"note": "x" * length}) as writer:
        writer.append(samples(3))
    with Trace.open(path) as trace:
        assert (trace.header["rows_at"] % ROWS_AT, len(trace.header["note"])) == (0, length)
        assert 0 < trace.header["rows_at"] - length < 2 * ROWS_AT
        assert (len(trace.rows()), path.stat().st_size) == (3, trace.header["rows_at"] + 3 * 32)
