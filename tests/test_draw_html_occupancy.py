"""draw_html_occupancy: what the page of a recording holds without its script, and that a browser zooms and tells."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any

import browser
import numpy as np
import pytest
from test_draw_svg import HOSTILE
from test_occupancy import dump, line, read, run, some_lines

from execmem import draw_html_occupancy
from execmem.draw_html_occupancy import BARE, SCRIPT, STEPS, draw_page

if TYPE_CHECKING:
    from pathlib import Path


def some_page(limit: int | None = None) -> str:
    other = [line(20 + step, {7: (20.0, 0.25)}, name="other", number=3) for step in range(3)]
    return draw_page(read(dump([*some_lines(), *other]))[0], "packs in the course of time", limit)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_holds_the_numbers_and_a_picture() -> None:
    page = some_page()
    first, second = data_of(page)["domains"]
    assert (first["name"], first["first"], first["seconds"], second["name"]) == ("plugins (2)", 10.0, 8.0, "other (3)")
    assert [row["label"] for row in first["rows"]] == ["0 text", "3 text", "5 text"]
    assert first["rows"][1]["marks"] == [[230, 0], [512, 1], [627, 0]]
    levels = np.frombuffer(base64.b64decode(first["rows"][1]["levels"]), "u1")
    assert (len(levels), sorted(set(levels.tolist()))) == (STEPS, [10, 50, BARE])
    allocs = np.frombuffer(base64.b64decode(first["values"][3]), "<f8")
    assert (np.isnan(allocs[0]), allocs[-1]) == (True, 36.0)
    markup = page.partition("<script")[0]
    assert "2 times, made 4.9 s" in markup, "the picture needs no script"
    assert len(page) < 300_000


def test_many_packs_are_bounded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_html_occupancy, "ROWS_MAX", 20)
    lines = [line(second, dict.fromkeys(range(25), (0.5, 0.5))) for second in (1, 2)]
    (domain,) = data_of(draw_page(read(dump(lines))[0], "x", None))["domains"]
    assert len(domain["rows"]) == 20
    assert domain["notes"][0].startswith("and 5 packs more")
    assert len(data_of(some_page(1))["domains"][0]["rows"]) == 1


def test_names_are_only_text_and_one_script_runs() -> None:
    lines = [line(second, {1: (0.5, 0.5)}, name=HOSTILE, packs_left_out=1) for second in (1, 2)]
    page = draw_page(read(dump(lines))[0], HOSTILE, None)
    assert "<img" not in page
    assert page.count("</script>") == page.count("<script") == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
    assert f"<script>{SCRIPT}</script>" in page
    assert set(re.findall(r"\w+://[^\s\"'<)]*", page)) == {"http://www.w3.org/2000/svg"}


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "it.jsonl").write_bytes(dump(some_lines()))
    assert run(capsys, "map", "--history", tmp_path / "it.jsonl", "--html", tmp_path / "a.html")[0] == 0
    assert "recorded in it.jsonl" in (tmp_path / "a.html").read_text(encoding="utf-8")


def told(page: browser.Browser) -> str:
    return str(page.ask("document.getElementById('here').textContent"))


def shown(page: browser.Browser) -> list[float]:
    """Return the steps between which time is shown."""
    found: list[float] = page.ask("(d => [+d.from, +d.to])(document.getElementById('canvas').dataset)")
    return found


@pytest.mark.unsanitized
@pytest.mark.parametrize("way", ["light", "dark"])
def test_a_browser_goes_through_time_and_tells_packs(way: str, tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    path.write_text(some_page(), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, way)
        assert told(page).startswith("At 7.992 s: live bytes 2 MB, live blocks 20, packs 2, allocs/s 36, frees/s 1.0.")
        x, y, wide = page.ask("(b => [b.x, b.y, b.width])(document.getElementById('canvas').getBoundingClientRect())")
        at = x + 104 + (wide - 124) * 0.3  # 2.4 s, where pack 3 is
        page.point("mouseMoved", at, y + 5 * 74 + 8 + 16 + 4)
        page.wait(lambda: "Pack 3 text: 50 % full (2 times, made 4.9 s)." in told(page))
        assert told(page).startswith("At 2.398 s: live bytes 3 MB")
        page.click(at, y + 20)
        page.wait(lambda: page.ask("document.getElementById('slider').value") == "307")
        assert page.ask("document.getElementById('when').textContent") == "2.398 of 8 s"
        page.ask("document.getElementById('canvas').focus()")
        page.press("+")
        first, last = shown(page)
        assert (last - first, first < 307 < last) == (STEPS / 2, True)
        page.press("0")
        assert shown(page) == [0, STEPS]
        page.press("Home")
        assert "allocs/s not available" in told(page)
        page.ask("(s => { s.value = 1; s.dispatchEvent(new Event('change')); })(document.getElementById('domain'))")
        assert page.ask("document.getElementById('told').textContent").startswith("domain other (3) of process 4711")
        assert page.requests == [path.as_uri()]
        assert not page.complaints


@pytest.mark.unsanitized
def test_a_chart_of_what_is_not_available_does_not_say_zero(tmp_path: Path) -> None:
    program = browser.find()
    if program is None:
        pytest.skip(f"none of {', '.join(browser.NAMES)} is installed")
    path = tmp_path / "a.html"
    path.write_text(draw_page(read(dump(some_lines()[:1]))[0], "one picture has no rates", None), encoding="utf-8")
    with browser.browse(program, tmp_path / "profile") as page:
        page.open(path, "light")
        hear = "p.fillText = (text) => { words.push(text); }"
        act = "document.getElementById('all').click()"
        words = page.ask(f"((p, words) => {{ {hear}; {act}; return words; }})(CanvasRenderingContext2D.prototype, [])")
        charts = dict(zip(words[::2], words[1::2], strict=False))
        assert (charts["allocs/s"], charts["frees/s"]) == ("not available", "not available")
        assert charts["packs"] != "not available"
