"""`execmem replay`: what is told of a trace under other allocators, as text and JSON, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from execmem import cli, replay_cli
from execmem.directmap import replay
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
    assert max(map(len, lines[1:-2])) <= columns
    assert len([line for line in lines if line.startswith(tuple(POLICIES))]) == len(POLICIES)
    assert "Regions split: " in lines[-2]


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
    assert each["over_time"][-1] == [900, each["splits"]]


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
        (["tools", "--buddyinfo", "/no/such"], "/no/such: no file"),
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
    "arguments", [["--memory", "1K"], ["--memory", "9999T"], ["--policy", "none"], ["--policy", "6"]]
)
def test_wrong_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "tools", *arguments])
    assert ended.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_trace_without_loads_has_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.trace"
    with Writer(path):
        pass
    code, _, err = ask(capsys, path)
    assert code == 1
    assert "no code was loaded in this trace" in err
