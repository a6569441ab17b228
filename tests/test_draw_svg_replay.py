"""draw_svg_replay: what pictures of policies show, that lines on each other are seen, and what bad names do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from test_draw_svg import DATA, HOSTILE, SEEN_BY, check_colours, check_golden, parse

from execmem import draw_svg, draw_svg_replay
from execmem.directmap.model import Size
from execmem.directmap.policy import POLICIES
from execmem.directmap.replay import FIGURES, Result
from execmem.draw_svg_replay import LINES, Comparison

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20
SPLITS: Final = (361, 336, 336, 12, 0, 0)
HELD: Final = (31, 8, 8, 8, 8, 9)


def some_result(name: str, splits: int, held: int) -> Result:
    """Return the result of a policy that splits at once, and more at the end; half of what it holds goes midway."""
    return Result(
        name,
        "some",
        splits=splits,
        split_now=splits,
        over_time=[(0, 0), (100, splits // 2), (700, splits // 2), (1000, splits)],
        memory=[(0, 0, 0), (100, 2 * MB, held * MB), (500, MB, held * MB // 2), (1000, 2 * MB, held * MB)],
        mapped={Size.PAGE: (22 + 2 * splits) * MB, Size.REGION: 900 * MB, Size.GIGA: 0},
        live=2 * MB,
        held=held * MB,
        waste={"header": 4096, "rounding": (held - 2) * MB // 2, "free": (held - 2) * MB // 2},
        tlb=1024 if splits > 100 else 2,
    )


def some_comparison(*, title: str = "some workload", against: int = 0) -> Comparison:
    """Return fixed results of six policies."""
    results = [some_result(*one) for one in zip(POLICIES, SPLITS, HELD, strict=True)]
    return Comparison(title, 1000, 1 << 30, results, against)


def words_of(text: str) -> list[str]:
    return ["".join(element.itertext()) for element in parse(text).iter() if element.tag.endswith("}text")]


def test_the_table_comes_first_and_has_every_figure() -> None:
    given = some_comparison()
    text = draw_svg_replay.draw_replay(given)
    words = words_of(text)
    assert words[:2] == ["what if: some workload", "1,000 loads and unloads on a simulated machine of 1,024 MB"]
    table = words[words.index("A  page each, 5.10") : words.index("regions split so far (lower is better)")]
    told = [figure.tell(figure.take(row)) for row in given.results for figure in FIGURES]
    assert [word for word in table if not re.match(r"[A-F]  ", word)] == told
    assert [word[3:] for word in table if re.match(r"[A-F]  ", word)] == list(POLICIES)


def test_the_least_of_a_column_is_bold_unless_all_are_the_same() -> None:
    given = some_comparison()
    best = {figure.name: draw_svg_replay.find_best(figure, given.results) for figure in FIGURES}
    assert (best["splits"], best["held"], best["live"], best["header"]) == ("0", "8.0", "", "")
    bold = re.findall(r'class="em em-ink em-b"[^>]*>([^<]*)<', draw_svg_replay.draw_table(given).body)
    assert bold.count("8.0") == 4


def test_directions_are_told() -> None:
    words = " ".join(words_of(draw_svg_replay.draw_replay(some_comparison())))
    for told in ("lower is better everywhere", "bars to the left are better (less)", "MB (lower is better); grey"):
        assert told in words


def test_the_difference_is_against_the_one_that_was_chosen() -> None:
    words = words_of(draw_svg_replay.draw_difference(some_comparison(against=3)).body.join(WRAP))
    assert words[0] == "against D  ROX cache, 7.2"
    assert "regions split: 12" in words
    assert [word for word in words if "(+2908 %)" in word] == ["+349 (+2908 %)"]
    assert words.count("-12 (-100 %)") == 2
    assert words.count("=") == 2 + 3  # TLB entries of E and F, memory held by B, C and E
    assert "D  ROX cache, 7.2" not in words[1:]


WRAP: Final = ('<svg xmlns="http://www.w3.org/2000/svg">', "</svg>")


@pytest.mark.parametrize("against", range(6))
def test_bars_point_to_the_better_side_and_stay_in_their_panel(against: int) -> None:
    given = some_comparison(against=against)
    figure = FIGURES[0]
    out = "".join(draw_svg_replay.draw_panel(figure, given, 300, 200))
    bars = re.findall(r'class="em-(came|went)" d="M([\d.]+) [\d.]+h(-?[\d.]+)', out)
    changes = [one - SPLITS[against] for one in SPLITS if one != SPLITS[against]]
    assert [float(wide) < 0 for _, _, wide in bars] == [change < 0 for change in changes]
    assert [ink == "came" for ink, _, _ in bars] == [change < 0 for change in changes]
    assert all(300 <= float(zero) <= 500 and 299 <= float(zero) + float(wide) <= 501 for _, zero, wide in bars)


def test_numbers_beside_bars_end_before_the_next_panel() -> None:
    rows = [some_result(name, splits, 8) for name, splits in (("few", 0), ("many", 3_000_000))]
    for against in (0, 1):
        text = draw_svg_replay.draw_difference(Comparison("t", 1000, 1 << 42, rows, against)).body
        told = [word for word in words_of(text.join(WRAP)) if word[:1] in "+-"]
        assert len(told) == 3
        assert all(len(word) <= draw_svg_replay.NUMBER_LETTERS for word in told)


def test_lines_on_each_other_are_seen() -> None:
    given = some_comparison()
    body = draw_svg_replay.draw_curves(given).body
    drawn = re.findall(r'class="em-n em-p(\d)-l" d="([^"]+)"', body)
    assert [int(number) for number, _ in drawn] == list(range(6))
    assert drawn[1][1] == drawn[2][1]
    widths = [line.wide for line in LINES]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == len({line.letter for line in LINES}) == len(LINES)


def test_labels_do_not_lie_on_each_other() -> None:
    body = draw_svg_replay.draw_curves(some_comparison()).body
    ends = [float(y) for y in re.findall(r'y="([\d.]+)" class="em em-m em-ink"', body)]
    assert len(ends) == 6
    assert min(np.diff(ends)) >= draw_svg_replay.ROOM - 1e-6


@pytest.mark.parametrize("way", ["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_can_be_told_apart(way: str, eyes: str) -> None:
    check_colours({line.letter: getattr(line, way) for line in LINES}, eyes)


def test_names_are_only_text() -> None:
    given = some_comparison(title=HOSTILE)
    given = replace(given, results=[replace(row, policy=HOSTILE) for row in given.results])
    text = draw_svg_replay.draw_replay(given)
    tags = {element.tag.rpartition("}")[2] for element in parse(text).iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "g", "text", "path"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]|https?://(?!www\.w3\.org/2000/svg)", text)


@pytest.mark.parametrize("count", [1, 2, 6, 8])
def test_any_number_of_policies_has_a_picture(count: int) -> None:
    results = [some_result(f"policy {number}", number, number + 2) for number in range(count)]
    text = draw_svg_replay.draw_replay(Comparison("few", 1000, 1 << 30, results, count - 1))
    assert ("only one policy was replayed" in text) == (count == 1)
    assert text.count("policy 0") >= 3
    height = float(parse(text).attrib["height"])
    assert height > 700 + 24 * count


def test_a_workload_of_nothing_that_matters_has_a_picture() -> None:
    one = replace(some_result("ours", 0, 0), live=0, held=0, over_time=[(0, 0)], memory=[(0, 0, 0)])
    assert parse(draw_svg_replay.draw_replay(Comparison("nothing", 0, 1 << 30, [one, one], 0))) is not None


def test_the_picture_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    check_golden(draw_svg_replay.draw_replay(some_comparison(against=1)), DATA / "whatif.svg", tmp_path)


def test_pictures_are_as_wide_as_the_others() -> None:
    assert parse(draw_svg_replay.draw_replay(some_comparison())).attrib["width"] == str(draw_svg.WIDTH)
