"""What other tools write becomes events, what is damaged is told, and rows become columns for other tools."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import random
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import execmem
from execmem.directmap.convert import (
    LEDGER_EVENT,
    LEDGER_HEADER,
    LEDGER_SHARD,
    find_ledgers,
    read_bpftool,
    read_jitdump,
    read_ledger,
    read_perf_map,
    write_csv,
    write_parquet,
    write_perfetto,
)
from execmem.directmap.trace import EVENT, Client, Event, Kind, Lexicon, TraceError
from execmem.ledger import EVENT_DTYPE, HEADER_DTYPE, SHARD_DTYPE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# ---- bpftool ----

# What bpftool 7.4 prints for two programs of systemd and of tc, shortened to the fields that matter.
SYSTEMD = {
    "id": 6,
    "type": "cgroup_device",
    "name": "sd_devices",
    "tag": "1c31b4e3c5f5cbd2",
    "loaded_at": 1722172830,
    "uid": 0,
    "bytes_xlated": 504,
    "jited": True,
    "bytes_jited": 309,
    "pids": [{"pid": 1, "comm": "systemd"}],
}
FILTER = {"id": 9, "type": "sched_cls", "tag": "6deef7357e7b4530", "uid": 7, "bytes_xlated": 64, "jited": False}


def test_programs_that_came_and_went_between_two_snapshots() -> None:
    again = SYSTEMD | {"loaded_at": 1722172999, "name": "sd_fw"}  # the number was given out again
    events = read_bpftool(json.dumps([SYSTEMD]), json.dumps([again, FILTER]), ns=5)
    assert events == [
        Event(Kind.UNLOAD, 5, 0, 309, 6, Client.BPF, "pid 1 systemd", "sd_devices"),
        Event(Kind.LOAD, 5, 0, 309, 6, Client.BPF, "pid 1 systemd", "sd_fw"),
        Event(Kind.LOAD, 5, 0, 0, 9, Client.BPF, "uid 7", "bpf_prog_6deef7357e7b4530"),
    ]
    assert read_bpftool(json.dumps([SYSTEMD]), json.dumps([SYSTEMD]), ns=5) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not what `bpftool"),
        ("[" * 100_000, "not what `bpftool"),
        ("7", "no list of programs"),
        ('{"error": "can\'t get next program: Operation not permitted"}', "not permitted; it wants to run as root"),
        ("[7]", "program 0 of the list"),
        ('[{"name": "x"}]', "program 0 of the list"),
        ('[{"id": -1}]', "program 0 of the list"),
        ('[{"id": 1}, {"id": 2, "bytes_jited": 1e99}]', "program 1 of the list"),
        ('[{"id": 1, "bytes_jited": 4294967296}]', "program 0 of the list"),
    ],
)
def test_snapshots_that_are_none_are_told(text: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read_bpftool("[]", text, ns=0)


def test_holders_that_are_none_are_left_out() -> None:
    assert read_bpftool("[]", '[{"id": 1, "pids": [7]}, {"id": 2, "pids": null}]', ns=0)[0].owner == "uid 0"


# ---- perf maps ----


def test_a_perf_map_is_read(tmp_path: Path) -> None:
    path = tmp_path / "perf-123.map"
    path.write_bytes(b"7f00 20 py::add:/a b.py\n0x7F40 0x10\tcaf\xc3\xa9\xff\r\n7f00 8 other\n7f80 1 cut")
    assert list(read_perf_map(path, ns=9)) == [
        Event(Kind.LOAD, 9, 0x7F00, 0x20, 1, Client.OTHER, "pid 123", "py::add:/a b.py"),
        Event(Kind.LOAD, 9, 0x7F40, 0x10, 2, Client.OTHER, "pid 123", "café\\xff"),
        Event(Kind.UNLOAD, 9, 0x7F00, 0x20, 1, Client.OTHER, "pid 123", "py::add:/a b.py"),
        Event(Kind.LOAD, 9, 0x7F00, 8, 3, Client.OTHER, "pid 123", "other"),
    ]


@pytest.mark.parametrize(
    "line", [b"zz 20 x", b"7f00 20", b"7f00", b"", b"-1 20 x", b"1" * 17 + b" 1 x", b"1 100000000 x", b"x" * 70_000]
)
def test_lines_that_are_none_are_told_with_their_number(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "perf-1.map"
    path.write_bytes(b"1 1 ok\n" + line + b"\n")
    with pytest.raises(TraceError, match=r"perf-1.map:2: not `ADDRESS SIZE NAME`"):
        list(read_perf_map(path))


# ---- jitdump ----


def jit_header(order: str, flags: int = 0, version: int = 1, size: int = 40) -> bytes:
    return struct.pack(order + "IIIIIIQQ", 0x4A695444, version, size, 62, 0, 77, 5, flags) + bytes(max(size - 40, 0))


def jit_record(order: str, what: int, ns: int, body: bytes) -> bytes:
    return struct.pack(order + "IIQ", what, 16 + len(body), ns) + body


def jit_load(order: str, ns: int, at: int, number: int, name: bytes) -> bytes:
    body = struct.pack(order + "IIQQQQ", 77, 78, at, at, 4, number) + name + b"\0" + b"\x90\x90\x90\xc3"
    return jit_record(order, 0, ns, body)


def jit_move(order: str, ns: int, old: int, new: int, number: int) -> bytes:
    return jit_record(order, 1, ns, struct.pack(order + "IIQQQQQ", 77, 78, new, old, new, 4, number))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jitdump_is_read_in_either_byte_order(order: str, tmp_path: Path) -> None:
    path = tmp_path / "jit-77.dump"
    path.write_bytes(
        jit_header(order, size=48)
        + jit_load(order, 10, 0x1000, 3, b"add")
        + jit_record(order, 2, 11, bytes(40))
        + jit_move(order, 12, 0x1000, 0x2000, 3)
        + jit_record(order, 9, 12, b"")
        + jit_record(order, 3, 13, b"")
        + jit_load(order, 14, 0x1000, 4, b"behind the end")
    )
    load = Event(Kind.LOAD, 10, 0x1000, 4, 3, Client.OTHER, "pid 77 thread 78", "add")
    assert list(read_jitdump(path)) == [
        load,
        load._replace(kind=Kind.UNLOAD, ns=12),
        load._replace(ns=12, at=0x2000),
    ]


def test_a_jitdump_gives_what_is_whole_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "jit-77.dump"
    one = jit_load("<", 10, 0x1000, 3, b"add")
    whole = jit_header("<") + one + one
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if size < 40:
            with pytest.raises(TraceError, match="no jitdump"):
                list(read_jitdump(path))
        else:
            assert len(list(read_jitdump(path))) == (size - 40) // len(one)


def test_times_of_another_clock_are_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "jit-77.dump"
    path.write_bytes(jit_header("<", flags=1) + jit_load("<", 10, 0x1000, 3, b"add"))
    assert [event.ns for event in read_jitdump(path)] == [0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF" + bytes(60), "no jitdump"),
        (jit_header("<", version=2), "version 2"),
        (jit_header("<", size=8), "header of 8 bytes"),
        (jit_header("<") + struct.pack("<IIQ", 0, 8, 1), "at byte 40 has 8 bytes"),
        (jit_header("<") + struct.pack("<IIQ", 0, 0, 1), "at byte 40 has 0 bytes"),
        (jit_header("<") + jit_record("<", 0, 1, bytes(39)), "at byte 40 ends before its fields do"),
        (jit_header("<") + jit_record("<", 1, 1, bytes(47)), "at byte 40 ends before its fields do"),
        (jit_header("<") + jit_record("<", 0, 1, bytes(24) + b"\xff" * 16), "larger than 4 GB"),
    ],
)
def test_damaged_jitdumps_are_told(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "jit-77.dump"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=words):
        list(read_jitdump(path))


# ---- our own ledger ----


def test_the_layout_is_that_of_the_ledger() -> None:
    for mine, theirs in (
        (LEDGER_HEADER, HEADER_DTYPE),
        (LEDGER_SHARD, SHARD_DTYPE),
        (LEDGER_EVENT, EVENT_DTYPE),
    ):
        assert mine.names
        assert mine.fields
        assert theirs.fields
        assert {name: mine.fields[name][:2] for name in mine.names} == {
            name: theirs.fields[name][:2] for name in mine.names
        }
    assert SHARD_DTYPE.itemsize == LEDGER_SHARD.itemsize
    assert EVENT_DTYPE.itemsize == LEDGER_EVENT.itemsize
    assert HEADER_DTYPE.itemsize >= LEDGER_HEADER.itemsize


def own_ledger(name: str) -> Path:
    return next(path for path in find_ledgers(os.getpid()) if f":{name} " in f"{path.readlink()} ")


def test_blocks_of_a_process_are_read_from_its_ledger() -> None:
    with execmem.Domain("converted") as domain:
        block = domain.place(bytes(100))
        address = block.address
        block.free()
        events = read_ledger(own_ledger("converted"))
        expected = domain.events()
        epoch = int(domain.header()["epoch_monotonic_ns"][0])
    found = [(event.kind, event.at, event.size, event.id) for event in events]
    assert found == [(Kind.LOAD, address, 100, 1), (Kind.UNLOAD, address, 100, 1)]
    assert {(event.owner, event.name) for event in events} == {(f"pid {os.getpid()}", "converted")}
    times = expected["time_ms"][np.isin(expected["op"], (1, 2))].astype(int) * 1_000_000 + epoch
    assert [event.ns for event in events] == times.tolist()


def test_a_full_ring_gives_its_newest_events() -> None:
    with execmem.Domain("ring") as domain:
        blocks = domain.place_many([bytes(10)] * 5000)
        events = [event for event in read_ledger(own_ledger("ring")) if event.kind == Kind.LOAD]
        addresses = [int(address) for address in blocks.addresses]
        del blocks
    assert 1000 < len(events) < 4096
    assert [event.at for event in events] == addresses[-len(events) :]


def ledger(**changes: int | bytes) -> bytes:
    """Return a small ledger of one shard with three events, the last overtaken."""
    header = np.zeros(1, dtype=LEDGER_HEADER)
    fields = {"magic": b"EXECMEM", "version": 3, "shards_offset": 512, "events_offset": 1024, "events_max": 4}
    for key, value in (fields | {"epoch_monotonic_ns": 7, "pid": 5, "name": b"d\xff", "shards": 1} | changes).items():
        header[key] = value
    shard = np.zeros(1, dtype=LEDGER_SHARD)
    shard["events"] = 3
    events = np.array([(64, 9, 1, 1, 0), (64, 9, 2, 2, 1), (64, 9, 3, 1, 6), (0, 0, 0, 0, 0)], dtype=LEDGER_EVENT)
    return header.tobytes().ljust(512, b"\0") + shard.tobytes().ljust(512, b"\0") + events.tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no ledger of execmem"),
        (bytes(4096), "no ledger of execmem"),
        (ledger(version=4), "ledger of version 4"),
        (ledger(events_max=0), "cannot be"),
        (ledger(events_max=2**32 - 1), "cannot be"),
        (ledger(shards=2**32 - 1), "cannot be"),
        (ledger(shards=60_000), "ends before"),
        (ledger(events_offset=2**64 - 1), "ends before"),
        (ledger(shards_offset=2**63), "ends before"),
        (ledger(shards_offset=1088), "a ring with"),
        (ledger()[:-1], "ends before"),
    ],
)
def test_damaged_ledgers_are_told(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(content if words != "a ring with" else content[:1024] + b"\xff" * 512)
    with pytest.raises(TraceError, match=words):
        read_ledger(path)


def test_events_that_were_overtaken_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(ledger())
    load = Event(Kind.LOAD, 1_000_007, 64, 9, 1, Client.OTHER, "pid 5", "d\\xff")
    assert read_ledger(path) == [load, load._replace(kind=Kind.UNLOAD, ns=2_000_007)]


def test_random_damage_to_foreign_files_is_told_or_harmless(tmp_path: Path) -> None:
    chance = random.Random(9)
    one = jit_load("<", 10, 0x1000, 3, b"add")
    path = tmp_path / "any"
    for read, whole in ((read_ledger, ledger()), (read_jitdump, jit_header("<") + one + one)):
        told = 0
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(3):
                content[chance.randrange(len(whole))] = chance.randrange(256)
            path.write_bytes(content)
            try:
                Lexicon().pack(read(path))
            except TraceError:
                told += 1
        assert 0 < told < 150


# ---- for other tools ----

STORY = [
    Event(Kind.LOAD, 1, 2**64 - 1, 213, 7, Client.BPF, "pid 1 a, b", 'quoted "name"'),
    Event(Kind.SPLIT, 2, 0, 2 << 20, 3),
    Event(Kind.SAMPLE, 3, 30720, name="DirectMap4k"),
]


def test_rows_are_written_as_csv() -> None:
    out = io.StringIO()
    write_csv(Lexicon().pack(STORY), out)
    lines = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [line["kind"] for line in lines] == ["load", "split", "sample"]
    assert lines[0] == {
        "ns": "1",
        "at": str(2**64 - 1),
        "size": "213",
        "id": "7",
        "kind": "load",
        "client": "bpf",
        "owner": "pid 1 a, b",
        "name": 'quoted "name"',
    }
    assert lines[1]["name"] == lines[1]["owner"] == ""


def test_a_client_of_a_later_version_is_unknown() -> None:
    rows = Lexicon().pack(STORY[:1])
    rows["client"][-1] = 200
    out = io.StringIO()
    write_csv(rows, out)
    assert ",load,unknown," in out.getvalue()


def test_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"python -m pip install 'execmem\[parquet\]'"):
        write_parquet(Lexicon().pack(STORY), tmp_path / "a.parquet", {})


def test_rows_are_written_as_parquet(tmp_path: Path, run_child: Callable[..., str]) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed: the extra named parquet brings it")
    np.save(tmp_path / "rows.npy", Lexicon().pack(STORY))
    # In a process of its own: pyarrow starts threads that block all signals, and mode flip must stop every thread.
    source = f"""
        import json, pathlib
        import numpy as np
        import pyarrow.parquet
        from execmem.directmap.convert import write_parquet
        path = pathlib.Path({str(tmp_path / "a.parquet")!r})
        write_parquet(np.load({str(tmp_path / "rows.npy")!r}), path, {{"kernel": "6.12"}})
        table = pyarrow.parquet.read_table(path)
        print(json.dumps([json.loads(table.schema.metadata[b"execmem"]), table.to_pylist()]))
    """
    header, found = json.loads(run_child(source))
    assert header == {"kernel": "6.12"}
    assert [line["kind"] for line in found] == ["load", "split", "sample"]
    assert (found[0]["at"], found[0]["name"], found[0]["owner"]) == (2**64 - 1, 'quoted "name"', "pid 1 a, b")
    assert len(found) == 3


def test_no_rows_are_written_too() -> None:
    out = io.StringIO()
    write_csv(np.empty(0, dtype=EVENT), out)
    assert out.getvalue() == "ns,at,size,id,kind,client,owner,name\n"


# ---- trace events ----

START = 10**15 + 7
HOSTILE = 'a"\\\n\x1b[2J</script>\u2028\U0001f4a3{'


def write_events(events: list[Event]) -> list[dict[str, Any]]:
    """Write events as trace events, see that viewers can nest them, and return them without those that name tracks."""
    file = io.StringIO()
    header = {"machine": "x86_64", "kernel": "6.1 " + HOSTILE, "start_realtime_ns": 5, "start_ns": START}
    write_perfetto(Lexicon().pack(events), header, file)
    found = json.loads(file.getvalue())
    assert set(found) == {"otherData", "traceEvents"}  # Perfetto reads no further than a key that it does not know
    assert found["otherData"]["kernel"] == header["kernel"]
    told = found["traceEvents"]
    assert all({"ph", "pid", "tid", "ts", "name", "args"} <= one.keys() for one in told)
    assert all(one["ts"] >= 0 for one in told)
    processes = {one["pid"] for one in told if one["name"] == "process_name"}
    assert processes == {one["pid"] for one in told}
    open_slices: dict[tuple[Any, ...], list[float]] = {}
    for one in sorted(told, key=lambda one: one["ts"]):  # stable, as viewers sort
        key = tuple(one.get(field) for field in ("pid", "cat", "id", "name"))
        if one["ph"] == "b":
            assert one["pid"] != 1
            open_slices.setdefault(key, []).append(one["ts"])
        elif one["ph"] == "e":
            assert open_slices[key].pop() <= one["ts"]
    assert not any(open_slices.values())
    return [one for one in told if one["ph"] != "M"]


def test_code_is_a_slice_from_its_load_to_its_unload() -> None:
    load = Event(Kind.LOAD, START + 1_234_567, 0xFFFF_FFFF_C000_1000, 213, 7, Client.BPF, "pid 9 tc", "cls_main")
    begin, end = write_events([load, load._replace(kind=Kind.UNLOAD, ns=START + 2_000_001)])
    assert begin == {
        "ph": "b", "cat": "code", "id": "1.1", "pid": 3, "tid": 3, "ts": 1234.567, "name": "cls_main",
        "args": {"size": 213, "address": "0xffffffffc0001000", "owner": "pid 9 tc", "id": 7},
    }  # fmt: skip
    assert end == {**begin, "ph": "e", "ts": 2000.001, "args": {}}


def test_what_was_there_before_begins_at_zero_and_what_stays_ends_with_the_trace() -> None:
    old = Event(Kind.LOAD, START - 5, 0, 64, 1, Client.BPF, "", "old")
    unseen = Event(Kind.UNLOAD, START + 3000, 64, 64, 2, Client.MODULE, "", "unseen")
    last = Event(Kind.SAMPLE, START + 9000, 1, name="counter")
    found = {(one["ph"], one["name"]): one for one in write_events([old, unseen, last])}
    assert [found["b", name]["ts"] for name in ("old", "unseen")] == [0, 0]
    assert [found["e", name]["ts"] for name in ("old", "unseen")] == [9, 3]
    assert "lives on" in found["e", "old"]["args"]["end"]
    assert found["b", "old"]["args"] == {"size": 64, "address": "not known", "owner": "not known", "id": 1}


def test_pieces_that_cannot_be_told_apart_each_begin_and_end() -> None:
    load = Event(Kind.LOAD, START, 0, 64, 0, Client.CLASSIC, "", "")
    unload = load._replace(kind=Kind.UNLOAD)
    events = [load, load, unload._replace(ns=START + 1), load._replace(ns=START + 1), unload._replace(ns=START + 2)]
    phases = [one["ph"] for one in write_events(events)]
    assert phases == ["b", "b", "e", "b", "e", "e"]


@pytest.mark.parametrize(("came", "went"), [(0, 0xFFFF_FFFF_C000_1000), (0xFFFF_FFFF_C000_1000, 0)])
def test_code_whose_address_was_hidden_once_is_one_slice(came: int, went: int) -> None:
    old = Event(Kind.LOAD, START - 5, came, 0, 7, Client.BPF, "uid 0", "old")
    gone = old._replace(kind=Kind.UNLOAD, ns=START + 3000, at=went, size=64)
    last = Event(Kind.SAMPLE, START + 9000, 1, name="counter")
    slices = [one for one in write_events([old, gone, last]) if one["ph"] in "be"]
    assert [(one["ph"], one["id"], one["ts"], one["name"]) for one in slices] == [
        ("b", "1.1", 0, "old"),
        ("e", "1.1", 3, "old"),
    ]


def test_lanes_are_used_again_so_that_tracks_are_few() -> None:
    events = []
    for number in range(2000):
        load = Event(Kind.LOAD, START + number, 64 * number, 64, number, Client.BPF, "", f"f{number % 3}")
        events += [load, load._replace(kind=Kind.UNLOAD, ns=START + number + 2)]
    found = write_events(sorted(events, key=lambda event: event.ns))
    assert len({one["id"] for one in found}) <= 3


def test_counters_and_splits() -> None:
    sample = Event(Kind.SAMPLE, START + 1000, (1 << 64) - 1, name="directmap_4k")
    split = Event(Kind.SPLIT, START + 2000, 5 << 21, 2 << 20, 3, owner="pid 9 tc", name="it loaded cls_main")
    counter, instant, join = write_events([sample, split, split._replace(kind=Kind.JOIN, at=0, owner="")])
    assert (counter["ph"], counter["name"], counter["args"]) == ("C", "directmap_4k", {"value": (1 << 64) - 1})
    assert (instant["ph"], instant["s"], instant["name"], instant["ts"]) == ("i", "t", "split", 2)
    assert instant["args"] == {
        "owner": "pid 9 tc", "why": "it loaded cls_main", "count": 3, "size": 2 << 20, "offset": "0xa00000",
    }  # fmt: skip
    assert (join["name"], join["args"]["owner"], join["args"]["offset"]) == ("join", "not known", "not known")


def test_hostile_names_stay_texts_in_trace_events() -> None:
    kinds = (Kind.LOAD, Kind.SAMPLE, Kind.SPLIT)
    found = write_events([Event(kind, START, 1, 1, 1, Client.BPF, HOSTILE, HOSTILE) for kind in kinds])
    texts = [one["name"] if one["ph"] != "i" else one["args"]["why"] for one in found]
    assert texts == [HOSTILE] * 4
    unknown = Lexicon().pack([Event(Kind.LOAD, START, client=Client.BPF, name="f")])
    unknown["client"][-1] = 200
    file = io.StringIO()
    write_perfetto(unknown, {"machine": "", "kernel": "", "start_realtime_ns": 0, "start_ns": START}, file)
    assert "code: client 200" in file.getvalue()


def test_no_rows_are_a_trace_without_events() -> None:
    assert write_events([]) == []
