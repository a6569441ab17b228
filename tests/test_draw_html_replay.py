"""draw_html_replay: what the page holds without its script, and that in a browser it zooms, tells and compares."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import browser
import pytest
from test_draw_svg import HOSTILE
from test_draw_svg_replay import HELD, MB, SPLITS, some_comparison

from execmem import draw_svg_replay
from execmem.directmap.policy import POLICIES
from execmem.directmap.replay import FIGURES
from execmem.draw_html_replay import SCRIPT, draw_page

if TYPE_CHECKING:
    from pathlib import Path


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_holds_the_numbers() -> None:
    page = draw_page(some_comparison(against=1))
    data = data_of(page)
    assert (data["rows"], data["against"], len(data["figures"])) == (1000, 1, len(FIGURES))
    assert [one["splits"][-1] for one in data["policies"]] == [[1000, count] for count in SPLITS]
    assert [one["held"][-1] for one in data["policies"]] == [[1000, size * MB] for size in HELD]
    markup = page.partition("<script")[0]
    assert all(markup.count(f"  {name}") >= 3 for name in POLICIES)  # the tables and the curves need no script
    assert markup.index("<table>") < markup.index('<svg id="splits"')
    assert len(page) < 100_000


def test_curves_keep_their_points_for_zooming() -> None:
    given = some_comparison()
    memory = [(row, row // 2, MB * (row // 100)) for row in range(1001)]
    given = replace(given, results=[replace(given.results[0], memory=memory), *given.results[1:]])
    data = data_of(draw_page(given))
    assert data["policies"][0]["held"] == [[row, MB * (row // 100)] for row in range(0, 1001, 100)]
    assert data["live"] == [[row, row // 2] for row in range(0, 1001, 2)]
    (held,) = re.findall(r'class="em-n em-p0-l" d="(M[^"]*)"', draw_svg_replay.draw_memory(given).body)
    assert held.count("V") == draw_svg_replay.COLUMNS + 1, "a point each two pixels, and the end"
    steep = replace(given.results[0], over_time=[(0, 0), *((row, row) for row in range(1, 1001))])
    drawn = draw_svg_replay.draw_curves(replace(given, results=[steep, *given.results[1:]])).body
    assert f'class="em-n em-p0-l" d="M76 {24 + draw_svg_replay.HIGH}H' in drawn, "it begins before any row"


def test_names_are_only_text_and_one_script_runs() -> None:
    given = some_comparison(title=HOSTILE)
    page = draw_page(replace(given, results=[replace(row, policy=HOSTILE) for row in given.results]))
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
    assert f"<script>{SCRIPT}</script>" in page
    assert set(re.findall(r"\w+://[^\s\"'<)]*", page)) == {"http://www.w3.org/2000/svg"}


def text(page: browser.Browser, name: str) -> str:
    return str(page.ask(f"document.getElementById('{name}').textContent"))


def shown(page: browser.Browser) -> list[float]:
    """Return from where to where curves are shown, and the top of their scale."""
    found: list[float] = page.ask("(d => [+d.from, +d.to, +d.ceiling])(document.getElementById('splits').dataset)")
    return found


def column(page: browser.Browser, table: str, cell: int) -> list[str]:
    """Return the texts of a column of a table, of rows that are shown."""
    found: list[str] = page.ask(
        f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
        f".map(row => row.cells[{cell}].textContent)"
    )
    return found


@pytest.mark.unsanitized
def test_a_browser_zooms_tells_and_compares(tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    path.write_text(draw_page(some_comparison()), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, "light")
        check_slider(page)
        check_curves(page)
        check_choices(page)
        assert page.requests == [path.as_uri()]
        assert not page.complaints


def check_slider(page: browser.Browser) -> None:
    """The table tells the values at the slider, of each policy."""
    assert column(page, "figures", 2) == [f"{count:,}" for count in SPLITS]
    page.ask("document.getElementById('slider').focus()")
    page.press("Home")
    assert column(page, "figures", 2) == ["0"] * 6
    assert text(page, "told").startswith("0 of 1,000")
    page.press("End")
    assert column(page, "figures", 3) == [f"{size:.1f}" for size in HELD]


def check_curves(page: browser.Browser) -> None:
    """Pointing tells what is there, the wheel zooms to it, the key brings all back."""
    x, y, wide = page.ask("(b => [b.x, b.y, b.width])(document.getElementById('splits').getBoundingClientRect())")
    at = x + wide * (76 + 880 / 4) / 1200
    page.point("mouseMoved", at, y + 60)
    page.wait(lambda: text(page, "here").startswith("After 250 of 1,000 loads and unloads"))
    assert "A page each, 5.10: 180 split, 31.0 MB held; B prog_pack, 6.1: 168 split" in text(page, "here")
    assert shown(page) == [0, 1000, 500]
    page.point("mouseWheel", at, y + 60, deltaX=0, deltaY=-120)
    page.wait(lambda: shown(page)[1] != 1000)
    first, last, _ = shown(page)
    assert (round(first), round(last)) == (125, 625)
    page.ask("document.getElementById('splits').focus()")
    page.press("0")
    assert shown(page)[:2] == [0, 1000]


def check_choices(page: browser.Browser) -> None:
    """What is not shown gives the others room; any policy is compared with."""
    assert column(page, "differences", 1) == ["-25", "-25", "-349", "-361", "-361"]
    page.ask("document.querySelectorAll('#figures input[type=radio]')[3].click()")
    assert text(page, "against") == "D ROX cache, 7.2"
    assert column(page, "differences", 1) == ["+349", "+324", "+324", "-12", "-12"]
    page.ask("[0, 1, 2].forEach(i => document.querySelectorAll('#figures input[type=checkbox]')[i].click())")
    assert shown(page)[2] == 20
    assert column(page, "differences", 1) == ["-12", "-12"]
    assert page.ask("document.querySelectorAll('#splits path[class*=em-p]').length") == 3
