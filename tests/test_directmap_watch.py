"""execmem directmap watch: what it counts, draws and prints, for root and for nobody, and how it leaves a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import on_terminal, read_until

from execmem import cli, draw_directmap
from execmem.directmap import live, record, region, source
from execmem.directmap.live import Watch
from execmem.directmap.record import Means
from execmem.directmap.region import State
from execmem.directmap.source import Jit, NotAvailable
from execmem.directmap.trace import Client, Event, Kind
from execmem.draw import Paint

if TYPE_CHECKING:
    from collections.abc import Callable

S = 10**9
PLAIN = Paint(colour=False, unicode=True)
UNSURE = "; nobody looked further"  # there are no processes to look at
LOAD = Event(Kind.LOAD, 0, 0xFFFFFFFFC0000000, 300, 1, Client.BPF, "pid 7 tc\x1b[2J", "cls")


class Machine:
    """A machine that does what a test wants, and a clock."""

    def __init__(self) -> None:
        self.now = 50 * S
        self.splits = 20
        self.events: list[Event] = []
        self.state = np.full(640, State.WHOLE, dtype=np.uint8)
        self.walks = self.readings = 0
        self.jit: Jit | NotAvailable = Jit(limit=1 << 29, enabled=True, programs=1 << 27, packs=3 << 26)
        self.means = Means(
            counters={"splits": lambda: {"direct_map_level2_splits": self.splits}},
            streams={"events": self.drain},
            states=self.walk,
            regions=lambda: {int(at) * record.HUGE for at in np.flatnonzero(np.isin(self.state, region.SPLIT))},
        )

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def walk(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        self.walks += 1
        return self.state.copy()

    def read_jit(self) -> Jit:
        self.readings += 1
        if isinstance(self.jit, NotAvailable):
            raise self.jit
        return self.jit

    def watch(self) -> Watch:
        return Watch(self.means, clock=lambda: self.now, read_jit=self.read_jit)

    def split(self) -> None:
        self.now += S
        self.events = [LOAD._replace(ns=self.now)]
        self.splits += 1
        self.state[130] = State.UNIFORM


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["directmap", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# ---- looks ----


def test_what_changed_since_the_start_and_who_is_suspected() -> None:
    machine = Machine()
    watch = machine.watch()
    first = watch.look()
    assert first.counters["direct_map_level2_splits"] == live.Counter(20, 0, None)
    assert (first.events, first.fresh, first.sums["splits"]) == ([], 0, 0)
    machine.split()
    frame = watch.look()
    assert frame.counters["direct_map_level2_splits"] == live.Counter(21, 1, 1.0)
    assert frame.sums == {"loads": 1, "unloads": 0, "splits": 1, "joins": 0}
    assert frame.fresh == 2
    (seconds, split) = next(pair for pair in frame.events if pair[1].kind == Kind.SPLIT)
    assert (seconds, split.at, split.owner, split.name) == (1.0, 130 << 21, LOAD.owner, f"it loaded cls{UNSURE}")
    assert frame.state is not None
    assert frame.state[130] == State.UNIFORM
    machine.now += 2 * S
    later = watch.look()
    assert later.counters["direct_map_level2_splits"] == live.Counter(21, 1, 0.0)
    assert (later.fresh, len(later.events), later.seconds) == (0, 2, 3.0)


def test_events_that_are_many_are_let_go() -> None:
    machine = Machine()
    watch = machine.watch()
    machine.now += S
    machine.events = [LOAD._replace(ns=machine.now, id=number) for number in range(live.KEPT + 70)]
    frame = watch.look()
    assert len(frame.events) == frame.fresh == live.KEPT
    assert frame.events[-1][1].id == live.KEPT + 69
    assert frame.sums["loads"] == live.KEPT + 70


def test_what_is_dear_is_read_again_when_its_allowance_permits(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    spent = iter(range(0, 10**15, S // 10))  # each reading of the clock of CPU time is 0.1 s later
    monkeypatch.setattr("time.thread_time_ns", lambda: next(spent))
    watch = machine.watch()
    walks = []
    for _ in range(60):
        watch.look()
        walks.append(machine.walks)
        machine.now += S
    assert walks[0] == 1
    assert walks[-1] < 5
    frame = watch.look()
    assert f"; read {frame.seconds - frame.walked:.1f} s ago" in " ".join(
        draw_directmap.draw_frame(frame, "title", PLAIN, 120, 40)
    )
    machine.split()
    assert draw_directmap.tell_walked(watch.look()) == ""
    assert machine.walks == walks[-1] + 1


def test_of_many_counters_those_that_changed_and_those_of_splits_are_shown_first() -> None:
    names = ("directmap_4k", "free_2m", "direct_map_level2_splits", "classic_bytes")
    counters = {name: live.Counter(4096, 2 * (name == "free_2m"), 0.25) for name in names}
    lines = draw_directmap.draw_counters(counters, 3)
    assert [line.split()[0] for line in lines] == ["counter", "free_2m", "direct_map_level2_splits"]
    assert lines[1].split()[1:] == ["4,096", "+2", "+0.25/s"]


def test_what_cannot_be_read_is_told_and_not_asked_again() -> None:
    machine = Machine()
    machine.jit = NotAvailable("the limit is not for this user", "run as root")
    machine.means.missing["regions"] = "not available: page tables are for root; run as root"
    machine.means.states = machine.means.regions = None
    watch = machine.watch()
    watch.look()
    machine.now += 100 * S
    frame = watch.look()
    assert (frame.state, frame.jit, machine.readings) == (None, None, 1)
    lines = draw_directmap.draw_frame(frame, "title", PLAIN, 80, 24)
    assert "bpf_jit_limit not available: the limit is not for this user; run as root" in lines
    assert "regions       not available: page tables are for root; run as root" in lines
    told = draw_directmap.frame_as_dict(frame)
    assert (told["jit"], told["regions"]) == (None, None)
    assert told["missing"] == frame.missing


# ---- pictures ----


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 23), (120, 40), (80, 60)])
def test_a_picture_fits(width: int, height: int) -> None:
    machine = Machine()
    watch = machine.watch()
    machine.means.missing |= {f"source{number}": "not available: " + "why " * 50 for number in range(4)}
    for _ in range(20):
        machine.split()
        frame = watch.look()
    lines = draw_directmap.draw_frame(frame, "a very long heading " * 9, PLAIN, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    shown = "\n".join(lines)
    assert "\x1b" not in shown
    assert re.search(r"^bpf_jit_limit █████░+ 25\.0% of 512\.0 MB$", shown, re.MULTILINE)
    assert re.search(r"^direct_map_level2_splits +40 +\+20 +\+1/s$", shown, re.MULTILINE)
    assert re.search(r"^ +20\.0 s  (SPLIT|came) ", shown, re.MULTILINE)
    assert re.search(r"^     0 B  M+", shown, re.MULTILINE) or re.search(r"^      0 B  M+", shown, re.MULTILINE)


def test_the_ledger_is_read_by_people() -> None:
    machine = Machine()
    watch = machine.watch()
    machine.split()
    lines = draw_directmap.draw_frame(watch.look(), "title", PLAIN, 100, 40)
    assert f"      1.0 s  SPLIT  1 x 2.0 MB at 0x10400000  pid 7 tc\\x1b[2J: it loaded cls{UNSURE}" in lines
    assert "      1.0 s  came   cls (bpf, 300 B)  pid 7 tc\\x1b[2J" in lines
    assert "since the start: 1 split, 0 joined, 1 came, 0 went" in lines
    coloured = draw_directmap.draw_frame(watch.look(), "title", Paint(colour=True, unicode=True), 100, 40)
    assert re.sub(r"\x1b\[[\d;]*m", "", "\n".join(coloured)) == "\n".join(lines)


@pytest.mark.parametrize(
    ("jit", "words"),
    [
        (Jit(1 << 20, enabled=True, programs=None, packs=2 << 20), "what is used is hidden (kernel.kptr_restrict)"),
        (Jit(1 << 20, enabled=False, programs=0, packs=0), "the compiler is off (bpf_jit_enable is 0)"),
        (Jit(1 << 20, enabled=True, programs=3 << 20, packs=4 << 20), "300.0% of 1.0 MB"),
        (Jit(0, enabled=True, programs=0, packs=0), "100.0% of 0 B"),
    ],
)
def test_the_limit_is_told_as_far_as_it_is_known(jit: Jit, words: str) -> None:
    lines = draw_directmap.draw_jit(jit, "", PLAIN, 80)
    assert words in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80
    told = draw_directmap.jit_as_dict(jit)
    assert (told["share"] is None) is (jit.programs is None or not jit.limit)


# ---- the command ----


def test_pictures_follow_one_another(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "watch", "--count", "2", "--every", "0.01")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert (
        len(re.findall(r"^direct map of Linux .*: \d+\.\d s, every 0\.01 s  \d\d:\d\d:\d\d$", out, re.MULTILINE)) == 2
    )
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("bpf_jit_limit ") == 2


def test_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "watch", "--count", "2", "--every", "0.01", "--json")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    keys = {"schema", "seconds", "counters", "sums", "events", "regions", "walked_seconds", "jit", "missing"}
    for found in (first, second):
        assert set(found) == keys
        assert found["schema"] == "execmem-directmap-watch-1"
        assert all(set(one) == {"value", "change", "per_second"} for one in found["counters"].values())
        assert set(found["sums"]) == {"loads", "unloads", "splits", "joins"}
        assert (found["regions"] is None) is ("regions" in found["missing"])
        assert (found["jit"] is None) is ("jit" in found["missing"])
    assert second["seconds"] > first["seconds"]


def test_an_event_in_json() -> None:
    machine = Machine()
    watch = machine.watch()
    machine.split()
    events = draw_directmap.frame_as_dict(watch.look())["events"]
    assert isinstance(events, list)
    split = next(event for event in events if event["kind"] == "split")
    assert split == {
        "seconds": 1.0, "kind": "split", "client": None, "address": 130 << 21, "size": 2 << 20, "count": 1,
        "owner": LOAD.owner, "name": f"it loaded cls{UNSURE}",
    }  # fmt: skip
    assert draw_directmap.frame_as_dict(watch.look())["events"] == []


def test_show_tells_the_limit_and_what_is_free(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "read_jit", lambda: Jit(1 << 29, enabled=True, programs=1 << 27, packs=3 << 26))
    code, out, _ = run(capsys, "show", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["jit"] == {
        "limit_bytes": 1 << 29, "enabled": True, "programs_bytes": 1 << 27, "packs_bytes": 3 << 26, "share": 0.25,
        "left_at_most_bytes": 3 << 27,
    }  # fmt: skip
    assert all(set(zone) == {"node", "name", "free"} for zone in found["free"])
    _, out, _ = run(capsys, "show")
    assert "25.0% of 512.0 MB" in out
    assert re.search(r"^free in \w+ of node 0: .* in blocks of 2 MB and more;", out, re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--every", "0"], ["--count", "0"], ["--count", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["directmap", "watch", *arguments])
    assert ended.value.code == 2
    assert "usage: execmem directmap watch" in capsys.readouterr().err


def test_nobody_is_told_what_can_be_known(run_child: Callable[..., str]) -> None:
    if os.geteuid():
        pytest.skip("only root can become nobody")
    source_text = """
        import contextlib, io, os
        from execmem import cli
        with contextlib.redirect_stdout(io.StringIO()):  # what is imported late is not nobody's to read
            cli.main(["directmap", "watch", "--count", "1"])
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        print(cli.main(["directmap", "watch", "--count", "2", "--every", "0.01"]))
    """
    out = run_child(source_text)
    assert out.splitlines()[-1] == "0"
    for name in ("bpf_jit_limit", "regions      ", "events       "):
        assert re.search(rf"^{name} not available: [^;]*;\s+run as root", out, re.MULTILINE), name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_terminal_is_left_as_it_was(number: int, code: int) -> None:
    command = [sys.executable, "-m", "execmem", "directmap", "watch", "--every", "0.1"]
    with on_terminal(command) as (shown, main):
        out = read_until(main, b"\x1b[J")
        shown.send_signal(number)
        out += read_until(main, b"\x1b[?1049l")
        assert shown.wait(60) == code
    assert out.startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"direct map of Linux" in out
    assert out.rstrip(b"^C").endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
    assert b"Traceback" not in out
