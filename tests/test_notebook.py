"""notebook: a domain of this process as the picture that notebooks show, and what they show when there is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import pytest
from test_draw_svg import HOSTILE, parse

import execmem
from execmem import notebook
from execmem.errors import ExecmemError

if TYPE_CHECKING:
    from collections.abc import Callable


def words(svg: str) -> str:
    return " ".join(parse(svg).itertext())


def test_a_notebook_shows_the_packs(domain: execmem.Domain) -> None:
    blocks = [domain.place(bytes(5000), name=f"v8:f{number}") for number in range(20)]
    shown = words(domain._repr_svg_())
    assert repr(domain) in shown
    for told in (f"domain {domain.name} ({domain.number}): 1 pack, 20 blocks", "v8", "20 blocks, oldest", "under 1 s"):
        assert told in shown
    page = domain._repr_html_()
    assert page.startswith("<div ")
    assert "20 blocks, oldest" in words(page)
    del blocks


def test_an_empty_domain_and_a_closed_one_are_shown() -> None:
    with execmem.Domain("short") as domain:
        assert "there is no pack" in words(domain._repr_svg_())
    assert "<Domain 'short' closed>" in words(domain._repr_svg_())
    assert "It is closed" in words(domain._repr_html_())


def test_another_domain_of_the_same_number_is_not_taken_for_it(domain: execmem.Domain) -> None:
    shown = notebook.draw_svg(domain.number, 1 << 21, "one of another copy of the library")
    assert "Its packs cannot be drawn" in words(shown)


def test_many_packs_are_limited_and_told(domain: execmem.Domain) -> None:
    blocks = domain.place_many([bytes(1 << 20)] * 36)
    shown = words(domain._repr_svg_())
    assert shown.count(" % full") == notebook.PACKS_SHOWN
    assert "packs more; packs by fill" in shown
    del blocks


def test_names_are_only_text() -> None:
    with execmem.Domain("<script>x</script>") as domain:
        block = domain.place(b"\xc3", name=HOSTILE.partition("\0")[0])
        page = domain._repr_html_()
        assert "<script" not in page
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)
        del block


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), ExecmemError("not today")])
def test_what_goes_wrong_is_told_and_the_repr_remains(
    error: Exception, domain: execmem.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(notebook, "Process", fail)
    shown = words(domain._repr_svg_())
    assert repr(domain) in shown
    assert f"Its packs cannot be drawn: {error}" in shown
    assert f"Its packs cannot be drawn: {error}" in words(domain._repr_html_())


def test_books_that_nobody_else_can_read_are_told(domain: execmem.Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("execmem.watch.Process.refresh", lambda process: process.ledgers.update({1: DOOR}) or b"")
    assert "its books are private memory" in words(domain._repr_svg_())


class Door:
    """A ledger of another domain."""

    domain = -1
    header: ClassVar[dict[str, int]] = {"window": 0}

    def close(self) -> None:
        """Do nothing."""


DOOR = Door()


def test_importing_the_package_imports_no_picture(run_child: Callable[..., str]) -> None:
    told = run_child("import sys, execmem; print([n for n in sys.modules if 'draw' in n or n.endswith('notebook')])")
    assert told.strip() == "[]"
