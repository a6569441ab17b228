from __future__ import annotations

import contextlib
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from kernel_code import MINE, classic_filters, have, load_functions, programs

from execmem.directmap import perf, source
from execmem.directmap.perf import Attribute, Event, Listener, Recording, Records
from execmem.directmap.trace import Client, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

linux = pytest.mark.skipif(sys.platform != "linux", reason="perf is of Linux")
HIDDEN: Final = ((None, None),)  # a function, with kernel.kptr_restrict=2
WHO: Final = Attribute(perf.SAMPLE_TID | perf.SAMPLE_TIME | perf.SAMPLE_CPU)

# ---- records made up here ----


def who(ns: int, pid: int = 7, thread: int = 0, cpu: int = 1) -> bytes:
    return struct.pack("<IIQQ", pid, thread or pid, ns, cpu)


def symbol(name: str, at: int = 0x1000, size: int = 27, kind: int = 1, flags: int = 0) -> bytes:
    return perf.SYMBOL.pack(at, size, kind, flags) + perf.pad(name.encode())


TAGS: Final = {9: "0001020304050607", 10: "1011121314151617"}  # of the programs of these numbers


def program(number: int, what: int = perf.BPF_LOAD) -> bytes:
    return perf.PROGRAM.pack(what, 0, number, bytes.fromhex(TAGS[number]))


def named(number: int, name: str = "a") -> str:
    return f"bpf_prog_{TAGS[number]}_{name}"


def record(what: int, body: bytes) -> bytes:
    return perf.HEADER.pack(what, 0, perf.HEADER.size + len(body)) + body


def take(*bodies: tuple[int, bytes], last: bool = True) -> list[Event]:
    records = Records()
    for what, body in bodies:
        records.add(what, body, [WHO])
    return records.take(last=last)


def test_a_program_is_told_with_its_number() -> None:
    (event,) = take((perf.KSYMBOL, symbol(named(9)) + who(5)), (perf.BPF_EVENT, program(9) + who(6)))
    assert event == Event(Kind.LOAD, 5, 0x1000, 27, 9, Client.BPF, named(9), TAGS[9], 7, 1)


def test_all_functions_of_a_program_have_its_number() -> None:
    events = take(
        (perf.KSYMBOL, symbol(named(9, "main"), 0x1000) + who(1)),
        (perf.KSYMBOL, symbol("bpf_prog_2_part", 0x2000) + who(2)),
        (perf.BPF_EVENT, program(9) + who(3)),
        (perf.KSYMBOL, symbol(named(10), 0x3000) + who(4)),
        (perf.BPF_EVENT, program(10) + who(5)),
    )
    assert [(event.at, event.id) for event in events] == [(0x1000, 9), (0x2000, 9), (0x3000, 10)]


def test_two_threads_that_load_at_once_are_kept_apart() -> None:
    events = take(
        (perf.KSYMBOL, symbol(named(10), 0x1000) + who(1, thread=21)),
        (perf.KSYMBOL, symbol(named(9), 0x2000) + who(2, thread=22)),
        (perf.BPF_EVENT, program(9) + who(3, thread=22)),
        (perf.BPF_EVENT, program(10) + who(4, thread=21)),
    )
    assert [(event.at, event.id) for event in events] == [(0x1000, 10), (0x2000, 9)]


def test_a_symbol_whose_program_was_lost_is_not_given_to_the_next() -> None:
    records = (
        (perf.KSYMBOL, symbol("bpf_prog_00000000000000ff_lost", 0x1000) + who(1)),
        (perf.KSYMBOL, symbol(named(9), 0x2000) + who(2)),
        (perf.KSYMBOL, symbol("bpf_prog_00000000000000aa_part", 0x3000) + who(3)),
        (perf.BPF_EVENT, program(9) + who(4)),
        (perf.BPF_EVENT, program(10) + who(5)),
    )
    assert [(event.at, event.id) for event in take(*records)] == [(0x1000, 0), (0x2000, 9), (0x3000, 9)]


def test_going_is_told_apart_from_coming() -> None:
    events = take(
        (perf.KSYMBOL, symbol(named(9), flags=perf.UNREGISTER) + who(1)),
        (perf.BPF_EVENT, program(9, perf.BPF_UNLOAD) + who(2)),
    )
    assert [(event.kind, event.id) for event in events] == [(Kind.UNLOAD, 9)]


def test_events_come_in_order_of_time() -> None:
    events = take(
        (perf.KSYMBOL, symbol("bpf_trampoline_2") + who(20)), (perf.KSYMBOL, symbol("bpf_trampoline_1") + who(10))
    )
    assert [event.ns for event in events] == [10, 20]


@pytest.mark.parametrize(
    ("name", "kind", "client"),
    [
        ("bpf_trampoline_6442536467", 1, Client.TRAMPOLINE),
        ("bpf_dispatcher_xdp", 1, Client.TRAMPOLINE),
        ("ftrace_trampoline", 2, Client.TRAMPOLINE),
        ("kprobe_optinsn_page", 2, Client.OTHER),
        ("what_is_this", 0, Client.UNKNOWN),
    ],
)
def test_what_is_no_program_waits_for_no_number(name: str, kind: int, client: Client) -> None:
    (event,) = take((perf.KSYMBOL, symbol(name, kind=kind) + who(1)), last=False)
    assert (event.client, event.id, event.name) == (client, 0, name)


def test_a_program_waits_for_its_number_until_the_next_reading() -> None:
    records = Records()
    records.add(perf.KSYMBOL, symbol(named(9)) + who(1), [WHO])
    assert records.take() == []
    records.add(perf.BPF_EVENT, program(9) + who(2), [WHO])
    assert [event.id for event in records.take()] == [9]
    records.add(perf.KSYMBOL, symbol("bpf_prog_2_b") + who(3), [WHO])
    assert records.take() == []
    assert [(event.name, event.id) for event in records.take()] == [("bpf_prog_2_b", 0)]
    assert records.take() == []


def test_what_the_kernel_leaves_behind_a_record_is_passed_over() -> None:
    (event,) = take(
        (perf.KSYMBOL, symbol(named(9)) + who(1) + b"\xff" * 48),
        (perf.BPF_EVENT, program(9) + who(2) + bytes(24)),
    )
    assert (event.ns, event.pid, event.cpu, event.id) == (1, 7, 1, 9)


def test_lost_records_are_counted() -> None:
    records = Records()
    for count in (3, 4):
        records.add(perf.LOST, struct.pack("<QQ", 0, count) + who(1), [WHO])
    assert (records.lost, records.take()) == (7, [])


@pytest.mark.parametrize("name", ["", "x", "1234567", "12345678", "bpf_prog_\udcff"])
def test_names_of_any_length_are_read(name: str) -> None:
    body = perf.SYMBOL.pack(1, 2, 2, 0) + perf.pad(name.encode(errors="surrogateescape")) + who(9)
    (event,) = take((perf.KSYMBOL, body))
    assert (event.name, event.ns) == (name.encode(errors="surrogateescape").decode(errors="replace"), 9)


@pytest.mark.parametrize("what", [perf.KSYMBOL, perf.BPF_EVENT, perf.LOST])
def test_a_record_cut_off_anywhere_is_refused(what: int) -> None:
    whole = {perf.KSYMBOL: symbol(named(9)), perf.BPF_EVENT: program(9), perf.LOST: bytes(16)}[what] + who(1)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"too short|of which event"):
            take((what, whole[:size]))


@pytest.mark.parametrize("data", [b"\0" * 3, record(perf.LOST, bytes(16))[:-1], bytes(16)])
def test_bytes_that_are_no_records_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="in the middle of one"):
        list(perf.split_records(record(1, b"") + data))


# ---- files made up here ----


def attribute(sample: int, flags: int = perf.SAMPLE_ID_ALL, clock: int = 0) -> bytes:
    return struct.pack("<IIQQQQQ44xi16x", 1, 112, 9, 0, sample, 0, flags, clock)


def perf_data(*records: bytes, attributes: tuple[tuple[bytes, tuple[int, ...]], ...] = ()) -> bytes:
    attributes = attributes or ((attribute(WHO.sample, perf.SAMPLE_ID_ALL | perf.USE_CLOCKID, 1), ()),)
    table, ids = b"", b""
    ids_at = perf.FILE.size + len(attributes) * 128
    for one, numbers in attributes:
        table += one + struct.pack("<QQ", ids_at + len(ids), 8 * len(numbers))
        ids += struct.pack(f"<{len(numbers)}Q", *numbers)
    data = b"".join(records)
    start = ids_at + len(ids)
    return perf.FILE.pack(perf.MAGIC, 104, 128, perf.FILE.size, len(table), start, len(data)) + table + ids + data


LOADED: Final = (
    record(perf.KSYMBOL, symbol(named(9)) + who(5)),
    record(1, b"a mapping, or something else"),
    record(perf.BPF_EVENT, program(9) + who(6)),
    record(perf.LOST, struct.pack("<QQ", 0, 3) + who(7)),
)


def read(path: Path, data: bytes) -> Recording:
    path.write_bytes(data)
    return perf.read_data(path)


def test_a_file_is_read(tmp_path: Path) -> None:
    found = read(tmp_path / "perf.data", perf_data(*LOADED))
    event = Event(Kind.LOAD, 5, 0x1000, 27, 9, Client.BPF, named(9), TAGS[9], 7, 1)
    assert found == Recording((event,), 3, "monotonic")


def test_perfs_own_clock_is_no_clock(tmp_path: Path) -> None:
    data = perf_data(*LOADED, attributes=((attribute(WHO.sample), ()),))
    assert read(tmp_path / "perf.data", data).clock is None


def test_events_that_end_their_records_differently_are_told_apart(tmp_path: Path) -> None:
    sample = perf.SAMPLE_TIME | perf.SAMPLE_IDENTIFIER
    attributes = ((attribute(sample | perf.SAMPLE_TID), (31,)), (attribute(sample), (32, 33)))
    records = (
        record(perf.KSYMBOL, symbol("bpf_trampoline_1") + struct.pack("<IIQQ", 7, 7, 5, 31)),
        record(perf.KSYMBOL, symbol("bpf_trampoline_2") + struct.pack("<QQ", 6, 33)),
    )
    found = read(tmp_path / "perf.data", perf_data(*records, attributes=attributes))
    assert [(event.ns, event.pid) for event in found.events] == [(5, 7), (6, 0)]


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = perf_data(*LOADED)
    for size in range(len(whole)):
        with pytest.raises(ValueError, match=r"is no perf\.data|lies outside|lie outside|cut off"):
            read(tmp_path / "perf.data", whole[:size])


def test_a_file_that_is_still_written_is_refused(tmp_path: Path) -> None:
    data = bytearray(perf_data(*LOADED))
    data[48:56] = bytes(8)
    with pytest.raises(ValueError, match="still records"):
        read(tmp_path / "perf.data", bytes(data))


def test_files_not_read_here_say_so(tmp_path: Path) -> None:
    with pytest.raises(source.NotAvailable, match="record without -z"):
        read(tmp_path / "perf.data", perf_data(record(81, bytes(8))))
    piped = bytearray(perf_data(*LOADED))
    piped[8:16] = (16).to_bytes(8, "little")
    with pytest.raises(source.NotAvailable, match="to a pipe"):
        read(tmp_path / "perf.data", bytes(piped))
    with pytest.raises(ValueError, match="no record begins"):
        read(tmp_path / "perf.data", perf_data(record(1, b""), bytes(8)))


def test_data_between_records_is_passed_over(tmp_path: Path) -> None:
    between = record(perf.AUXTRACE, struct.pack("<Q", 40) + bytes(32)) + b"\xff" * 40
    assert len(read(tmp_path / "perf.data", perf_data(between, *LOADED)).events) == 1


SCRIPT: Final = """\
swapper     0 [000]  1234.567891: PERF_RECORD_KSYMBOL addr ffffffffc002204c len 27 type 1 flags 0x0 name bpf_prog_85_S 1
swapper     0 [000]  1234.567892: PERF_RECORD_BPF_EVENT type 1, flags 0, id 119
my prog 7/7 [001] 1234.567893123: PERF_RECORD_KSYMBOL addr ffffffffc002204c len 27 type 1 flags 0x1 name bpf_prog_85_S 1
my prog 7/7 [001]  1234.567894123: PERF_RECORD_BPF_EVENT type 2, flags 0, id 119
ls 12 [001] 1235.000000:          1 cycles:  ffffffff81000000 main ([kernel.kallsyms])
ls 12 [001] 1236.000000: PERF_RECORD_LOST lost 5
"""


def test_a_text_of_perf_is_read() -> None:
    found = perf.read_script(SCRIPT.splitlines())
    at, name = 0xFFFFFFFFC002204C, "bpf_prog_85_S 1"
    assert found.events == (
        Event(Kind.LOAD, 1234567891000, at, 27, 119, Client.BPF, name),
        Event(Kind.UNLOAD, 1234567893123, at, 27, 119, Client.BPF, name, pid=7, cpu=1),
    )
    assert (found.lost, found.clock) == (5, None)


# ---- the kernel that runs ----


@pytest.fixture
def listener() -> Iterator[Listener]:
    with have(lambda: Listener(1 << 20)) as found:
        yield found


def hear(listener: Listener, prefix: str, count: int, kind: Kind) -> list[Event]:
    """Return the events of programs whose names begin so, as soon as there are as many: the kernel unloads later."""
    heard: list[Event] = []
    deadline = time.monotonic() + 60
    while len(heard) < count and time.monotonic() < deadline:
        listener.wait(0.1)
        heard += [event for event in listener.read() if event.kind == kind and f"_{prefix}" in event.name]
    return heard


@linux
def test_a_thousand_programs_come_and_go_one_by_one(listener: Listener) -> None:
    for half in (f"{MINE}g", f"{MINE}h"):
        begun = time.monotonic_ns()
        with programs(500, half) as names:
            loads = hear(listener, half, 500, Kind.LOAD)
            living = {one.id: one for one in source.read_programs() if one.name.startswith(half)}
        unloads = hear(listener, half, 500, Kind.UNLOAD)
        assert [event.name.rpartition("_")[2] for event in loads] == names
        assert {event.id for event in loads} == set(living)
        for event in loads:
            assert (event.client, event.tag) == (Client.BPF, living[event.id].tag)
            assert living[event.id].code == event.size
            assert living[event.id].functions in {((event.at, event.size),), HIDDEN}
        assert sorted((event.at, event.size, event.name) for event in unloads) == sorted(
            (event.at, event.size, event.name) for event in loads
        )
        assert begun < loads[0].ns < loads[-1].ns < unloads[-1].ns < time.monotonic_ns()
    assert listener.lost == 0


@linux
def test_functions_of_one_program_have_its_number(listener: Listener) -> None:
    file = load_functions(4, "emfour")
    try:
        own = source.read_program(file)
        heard = [event for event in listener.read(last=True) if event.id == own.id]
    finally:
        os.close(file)
    assert own.functions in {tuple((event.at, event.size) for event in heard), HIDDEN * 4}
    assert sum(event.size for event in heard) == own.code


@linux
def test_the_process_that_loads_is_told(listener: Listener) -> None:
    script = str(Path(__file__).with_name("kernel_code.py"))
    with subprocess.Popen([sys.executable, script, "3", f"{MINE}w"]) as child:
        assert child.wait() == 0
        heard = hear(listener, f"{MINE}w", 3, Kind.LOAD)
    assert {event.pid for event in heard} == {child.pid}


@linux
def test_classic_filters_are_not_heard(listener: Listener) -> None:
    with classic_filters(20):
        pass
    with programs(1, f"{MINE}n"):
        assert listener.wait(60)
        heard = [event for event in listener.read() if event.client is not Client.TRAMPOLINE]
    mine = [event for event in heard if event.name.endswith(f"_{MINE}n0")]
    assert len(mine) == 1
    assert not [event for event in heard if event.pid == mine[0].pid and event is not mine[0]]


@linux
def test_two_listeners_hear_the_same(listener: Listener) -> None:
    with Listener() as other, programs(5, f"{MINE}t"):
        first, second = (hear(one, f"{MINE}t", 5, Kind.LOAD) for one in (listener, other))
    assert [replace(event, ns=0) for event in first] == [replace(event, ns=0) for event in second]
    assert all(event.ns and event.pid for event in (*first, *second))


@linux
def test_a_ring_that_is_full_loses_and_says_so() -> None:
    with have(lambda: Listener(1)) as small:
        with programs(300, f"{MINE}l"):
            heard = small.read()
        with programs(1, "emafter"):
            heard += small.read()
        assert small.lost > 0
        assert 0 < len([event for event in heard if f"_{MINE}l" in event.name]) < 300
        assert small.read(last=True) is not None
        with programs(20, f"{MINE}r"):
            assert len(hear(small, f"{MINE}r", 20, Kind.LOAD)) == 20  # the ring goes round


@linux
def test_a_closed_listener_holds_nothing() -> None:
    listener = have(Listener)
    before = set(Path("/proc/self/fd").iterdir())
    listener.close()
    listener.close()
    gone = before - set(Path("/proc/self/fd").iterdir())
    assert len(gone) >= len(perf.online_cpus())


@linux
def test_what_perf_records_is_read_as_it_was_heard(listener: Listener, tmp_path: Path) -> None:
    tool = shutil.which("perf")
    if tool is None:
        pytest.skip("no perf")
    data, script = tmp_path / "perf.data", Path(__file__).with_name("kernel_code.py")
    command = [tool, "record", "-a", "-e", "dummy", "-k", "CLOCK_MONOTONIC", "-o", str(data)]
    done = subprocess.run(
        [*command, "--", sys.executable, str(script), "5", f"{MINE}p"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"perf cannot record here: {done.stderr.strip()[-200:]}")
    heard = hear(listener, f"{MINE}p", 5, Kind.LOAD)
    found = perf.read_data(data)
    loads = [event for event in found.events if f"_{MINE}p" in event.name and event.kind == Kind.LOAD]
    assert [(event.at, event.size, event.id, event.name) for event in loads] == [
        (event.at, event.size, event.id, event.name) for event in heard
    ]
    assert found.clock == "monotonic"
    assert [event.pid for event in loads] == [event.pid for event in heard]
    text = subprocess.run(
        [tool, "script", "-i", str(data), "--show-bpf-events"], capture_output=True, text=True, check=True
    ).stdout
    told = [event for event in perf.read_script(text.splitlines()).events if f"_{MINE}p" in event.name]
    assert [(event.at, event.id) for event in told if event.kind == Kind.LOAD] == [
        (event.at, event.id) for event in heard
    ]


def test_cpus_are_counted_from_their_list(tmp_path: Path) -> None:
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0,2-4,7\n")
    assert perf.online_cpus(tmp_path) == [0, 2, 3, 4, 7]


def test_a_cpu_whose_calls_are_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(source.NotAvailable, match=r"perf_event_open\(\) on vax"), contextlib.closing(Listener()):
        pass
