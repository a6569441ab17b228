"""draw_html: what the page holds, that nothing else acts in it, and that in a browser it zooms, tells and goes back."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import browser
import numpy as np
import pytest
from test_draw_svg import HEADER, HOSTILE, HUGE, S, parse, some_rows, some_states

from execmem import cli, draw_html, draw_svg, picture
from execmem.directmap import history, region
from execmem.directmap.region import State
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import EVENT, Kind, Lexicon, Writer, describe_machine
from execmem.draw_svg import LOOKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def some_page(*, whole: bool = True) -> str:
    return draw_html.draw_page(history.tell(some_rows(), HEADER, some_states() if whole else None))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def unpack(text: str, kind: str) -> list[float]:
    numbers: list[float] = np.frombuffer(base64.b64decode(text), kind).tolist()
    return numbers


# ---- the text ----


def test_the_page_holds_the_numbers() -> None:
    data = data_of(some_page())
    assert data["seconds"] == 4.0
    assert unpack(data["where"], "<u4") == [5, 70, 5]
    assert unpack(data["after"], "u1") == [history.SEEN, State.HOLED, State.WHOLE]
    assert np.allclose(np.array(unpack(data["when"], "<u4")) / draw_html.TICKS * 4, [2, 2, 3])
    assert data["suspects"][int(unpack(data["who"], "<i2")[0])][1] == "pid 41 tc"
    runs, states = (unpack(data["begin"][name], kind) for name, kind in (("runs", "<u4"), ("states", "u1")))
    assert (
        np.repeat(np.array(states, np.uint8), np.array(runs, int)).tolist()
        == np.where(np.isin(np.arange(192), [5, 70]), State.WHOLE, some_states()).tolist()
    )


def test_names_of_programs_are_only_text() -> None:
    page = some_page()
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
    assert any(owner.startswith("pid 7 </script></title><img src=x") for _, owner, _ in data_of(page)["suspects"])
    assert re.search(r"<td>pid 7 &lt;/script&gt;&lt;/title&gt;&lt;img ", page)


def test_the_page_runs_one_script_and_loads_nothing() -> None:
    page = some_page()
    digest = base64.b64encode(hashlib.sha256(draw_html.SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert f"<script>{draw_html.SCRIPT}</script>" in page
    addresses = set(re.findall(r"\w+://[^\s\"'<)]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\s(?:src|href|on\w+|action|data)=", re.sub(r"&lt;.*?&gt;", "", markup))


@pytest.mark.parametrize("seed", range(8))
def test_any_rows_have_a_page_and_a_picture(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = np.frombuffer(random.bytes(32 * 200), EVENT).copy()
    rows["kind"] = random.integers(1, 6, len(rows))
    rows["name"] = rows["owner"] = 0
    rows["size"][::2] = HUGE
    rows["at"][::4] >>= np.uint64(random.integers(20, 60))
    rows["ns"][::3] %= np.uint64(200 * S)
    told = history.tell(rows, HEADER | {"kernel": HOSTILE, "machine": ""}, some_states() if seed % 2 else None)
    assert len(told.begin) <= history.REGIONS_MAX
    parse(draw_svg.draw_history(told))
    assert data_of(draw_html.draw_page(told))["seconds"] == told.seconds


def test_what_is_not_known_is_said() -> None:
    assert "The trace holds no page tables" in some_page(whole=False)
    assert "The trace holds no page tables" not in some_page()
    assert "as page tables had them when this was drawn" in some_page()


def test_a_terabyte_and_a_million_events_are_less_than_10_mb() -> None:
    random = np.random.default_rng(1)
    lexicon, count, regions = Lexicon(), 1_000_000, 1 << 19
    names = np.array([lexicon.name(f"it loaded bpf_prog_{number:016x}_{HOSTILE}") for number in range(2000)], np.uint32)
    counters = np.array([lexicon.name(f"counter_{number}") for number in range(80)], np.uint32)
    texts = lexicon.pack([])
    rows = np.zeros(count, EVENT)
    rows["kind"] = random.choice([1, 2, 3, 4, 5], count, p=[0.25, 0.2, 0.3, 0.05, 0.2])
    rows["ns"] = np.sort(random.integers(100 * S, 4000 * S, count))
    rows["at"] = random.integers(1, regions, count, np.uint64) * np.uint64(HUGE)
    rows["size"], rows["id"] = HUGE, 1
    rows["name"] = np.where(rows["kind"] == Kind.SAMPLE, random.choice(counters, count), random.choice(names, count))
    state = random.choice(6, regions).astype(np.uint8)  # no two neighbours alike: nothing is shorter in runs
    page = draw_html.draw_page(history.tell(np.concatenate([texts, rows]), HEADER, state))
    assert 3_000_000 < len(page.encode()) < 10_000_000
    assert data_of(page)["begin"]["count"] == regions
    assert "follows the first 262,144" in page


# ---- the commands ----


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "a.trace"
    with Writer(path, HEADER) as writer:
        writer.append(some_rows())
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main(["directmap", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def some_walk() -> region.Walk:
    state = some_states()
    return region.Walk(1, 1, 0, 0, state, np.zeros(len(state), np.uint8), np.zeros(0, region.RUN))


def test_a_report_draws_files(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    svg.write_text("older")
    code, out, _ = run(capsys, "report", trace, "--svg", svg, "--html", page)
    assert (code, "pid 41 tc" in out) == (0, True)
    assert page.read_text(encoding="utf-8") == some_page(whole=False)
    assert svg.read_text(encoding="utf-8").endswith("</svg>\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.svg", "a.trace"]


def test_a_png_is_the_picture(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("resvg_py")
    out = tmp_path / "a.png"
    code, _, err = run(capsys, "report", trace, "--png", out)
    if code and picture.NO_FONTS in err:
        pytest.skip(picture.NO_FONTS)
    assert (code, err) == (0, "")
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(data[16:20], "big") == draw_svg.WIDTH * picture.ZOOM


@pytest.mark.parametrize("what", ["resvg", "fonts"])
def test_a_png_that_cannot_be_made_says_what_to_do(
    what: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "resvg":
        monkeypatch.setitem(sys.modules, "resvg_py", None)
    else:
        pytest.importorskip("resvg_py")
        monkeypatch.setattr(picture, "FONTS", (str(tmp_path),))
    code, _, err = run(capsys, "report", trace, "--png", tmp_path / "a.png")
    assert (code, (tmp_path / "a.png").exists()) == (1, False)
    assert {"resvg": "pip install 'execmem[png]'", "fonts": "apt install fonts-dejavu-core"}[what] in err


def test_show_draws_what_a_walk_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region, "walk", some_walk)
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    assert run(capsys, "show", "--svg", svg, "--html", page)[0] == 0
    assert "split, with holes: 1" in svg.read_text(encoding="utf-8")
    assert data_of(page.read_text(encoding="utf-8"))["begin"]["count"] == 192


def test_show_draws_nothing_where_page_tables_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise NotAvailable(why="no page tables here", remedy="run as root")

    monkeypatch.setattr(region, "walk", refuse)
    code, _, err = run(capsys, "show", "--svg", tmp_path / "a.svg")
    assert (code, "no page tables here" in err, list(tmp_path.iterdir())) == (1, True, [])


def test_all_regions_are_drawn_of_this_machine_only(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region, "walk", some_walk)
    code, _, err = run(capsys, "report", trace, "--walk", "--html", tmp_path / "a.html")
    assert (code, "the trace is of another" in err, (tmp_path / "a.html").exists()) == (1, True, False)
    mine = tmp_path / "mine.trace"
    with Writer(mine, describe_machine()):
        pass
    assert run(capsys, "report", mine, "--walk", "--html", tmp_path / "a.html")[0] == 0
    assert data_of((tmp_path / "a.html").read_text(encoding="utf-8"))["begin"]["count"] == 192


def test_a_walk_is_told_without_a_picture_too(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region, "walk", some_walk)
    assert "the trace is of another" in run(capsys, "report", trace, "--walk")[2]
    mine = tmp_path / "mine.trace"
    with Writer(mine, describe_machine()):
        pass
    assert "page tables" not in run(capsys, "report", mine)[1]
    out = run(capsys, "report", mine, "--walk")[1]
    assert "regions as page tables have them now, not as the trace ends:\n   0 B  " in re.sub("  +0 B", "   0 B", out)
    assert "a letter is 2 MB, the worst of it: " in out
    without, found = (json.loads(run(capsys, "report", mine, "--json", *walk)[1]) for walk in ((), ("--walk",)))
    assert (without["regions"], without["split_regions"]) == (None, None)
    assert found["regions"] == {state.name.lower(): some_walk().count(state) for state in State}
    assert len(found["split_regions"]) == some_walk().split > 0


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, link = tmp_path / "a.svg", tmp_path / "link.svg"
    picture.write_whole(str(target), "first")
    link.symlink_to(target)
    picture.write_whole(str(link), "second")
    assert (link.is_symlink(), target.read_text()) == (True, "second")

    def fail(*_: object) -> None:
        message = "no space"
        raise OSError(message)

    monkeypatch.setattr(type(target), "replace", fail)
    with pytest.raises(OSError, match="no space"):
        picture.write_whole(str(target), "third")
    assert target.read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "link.svg"]


def test_a_file_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        picture.write_whole(str(tmp_path / "none" / "a.svg"), "")
    assert told.value.filename == str(tmp_path / "none" / "a.svg")


def test_a_pipe_is_written_as_it_is() -> None:
    read, write = os.pipe()
    try:
        picture.write_whole(f"/dev/fd/{write}", "through")
        assert os.read(read, 100) == b"through"
    finally:
        os.close(read)
        os.close(write)


# ---- in a browser ----

IN_ROW, AXIS, TOP, HIGH = 64, 86, 4, 392 / 32  # of a map of 4 GB, in the script's words


class Reader:
    """The page of a history, as somebody in front of it has it."""

    def __init__(self, page: browser.Browser) -> None:
        self.page = page

    def box(self, name: str) -> tuple[float, float, float]:
        """Return where an element begins, and its width."""
        x, y, wide = self.page.ask(
            f"(b => [b.x, b.y, b.width])(document.getElementById('{name}').getBoundingClientRect())"
        )
        return x, y, wide

    def place(self, number: int) -> tuple[float, float]:
        """Return where in the atlas the middle of a region is, from its corner."""
        cell = (self.box("atlas")[2] - AXIS - 2) / IN_ROW
        return AXIS + (number % IN_ROW + 0.5) * cell, TOP + (number // IN_ROW + 0.5) * HIGH

    def text(self, name: str) -> str:
        return str(self.page.ask(f"document.getElementById('{name}').textContent"))

    def shown(self) -> list[int]:
        """Return the first region that is shown, and how many are in a row."""
        shown: list[int] = self.page.ask("(d => [+d.start, +d.row])(document.getElementById('atlas').dataset)")
        return shown

    def colour(self, number: int) -> str:
        """Return the colour that a region has on the screen, left of its letter."""
        x, y = self.place(number)
        found = self.page.ask(
            "(dots => [...document.getElementById('atlas').getContext('2d')"
            f".getImageData(({x} - 5) * dots, ({y} - 4) * dots, 1, 1).data])(devicePixelRatio)"
        )
        return f"#{found[0]:02x}{found[1]:02x}{found[2]:02x}"

    def point(self, number: int, kind: str = "mouseMoved", **more: Any) -> None:
        x, y, _ = self.box("atlas")
        right, down = self.place(number)
        self.page.point(kind, x + right, y + down, **more)


@pytest.mark.unsanitized
@pytest.mark.parametrize("way", ["light", "dark"])
def test_a_browser_zooms_tells_and_goes_back_in_time(tmp_path: Path, way: str) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    state = np.pad(some_states(), (0, 2048 - len(some_states())), constant_values=State.GIGABYTE)
    path.write_text(draw_html.draw_page(history.tell(some_rows(), HEADER, state)), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, way)
        reader = Reader(page)
        check_hover(reader, {state: getattr(look, way) for state, look in LOOKS.items()})
        check_zoom(reader)
        check_time(reader, {state: getattr(look, way) for state, look in LOOKS.items()})
        assert base64.b64decode(page.call("Page.captureScreenshot")["data"]).startswith(b"\x89PNG")
        assert page.ask("document.title") == "direct map of Linux 6.12.1 x86_64"
        assert page.requests == [path.as_uri()]
        assert not page.complaints


def check_hover(reader: Reader, colours: Mapping[int, str]) -> None:
    """Regions have the colours of their states, and what is known of them is told."""
    assert reader.shown() == [0, IN_ROW]
    assert "4 s: 5 split so far, 1 joined; pieces of code live: 11" in reader.text("told")
    states = {number: reader.colour(number) for number in (0, 64, 65, 110)}
    kinds = {0: State.WHOLE, 64: State.UNIFORM, 65: State.MIXED, 110: State.ABSENT}
    assert states == {number: colours[state] for number, state in kinds.items()}
    reader.point(70)
    for words in (
        "140 MB, 0x8c00000 to 0x8dfffff: o split, with holes",
        "split at 2 s by pid 7 </script>",
        "memfd_secret",
    ):
        assert words in reader.text("here")
    reader.point(1)
    assert "Not split or joined" in reader.text("here")


def check_zoom(reader: Reader) -> None:
    """The button and the wheel zoom, the key brings all back."""
    x, y, wide = reader.box("in")
    reader.page.click(x + wide / 2, y + 8)
    assert reader.shown()[1] == IN_ROW // 2
    reader.point(70, "mouseWheel", deltaX=0, deltaY=120)
    reader.page.wait(lambda: reader.shown()[1] == IN_ROW)
    reader.point(70, "mouseWheel", deltaX=0, deltaY=-120)
    reader.page.wait(lambda: reader.shown()[1] == IN_ROW // 2)
    assert reader.shown()[0] == 70 - 6 // 2 - IN_ROW // 2  # what was below the pointer is: row 1, half of 6 cells
    reader.page.ask("document.getElementById('atlas').focus()")
    reader.page.press("0")
    assert reader.shown() == [0, IN_ROW]
    reader.page.press("n")
    assert ": u split, uniform" in reader.text("here")


def check_time(reader: Reader, colours: Mapping[int, str]) -> None:
    """The slider goes to the start, where nothing is split yet, and back; a suspect's row goes to what he did."""
    reader.point(110)  # so that no frame is around the region that is looked at
    reader.page.ask("document.getElementById('slider').focus()")
    reader.page.press("Home")
    assert "0 s: nothing has happened; pieces of code that were there before: 1" in reader.text("told")
    assert reader.colour(70) == colours[State.WHOLE]
    reader.page.press("End")
    assert reader.colour(70) == colours[State.HOLED]
    reader.page.ask("document.querySelector('#suspects tbody tr:nth-child(2)').click()")
    assert "split at 2 s by pid 41 tc (it loaded prog)" in reader.text("here")
    assert reader.text("told").startswith("2")
