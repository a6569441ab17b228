"""draw: names of others in what people read: escapes, letters read from right to left, widths."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from test_draw_html_packs import some_told

from execmem import draw_html_packs, draw_packs, draw_svg, draw_svg_packs
from execmem.draw import FSI, PDI, Paint, clean, columns, cut, make_visible, width_of
from execmem.export import Page
from execmem.survey import Share

SHEM, OLAM, ARABIC, DIGITS = "\u05e9\u05dd", "\u05e2\u05d5\u05dc\u05dd", "\u0645\u0631", "\u0661\u0662"
PLAIN = Paint(colour=False, unicode=True)


def isolate(text: str) -> str:
    return f"{FSI}{text}{PDI}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain-7", "plain-7"),
        (SHEM, isolate(SHEM)),
        (f"{SHEM} {OLAM} 12", f"{isolate(f'{SHEM} {OLAM}')} 12"),
        (f"{SHEM}-12 {ARABIC}", f"{isolate(SHEM)}-12 {isolate(ARABIC)}"),
        (f"{SHEM}: 12, {ARABIC}", f"{isolate(SHEM)}: 12, {isolate(ARABIC)}"),
        (f"{DIGITS} 34", f"{isolate(DIGITS)} 34"),
        ("a\u202eb\u2066c\u200f\u061c", r"a\u202eb\u2066c\u200f\u061c"),
        (isolate("abc"), r"\u2068abc\u2069"),  # marks of others are told, not obeyed
        (f"{FSI}{SHEM}", rf"\u2068{isolate(SHEM)}"),
        (isolate(f"{SHEM}\u05ff{OLAM}"), rf"\u2068{isolate(SHEM)}\u05ff{isolate(OLAM)}\u2069"),
    ],
)
def test_what_is_read_from_right_to_left_stands_alone(text: str, shown: str) -> None:
    assert clean(text) == shown
    assert clean(shown) == shown, "what is cleaned is cleaned again where it is drawn"
    assert width_of(shown) == len(shown) - shown.count(FSI) - shown.count(PDI)


def test_what_was_cut_ends_its_run() -> None:
    assert cut(clean(OLAM * 3), 6) == f"{isolate(OLAM)}.."
    assert draw_svg.shorten(OLAM * 3, 6) == f"{isolate(OLAM)}\N{HORIZONTAL ELLIPSIS}"
    assert cut(f"{isolate(SHEM)} and more", 8) == f"{isolate(SHEM)} and.."
    assert draw_packs.printable(SHEM * 9, PLAIN, 8) == f"{isolate(SHEM * 3)}.."
    assert draw_packs.printable(SHEM, Paint(colour=False, unicode=False)) == r"\u05e9\u05dd"


def test_cells_of_such_letters_keep_their_columns() -> None:
    assert columns([isolate(SHEM), "7"], [6, -3]) == f"{isolate(SHEM)}       7"
    assert columns([isolate(SHEM), "7"], [-6, -3]) == f"    {isolate(SHEM)}   7"


def test_headlines_and_tables_of_packs_have_names_that_stand_alone() -> None:
    told = some_told()
    facts = replace(told.facts, name=f"{SHEM} 12", owners=[Share(ARABIC, 1, 100, 9, 9)])
    title = f"packs of process 7: {OLAM} 5"
    page = draw_html_packs.draw_page([draw_html_packs.Told(facts, told.held)], title, "owner")
    picture = draw_svg_packs.draw_packs_of([facts], title)
    text = "\n".join(draw_packs.draw_domain(facts, PLAIN, 80))
    assert f"<h1>packs of process 7: {isolate(OLAM)} 5</h1>" in page
    assert f"packs of process 7: {isolate(OLAM)} 5</text>" in picture
    for shown in (page, picture, text):
        assert f"domain {isolate(SHEM)} 12 (" in shown
        assert isolate(ARABIC) in shown
        assert not re.search(f"(?<!{FSI})(?:{SHEM}|{ARABIC}|{OLAM})|(?:{SHEM}|{ARABIC}|{OLAM})(?!{PDI})", shown)


def test_labels_for_programs_have_no_marks_that_are_for_people() -> None:
    page = Page()
    page.add("execmem_packs", 1, domain=f"{SHEM}\u202e")
    assert list(page.samples["execmem_packs"]) == [(("domain", rf"{SHEM}\u202e"),)]
    assert make_visible(SHEM) == SHEM
