"""draw_svg and history: what pictures of the direct map show, that they are XML, and what they do with bad names."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import pytest

from execmem import directmap_cli, draw_directmap, draw_svg
from execmem.directmap import history, region
from execmem.directmap.region import State
from execmem.directmap.trace import EVENT, Client, Event, Kind, Lexicon, TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping

S = 1_000_000_000
HUGE = 2 << 20
HEADER = {"start_ns": 100 * S, "kernel": "6.12.1 #1 SMP", "machine": "x86_64"}
HOSTILE = "pid 7 </script></title><img src=x onerror=\"document.title='owned'\">\x1b[2J\0\u202e]]>&amp;"
DATA = Path(__file__).parent / "data"


def some_rows() -> npt.NDArray[np.void]:
    """Return rows of four seconds in which everything happens."""
    load = Event(Kind.LOAD, 0, 1 << 47, 213, 1, Client.BPF, "pid 41 tc", "prog")
    split = Event(Kind.SPLIT, 102 * S, 5 * HUGE, HUGE, 1, owner="pid 41 tc", name="it loaded prog")
    return Lexicon().pack(
        [
            load._replace(ns=99 * S, size=1000, id=7),
            *(load._replace(ns=101 * S + number * S // 100, id=number) for number in range(8, 40)),
            *(Event(Kind.SAMPLE, 100 * S, 30, name=f"direct_map_level{level}_splits") for level in (2, 3)),
            split,
            split._replace(ns=102 * S + 1, at=70 * HUGE, owner=HOSTILE, name="it got secret memory (memfd_secret)"),
            split._replace(ns=102 * S + 2, at=0, id=3, owner="", name="nobody was seen"),
            Event(Kind.SAMPLE, 102 * S + 2, 35, name="direct_map_level2_splits"),
            split._replace(ns=103 * S, kind=Kind.JOIN, owner="", name="the kernel joins by itself"),
            *(load._replace(kind=Kind.UNLOAD, ns=103 * S, id=number) for number in range(8, 30)),
            Event(Kind.SAMPLE, 104 * S, 35, name="direct_map_level2_splits"),
        ]
    )


def some_states() -> npt.NDArray[np.uint8]:
    """Return the states of 192 regions when those rows end."""
    state = np.full(192, State.WHOLE, np.uint8)
    state[100:120], state[64], state[65], state[70] = State.ABSENT, State.UNIFORM, State.MIXED, State.HOLED
    return state


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - our own text


def some_history(state: npt.NDArray[np.uint8] | None = None) -> history.History:
    return history.tell(some_rows(), HEADER, state)


# ---- history ----


def test_regions_are_what_moves_make_of_them() -> None:
    told = some_history(some_states())
    assert told.known
    at = {seconds: told.state_at(seconds)[[5, 70, 64, 100]].tolist() for seconds in (1.0, 2.5, 4.0)}
    assert at == {
        1.0: [State.WHOLE, State.WHOLE, State.UNIFORM, State.ABSENT],
        2.5: [history.SEEN, State.HOLED, State.UNIFORM, State.ABSENT],  # only the last look at a region is known
        4.0: [State.WHOLE, State.HOLED, State.UNIFORM, State.ABSENT],
    }
    assert told.state_at(told.seconds).tolist() == some_states().tolist()


def test_without_page_tables_only_moves_are_known() -> None:
    told = some_history()
    state = told.state_at(told.seconds)
    assert (len(state), state[5], state[70]) == (71, State.WHOLE, history.SEEN)
    assert (np.delete(state, [5, 70]) == history.UNKNOWN).all()
    assert any("no page tables" in note for note in told.notes)
    assert any("3 of the splits" in note for note in told.notes)


def test_a_trace_may_keep_the_page_tables_of_its_start() -> None:
    header = HEADER | {"regions": region.encode_states(some_states())}
    told = history.tell(some_rows(), header)
    assert told.known
    assert told.begin.tolist() == some_states().tolist()
    assert told.state_at(4.0)[[5, 64, 70, 100]].tolist() == [State.WHOLE, State.UNIFORM, history.SEEN, State.ABSENT]
    assert "Page tables were read when the recording began" in " ".join(told.notes)
    now = history.tell(some_rows(), header, some_states())
    assert now.state_at(4.0)[70] == State.HOLED  # what was looked at later is believed


def test_a_split_of_a_part_of_a_giant_page_is_told() -> None:
    told = history.tell(some_rows(), HEADER | {"regions": "512G"})
    assert any("Of a 1 GB page" in note for note in told.notes)


@pytest.mark.parametrize("states", ["2", "1q", "0M", "1M  1M", "99999999M", 7, ["1M"]])
def test_page_tables_that_cannot_be_are_refused(states: object) -> None:
    with pytest.raises(TraceError, match="the header is damaged"):
        history.tell(some_rows(), HEADER | {"regions": states})


def test_code_and_suspects_are_counted() -> None:
    told = some_history()
    assert (told.seconds, int(told.loads.sum()), int(told.unloads.sum())) == (4.0, 32, 22)
    assert (int(told.live[0]), int(told.live[-1]), int(told.live_bytes[-1])) == (1, 11, 1000 + 10 * 213)
    assert [(one.joined, one.pieces, one.owner, one.first) for one in told.suspects][:2] == [
        (False, 3, "", pytest.approx(2)),
        (False, 1, "pid 41 tc", 2.0),
    ]
    when, values = told.counters["direct_map_level2_splits"]
    assert (when.tolist(), values.tolist()) == ([0.0, pytest.approx(2), 4.0], [30, 35, 35])


def test_a_counter_keeps_its_first_value_and_the_last_of_each_step() -> None:
    moments = [(100 * S, 1), (100 * S + 5, 2), (100 * S + 9, 3), (102 * S, 4), (104 * S, 5)]
    told = history.tell(Lexicon().pack(Event(Kind.SAMPLE, ns, value, name="n") for ns, value in moments), HEADER)
    assert told.counters["n"][1].tolist() == [1, 3, 4, 5]


def test_code_that_nobody_saw_come_was_there_before() -> None:
    gone = [Event(Kind.UNLOAD, 101 * S, 1, 50, number, Client.BPF) for number in range(3)]
    told = history.tell(Lexicon().pack(gone), HEADER)
    assert (int(told.live[0]), int(told.live[-1]), int(told.live_bytes[-1])) == (3, 0, 0)
    assert "At least 3 pieces" in told.notes[-1]


@pytest.mark.parametrize("at", [2**64 - 1, 1 << 62, 0])
def test_places_that_cannot_be_are_left_out(at: int) -> None:
    told = history.tell(Lexicon().pack([Event(Kind.SPLIT, 101 * S, at, HUGE, 1, name="why")]), HEADER)
    assert (len(told.begin), len(told.where), told.suspects[0].pieces) == (0, 0, 1)


def test_what_is_too_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOVES_MAX", "SUSPECTS_MAX", "COUNTERS_MAX"):
        monkeypatch.setattr(history, name, 1)
    told = some_history()
    assert (len(told.where), len(told.suspects), len(told.counters)) == (1, 1, 1)
    assert told.who.tolist() == [-1]
    assert [
        sum(word in note for note in told.notes) for word in ("follows the first 1 of 3", "4 kinds", "2 counters")
    ] == [
        1,
        1,
        1,
    ]


def test_a_trace_in_which_nothing_was_split_says_so() -> None:
    told = history.tell(Lexicon().pack([Event(Kind.SAMPLE, 101 * S, 1, name="free_2m")]), HEADER)
    assert "nothing was split" in "".join(parse(draw_svg.draw_history(told)).itertext())


def test_an_empty_trace_has_a_picture() -> None:
    told = history.tell(np.zeros(0, EVENT), HEADER)
    text = "".join(parse(draw_svg.draw_history(told)).itertext())
    assert "no region of the direct map is known" in text
    assert "suspects" not in text


# ---- pictures ----


def test_names_of_programs_are_only_text() -> None:
    text = draw_svg.draw_history(some_history(some_states()))
    root = parse(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "desc", "style", "rect", "g", "text", "path"}
    assert "pid 7 </script></title><img" in "".join(root.itertext())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]|https?://(?!www\.w3\.org/2000/svg)", text)


def test_a_legend_has_letters_numbers_and_a_direction() -> None:
    text = " ".join(parse(draw_svg.draw_history(some_history(some_states()))).itertext())
    for words in ("u  split, uniform: 1", "o  split, with holes: 1", ".  no memory: 20", "better to worse"):
        assert words in text
    assert "addresses grow to the right, then down" in text


def test_letters_are_those_of_the_terminal() -> None:
    terminal = {state: look[0] for state, look in draw_directmap.LETTERS.items()}
    assert terminal == {state: look.letter for state, look in draw_svg.LOOKS.items() if state in terminal}


SEEN_BY: Final = {  # linear RGB as it is seen without one kind of cones (Machado, Oliveira and Fernandes, 2009)
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}
TO_XYZ: Final = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0177, 0.1095, 0.8728))  # relative to white


def see(colour: str, eyes: str) -> npt.NDArray[np.float64]:
    """Return a colour as it is seen, in a space in which 2 is a difference that is just seen."""
    linear = (np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255) ** 2.2
    x, y, z = np.cbrt(np.array(TO_XYZ) @ np.clip(np.array(SEEN_BY[eyes]) @ linear, 0, 1))
    return np.array([116 * y, 500 * (x - y), 200 * (y - z)])


def check_colours(colours: Mapping[str, str], eyes: str) -> None:
    """Any two colours can be told apart."""
    distances = {
        one + two: np.linalg.norm(see(colours[one], eyes) - see(colours[two], eyes))
        for one, two in combinations(colours, 2)
    }
    assert min(distances.values()) > 12, min(distances, key=lambda pair: distances[pair])


@pytest.mark.parametrize("way", ["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_can_be_told_apart(way: str, eyes: str) -> None:
    check_colours({look.letter: getattr(look, way) for look in draw_svg.LOOKS.values()}, eyes)


@pytest.mark.parametrize("regions", [1, 64, 2048, 2049, 524_288])
def test_an_atlas_shows_every_region_once(regions: int) -> None:
    state = np.random.default_rng(regions).choice(6, regions).astype(np.uint8)
    part = draw_svg.draw_atlas(state)
    runs = re.findall(r"M([\d.]+) (\d+)h([\d.]+)v12", part.body)
    across = sum(float(wide) for _, _, wide in runs)
    cell = (draw_svg.WIDTH - draw_svg.LEFT - 16) / min(max(64, 2 ** int(np.ceil(np.log2(regions / 32)))), 512)
    each = max(1, 2 ** int(np.ceil(np.log2(regions / 32))) // 512)
    assert across / cell == pytest.approx(-(-regions // each), rel=1e-3)
    assert len({y for _, y, _ in runs}) <= 32
    assert len(part.body) < 700_000


def test_a_counter_that_nobody_has_is_drawn_from_rows() -> None:
    rows = some_rows()
    told = history.tell(rows[rows["kind"] != Kind.SAMPLE], HEADER)
    lines = [(words, values.tolist()) for words, _, _, values in draw_svg.find_lines(told)]
    assert lines == [("split", [5.0]), ("joined", [1.0])]


def check_golden(drawn: str, golden: Path, folder: Path) -> None:
    """A picture is the one that was looked at and kept."""
    new = folder / golden.name
    new.write_text(drawn, encoding="utf-8")
    same = new.read_text(encoding="utf-8") == golden.read_text(encoding="utf-8")
    assert same, f"look at {new}; if it is as it should be, copy it to {golden}"


def test_the_picture_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    check_golden(draw_svg.draw_history(some_history(some_states())), DATA / "directmap.svg", tmp_path)


def test_the_picture_of_the_readme_is_what_its_command_draws(tmp_path: Path) -> None:
    root = DATA.parent.parent
    new = tmp_path / "new.svg"
    assert directmap_cli.main(["report", str(root / "examples/direct_map.trace"), "--svg", str(new)]) == 0
    check_golden(new.read_text(encoding="utf-8"), root / "docs/direct_map.svg", tmp_path)
