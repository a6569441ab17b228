"""The recorder: what it writes, whom it blames and why, what it leaves out, and what it costs."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from execmem.directmap import region
from execmem.directmap.record import (
    GIANT,
    HUGE,
    LOAN,
    OWN_CPU,
    Clue,
    Growth,
    Means,
    Modules,
    Process,
    Processes,
    Recorder,
    Secret,
    blame,
    find_growth,
    open_means,
    record,
)
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import Client, Event, Kind, Texts, Trace, TraceFullError, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

S = 1_000_000_000
SPLITS = "direct_map_level2_splits"


def story(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a trace as dictionaries, the recorder's own cost left out."""
    with Trace.open(path) as trace:
        rows = trace.rows()
    texts = Texts(rows)
    rows = rows[rows["kind"] != Kind.TEXT]
    found = [
        {**dict(zip(rows.dtype.names or (), row, strict=True)), "owner": owner, "name": name, "kind": Kind(row[6])}
        for row, owner, name in zip(rows.tolist(), texts.take(rows["owner"]), texts.take(rows["name"]), strict=True)
    ]
    return [row for row in found if row["name"] != OWN_CPU]


class Machine:
    """A machine whose counters, programs, processes and clock a test sets."""

    def __init__(self, path: Path) -> None:
        self.now = 100 * S
        self.counters: dict[str, int] | NotAvailable = {SPLITS: 5}
        self.slow: dict[str, int] = {"packs": 1}
        self.events: list[Event] = []
        self.secret: dict[int, Secret] = {}
        self.lies: dict[int, set[int]] = {}  # the regions that secret memory lies in, where that is told
        self.young: list[Process] = []
        self.split: set[int] = set()
        self.refused = 0
        self.waits: list[float] = []
        self.means = Means(
            counters={"vmstat": self.read},
            slow={"vmallocinfo": lambda: self.slow},
            streams={"perf": self.drain},
            processes=self,  # type: ignore[arg-type]
            regions=lambda: set(self.split),
        )
        self.writer = Writer(path)

    def read(self) -> Mapping[str, int]:
        if isinstance(self.counters, NotAvailable):
            raise self.counters
        return dict(self.counters)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def secrets(self) -> dict[int, Secret]:
        return dict(self.secret)

    def regions_of(self, secret: Secret) -> set[int] | None:
        return self.lies.get(secret.number)

    def started(self, since: int) -> list[Process]:
        return [process for process in self.young if process.start_ns >= since]

    def recorder(self) -> Recorder:
        return Recorder(self.writer, self.means, clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += round(seconds * S)

    def split_some(self, count: int = 1, size: str = SPLITS) -> None:
        assert isinstance(self.counters, dict)
        self.counters[size] += count
        self.now += S

    def end(self) -> list[dict[str, Any]]:
        self.writer.close()
        return story(self.writer.path)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "a.trace")
    yield machine
    machine.writer.close()


def load(name: str, owner: str, ns: int, number: int = 1) -> Event:
    return Event(Kind.LOAD, ns, 0xFFFF0000, 200, number, Client.BPF, owner, name)


def blamed(machine: Machine) -> tuple[str, str]:
    [row] = [row for row in machine.end() if row["kind"] == Kind.SPLIT]
    return row["owner"], row["name"]


# ---- what is written ----


def test_counters_are_written_when_they_change(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.now += S
    recorder.sample()
    machine.counters = {SPLITS: 5, "directmap_4k": 7}
    machine.now += S
    recorder.sample()
    machine.now += 9 * S
    recorder.sample()
    machine.now += 2 * S
    recorder.sample()
    machine.writer.close()
    with Trace.open(machine.writer.path) as trace:
        rows = trace.rows()
    assert {(row["ns"], row["at"], row["name"]) for row in story(machine.writer.path)} == {
        (100 * S, 5, SPLITS),
        (100 * S, 1, "packs"),
        (102 * S, 7, "directmap_4k"),
    }
    texts = Texts(rows)
    own = [row for row in rows[rows["kind"] == Kind.SAMPLE] if texts[row["name"]] == OWN_CPU]
    assert [row["ns"] for row in own] == [100 * S, 102 * S, 113 * S]  # the last though nothing changed


def test_what_goes_had_the_owner_it_came_with(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.events = [load("x", "pid 7 tc", 100 * S + 5, 3), load("y", "pid 8 sh", 100 * S + 3, 4)]
    recorder.sample()
    machine.events = [load("x", "pid 9 kworker", 100 * S + 9, 3)._replace(kind=Kind.UNLOAD)]
    recorder.sample()
    rows = [(row["kind"], row["name"], row["owner"], row["id"]) for row in machine.end()[2:]]
    assert rows == [
        (Kind.LOAD, "y", "pid 8 sh", 4),
        (Kind.LOAD, "x", "pid 7 tc", 3),
        (Kind.UNLOAD, "x", "pid 7 tc", 3),
    ]
    assert (recorder.loads, recorder.unloads) == (2, 1)


def test_a_split_tells_its_regions_when_they_can_be_walked(machine: Machine) -> None:
    machine.split = {HUGE}
    recorder = machine.recorder()
    recorder.sample()
    machine.split |= {5 * HUGE, 3 * HUGE}
    machine.split_some(3)
    recorder.sample()
    rows = [(row["at"], row["size"], row["id"]) for row in machine.end() if row["kind"] == Kind.SPLIT]
    assert rows == [(3 * HUGE, HUGE, 1), (5 * HUGE, HUGE, 1), (0, HUGE, 1)]
    assert recorder.splits == 3


def test_joins_are_told(machine: Machine) -> None:
    machine.counters = {SPLITS: 5, "direct_map_level2_collapses": 0, "direct_map_level3_splits": 1}
    machine.split = {HUGE, 2 * HUGE}
    recorder = machine.recorder()
    recorder.sample()
    machine.split = {HUGE}
    machine.split_some(1, "direct_map_level2_collapses")
    machine.split_some(2, "direct_map_level3_splits")
    recorder.sample()
    rows = [(row["kind"], row["at"], row["size"], row["id"]) for row in machine.end() if row["kind"] != Kind.SAMPLE]
    assert rows == [(Kind.SPLIT, 0, GIANT, 2), (Kind.JOIN, 2 * HUGE, HUGE, 1)]
    assert (recorder.splits, recorder.joins) == (2, 1)


def test_regions_that_were_split_after_they_were_counted_are_told_with_the_next_sample(machine: Machine) -> None:
    machine.counters = {SPLITS: 5, "direct_map_level2_collapses": 0}
    machine.split = {9 * HUGE}
    recorder = machine.recorder()
    recorder.sample()
    machine.split = {HUGE, 2 * HUGE}  # both splits are there, and a join; one split was counted
    machine.split_some(1)
    recorder.sample()
    machine.split_some(1)
    machine.split_some(1, "direct_map_level2_collapses")
    recorder.sample()
    rows = [(row["kind"], row["at"], row["id"]) for row in machine.end() if row["kind"] != Kind.SAMPLE]
    assert rows == [(Kind.SPLIT, HUGE, 1), (Kind.SPLIT, 2 * HUGE, 1), (Kind.JOIN, 9 * HUGE, 1)]


def test_regions_that_no_counter_counts_are_not_told_for_others(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.split = {HUGE, 2 * HUGE}  # a counter will never count the second
    machine.split_some(1)
    recorder.sample()
    machine.now += S
    recorder.sample()
    machine.split |= {7 * HUGE}
    machine.split_some(1)
    recorder.sample()
    rows = [(row["kind"], row["at"], row["id"]) for row in machine.end() if row["kind"] != Kind.SAMPLE]
    assert rows == [(Kind.SPLIT, HUGE, 1), (Kind.SPLIT, 7 * HUGE, 1)]


def test_old_kernels_are_told_by_what_is_mapped_small() -> None:
    def grow(before: int, now: int) -> list[Growth]:
        return find_growth({"directmap_4k": before * HUGE}, {"directmap_4k": now * HUGE})

    assert grow(1, 4) == [Growth(Kind.SPLIT, HUGE, 3)]
    assert grow(4, 3) == [Growth(Kind.JOIN, HUGE, 1)]
    assert grow(4, 4) == []
    assert find_growth({}, {"directmap_4k": HUGE}) == []
    assert find_growth({"other": 1}, {"other": 2}) == []
    # Newer ones count; the bytes may change for other reasons.
    assert find_growth({SPLITS: 1, "directmap_4k": 0}, {SPLITS: 1, "directmap_4k": HUGE}) == []


def test_a_source_that_ends_is_left_out_and_told(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.counters = NotAvailable(why="it went", remedy="none")
    machine.now += S
    recorder.sample()
    assert not machine.means.counters
    assert "it went" in machine.means.missing["vmstat"]
    assert len(machine.end()) == 2  # what was read before


# ---- who is blamed ----


def test_who_loaded_a_program_is_blamed(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.events = [load("first", "pid 7 tc", 100 * S + 1), load("second", "pid 7 tc", 100 * S + 2)]
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == ("pid 7 tc", "it loaded first, and 1 more")


@pytest.mark.parametrize("why", ["no allowance", "no processes"])
def test_who_is_blamed_though_nobody_looked_at_processes_is_told_so(machine: Machine, why: str) -> None:
    if why == "no processes":
        machine.means.processes = None
    recorder = machine.recorder()
    recorder.sample()
    recorder._allowance.spend(LOAN * 2)
    machine.events = [load("innocent", "pid 7 bystander", 100 * S + 1)]
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == ("pid 7 bystander", "it loaded innocent; nobody looked further")


def test_a_program_whose_event_comes_a_moment_after_its_split_is_blamed(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.split_some()
    machine.sleep = lambda _: machine.events.append(load("late", "pid 7 tc", machine.now + 5))  # type: ignore[method-assign, assignment]
    recorder = Recorder(machine.writer, machine.means, clock=lambda: machine.now, sleep=machine.sleep)
    recorder.values = {SPLITS: 5}
    recorder.sample()
    assert blamed(machine) == ("pid 7 tc", "it loaded late")


def test_a_program_of_an_earlier_window_is_not_blamed(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.events = [load("earlier", "pid 7 tc", 100 * S - 1)]
    recorder.sample()
    machine.split_some()
    recorder.sample()
    owner, why = blamed(machine)
    assert (owner, why.startswith("nobody was seen")) == ("", True)


def test_who_got_secret_memory_is_blamed(machine: Machine) -> None:
    old, new = Process(7, 5, "old"), Process(8, 6, "new")
    machine.secret = {1: Secret(1, 4096, old)}
    recorder = machine.recorder()
    recorder.sample()
    machine.secret[2] = Secret(2, 4096, new)
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == ("pid 8 new", "it got secret memory (memfd_secret)")


@pytest.mark.parametrize(
    ("lies", "owner"),
    [
        ({}, ""),  # it cannot be told: two suspects
        ({1: {HUGE}, 2: {7 * HUGE}}, "pid 8 vault"),
        ({1: {HUGE}, 2: {HUGE}}, ""),  # neither lies there: who did it has gone
    ],
)
def test_secret_memory_elsewhere_is_no_reason(machine: Machine, lies: dict[int, set[int]], owner: str) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.secret = {1: Secret(1, 4096, Process(7, 5, "busy")), 2: Secret(2, 4096, Process(8, 5, "vault"))}
    machine.lies = lies
    machine.split = {7 * HUGE}
    machine.split_some()
    recorder.sample()
    found = blamed(machine)
    assert found[0] == owner
    if lies and not owner:
        assert found[1].endswith("secret memory of pid 7 busy, pid 8 vault lies in other regions")
    elif not owner:
        assert found[1].startswith("one of: pid 7 busy: ")


def test_a_bystander_is_not_blamed_for_who_has_gone(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.secret = {1: Secret(1, 8192, Process(7, 5, "busy"))}
    machine.lies = {1: {HUGE}}
    machine.split = {7 * HUGE}
    machine.split_some()
    recorder.sample()
    assert blamed(machine)[0] == ""


def test_who_touched_more_of_its_secret_memory_is_blamed(machine: Machine) -> None:
    machine.secret = {1: Secret(1, 4096, Process(7, 5, "old")), 2: Secret(2, 4096, Process(8, 5, "idle"))}
    recorder = machine.recorder()
    recorder.sample()
    machine.secret[1] = machine.secret[1]._replace(resident=8192)
    machine.split_some()
    recorder.sample()
    assert blamed(machine)[0] == "pid 7 old"


def test_who_had_freed_code_is_blamed_when_nobody_did_more(machine: Machine) -> None:
    recorder = machine.recorder()
    machine.events = [load("x", "pid 7 tc", 99 * S, 3)]
    recorder.sample()
    machine.events = [load("x", "pid 9 kworker", 101 * S, 3)._replace(kind=Kind.UNLOAD)]
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == ("pid 7 tc", "its x was freed")


def test_several_suspects_are_named_and_nobody_is_blamed(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.events = [load("x", "pid 7 tc", 101 * S), load("y", "", 101 * S, 2)]
    machine.secret = {1: Secret(1, 4096, Process(8, 5, "vault"))}
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == (
        "",
        "one of: pid 7 tc: it loaded x; somebody: it loaded y; pid 8 vault: it got secret memory (memfd_secret)",
    )


def test_many_suspects_are_not_all_named() -> None:
    owner, why = blame([Clue(f"pid {number}", "it loaded x") for number in range(9)], [], "")
    assert (owner, why.count("pid"), why[-12:]) == ("", 5, "; and 4 more")


def test_nobody_is_blamed_without_a_clue(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    machine.refused = 3
    machine.young = [Process(5, 1, "old"), Process(9, 100 * S + 5, "young")]
    machine.split_some()
    recorder.sample()
    owner, why = blamed(machine)
    assert owner == ""
    assert "not all processes may be looked into" in why
    assert why.endswith("begun then: pid 9 young")


def test_splits_without_end_do_not_cost_without_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look() -> dict[int, Secret]:
        looks.append(cpu[0])
        cpu[0] += LOAN // 2
        return {}

    cpu = [0]
    monkeypatch.setattr("execmem.directmap.record.time.thread_time_ns", lambda: cpu[0])
    machine.secrets = look  # type: ignore[method-assign]
    machine.means.regions = lambda: set(range(0, machine.now // S * HUGE, HUGE))  # one more a second
    recorder = machine.recorder()
    for _ in range(50):
        machine.split_some()
        recorder.sample()
    assert 2 <= len(looks) - 1 <= 5  # the first look, and those that the loan and a minute's share pay
    splits = [row for row in machine.end() if row["kind"] == Kind.SPLIT]
    assert "not looked: so many splits that looking would cost more than its allowance" in {
        row["name"] for row in splits
    }
    assert sum(row["id"] for row in splits) == 49  # the first sample has nothing to compare with
    places = [row["at"] for row in splits]
    assert places[0] == 101 * HUGE
    assert places.count(0) > 40  # and none that was split in another window
    assert len(set(places) - {0}) < 5


def test_what_was_got_since_a_look_that_was_skipped_is_said_to_be(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.sample()
    recorder._allowance.spend(LOAN * 2)
    machine.split_some()
    recorder.sample()
    machine.secret = {1: Secret(1, 4096, Process(8, 5, "vault"))}
    machine.now += 1000 * S
    machine.split_some()
    recorder.sample()
    rows = [(row["owner"], row["name"]) for row in machine.end() if row["kind"] == Kind.SPLIT]
    assert rows == [
        ("", "not looked: so many splits that looking would cost more than its allowance"),
        ("pid 8 vault", "it got secret memory (memfd_secret) since the last look"),
    ]


def test_processes_that_cannot_be_looked_at_are_told(machine: Machine) -> None:
    machine.means.processes = None
    machine.means.missing["processes"] = "not available: no /proc; mount it"
    recorder = machine.recorder()
    recorder.sample()
    machine.split_some()
    recorder.sample()
    assert blamed(machine) == ("", "processes cannot be looked at: not available: no /proc; mount it")


# ---- when samples are taken ----


def test_samples_are_taken_in_step_and_closer_after_something_happened(machine: Machine) -> None:
    def wait(seconds: float) -> bool:
        machine.sleep(seconds)
        if machine.now >= 103 * S and machine.counters == {SPLITS: 5}:
            machine.counters = {SPLITS: 6}
        return False

    machine.recorder().run(seconds=6, every=1.0, wait=wait)
    waits = [round(seconds, 3) for seconds in machine.waits if seconds > 0]
    assert waits[:3] == [1, 1, 1]
    assert waits[3] == 0.02  # for events that come after their split
    assert waits[4] == 0.08
    assert waits[5:14] == [0.1] * 9
    assert set(waits[14:]) <= {1.0, 0.1, 0.02, 0.9, 0.0}
    assert machine.now == 106 * S


def test_a_recorder_is_stopped_by_who_waits(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    recorder = record(tmp_path / "a.trace", means=Means(counters={"one": lambda: {"n": 1}}), every=60, wait=stop.wait)
    assert time.monotonic() - began < 30
    assert recorder.values["n"] == 1
    with Trace.open(tmp_path / "a.trace") as trace:
        assert trace.state() == "closed"
        assert len(trace.rows()) == 2 + 3  # texts; at the start both, at the end what it cost


def test_the_header_says_what_was_there_and_what_not(tmp_path: Path) -> None:
    def refuse() -> Mapping[str, int]:
        raise NotAvailable(why="/proc/vmallocinfo is for root", remedy="run as root")

    means = Means(counters={"meminfo": lambda: {"directmap_4k": 1}}, slow={"vmallocinfo": refuse})
    means.missing["perf"] = "not available: no"
    record(tmp_path / "a.trace", means=means, seconds=0)
    with Trace.open(tmp_path / "a.trace") as trace:
        assert trace.header["sources"] == {
            "meminfo": "available",
            "vmallocinfo": "not available: /proc/vmallocinfo is for root; run as root",
            "perf": "not available: no",
        }
        assert trace.header["every"] == 1.0
        assert "regions" not in trace.header


def test_the_header_keeps_the_regions_of_the_start(tmp_path: Path) -> None:
    states = np.array([2, 2, 5, 0], np.uint8)
    record(tmp_path / "a.trace", means=Means(begin=states), seconds=0)
    with Trace.open(tmp_path / "a.trace") as trace:
        assert region.decode_states(trace.header["regions"]).tolist() == states.tolist()
    never_alike = np.arange(100_000) % 2 + 2
    record(tmp_path / "b.trace", means=Means(begin=never_alike.astype(np.uint8)), seconds=0)
    with Trace.open(tmp_path / "b.trace") as trace:
        assert "regions" not in trace.header


def test_a_full_disk_ends_a_recording_that_stays_whole(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = machine.recorder()
    recorder.sample()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("execmem.directmap.trace.allocate", refuse)
    machine.events = [load(f"program {number}", "pid 7 tc", 101 * S, number) for number in range(5000)]
    with pytest.raises(TraceFullError, match="are whole"):
        recorder.sample()
    rows = machine.end()
    assert [row["kind"] for row in rows[2:]] == [Kind.LOAD] * (len(rows) - 2)


# ---- processes and modules, from files ----

SMAPS = """7f0-7f1 rw-s 00000000 00:0e {inode}                    /secretmem (deleted)
Size:                  4 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                {rss:4} kB
Pss:                   4 kB
VmFlags: rd wr sh mr mw me ms lo
7f2-7f3 r--p 00000000 00:0e 5                    /usr/lib/other
Size:                  4 kB
Rss:                 900 kB
"""


def add_process(root: Path, pid: int, name: str, ticks: int, smaps: str = "") -> None:
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} ({name}) S {'1 ' * 18}{ticks} 0 0\n")
    (folder / "maps").write_text("\n".join(line for line in smaps.splitlines() if "-" in line))
    (folder / "smaps").write_text(smaps)


def test_processes_are_read(tmp_path: Path) -> None:
    for pid, name, ticks, smaps in (
        (7, "a) (b", 100, SMAPS.format(inode=30, rss=4) + SMAPS.format(inode=31, rss=8)),
        (8, "young", 10**9, SMAPS.format(inode=30, rss=12)),  # forked: the older one made it
        (9, "other", 200, "7f2-7f3 r--p 00000000 00:0e 5   /usr/lib/other\nRss:  900 kB\n"),
    ):
        add_process(tmp_path, pid, name, ticks, smaps)
    (tmp_path / "proc" / "11").mkdir()  # it has just ended
    (tmp_path / "proc" / "self").mkdir()
    processes = Processes(tmp_path)
    assert processes.tell(7) == "pid 7 a) (b"
    assert processes.tell(99) == "pid 99"
    found = processes.secrets()
    assert {number: (one.resident, str(one.holder)) for number, one in found.items()} == {
        30: (12 << 10, "pid 7 a) (b"),
        31: (8 << 10, "pid 7 a) (b"),
    }
    assert [str(process) for process in processes.started(10**15)] == ["pid 8 young"]
    assert processes.refused == 0


def test_where_secret_memory_lies_is_read_from_pagemap(tmp_path: Path) -> None:
    maps = "10000-13000 rw-s 0 00:0e 30   /secretmem (deleted)\n20000-21000 rw-s 0 00:0e 31   /secretmem (deleted)\n"
    folder = tmp_path / "proc" / "7"
    folder.mkdir(parents=True)
    (folder / "maps").write_text(maps)
    entries = np.zeros(0x21, np.uint64)
    there = 1 << 63 | 1 << 61
    entries[0x10:0x13] = [there | 513, 0, there | 1025]
    entries[0x20] = there | 4096
    (folder / "pagemap").write_bytes(entries.tobytes())
    processes, owner = Processes(tmp_path), Process(7, 5, "vault")
    assert processes.regions_of(Secret(30, 8192, owner)) == {HUGE, 2 * HUGE}
    assert processes.regions_of(Secret(31, 4096, owner)) == {8 * HUGE}
    entries[0x20] = there  # as the kernel tells others than root
    (folder / "pagemap").write_bytes(entries.tobytes())
    assert processes.regions_of(Secret(31, 4096, owner)) is None
    assert processes.regions_of(Secret(31, 4096, Process(8, 5, "gone"))) is None
    (folder / "maps").write_text("0-7000000000 rw-s 0 00:0e 31   /secretmem (deleted)\n")
    assert processes.regions_of(Secret(31, 4096, owner)) is None


def test_processes_begin_when_they_did() -> None:
    processes = Processes()
    mine = processes.find(os.getpid())
    assert mine
    assert 0 < mine.start_ns < time.monotonic_ns()
    assert mine in processes.started(mine.start_ns)
    assert mine not in processes.started(mine.start_ns + 1)


def test_modules_that_came_and_went(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="proc/modules cannot be read"):
        Modules(tmp_path)
    (tmp_path / "proc").mkdir()
    path = tmp_path / "proc" / "modules"
    path.write_text(
        "nf_tables 339968 0 - Live 0xffffffffc0700000\nold 4096 1 nf_tables, Live 0x0000000000000000 (OE)\n"
    )
    modules = Modules(tmp_path)
    assert modules() == []
    path.write_text("nf_tables 339968 0 - Live 0xffffffffc0700000\nnew 8192 0 - Loading 0xffffffffc0600000\n")
    assert [(event.kind, event.name, event.size, event.at, event.owner) for event in modules()] == [
        (Kind.UNLOAD, "old", 4096, 0, "module old"),
        (Kind.LOAD, "new", 8192, 0xFFFFFFFFC0600000, "module new"),
    ]
    path.unlink()
    assert modules() == []


# ---- this machine ----

# Takes secret memory until the kernel says that a page of the direct map was split: a page at a time, later more, for
# where that was done before the first ones may lie in regions that are split already.
SPLITTER = """
import ctypes, mmap, os, sys

def splits():
    with open("/proc/vmstat") as file:
        return {name: int(value) for name, value in map(str.split, file) if name.startswith("direct_map_level2_splits")}

libc = ctypes.CDLL(None, use_errno=True)
before = splits()
print("ready" if before else "this kernel does not count splits", flush=True)
sys.stdin.readline()
held = []
while before == splits() and len(held) < 640:
    file = libc.syscall(447, 0)
    if file < 0:
        print("memfd_secret:", os.strerror(ctypes.get_errno()), flush=True)
        raise SystemExit
    size = 4096 << len(held) // 64
    os.ftruncate(file, size)
    held.append(mmap.mmap(file, size))
    for at in range(0, size, 4096):
        held[-1][at] = 1
    os.close(file)
print("split" if before != splits() else "256 MB lay in regions that had been split before", flush=True)
sys.stdin.readline()
"""


def answer(child: subprocess.Popen[str], expected: str) -> None:
    assert child.stdout
    line = child.stdout.readline().strip()
    if line != expected:
        child.kill()
        pytest.skip(line)


@pytest.fixture
def alone() -> Iterator[None]:
    """Let no other run of the tests take secret memory meanwhile: its processes would be suspects too."""
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield
    os.close(folder)


@pytest.mark.usefixtures("alone")
@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="the number of memfd_secret is not known")
def test_the_split_by_a_process_is_attributed_to_it(tmp_path: Path) -> None:
    """It splits a region or two, which stay split until the machine is booted again: hence one page at a time."""
    path, stop = tmp_path / "a.trace", threading.Event()
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SPLITTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        answer(child, "ready")
        with open_means() as means, Writer(path) as writer:
            assert means.processes
            recorder = Recorder(writer, means)
            recorder.sample()
            child.stdin.write("\n")
            child.stdin.flush()
            answer(child, "split")
            recorder.run(every=0.01, wait=lambda seconds: recorder.splits or stop.wait(seconds))
            walked = means.regions is not None
        child.stdin.write("\n")
    # What else runs on the machine may split too; such a split has no owner, for nobody took secret memory.
    splits = [row for row in story(path) if row["kind"] == Kind.SPLIT and row["size"] == HUGE and row["owner"]]
    assert splits
    assert {row["owner"].split()[1] for row in splits} == {str(child.pid)}
    assert all(row["name"].startswith("it got secret memory (memfd_secret)") for row in splits)
    if walked:
        assert all(row["id"] == 1 and row["at"] % HUGE == 0 for row in splits)


def test_programs_are_recorded_one_by_one_with_who_loaded_them(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with open_means() as means, Writer(path) as writer:
        if "events" not in means.streams or means.regions is None:
            pytest.skip("; ".join(means.missing.values()))
        recorder = Recorder(writer, means)
        recorder.sample()
        program = "from execmem.directmap import region; region.walk()"  # loads programs of its own, and unloads them
        with subprocess.Popen([sys.executable, "-c", program]) as child:
            assert child.wait(60) == 0
        deadline = time.monotonic() + 30
        owner = f"pid {child.pid} "
        theirs: list[dict[str, Any]] = []
        # The kernel frees programs a moment after their last user has gone.
        while time.monotonic() < deadline and [row["kind"] for row in theirs].count(Kind.UNLOAD) < 2:
            time.sleep(0.01)
            recorder.sample()
            theirs = [row for row in story(path) if f"{row['owner']} ".startswith(owner)]
    loads = [row for row in theirs if row["kind"] == Kind.LOAD]
    unloads = [row for row in theirs if row["kind"] == Kind.UNLOAD]
    assert len(loads) >= 2
    key = ("at", "size", "id", "name", "client")
    assert {tuple(row[name] for name in key) for row in unloads} <= {tuple(row[name] for name in key) for row in loads}
    assert all(row["size"] and row["id"] and row["client"] == Client.BPF for row in loads)


UNPRIVILEGED = """
import json, os, sys
from execmem.directmap.record import record
from execmem.directmap.trace import Kind, Trace
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
path = os.path.join(sys.argv[1], "a.trace")
recorder = record(path, seconds=0)
with Trace.open(path) as trace:
    print(json.dumps([trace.header["sources"], sorted(recorder.values)]))
"""


def test_what_needs_no_privilege_works_without(tmp_path: Path, run_child: Callable[..., str]) -> None:
    tmp_path.chmod(0o777)
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    sources, values = json.loads(run_child(UNPRIVILEGED.replace("sys.argv[1]", repr(str(tmp_path)))))
    assert sources["processes"] == "available"
    assert sources["free"] == "available"
    assert "free_2m" in values
    for name in ("areas", "unseen", "regions", "events", "programs"):
        assert sources[name].startswith("not available: "), sources
        assert "; " in sources[name]
    if sources["splits"] == "available":
        assert SPLITS in values


def test_another_machines_files_are_recorded(tmp_path: Path) -> None:
    for path, text in {
        "proc/meminfo": "DirectMap4k:  2048 kB\nDirectMap2M:  4096 kB\nDirectMap1G: 1048576 kB\n",
        "proc/vmstat": "nr_free_pages 5\ndirect_map_level2_splits 3\ndirect_map_level3_splits 1\n",
        "proc/buddyinfo": "Node 0, zone   Normal  1 1 1 1 1 1 1 1 1 2 3\n",
        "proc/modules": "nf_tables 339968 0 - Live 0xffffffffc0700000\n",
        "proc/7/stat": f"7 (init) S {'1 ' * 18}5 0\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    means = open_means(tmp_path)
    recorder = record(tmp_path / "a.trace", means=means, seconds=0)
    expected = {"directmap_4k": 2 << 20, "directmap_2m": 4 << 20, "directmap_1g": 1 << 30, "free_2m": 2 + 3 * 2}
    expected |= {SPLITS: 3, "direct_map_level3_splits": 1}
    assert recorder.values == expected
    assert sorted(means.missing) == ["areas", "unseen"]
    assert sorted(means.streams) == ["modules"]


def test_nothing_at_all_is_told_too(tmp_path: Path) -> None:
    means = open_means(tmp_path)
    assert set(means.check()) == {"directmap", "splits", "areas", "free", "unseen", "processes", "modules"}
    assert all(text.startswith("not available: ") for text in means.missing.values())
    assert [*means.counters, *means.slow, *means.streams] == []
