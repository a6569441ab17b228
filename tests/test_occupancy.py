"""occupancy and its pictures: what a recording of ``execmem top --json`` tells, and what is no recording."""

from __future__ import annotations

import copy
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_draw_svg import HOSTILE, parse

import execmem
from execmem import cli, draw_occupancy, map_cli, occupancy
from execmem.draw import Paint
from execmem.watch import WatchError

PLAIN = Paint(colour=False, unicode=True)


def line(second: float, packs: dict[int, tuple[float, float]], **changed: Any) -> dict[str, Any]:
    """Return a picture: of each pack when it was made, in seconds, and its fill."""
    found = [
        {"number": number, "kind": "text", "age_ms": round((second - born) * 1000), "fill": fill}
        for number, (born, fill) in packs.items()
    ]
    domain = {
        "name": "plugins", "number": 2, "age_ms": round(second * 1000), "live_blocks": 10 * len(packs),
        "live_bytes": len(packs) << 20, "packs_live": len(packs), "packs_left_out": 0, "packs": found,
        "per_second": {"allocs": 2.0 * second, "frees": 1, "fills": 0, "refusals": 0, "events": 3},
    }  # fmt: skip
    return {"schema": "execmem-map-1", "pid": 4711, "command": "x", "file": None, "domains": [domain | changed]}


def some_lines() -> list[dict[str, Any]]:
    """Return 16 pictures of 8 seconds: pack 0 is there, 3 comes, goes and comes again, 5 goes."""
    pictures = []
    for step in range(17):
        second = 10 + step / 2
        packs = {0: (1.0, 1.0)}
        if 12 <= second < 14:
            packs[3] = (11.8, 0.5)
        if second >= 15:
            packs[3] = (14.9, 0.1)
        if second < 13:
            packs[5] = (2.0, 0.0)
        pictures.append(line(second, packs))
    pictures[0]["domains"][0]["per_second"] = None
    return pictures


def dump(lines: list[Any]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def read(raw: bytes) -> tuple[list[occupancy.History], list[str]]:
    return occupancy.read(io.BytesIO(raw), "the file x")


def only(lines: list[Any]) -> occupancy.History:
    (history,), notes = read(dump(lines))
    assert notes == []
    return history


# ---- numbers ----


def test_packs_are_made_and_returned() -> None:
    history = only(some_lines())
    assert history.span == (10.0, 18.0)
    lives = {(life.number, round(life.born, 3)): life.returned for life in history.lives}
    assert lives == {(0, 1.0): None, (5, 2.0): 13.0, (3, 11.8): 14.0, (3, 14.9): None}
    assert [len(lives) for lives in history.rows().values()] == [1, 2, 1]
    assert list(history.rows()) == [0, 3, 5]


def test_a_pack_that_was_made_anew_between_two_pictures_is_another() -> None:
    history = only([line(1, {0: (0.5, 1.0)}), line(2, {0: (1.5, 0.2)})])
    assert [(life.born, life.returned) for life in history.lives] == [(0.5, 1.5), (1.5, None)]


def test_steps_hold_what_was_seen_last_and_are_bare_where_nobody_looked() -> None:
    lines = [line(second, {0: (0.0, second / 100)}) for second in (0, 1, 2, 3, 18, 19, 20)]
    history = only(lines)
    (life,) = history.lives
    fills = occupancy.find_fills(history, life, 20)
    assert [None if fill is None else round(fill * 100) for fill in fills] == [
        *(0, 1, 2, 3, 3, 3, 3), *[None] * 11, 18, 20,
    ]  # fmt: skip
    values = occupancy.find_values(history, "allocs", 20)
    assert values[:4] == [0.0, 2.0, 4.0, 6.0]
    assert (values[10], values[19]) == (None, 40.0)


def test_what_is_short_is_seen_in_few_steps() -> None:
    lines = [line(second / 10, {0: (0.0, 1.0)}) for second in range(100)]
    lines[50] = line(5.0, {0: (0.0, 1.0), 7: (4.95, 0.3)})
    history = only(lines)
    short = next(life for life in history.lives if life.number == 7)
    assert [fill is not None for fill in occupancy.find_fills(history, short, 4)] == [False, False, True, False]


def test_pictures_that_left_packs_out_return_none_of_them() -> None:
    history = only([line(1, {0: (0.5, 1.0), 1: (0.6, 1.0)}), line(2, {0: (0.5, 1.0)}, packs_left_out=1)])
    assert [life.returned for life in history.lives] == [None, None]
    (told,) = draw_occupancy.tell_notes(history, 0)
    assert "1 pictures left packs out" in told


def test_time_that_goes_back_is_told() -> None:
    history = only([line(5, {0: (1.0, 1.0)}), line(3, {0: (1.0, 1.0)}), line(6, {0: (1.0, 1.0)})])
    assert (len(history.times), history.backwards) == (2, 1)
    assert "older than the one before" in draw_occupancy.tell_notes(history, 0)[0]


def test_domains_and_processes_are_apart() -> None:
    lines = [line(1, {0: (0.5, 1.0)}), line(2, {}, number=3, name="other"), line(1, {}) | {"pid": 9}]
    found, _ = read(dump(lines))
    assert [(history.pid, history.number) for history in found] == [(9, 2), (4711, 2), (4711, 3)]


# ---- what is no recording ----


def bad(change: Any) -> bytes:
    lines = copy.deepcopy(some_lines())
    change(lines[1]["domains"][0])
    return dump(lines)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty: `execmem top PID --limit 0 --json > FILE` records"),
        (b"PK\x03\x04", "line 1 is no JSON"),
        (b'{\n  "schema": "execmem-map-1"\n}', "line 1 is no JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
        (b'{"schema": "other"}\n', "line 1 has no schema 'execmem-map-1'"),
        (b"[]\n", "line 1 has no schema"),
        (b'{"schema": "execmem-map-1", "pack": {}, "rows": []}\n', "line 1 has no domains; with --pack"),
        (dump(some_lines()[:1]) + b"{}\n" + dump(some_lines()[1:]), "line 2 has no schema"),
        (bad(lambda domain: domain.pop("age_ms")), "line 2 has a domain without a proper 'age_ms'"),
        (bad(lambda domain: domain.update(live_bytes=-1)), "without a proper 'live_bytes'"),
        (bad(lambda domain: domain.update(live_blocks=True)), "without a proper 'live_blocks'"),
        (bad(lambda domain: domain.update(packs_live=1 << 80)), "without a proper 'packs_live'"),
        (bad(lambda domain: domain.update(per_second={"allocs": 1})), "has rates without a proper 'frees'"),
        (bad(lambda domain: domain["packs"].append(7)), "has a pack without a proper 'number'"),
        (bad(lambda domain: domain["packs"][0].update(fill=float("nan"))), "has a pack without a proper 'fill'"),
        (bad(lambda domain: domain["packs"][0].update(fill=1.5)), "has a pack that is more than full"),
    ],
)
def test_what_is_no_recording_is_told(raw: bytes, words: str) -> None:
    with pytest.raises(WatchError, match=re.escape(words)):
        read(raw)


def test_a_last_line_that_is_cut_off_is_left_out() -> None:
    (history,), notes = read(dump(some_lines())[:-30])
    assert len(history.times) == 16
    assert notes == ["the last line, 17, is cut off and left out"]


# ---- text ----


def test_text_shows_packs_in_the_course_of_time() -> None:
    lines = draw_occupancy.draw_text(only(some_lines()), None, PLAIN, 80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.startswith("domain plugins (2) of process 4711: 17 pictures in 8.0 s, from 10.0 s after it\n")
    rows = {words[:2].strip(): words for words in lines if "text" in words}
    assert re.fullmatch(r"0    text   │█{36}│ before", rows["0"])
    assert re.fullmatch(r"3    text   │ {8}>▓{8,10} +>░+│ 2 times, made 4\.9 s", rows["3"])
    assert re.fullmatch(r"5    text   │·{12,14} +│ before, gone 3\.0 s", rows["5"])
    assert "live bytes  │" in text
    assert re.search(r"allocs/s    │.*│ most 36, last 36", text)


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_and_may_be_ascii(width: int) -> None:
    history = only(some_lines())
    lines = [*draw_occupancy.draw_text(history, 2, Paint(colour=False, unicode=False), width)]
    lines += draw_occupancy.legend(Paint(colour=False, unicode=False))
    assert "\n".join(lines).isascii()
    assert max(map(len, lines)) <= width
    assert "and 1 packs more: --limit 0 shows all" in lines
    coloured = draw_occupancy.draw_text(history, 2, Paint(colour=True, unicode=True), width)
    assert [re.sub(r"\x1b\[[\d;]*m", "", each) for each in coloured] == draw_occupancy.draw_text(
        history, 2, PLAIN, width
    )


def test_a_single_picture_has_text_and_svg() -> None:
    history = only(some_lines()[:1])
    assert "1 picture in 0 ms" in draw_occupancy.draw_text(history, None, PLAIN, 80)[0]
    shown = " ".join(parse(draw_occupancy.draw_svg([history], "x", None, PLAIN)).itertext())
    assert "not available" in shown  # events per second


# ---- SVG ----


def test_a_picture_shows_lives_and_which_way_colours_go() -> None:
    text = draw_occupancy.draw_svg([only(some_lines())], "packs in the course of time", None, PLAIN)
    shown = " ".join(parse(text).itertext())
    for words in ("17 pictures in 8.0 s", "most 3.0 MB, last 2.0 MB", "allocs/s", "2 times, made 4.9 s", "gone 3.0 s",
                  "emptier where it is fainter", "Time goes to the right", "returned", "seconds"):  # fmt: skip
        assert words in shown, words
    assert len(re.findall(r'class="em-came" d="M[\d.]+ [\d.]+v15l5', text)) == 2  # both times of pack 3
    assert len(re.findall(r'class="em-went" d="M[\d.]+ [\d.]+v15l-5', text)) == 2  # of pack 3 and of pack 5


def test_the_picture_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    golden, new = Path(__file__).parent / "data" / "occupancy.svg", tmp_path / "occupancy.svg"
    drawn = draw_occupancy.draw_svg([only(some_lines())], "packs in the course of time", None, PLAIN)
    new.write_text(drawn, encoding="utf-8")
    same = golden.exists() and drawn == golden.read_text(encoding="utf-8")
    assert same, f"look at {new}; if it is as it should be, copy it to {golden}"


def test_names_are_only_text() -> None:
    lines = some_lines()
    for each in lines:
        each["domains"][0]["name"] = HOSTILE
        for pack in each["domains"][0]["packs"]:
            pack["kind"] = HOSTILE
    history = only(lines)
    text = draw_occupancy.draw_svg([history], HOSTILE, None, PLAIN)
    assert {element.tag.rpartition("}")[2] for element in parse(text).iter()} == {
        "svg", "title", "desc", "style", "rect", "g", "text", "path",
    }  # fmt: skip
    told = "\n".join(draw_occupancy.draw_text(history, None, PLAIN, 80))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text + told)


# ---- the commands ----


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_what_top_records_is_drawn(domain: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    held = domain.place_many([bytes(1 << 20)] * 40)  # 20 packs, more than a screen has room for
    options = ("top", os.getpid(), "--domain", domain.number, "--json", "--count", "2", "--every", "0.01")
    code, all_of_them, _ = run(capsys, *options, "--limit", "0")
    assert code == 0
    _, some, _ = run(capsys, *options)
    for out, left in ((all_of_them, 0), (some, 4)):
        shown = [json.loads(each)["domains"][0] for each in out.splitlines()]
        assert all((len(each["packs"]) < 20) == bool(left) for each in shown)
        assert all((each["packs_left_out"] > 0) == bool(left) for each in shown)
    path, svg = tmp_path / "it.jsonl", tmp_path / "it.svg"
    path.write_text(all_of_them)
    code, out, err = run(capsys, "map", "--history", path, "--svg", svg)
    assert (code, err) == (0, "")
    assert len(re.findall(r"^\d+ +text ", out, re.MULTILINE)) == len(
        json.loads(all_of_them.splitlines()[0])["domains"][0]["packs"]
    )
    assert "recorded in it.jsonl" in svg.read_text(encoding="utf-8")
    path.write_text(all_of_them[:-50])
    code, out, err = run(capsys, "map", "--history", path, "--domain", domain.name)
    assert (code, err) == (0, "execmem map: the last line, 2, is cut off and left out\n")
    code, _, err = run(capsys, "map", "--history", path, "--domain", "nobody")
    assert (code, f"has no domain 'nobody'; it has {domain.name} ({domain.number})" in err) == (1, True)
    del held


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--history", "x", "1"], 2, "not with a PID"),
        (["--history", "x", "--from", "y", "--json"], 2, "not with a PID"),
        (["--history", "x", "--pack", "1", "--html", "y"], 2, "not with a PID"),
        (["--history", "/nonexistent"], 1, "the file /nonexistent cannot be read: No such file or directory"),
        (["--history", "/"], 1, "the file / cannot be read: Is a directory"),
    ],
)
def test_options_and_files_that_cannot_be(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = run(capsys, "map", *arguments)
    assert (found, out) == (code, "")
    assert re.fullmatch(rf"execmem map: .*{re.escape(words)}.*\n", err)


def test_json_tells_every_picture_and_life(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    path.write_bytes(dump(some_lines()) + b"cut")
    code, out, err = run(capsys, "map", "--history", path, "--json")
    assert (code, err) == (0, "execmem map: the last line, 18, is cut off and left out\n")
    found = json.loads(out)
    schema = json.loads((Path(__file__).parent.parent / "docs/schemas/map.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    assert (found["schema"], found["file"], found["notes"]) == (
        "execmem-history-1",
        str(path),
        ["the last line, 18, is cut off and left out"],
    )
    (domain,) = found["domains"]
    assert (domain["pictures"], len(domain["seconds"]), domain["packs_left_out"]) == (17, 17, 0)
    assert domain["counters"]["allocs"][:2] == [None, 21.0]
    assert all(type(value) is int for value in domain["counters"]["live_bytes"])
    assert [(life["number"], life["made"], life["returned"], len(life["seen"])) for life in domain["packs"]] == [
        (0, 1.0, None, 17), (3, 11.8, 14.0, 4), (3, 14.9, None, 7), (5, 2.0, 13.0, 6),
    ]  # fmt: skip
    assert domain["packs"][1]["seen"][0] == [12.0, 0.5]
    few = json.loads(run(capsys, "map", "--history", path, "--json", "--limit", "1")[1])["domains"][0]
    assert ([life["number"] for life in few["packs"]], few["packs_left_out"]) == ([0], 2)


def test_the_schema_is_the_one_that_is_written() -> None:
    assert occupancy.SCHEMA == map_cli.SCHEMA
