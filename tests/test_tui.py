"""Views with keys: ``execmem top --tui`` and ``execmem directmap watch --tui``, driven as by a person."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import on_terminal, read_until

import execmem
from execmem import cli
from execmem.directmap import source
from execmem.directmap.live import Watch
from execmem.directmap.record import Means
from execmem.directmap.region import State
from execmem.directmap.trace import Client, Event, Kind
from execmem.draw import Paint
from execmem.watch import Pages, Process

pytest.importorskip("textual", reason="the extra execmem[tui] is not installed")

from execmem.directmap_tui import WatchApp
from execmem.top_tui import TopApp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from textual.pilot import Pilot

    from execmem.directmap.live import Frame
    from execmem.tui import LiveApp

CELL = 64 << 10
GOLDEN = Path(__file__).parent / "data" / "directmap_tui.txt"
PLAIN = Paint(colour=False, unicode=True)
EVIL = "[bold red]evil[/]\x1b[2J:\n\u202e"
SHOWN = "[bold red]evil[/]\\x1b[2J:\\n\\u202e"


def text(app: LiveApp) -> str:
    return "\n".join(line.plain for line in app.shown)


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; it must be within a minute."""
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0.002)
    assert true()


async def settle(pilot: Pilot[int]) -> str:
    """Wait for two looks, so that one began after what was done before; return what is shown then."""
    app: LiveApp = pilot.app  # type: ignore[assignment]
    for _ in range(2):
        looks = app.looks
        app.ask()
        await until(lambda: app.looks > looks)  # noqa: B023 - it is waited for here
    return text(app)


def drive(app: LiveApp, act: Callable[[Pilot[int]], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await act(pilot)

    asyncio.run(run())
    assert app.failure is None


def top(pid: int, domain: str | None) -> TopApp:
    options = argparse.Namespace(every=0.2, domain=domain, sort="number")
    return TopApp(Process(pid), Pages(pid), options, PLAIN)


@pytest.fixture
def striped() -> Iterator[execmem.Domain]:
    """A domain with a pack of which every second 64 kB are free, and one nearly empty."""
    with execmem.Domain("striped [b]") as domain:
        cells = [domain.place(bytes(CELL), name=f"v8:[red]{number}[/]") for number in range(32 * 3)]
        packs = [block.address >> 21 for block in cells]
        full = next(pack for pack in packs if packs.count(pack) == 32)
        kept = [block for block in cells if block.address >> 21 == full and block.address // CELL % 2 == 0]
        for block in cells:
            if block not in kept:
                block.free()
        kept.append(domain.place(b"\xc3", name=EVIL, kind="data"))
        del cells, block
        yield domain
        kept.clear()


async def find(pilot: Pilot[int], words: str) -> str:
    """Move the cursor to the pack whose line has these words."""
    shown = await settle(pilot)
    for _ in range(8):
        if words in next(line for line in shown.splitlines() if "▶" in line):
            return shown
        await pilot.press("down")
        shown = text(pilot.app)  # type: ignore[arg-type]
    pytest.fail(shown)


@pytest.fixture(autouse=True)
def no_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the loop's turns where the pilot waits for a process that does nothing: the watch always does."""

    async def turn(*_: float) -> None:
        for _turn in range(100):
            await asyncio.sleep(0)

    for module in ("textual.app", "textual.pilot"):
        monkeypatch.setattr(f"{module}.wait_for_idle", turn)


# ---- top ----


def test_keys_lead_from_packs_to_a_block_and_back(striped: execmem.Domain) -> None:
    first = int(min(block["address"] for block in striped.blocks() if block["size"] == CELL))

    async def act(pilot: Pilot[int]) -> None:
        shown = await find(pilot, "50.0%")
        assert "█·" * 16 in shown
        assert "16 blocks, 50.0% of 2.0 MB in use" in shown
        assert re.search(r"per second, over \d+\.\d\d s: ", shown)
        await pilot.press("enter")
        shown = await settle(pilot)
        assert f"0   +000000▶│{'█' * 32}│ 100.0%" in shown
        await pilot.press("end")
        await pilot.pause()
        shown = text(app)
        assert f"▶│{'·' * 32}│" in next(line for line in shown.splitlines() if line.startswith("31  +1f0000"))
        await pilot.press("home", "enter")
        shown = await settle(pilot)
        assert shown.count("│" + "a" * 64 + "│") == 16
        assert f"chunk 0 of the row, at {first:#x}: block a at {first:#x}" in shown
        assert "65,536 bytes in 1,024 chunks, filled, " in shown
        assert ", of v8\n  name v8:[red]" in shown
        await pilot.press("down", "right")
        await pilot.pause()
        assert f"chunk 65 of the row, at {first + 65 * 64:#x}: block a at {first:#x}" in text(app)
        await pilot.press("escape", "down", "enter")
        assert "chunk 0 of the row, at " in await settle(pilot)
        assert "free\n" in text(app)
        await pilot.press("escape", "escape")
        shown = await settle(pilot)
        assert "█·" * 16 in next(line for line in shown.splitlines() if "▶" in line)

    app = top(os.getpid(), striped.name)
    drive(app, act)


@pytest.mark.parametrize("height", [8, 17])
def test_the_cursor_reaches_every_pack_on_a_terminal_of_any_height(height: int) -> None:
    async def act(pilot: Pilot[int]) -> None:
        shown = await settle(pilot)
        assert "▶" in shown, shown
        assert "packs more" not in shown
        for number in range(1, 20):
            await pilot.press("down")
            if number % 8 == 0:
                await settle(pilot)
        shown = await settle(pilot)
        assert next(line for line in shown.splitlines() if "▶" in line).startswith(f"{last} "), shown

    with execmem.Domain("long", small_pages=True) as domain:
        held = domain.alloc_many([2 << 20] * 20, kind="data")
        last = len(domain.packs()) - 1
        app = top(os.getpid(), domain.name)
        drive(app, act, (80, height))
        del held


def test_next_block_goes_round(domain: execmem.Domain) -> None:
    blocks = [domain.place(b"\xc3" * 64, name=name) for name in ("one", "two", "three")]

    async def act(pilot: Pilot[int]) -> None:
        await settle(pilot)
        await pilot.press("enter", "enter")
        await settle(pilot)
        names = []
        for _ in range(4):
            await pilot.press("n")
            await pilot.pause()
            names.append(text(app).partition("  name ")[2].partition("\n")[0])
        assert names == ["two", "three", "one", "two"]

    app = top(os.getpid(), str(domain.number))
    drive(app, act)
    del blocks


def test_names_are_text_and_no_markup(striped: execmem.Domain) -> None:
    async def act(pilot: Pilot[int]) -> None:
        await settle(pilot)
        await pilot.press("b", "s")
        shown = await settle(pilot)
        assert "domain striped [b] (" in shown
        assert "[bold red]evil" in shown
        await pilot.press("home")
        await find(pilot, " data")
        await pilot.press("enter", "enter")
        shown = await settle(pilot)
        assert f"  name {SHOWN}" in shown
        assert "\x1b" not in shown
        assert "\u202e" not in shown

    drive(top(os.getpid(), striped.name), act)


def test_letters_sorting_and_a_wider_screen(striped: execmem.Domain) -> None:
    async def act(pilot: Pilot[int]) -> None:
        await find(pilot, "50.0%")
        await pilot.press("b")
        shown = await settle(pilot)
        assert "A " * 15 + "A" in shown
        assert "A v8" in shown
        await pilot.press("b", "s")
        shown = await settle(pilot)
        assert shown.index(" data") < shown.index("50.0%")
        assert "s sort: fill  b by: age" in shown
        await pilot.resize_terminal(120, 40)
        shown = await settle(pilot)
        assert "██··" * 16 in shown
        assert len(shown.splitlines()) == 40
        await pilot.press("question_mark")
        await pilot.pause()
        assert "Enter         look inside" in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert "██··" * 16 in text(app)

    app = top(os.getpid(), striped.name)
    drive(app, act)


def test_letters_are_those_of_the_domain_under_the_cursor() -> None:
    source_text = (
        "import execmem; kept = [execmem.Domain(name).place(bytes([0xC3]), name=name * 2) for name in 'xy']; "
        "print('ready', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", source_text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"

        async def act(pilot: Pilot[int]) -> None:
            await settle(pilot)
            await pilot.press("b")
            assert "owners in x: A xx  * others" in await settle(pilot)
            await pilot.press("end")
            assert "owners in y: A yy  * others" in await settle(pilot)

        drive(top(child.pid, None), act)
        child.communicate(b"\n", timeout=60)


def test_a_pause_stands_still_and_an_end_is_told() -> None:
    source_text = "import execmem; block = execmem.Domain('x').place(b'\\xc3'); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", source_text], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        app = top(child.pid, None)

        async def act(pilot: Pilot[int]) -> None:
            await settle(pilot)
            await pilot.press("p")
            await pilot.pause()
            assert "PAUSED: p goes on" in text(app)
            for _ in range(3):  # what was asked for before may still come
                shown = app.found
                await asyncio.sleep(0.5)
                if app.found is shown:
                    break
            assert app.found is shown
            await pilot.press("p")
            await settle(pilot)
            child.kill()
            child.wait()
            await until(lambda: "ENDED: q quits" in text(app))
            assert "domain root" in text(app)
            await pilot.press("q")

        drive(app, act)
        assert app.return_code == 0


def test_a_pack_that_is_gone_leads_back(domain: execmem.Domain) -> None:
    async def act(pilot: Pilot[int]) -> None:
        await settle(pilot)
        await pilot.press("down", "enter")
        await settle(pilot)
        app.chosen = (domain.number, 77)
        app.ask()
        await until(lambda: "has no pack 77" in text(app))
        assert "up/down  Enter inside" in text(app)

    block = domain.place(b"\xc3")
    app = top(os.getpid(), str(domain.number))
    drive(app, act)
    del block


# ---- directmap watch ----


class Machine:
    """What a machine says of its direct map, as a test wants it."""

    def __init__(self) -> None:
        self.now = 100 * 10**9
        self.splits = 20
        self.state = np.full(64 * 40, State.WHOLE, dtype=np.uint8)
        self.state[:64] = State.GIGABYTE
        self.state[70] = State.MIXED
        self.events: list[Event] = []

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def watch(self) -> Watch:
        means = Means(
            counters={"splits": lambda: {"direct_map_level2_splits": self.splits, "directmap_4k": self.splits << 21}},
            streams={"events": self.drain},
            missing={"modules": "not available: /proc/modules [red]is\x1b[2J missing"},
            states=self.state.copy,
        )
        jit = source.Jit(limit=1 << 29, enabled=True, programs=1 << 27, packs=3 << 26)
        return Watch(means, clock=lambda: self.now, read_jit=lambda: jit)


def test_the_direct_map_is_walked_by_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.12.1")
    monkeypatch.setattr("time.strftime", lambda _: "12:00:00")
    machine = Machine()
    app = WatchApp(machine.watch(), 0.2, PLAIN)
    between, look = threading.Lock(), app.look

    def look_whole() -> Frame:
        with between:  # looks: none sees half of what happens
            return look()

    monkeypatch.setattr(app, "look", look_whole)

    async def act(pilot: Pilot[int]) -> None:
        await settle(pilot)
        with between:
            machine.now += 10**9
            load = Event(Kind.LOAD, machine.now, 0xFFFFFFFFC0000000, 300, 1, Client.BPF, "pid 7 [b]tc[/]\x1b[2J", "cls")
            machine.events = [load]
            machine.splits += 1
            machine.state[130] = State.HOLED
        await settle(pilot)
        await pilot.press("down", "right", "right")
        await pilot.pause()
        shown = text(app)
        if "EXECMEM_GOLDEN" in os.environ:
            GOLDEN.write_text(shown + "\n", encoding="utf-8")
        assert shown + "\n" == GOLDEN.read_text(encoding="utf-8")
        await pilot.press("home", "right", "enter")
        await pilot.pause()
        assert "one region of 2 MB" not in text(app)
        for _ in range(3):
            await pilot.press("enter")
        await pilot.pause()
        assert "one region of 2 MB: 1 GB page" in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert "one region" not in text(app)
        await pilot.press("pagedown", "q")

    drive(app, act)
    assert app.return_code == 0


# ---- the terminal, and what is missing ----


def test_without_textual_the_remedy_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    for command in (["top", "1", "--tui"], ["directmap", "watch", "--tui"]):
        assert cli.main(command) == 1
        err = capsys.readouterr().err
        assert "textual, which is not installed; python -m pip install 'execmem[tui]'" in err
        assert err.count("\n") == 1


def test_without_a_terminal_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["top", "1", "--tui"], ["directmap", "watch", "--tui"]):
        assert cli.main(command) == 1
        assert "--tui needs a terminal" in capsys.readouterr().err
    for command in (["top", "1", "--tui", "--json"], ["directmap", "watch", "--tui", "--count", "3"]):
        assert cli.main(command) == 2
        assert "--tui is for people" in capsys.readouterr().err


FAILING = """
import sys
from execmem import cli, top_tui
def fail(self): raise ZeroDivisionError("on purpose")
if sys.argv.pop(1) == "fail": top_tui.TopApp.look = fail
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("how", "code"), [("term", 143), ("int", 130), ("ctrl-c", 130), ("fail", 1)])
def test_the_terminal_is_given_back(domain: execmem.Domain, how: str, code: int) -> None:
    block = domain.place(b"\xc3")
    view = ["top", str(os.getpid()), "--domain", str(domain.number), "--every", "0.05", "--tui"]
    with on_terminal([sys.executable, "-c", FAILING, how, *view]) as (shown, main):
        out = read_until(main, b"\x1b[?1049h")
        if how != "fail":
            out += read_until(main, b"domain test")
        if how in {"term", "int"}:
            shown.send_signal(signal.SIGTERM if how == "term" else signal.SIGINT)
        elif how != "fail":
            os.write(main, b"\x03")
        out += read_until(main, b"\x1b[?1049l")
        with contextlib.suppress(OSError):  # the terminal's last user closed it
            while select.select([main], [], [], 60)[0]:
                out += os.read(main, 65536)
        assert shown.wait(60) == code
    after = out.partition(b"\x1b[?1049l")[2]
    assert b"\x1b[?25h" in out
    assert (b"ZeroDivisionError: on purpose" in after) is (how == "fail")
    assert (b"Traceback" in out) is (how == "fail")
    del block
