"""`execmem replay`: what is told of a trace under other allocators, as text and JSON, and what is refused."""

from __future__ import annotations

import io
import itertools
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from execmem import cli, replay_cli
from execmem.directmap import pages, replay
from execmem.directmap.policy import POLICIES
from execmem.directmap.trace import Client, Event, Kind, Writer
from execmem.draw import Paint

if TYPE_CHECKING:
    from pathlib import Path

AGED = "scn=ramp n=250 pfrag=16 keep=200"


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["replay", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 600 programs, each second of which goes."""
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    with Writer(path) as writer:
        for number in range(600):
            loaded = Event(Kind.LOAD, ns=number, size=700, id=number + 1, client=Client.BPF, name=f"p{number}")
            writer.add([loaded])
            if number % 2:
                writer.add([Event(Kind.UNLOAD, ns=number, size=700, id=number + 1, client=Client.BPF)])
    return path


@pytest.mark.parametrize("columns", [80, 120])
def test_a_recorded_trace_is_a_table_and_curves(
    trace: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = ask(capsys, trace, "--memory", "512M")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{trace}: 900 loads and unloads on 512 MB"
    assert all(name.split(",")[0] in lines[2] for name in POLICIES)
    assert max(map(len, lines[1:])) <= columns
    assert len([line for line in lines if line.startswith(tuple(POLICIES))]) == len(POLICIES)
    assert "\nRegions split: " in out


def test_the_difference_is_told_against_the_first_or_another(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, trace, "--memory", "512M", "--policy", "5.10", "ours")
    lines = out.splitlines()
    at = lines.index("against page each, 5.10: below 0 is better, = is the same")
    assert lines[at + 1].split() == ["ours"]
    found = {line[:17].strip(): line[17:].split() for line in lines[at + 2 : at + 8]}
    assert list(found) == [figure.words for figure in replay_cli.COMPARED]
    assert found["regions split"][0].startswith("-")
    assert found["1 GB pages split"] == ["="]
    _, out, _ = ask(capsys, trace, "--memory", "512M", "--policy", "ours", "ours", "--against", "5.10")
    assert f"against page each, 5.10: below 0 is better, = is the same\n{'':<17}      ours\n" in out  # once
    _, out, _ = ask(capsys, trace, "--memory", "512M", "--policy", "5.10")
    assert "against" not in out


def test_json_has_every_figure(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, trace, "--memory", "512M", "--policy", "5.10", "ours", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["schema"], found["rows"], found["memory"]) == (1, 900, 512 << 20)
    assert [row["policy"] for row in found["results"]] == ["page each, 5.10", "ours"]
    each, ours = found["results"]
    assert each["splits"] > ours["splits"] >= ours["least"]
    assert set(each["waste"]) == {"header", "rounding", "free"}
    assert set(each["mapped"]) == {"PAGE", "REGION", "GIGA"}
    assert each["over_time"][:2] == [[0, 0], [1, 1]], "before any program was loaded nothing is split"
    assert each["memory"][:2] == [[0, 0, 0], [1, 700, 4096]]
    assert each["over_time"][-1] == [900, each["splits"]]
    assert each["memory"][-1][:2] == [900, 300 * 700]
    assert len(each["memory"]) == 901, "of few rows each is told"
    assert all(before[1] != after[1] for before, after in itertools.pairwise(each["over_time"][:-1]))
    assert max(held for _, _, held in each["memory"]) <= each["held"]
    assert found["against"] == "page each, 5.10"
    same, change = found["differences"]
    assert (same.pop("policy"), set(same.values())) == ("page each, 5.10", {0})
    assert (change["policy"], change["splits"]) == ("ours", ours["splits"] - each["splits"])
    assert change["free"] == ours["waste"]["free"] - each["waste"]["free"]


def test_a_workload_of_the_lab_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, AGED, "--memory", "1G", "--policy", "5.10", "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["steps"]["load250"] > 100


def test_free_lists_may_be_those_of_a_machine(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "buddyinfo"
    lists.write_text("Node 0, zone   Normal   4000   300    20     0     0     0     0     0     0     0   100\n")
    code, out, _ = ask(capsys, trace, "--memory", "1G", "--policy", "5.10", "--buddyinfo", lists, "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["splits"] > 0


def test_free_lists_of_a_real_machine_fit_and_tell_how_much_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "buddyinfo"
    zones = {"DMA": (0, 0, 3), "DMA32": (560, 541, 534, 488, 436, 370, 312, 243, 167, 119, 576), "Normal": (9, 8, 7)}
    lists.write_text("".join(f"Node 0, zone {name} {' '.join(map(str, each))}\n" for name, each in zones.items()))
    arguments = ("tools", "--policy", "6.1", "--buddyinfo", lists, "--json")
    code, out, _ = ask(capsys, *arguments, "--memory", "24G")
    free = sum(n << order for name in ("DMA32", "Normal") for order, n in enumerate(zones[name]))
    assert (code, json.loads(out)["free"]) == (0, free * pages.PAGE)
    code, _, err = ask(capsys, *arguments, "--memory", "4G")
    assert (code, err) == (0, "")
    lists.write_text(lists.read_text().replace("9 8 7", "9 8 7 0 0 0 0 0 0 0 4000"))
    code, _, err = ask(capsys, *arguments, "--memory", "8G")
    assert (code, "4000 free blocks" in err, "of a machine with more memory" in err) == (1, True, True)


@pytest.mark.parametrize(("text", "why"), [("", "nothing is in it"), ("\n \n", "nothing"), ("Node" * 300_000, "more")])
def test_free_lists_that_are_none_are_not_fresh_memory(
    text: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lists").write_text(text)
    code, out, err = ask(capsys, "tools", "--policy", "6.1", "--buddyinfo", tmp_path / "lists")
    assert (code, out, why in err) == (1, "", True)


def test_where_nothing_is_split_the_highest_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "tools", "--policy", "ours")
    assert (code, "the highest is 0" in out) == (0, True)


# ---- files ----


def test_files_are_drawn(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    svg.write_text("older")
    code, out, _ = ask(
        capsys, trace, "--memory", "512M", "--policy", "6.1", "ours", "--against", "ours", "--svg", svg, "--html", page
    )
    assert (code, "regions split" in out) == (0, True)
    assert "against B  ours" in "".join(ET.parse(svg).getroot().itertext())  # noqa: S314 - our own text
    assert 'Against <span id="against">B  ours</span>' in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.svg"]


@pytest.mark.parametrize(
    ("name", "message"), [("a.trace", "which would be lost"), ("no/a.svg", "is no folder; make it first")]
)
def test_a_file_that_cannot_be_drawn_is_told_before_the_work(
    name: str, message: str, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "run", lambda *_, **__: pytest.fail("worked"))
    before = trace.read_bytes()
    code, out, err = ask(capsys, trace, "--svg", trace.parent / name)
    assert (code, out, err.count("\n"), message in err) == (1, "", 1, True)
    assert trace.read_bytes() == before


def test_two_pictures_do_not_go_into_one_file(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "run", lambda *_, **__: pytest.fail("worked"))
    code, out, err = ask(capsys, trace, "--svg", trace.parent / "a", "--html", trace.parent / "." / "a")
    assert (code, out, "is named twice" in err) == (1, "", True)
    assert not (trace.parent / "a").exists()


def test_free_lists_that_are_no_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "lists"
    lists.write_bytes(b"Node 0, zone Normal \xff 1 1 1 1 1 1 1 1 1 1\n")
    code, _, err = ask(capsys, "tools", "--memory", "1G", "--buddyinfo", lists)
    assert (code, "is not `Node N, zone NAME`" in err) == (1, True)


def test_ctrl_c_leaves_a_file_as_it_was(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    svg = tmp_path / "a.svg"
    svg.write_text("older")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(svg), "replace", interrupt)
    code, out, _ = ask(capsys, trace, "--memory", "512M", "--policy", "ours", "--svg", svg)
    assert (code, out, svg.read_text(), list(tmp_path.iterdir())) == (130, "", "older", [svg])


# ---- progress ----


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Screen(), io.StringIO()])
def test_work_of_more_than_two_seconds_says_how_far_it_is(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.9, 2.5, 2.6, 20.0])
    monkeypatch.setattr(replay_cli, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    progress = replay_cli.Progress(stream, ["one", "two"], 1000)
    for policy, done in (("one", 0), ("one", 500), ("one", 510), ("two", 500)):
        progress.show(policy, done)
    progress.finish()
    told = re.findall(r"replayed +(\d+)%: policy (\d) of 2, (\w+)", stream.getvalue())
    assert told == [("25", "1", "one"), ("75", "2", "two")]
    assert stream.getvalue().endswith("\r" if stream.isatty() else "\n")


def test_short_work_says_nothing(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, trace, "--memory", "512M", "--policy", "ours")[2] == ""


def test_a_trace_with_a_bad_name_does_nothing_to_the_terminal(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "a\x1b[2J\n.trace"
    bad.write_bytes(trace.read_bytes())
    assert "\x1b" not in ask(capsys, bad, "--memory", "512M", "--policy", "ours")[1]
    _, _, err = ask(capsys, f"{bad}.not")
    assert ("\x1b" in err, err.count("\n")) == (False, 1)


def test_without_block_characters_curves_are_ascii(trace: Path) -> None:
    rows = [replay.run(replay_cli.take_workload(str(trace)), "page each, 5.10", replay.Host(100_000, 131_072))]
    plain = replay_cli.draw_curves(rows, 900, Paint(colour=False, unicode=False), 80)
    assert all(line.isascii() for line in plain)
    assert "@" in plain[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file"], "no-such-file: no file, and none of tools, cilium"),
        (["scn=ramp n=-4"], "'scn=ramp n=-4'"),
        ([__file__], "not a trace"),
        (["tools", "--memory", "64M", "--free", "65M"], "--free is more than --memory"),
        (["tools", "--buddyinfo", "/no/such"], "/no/such: no such file"),
        (["tools", "--buddyinfo", __file__], "buddyinfo"),
        (["scn=ramp n=4000 insns=4000-4000", "--memory", "64M", "--free", "64M"], "memory"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = ask(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("execmem replay: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--memory", "1K"], ["--memory", "9999T"], ["--policy", "none"], ["--policy", "6"], ["--against", "6"]],
)
def test_wrong_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "tools", *arguments])
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_part_of_several_policies_is_told_which(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["replay", "tools", "--policy", "6"])
    assert "'6' is a part of 2 of them, give more of one: prog_pack, 6.1; execmem, 6.12\n" in capsys.readouterr().err


def test_a_trace_without_loads_has_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.trace"
    with Writer(path):
        pass
    code, _, err = ask(capsys, path)
    assert code == 1
    assert "no code was loaded in this trace" in err
