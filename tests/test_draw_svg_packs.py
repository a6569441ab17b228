"""draw_svg_packs: what a picture of packs shows, that it is XML, and what it does with bad names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_draw_svg import HOSTILE, parse

from execmem import draw_packs, draw_svg_packs
from execmem.survey import NO_CLASS, OTHER, DomainFacts, PackFacts, Share
from execmem.watch import PagesFound

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Path(__file__).parent / "data"
MB = 1 << 20
HUGE, SMALL = PagesFound(2 * MB, 2 * MB, "pagemap"), PagesFound(0, 32 << 10, "pagemap")
WHOLE = PackFacts(
    number=0, address=0x7F0000000000, kind="text", state="full", packs=1, usable_bytes=2 * MB, used_bytes=MB, fill=0.5,
    largest_free_bytes=98_304, blocks=1042, parked=0, retired=0, held=0, draining=False, inherited=False, shard=0,
    age_ms=90_000_000, pages=HUGE, cells=[], classes=[], oldest_ms=86_400_000,
)  # fmt: skip


def some_packs(by: str) -> list[PackFacts]:
    """Return packs in which everything is to be seen, the same every time."""
    random = np.random.default_rng(5)
    most = OTHER if by == "owner" else 6
    shares = np.where(random.random(512) < 0.2, 0.0, random.random(512).round(3))
    full: list[float | None] = [*shares.tolist()]
    runs = np.repeat(random.integers(NO_CLASS, most + 1, 32), 16).tolist()
    kinds = [kind if share else NO_CLASS for share, kind in zip(full, runs, strict=True)]
    alone: list[float | None] = [*[0.0] * 500, *[1.0] * 8, *[0.25] * 4]
    opened: list[float | None] = [*[1.0] * 6, *[0.5] * 2]
    return [
        replace(WHOLE, cells=full, classes=kinds, parked=3, retired=2),
        replace(
            WHOLE, number=1, address=WHOLE.address + 2 * MB, cells=alone, fill=0.021, blocks=3, draining=True,
            largest_free_bytes=2_048_000, classes=[NO_CLASS] * 500 + [0] * 8 + [2] * 4,
            pinned_by=["numba:kernel", HOSTILE, "(no name) 0x7f00003f0000"], pages=PagesFound(0, 2 * MB, "pagemap"),
        ),
        replace(
            WHOLE, number=2, state="span", packs=3, fill=1.0, cells=[1.0] * 512, classes=[5] * 512, blocks=1,
            largest_free_bytes=0, pages=PagesFound(4 * MB, 5 * MB, "pagemap"), held=1, inherited=True,
        ),
        replace(
            WHOLE, number=1023, kind="data", state="small", usable_bytes=32 << 10, cells=opened + [None] * 504,
            classes=[1] * 8 + [NO_CLASS] * 504, blocks=20, fill=0.875, pages=SMALL, oldest_ms=5_100,
        ),
    ]  # fmt: skip


def some_facts(by: str = "age", **changed: object) -> DomainFacts:
    shares = [Share(f"owner{number}", 9 - number, (9 - number) * 100_000, 86_400_000, 40) for number in range(9)]
    ages = [Share(text, 100, 500_000, 900, 40) for text in ("under 1 s", "under 10 min", "1 day or more")]
    facts = DomainFacts(
        name="plugins", number=2, parent=1, arch="x86_64", write_mode="syscall", sealed="no", limit_bytes=64 * MB,
        age_ms=100_000_000, live_blocks=2731, live_bytes=11 * MB, used_bytes=12 * MB, quarantined_bytes=0,
        retired_blocks=2, packs_live=21, packs_made=23, packs_returned=2, collapses=5, collapse_failures=1,
        per_second={"allocs": 3.5, "frees": 2.0, "fills": 3.5, "refusals": 0, "events": 9.0}, per_second_why=None,
        interval=0.25, packs=some_packs(by), packs_left_out=17, fills=[1, 0, 0, 0, 0, 3, 0, 2, 5, 10], by=by,
        owners=[Share(HOSTILE, 1, MB, 86_400_000, 40), *shares], ages=ages, of_one_moment=False,
    )  # fmt: skip
    return replace(facts, **changed)  # type: ignore[arg-type]


def draw(*facts: DomainFacts) -> str:
    return draw_svg_packs.draw_packs_of(facts, "packs of process 4711: python")


def words(*facts: DomainFacts) -> str:
    return " ".join(parse(draw(*facts)).itertext())


@pytest.mark.parametrize("by", ["age", "owner"])
def test_a_picture_tells_what_the_terminal_tells(by: str) -> None:
    shown = words(some_facts(by))
    for text in (
        "domain plugins (2): 21 packs, 2,731 blocks of 11.0 MB, limit 64.0 MB",
        *("50.0 % full", "largest free 96.0 kB", "1,042 blocks, oldest 1.0 days", "1 x 2 MB", "512 x 4 kB"),
        *("3 parked, 2 retired", "draining", "a span of 3 packs, 1 held for a fork, the parent process's", "small"),
        *("2 x 2 MB + 256 x 4 kB", "8 x 4 kB", "pinned by numba:kernel, pid 7 </script></title><img", "1 x 2 MB"),
        "and 17 packs more; packs by fill, 0 to 100 % in tenths: 1 0 0 0 0 3 0 2 5 10",
        *("the picture is of several moments", "1 of 6 collapses to 2 MB pages failed", "per second, over 0.25 s"),
        *("Addresses grow to the right", "the higher, the more of it is in use", "Pale: in use by no live block"),
        "from new to old" if by == "age" else "from most bytes in all to fewest",
    ):
        assert text in shown, text


def test_by_fill_there_are_no_letters_and_no_tables() -> None:
    packs = [replace(pack, classes=None, oldest_ms=None, pinned_by=None) for pack in some_packs("age")]
    shown = words(some_facts("fill", packs=packs, owners=None, ages=None, of_one_moment=None))
    assert "oldest" not in shown
    assert "Pale" not in shown
    assert "1,042 blocks" in shown


def test_a_domain_without_packs_is_told() -> None:
    shown = words(some_facts(packs=[], packs_live=0, packs_left_out=0))
    assert "there is no pack" in shown
    assert "owner0" not in shown


def test_why_pages_are_not_known_is_told() -> None:
    pages = PagesFound(None, None, "smaps", f"smaps: {HOSTILE}")
    shown = words(some_facts(packs=[replace(some_packs("age")[0], pages=pages)]))
    assert "pages: not available: smaps: pid 7" in shown


def columns_of(cells: Sequence[float | None], classes: list[int]) -> list[tuple[str, str]]:
    pack = replace(WHOLE, cells=list(cells), classes=classes)
    return re.findall(r'<path ([^>]*) d="([^"]*)"/>', draw_svg_packs.draw_columns(pack, "age"))


def test_columns_are_as_high_as_pages_are_in_use() -> None:
    found = columns_of([1.0, 1.0, 0.5, 0.001, 0.0, None, 0.5], [0, 0, 0, 1, NO_CLASS, NO_CLASS, NO_CLASS])
    assert found == [
        (draw_svg_packs.NOBODY, "M6 8v-4h1v4z"),
        ('fill="#875faf"', "M0 8v-8h2v8zM2 8v-4h1v4z"),
        ('fill="#5f5faf"', "M3 8v-1h1v1z"),  # however small, it is seen
    ]


def test_letters_stand_below_what_they_tell() -> None:
    cells = [1.0] * 8 + [0.1] * 7 + [1.0] + [0.0] * 8 + [None] * 488
    classes = [0] * 8 + [1] * 7 + [3] + [NO_CLASS] * 496
    found = draw_svg_packs.find_letters(replace(WHOLE, cells=cells, classes=classes), draw_packs.AGE_LETTERS)
    assert found == [(0, 1, "A"), (1, 1, "D")]  # 0.7 of B against 1.0 of D
    runs = draw_svg_packs.find_letters(replace(WHOLE, cells=[1.0] * 512, classes=[2] * 512), draw_packs.AGE_LETTERS)
    assert runs == [(0, 64, "C")]


@pytest.mark.parametrize("colours", [draw_packs.AGE_COLOURS, draw_packs.OWNER_COLOURS])
def test_colours_are_those_of_the_terminal(colours: Sequence[int]) -> None:
    by = "age" if colours is draw_packs.AGE_COLOURS else "owner"
    text = draw(some_facts(by))
    assert all(draw_svg_packs.rgb(colour) in text for colour in colours)
    levels = (0, 95, 135, 175, 215, 255)  # of xterm
    cube = {16 + 36 * r + 6 * g + b: f"#{levels[r]:02x}{levels[g]:02x}{levels[b]:02x}"
            for r in range(6) for g in range(6) for b in range(6)}  # fmt: skip
    assert all(draw_svg_packs.rgb(number) == colour for number, colour in cube.items())


def test_names_are_only_text() -> None:
    text = draw(some_facts(name=HOSTILE, arch=HOSTILE), some_facts("owner"))
    tags = {element.tag.rpartition("}")[2] for element in parse(text).iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "g", "text", "path"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]|https?://(?!www\.w3\.org/2000/svg)", text)


def test_pictures_of_one_page_have_names_of_their_own() -> None:
    one, two = (draw_svg_packs.draw_packs_of([some_facts()], "x", key=f"-{number}") for number in (1, 2))
    assert not set(re.findall(r'id="([^"]*)"', one)) & set(re.findall(r'id="([^"]*)"', two))


def test_the_picture_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    golden = DATA / "packs.svg"
    new = tmp_path / "packs.svg"
    new.write_text(draw(some_facts(), some_facts("owner", number=3, packs=some_packs("owner")[:1])), encoding="utf-8")
    same = golden.exists() and new.read_text(encoding="utf-8") == golden.read_text(encoding="utf-8")
    assert same, f"look at {new}; if it is as it should be, copy it to {golden}"
