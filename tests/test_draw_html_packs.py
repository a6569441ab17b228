"""draw_html_packs: what the page of packs holds, that nothing else acts in it, and how a browser goes into packs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import browser
import numpy as np
import pytest
from test_draw_html import data_of
from test_draw_svg import HOSTILE
from test_draw_svg_packs import some_facts, some_packs

from execmem import draw_html_packs
from execmem.draw_html_packs import Held, Told
from execmem.ledger import BLOCK_DTYPE
from execmem.survey import BLOCK_STATES, PackBlocks, PackFacts, Share

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STATES = {text: number for number, text in BLOCK_STATES.items()}
Row = tuple[int, int, int, str, str, str]  # chunk, size, age, state, owner, name
ROWS: dict[int, list[Row]] = {
    0: [
        (0, 64 * 1024, 500, "filled", "numba", "numba:first"),
        (1024, 100, 70_000, "reserved", "numba", "numba:second"),
        (2048, 64 * 512, 90_000_000, "retired", HOSTILE, HOSTILE),
        (16384, 64 * 8192, 5000, "filled", "expr", "expr_7"),
    ],
    1: [(32700, 64 * 68, 86_400_000, "filled", "numba", "numba:pin")],
    2: [(0, 5 << 20, 1000, "filled", "big", "")],
    1023: [(number, 64, 10, "filled", "expr", f"expr_{number}") for number in range(8, 28)],
}
ALONE = {0: range(3000, 3010)}


def hold(pack: PackFacts, rows: Sequence[Row], alone: Sequence[int] = ()) -> Held:
    """Return blocks as a survey keeps them."""
    blocks = np.zeros(len(rows), BLOCK_DTYPE)
    first, sizes, ages, states, owners, names = zip(*rows, strict=True) if rows else ([],) * 6
    blocks["address"] = np.array(first, np.uint64) * np.uint64(64) + np.uint64(pack.address)
    blocks["size"], blocks["state"] = sizes, [STATES[state] for state in states]
    different = list(dict.fromkeys(owners))
    which = np.array([different.index(owner) for owner in owners], np.int64)
    bits = np.zeros(min(pack.usable_bytes, 2 << 20) // 64, np.bool_)
    bits[list(alone)] = True
    return Held(PackBlocks(blocks, np.array(ages, np.int64), list(names), different, which), bits)


def some_told() -> Told:
    owners = [Share(owner, 1, 100, 9, 1) for owner in ("numba", "expr", HOSTILE, "big")]
    packs = some_packs("age")
    held = {pack.number: hold(pack, ROWS[pack.number], ALONE.get(pack.number, ())) for pack in packs}
    return Told(some_facts(owners=owners, packs_left_out=0), held)


def some_page(by: str = "age") -> str:
    return draw_html_packs.draw_page([some_told()], f"packs of process 4711: {HOSTILE}", by)


def unpack(data: dict[str, Any], key: str, kind: str) -> list[int]:
    raw = zlib.decompress(base64.b64decode(data["columns"][key]))
    numbers: list[int] = np.frombuffer(raw, kind).tolist()
    return numbers


# ---- the text ----


def test_the_page_holds_the_numbers() -> None:
    data = data_of(some_page())
    assert [(head["number"], head["count"], head["usable"]) for head in data["heads"]] == [
        (0, 4, 32768), (1, 1, 32768), (2, 1, 32768), (1023, 20, 512),
    ]  # fmt: skip
    assert unpack(data, "first", "<u2")[:6] == [0, 1024, 1024, 14336, 32700, 0]
    assert unpack(data, "size", "<u4")[4:6] == [64 * 68, 5 << 20]
    assert np.cumsum(unpack(data, "age", "<i8")[:4]).tolist() == [500, 70_000, 90_000_000, 5000]
    assert [data["states"][str(state)] for state in unpack(data, "state", "u1")[1:4]] == [
        "reserved",
        "retired",
        "filled",
    ]
    assert [data["owners"][0][owner][:5] for owner in unpack(data, "owner", "<u4")[:6]] == [
        "numba", "numba", "pid 7", "expr", "numba", "big",
    ]  # fmt: skip
    bits = np.unpackbits(np.array(unpack(data, "alone", "u1"), np.uint8), bitorder="little")
    assert np.flatnonzero(bits).tolist() == list(ALONE[0])
    names = zlib.decompress(base64.b64decode(data["columns"]["names"])).decode().split("\n")
    assert (len(names), names[:2], names[5]) == (26, ["numba:first", "numba:second"], "")
    assert data["heads"][1]["more"][-1].startswith("pinned by numba:kernel, pid 7 </script>")
    assert [data["heads"][place]["badge"] for place in (0, 1)] == ["1 x 2 MB", "512 x 4 kB"]


def test_names_are_only_text() -> None:
    page = some_page()
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
    assert re.search(r"<td>pid 7 &lt;/script&gt;&lt;/title&gt;&lt;img ", page)
    assert b"\x1b" not in zlib.decompress(base64.b64decode(data_of(page)["columns"]["names"]))


def test_the_page_runs_one_script_and_loads_nothing() -> None:
    page = some_page()
    digest = base64.b64encode(hashlib.sha256(draw_html_packs.SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert f"<script>{draw_html_packs.SCRIPT}</script>" in page
    assert not re.findall(r"\w+://[^\s\"'<)]*", page)


def test_it_reads_well_without_scripts() -> None:
    page = some_page()
    for words in ("domain plugins (2): 21 packs", "1 of 6 collapses to 2 MB pages failed", "<td>numba</td>", "several"):
        assert words in page


# ---- what is large ----


def many_blocks(packs: int, each: int) -> Told:
    """Return a domain of packs with so many blocks in each; sizes, ages and names are such that little can be saved."""
    random = np.random.default_rng(3)
    model = some_packs("age")[0]
    facts, held, step = [], {}, 32768 // each
    for number in range(packs):
        pack = replace(model, number=number, address=model.address + number * (2 << 20))
        blocks = np.zeros(each, BLOCK_DTYPE)
        blocks["address"] = np.arange(each, dtype=np.uint64) * np.uint64(step * 64) + np.uint64(pack.address)
        blocks["size"], blocks["state"] = random.integers(1, step * 64 + 1, each), 2
        names = [f"numba:f{value:x}" for value in random.integers(0, 1 << 40, each).tolist()]
        which, ages = random.integers(0, 2, each), random.integers(0, 90_000_000, each)
        facts.append(pack)
        held[number] = Held(PackBlocks(blocks, ages, names, ["numba", "expr"], which), np.zeros(32768, np.bool_))
    owners = [Share(owner, 1, 100, 9, 1) for owner in ("numba", "expr")]
    return Told(some_facts(packs=facts, owners=owners, packs_left_out=0), held)


def test_names_that_do_not_fit_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_html_packs, "BYTES_MAX", 1_000_000)
    page = draw_html_packs.draw_page([many_blocks(16, 6553)], "large", "age")
    assert 300_000 < len(page.encode()) < 1_000_000
    assert "it tells their owners only" in page
    data = data_of(page)
    assert data["columns"]["names"] == ""
    program = browser.find()
    if program is None:
        return
    path = tmp_path / "a.html"
    path.write_text(page, encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as shown:
        shown.open(path, "light")
        shown.ask("document.getElementById('bars').focus()")
        shown.press("ArrowRight")
        assert "(names are left out), owner" in shown.ask("document.getElementById('here').textContent")
        assert not shown.complaints


def test_what_does_not_fit_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_html_packs, "BYTES_MAX", 110_000)
    page = draw_html_packs.draw_page([many_blocks(8, 1000)], "x", "age")
    shown = len(data_of(page)["heads"])
    assert 1 <= shown < 8
    assert f"{8 - shown} packs are not in this page" in page
    assert len(page.encode()) < 110_000


def test_owners_without_end_are_told_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_html_packs, "OWNERS_NAMED", 1)
    data = data_of(some_page())
    assert data["owners"] == [["numba", "one of those with fewest bytes"]]
    assert unpack(data, "owner", "<u4")[:6] == [0, 0, 1, 1, 0, 1]


def test_a_process_without_packs_has_a_page() -> None:
    page = draw_html_packs.draw_page([Told(some_facts(packs=[], packs_left_out=0), {})], "x", "owner")
    assert data_of(page)["heads"] == []


# ---- in a browser ----


def text_of(page: browser.Browser, name: str) -> str:
    return str(page.ask(f"document.getElementById('{name}').textContent"))


def point(page: browser.Browser, name: str, x: float, y: float, *, click: bool = False) -> None:
    """Move to a place in an element, from its corner, and perhaps press there."""
    page.ask(f"document.getElementById('{name}').scrollIntoView()")
    left, top = page.ask(f"(b => [b.x, b.y])(document.getElementById('{name}').getBoundingClientRect())")
    page.point("mouseMoved", left + x, top + y)
    if click:
        page.click(left + x, top + y)


def wide(page: browser.Browser, name: str) -> float:
    return float(page.ask(f"document.getElementById('{name}').clientWidth"))


def colour(page: browser.Browser, name: str, x: float, y: float) -> str:
    found = page.ask(
        f"(dots => [...document.getElementById('{name}').getContext('2d')"
        f".getImageData({x} * dots, {y} * dots, 1, 1).data])(devicePixelRatio)"
    )
    return f"#{found[0]:02x}{found[1]:02x}{found[2]:02x}"


LEFT, RIGHT, HEAD, LINE = 132, 366, 22, 32  # of bars, in the script's words


@pytest.mark.unsanitized
@pytest.mark.parametrize("way", ["light", "dark"])
def test_a_browser_tells_blocks_and_goes_into_packs_and_rows(tmp_path: Path, way: str) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    path.write_text(some_page("owner"), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, way)
        check_bars(page)
        check_inside(page)
        shot = base64.b64decode(page.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        assert shot.startswith(b"\x89PNG")
        (tmp_path / f"{way}.png").write_bytes(shot)
        assert page.ask("document.title").startswith("packs of process 4711")
        assert page.requests == [path.as_uri()]
        assert not page.complaints


RECORD = """(() => {
  const shown = window.shown = [], own = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (words, x, y) {
    const part = { left: 0, center: 0.5, right: 1 }[this.textAlign], wide = this.measureText(words).width;
    shown.push([this.canvas.id, Math.round(y), x - part * wide, x + (1 - part) * wide, words]);
    own.call(this, words, x, y);
  };
  dispatchEvent(new Event("resize"));
})()"""


@pytest.mark.unsanitized
def test_words_in_the_bars_do_not_run_into_each_other(tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    told = [replace_name(some_told(), name) for name in ("W" * 63, "plugins", "\U0001f600" * 15)]
    path.write_text(draw_html_packs.draw_page(told, "several", "age"), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, "light")
        page.ask(RECORD)
        lines: dict[int, list[tuple[float, float, str]]] = {}
        for canvas, y, left, right, words in page.ask("window.shown"):
            if canvas == "bars":
                lines.setdefault(y, []).append((left, right, words))
    for words_of_line in lines.values():
        ordered = sorted(words_of_line)
        for (_, end, before), (begin, _, after) in itertools.pairwise(ordered):
            assert end + 4 <= begin, (before, after)
    assert any(words.startswith("WW") and words.endswith("… 1023") for line in lines.values() for *_, words in line)


def replace_name(told: Told, name: str) -> Told:
    return told._replace(facts=replace(told.facts, name=name))


def check_bars(page: browser.Browser) -> None:
    """A bar tells its blocks; colours change; keys go from block to block; what is zoomed comes back."""
    each = (wide(page, "bars") - LEFT - RIGHT) / 32768
    point(page, "bars", LEFT + 20_000 * each, HEAD + 11)
    told = text_of(page, "here")
    assert told.startswith("0x7f0000100000: expr_7, owner expr, 524,288 bytes, 5.0 s old, filled; pack 0 of plugins")
    point(page, "bars", LEFT + 10_000 * each, HEAD + 11)
    assert "free; pack 0" in text_of(page, "here")
    point(page, "bars", LEFT + 3005 * each, HEAD + 11)
    assert "in use by no live block" in text_of(page, "here")
    point(page, "bars", LEFT + 20_000 * each, HEAD + 3 * LINE + 11)
    assert "not open for blocks; pack 1023" in text_of(page, "here")
    assert colour(page, "bars", LEFT + 18_000 * each, HEAD + 12) == "#5fafff"  # B of owners
    page.ask("(s => { s.value = 'age'; s.dispatchEvent(new Event('change')); })(document.getElementById('by'))")
    assert colour(page, "bars", LEFT + 18_000 * each, HEAD + 12) == "#5f5faf"  # under 10 s
    assert "A under 1 s" in text_of(page, "legend")
    page.ask("document.getElementById('bars').focus()")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp"):
        page.press(key)
    assert "pack 0" in text_of(page, "here")
    page.press("+")
    assert page.ask("document.getElementById('bars').dataset.span") == "16384"
    page.press("0")
    assert page.ask("document.getElementById('bars').dataset.span") == "32768"


def check_inside(page: browser.Browser) -> None:
    """A click goes into a pack, another into a row, where chunks and blocks are told."""
    each = (wide(page, "bars") - LEFT - RIGHT) / 32768
    assert page.ask("document.getElementById('inside').hidden")
    point(page, "bars", LEFT + 100 * each, HEAD + 11, click=True)
    assert text_of(page, "which") == "pack 0 of plugins: rows of 64 kB"
    assert "50.0 % in use, largest free 96.0 kB, 1,042 blocks; 1 x 2 MB; 3 parked" in text_of(page, "facts")
    side = 116
    point(page, "rows", side + 100, 2 + 2 * 16 + 5)
    assert "pid 7 </script></title><img" in text_of(page, "here")
    assert ", 1.0 days old, retired; pack 0 of plugins, +0x20000." in text_of(page, "here")
    point(page, "rows", side + 100, 2 + 1 * 16 + 5, click=True)
    assert text_of(page, "where") == "row 1: chunks of 64 bytes"
    assert "0x7f000001000010021.2 minreservednumbanumba:second" in text_of(page, "blocks")
    point(page, "chunks", side + 3, 8)
    assert "numba:second, owner numba, 100 bytes" in text_of(page, "here")
    point(page, "chunks", side + 3 * (wide(page, "chunks") - side - 8) / 64, 8)
    assert "free; pack 0 of plugins, +0x100c0." in text_of(page, "here")
