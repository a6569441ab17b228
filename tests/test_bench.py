"""The parts of the benchmarks that measure nothing: tables, goals, comparisons, and what a run is made of."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import execmem

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

report: Any = importlib.import_module("report")
run: Any = importlib.import_module("run")
python_layer: Any = importlib.import_module("python_layer")
hardening: Any = importlib.import_module("hardening")
forks: Any = importlib.import_module("forks")
patching: Any = importlib.import_module("patching")

EMPTY: dict[str, Any] = {"cycle": {}, "python": {}}


def row(peer: str, live: int, ns: float, **more: object) -> dict[str, Any]:
    held = {"resident_per_live": 1.05, "vmas": 8, "huge_share": 1.0}
    return {"peer": peer, "mix": "lognormal", "live": live, "ns": ns} | held | more


def data(
    *rows: dict[str, Any], threads: tuple[dict[str, Any], ...] = (), python: float | None = None
) -> dict[str, Any]:
    spoken = [{"what": "place + free, alias", "ns": python}, {"what": python_layer.CTYPES, "ns": 11_000}]
    return {
        "cycle": {"results": list(rows), "threads": list(threads)},
        "python": {"results": spoken if python else []},
    }


SOME = data(
    row("execmem-alias", 1_000, 80),
    row("asmjit", 1_000, 400),
    row("asmjit-dual-pools", 1_000, 240),
    row("mimalloc-twin", 1_000, 60),
    row("floor", 1_000, 40),
    {"peer": "progpack", "mix": "lognormal", "live": 1_000, "failed": "no memory"},
    threads=(
        row("execmem-alias", 10_000, 90, mode="one"),
        row("execmem-alias", 10_000, 100, mode="own"),
        row("execmem-alias", 10_000, 150, mode="cross"),
    ),
    python=500,
)


# ---- tables ----


def test_the_pages_hold_the_tables_that_the_results_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.draw_tables(check=True) == 0, capsys.readouterr().out


def test_a_table_is_drawn_between_its_marks_and_nowhere_else() -> None:
    page = "one\n<!-- table:cycle -->\nold\n<!-- end -->\ntwo\n<!-- table:python -->\n<!-- end -->\n"
    drawn = report.rewrite(page, SOME)
    assert drawn.startswith("one\n<!-- table:cycle -->\n\n| live blocks | 1,000 |\n")
    assert "old" not in drawn
    assert "\n\n<!-- end -->\ntwo\n<!-- table:python -->\n" in drawn
    assert report.rewrite(drawn, SOME) == drawn


def test_a_table_that_nobody_draws_is_an_error() -> None:
    with pytest.raises(KeyError, match="weather"):
        report.rewrite("<!-- table:weather -->\n<!-- end -->", SOME)


def test_every_figure_for_the_readme_says_where_it_is_found() -> None:
    lines = report.table_cycle(SOME)
    assert lines[2] == (
        "| execmem, mode `alias` | "
        "80 ns <!-- bench:cycle.json:results/peer=execmem-alias,mix=lognormal,live=1000/ns --> |"
    )
    assert not any("prog_pack" in line for line in lines), "a peer that failed has no line"


@pytest.mark.parametrize("name", sorted(report.TABLES))
def test_every_table_can_be_drawn_from_nothing_from_little_and_from_the_results(name: str) -> None:
    for source in (EMPTY, SOME, run.load()):
        lines = report.TABLES[name](source)
        assert {line.count(" | ") for line in lines} == {lines[0].count(" | ")}, lines


def test_a_page_whose_table_is_old_is_told_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / name for name in run.PAGES]
    for page in pages:
        page.write_text("<!-- table:threads -->\nold\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(run.building, "ROOT", tmp_path)
    monkeypatch.setattr(run, "load", lambda: SOME)
    assert run.main(["--table", "--check"]) == 1
    assert "README.md, docs/performance.md" in capsys.readouterr().out
    assert "old" in pages[0].read_text(encoding="utf-8")
    assert run.main(["--table"]) == 0
    assert "1.80x / 1.20x" in pages[1].read_text(encoding="utf-8")
    assert run.main(["--table", "--check"]) == 0


def test_what_forks_cost_is_told_beside_a_process_without_code() -> None:
    told = {"live": 1_000, "fork_us": 300.0, "before_ns": 200.0, "during_ns": 250.0, "longest_us": 1500.0}
    source = {"forks": {"results": [told | {"subject": "alias"}, told | {"subject": "plain", "fork_us": 600.0}]}}
    lines = report.table_forks(source)
    assert lines[0] == "|  | a process that has | 1,000 blocks |"
    assert "| `fork`, until it returns in the parent | mode `alias` | 300 us (0.50x) |" in lines
    assert "| parent, a cycle while the child lives | - (-) | 250 ns (1.25x) |" in report.table_fork_work(source)
    assert report.table_fork_work(source)[-1].endswith(" | - | 1.5 ms |")


def test_what_hardening_costs_is_drawn_from_its_file_and_the_cycles() -> None:
    seal = {
        "case": "seal",
        "mode": "alias",
        "blocks": 10_000,
        "packs": 5,
        "sealed": "kernel",
        "open_us": 9,
        "seal_us": 8,
    }
    memory = {
        "case": "memory",
        "wish": "gap 2 KB",
        "used_bytes": 1 << 20,
        "idle_bytes": 3 << 20,
        "resident_bytes": 4 << 20,
    }
    source = {"hardening": {"results": [seal, memory]}} | data(
        row("execmem-alias", 1_000, 80), row("execmem-alias-gap", 1_000, 120)
    )
    assert report.table_seal(source) == [
        "| write mode | `sealed` | opening a domain | sealing it, 10,000 blocks in 5 packs |",
        "| --- | --- | --- | --- |",
        '| `alias` | `"kernel"` | 9 us | 8 us |',
    ]
    assert report.table_wishes(source)[2] == "| gap 2 KB | 1.0 MB | 3.0 MB | 4.0 MB | 120 ns (1.50x) | - | - |"


# ---- goals ----


def test_a_goal_holds_fails_or_was_not_measured() -> None:
    assert report.Goal("a", 4.0, 4.0, at_least=True).verdict == "yes"
    assert report.Goal("a", 3.9, 4.0, at_least=True).verdict == "NO"
    assert report.Goal("a", 4.1, 4.0).verdict == "NO"
    assert report.Goal("a", None, 4.0).verdict == "not measured"
    assert report.Goal("a", None, 4.0, unit=" us").limit_text == "<= 4 us"


def test_without_figures_no_goal_is_said_to_hold() -> None:
    assert {goal.holds for goal in report.goals(EMPTY)} == {None}


def test_goals_follow_from_the_figures() -> None:
    found = {goal.what: goal for goal in report.goals(SOME)}
    assert found["cycle at 1,000 against AsmJit's default"].value == 5
    assert found["cycle at 1,000 against the floor"].value == 2
    assert found["cycle at 1,000 against prog_pack's algorithm"].value is None
    assert found["two threads, own blocks, 10,000 each"].value == pytest.approx(1.8)
    assert found["two threads, the other's blocks, 10,000 each"].holds is False
    assert found["Python: against ctypes"].value == 22


def test_the_best_executable_peer_is_no_bound() -> None:
    assert report.best_rival(SOME, 1_000) == "asmjit-dual-pools"
    assert report.best_rival(EMPTY, 1_000) is None


# ---- comparing ----


def test_the_best_of_several_runs_is_compared() -> None:
    changes = report.compare({"a": 1.0, "b": 1.0, "c": 1.0}, [{"a": 1.3, "b": 1.3}, {"a": 1.1}])
    assert [(change.what, change.now, change.worse) for change in changes] == [("a", 1.1, False), ("b", 1.3, True)]
    assert report.change_table(changes)[3] == "| b | 1 | 1.3 | +30 % | WORSE |"


def test_a_ratio_grows_when_execmem_gets_slower() -> None:
    ratios = report.check_ratios(SOME)
    assert ratios["cycle at 1,000 / asmjit"] == pytest.approx(0.2)
    assert ratios["two threads, own / one"] == pytest.approx(1 / 1.8)
    assert ratios["Python: place + free / ctypes"] == pytest.approx(500 / 11_000)
    assert report.check_ratios(EMPTY) == {}


@pytest.mark.parametrize(("later", "status", "tries"), [(2.0, 1, 3), (1.1, 0, 2)])
def test_what_looks_worse_is_measured_again(
    later: float, status: int, tries: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[set[str]] = []

    def measured(_runner: object, doubtful: set[str]) -> dict[str, float]:
        asked.append(set(doubtful))
        return {what: ratio * (1.5 if len(asked) == 1 else later) for what, ratio in committed.items()}

    committed = report.check_ratios(SOME)
    monkeypatch.setattr(run, "load", lambda: SOME)
    monkeypatch.setattr(run, "Runner", lambda _seed: None)
    monkeypatch.setattr(run, "check_once", measured)
    assert run.main(["--regress"]) == status
    assert len(asked) == tries
    assert asked[0] == set(committed)
    assert ("WORSE" in capsys.readouterr().out) is (status == 1)


def test_nothing_committed_is_nothing_to_compare_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load", lambda: EMPTY)
    assert run.main(["--regress"]) == 2
    assert "run benchmarks/run.py" in capsys.readouterr().err


# ---- what a run is made of ----


def test_what_does_not_fit_in_memory_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.machine, "memory_available", lambda: 10_000_000)
    kept, out = run.fit_memory(["page", "floor", "execmem-alias"], 820, 5_000)
    assert kept == ["execmem-alias"], "the one that ratios are against comes first"
    assert [name for name, _ in out] == ["floor", "page"]
    assert "GB beside the others" in out[0][1]


def test_the_whole_covers_every_mix_and_population() -> None:
    mixes = ["lognormal", "libbpf-tools", "v8", "hotspot", "wasmtime", "cilium", "constant"]
    parts = run.whole(mixes)
    assert {(part.mix, part.live) for part in parts if part.threads == 1} == {
        *((mix, live) for mix in mixes for live in (1_000, 10_000, 100_000)),
        ("lognormal", 1_000_000),
    }
    assert all("execmem-alias" in (part.peers or ["execmem-alias"]) for part in parts)
    assert {part.live for part in parts if part.threads == 2} == {1_000, 10_000, 100_000}


def test_gaps_count_when_populations_are_fitted() -> None:
    assert run.bytes_needed("execmem-alias-gap", 820, 1000) > 3 * run.bytes_needed("execmem-alias", 820, 1000)


def test_what_hardening_costs_is_measured(run_child: Callable[..., str]) -> None:
    rows = {wish: hardening.measure_memory(wish, 300, 1) for wish in hardening.WISHES}
    assert rows["none"]["quarantined_bytes"] == 0 < rows["quarantine 1 MB"]["quarantined_bytes"] <= 1 << 20
    assert len({row["used_bytes"] for row in rows.values()}) == 1
    assert rows["gap 2 KB"]["idle_bytes"] > 0
    sealed = json.loads(
        run_child(
            f"""
            import json, sys
            sys.path.insert(0, {str(ROOT / "benchmarks")!r})
            import hardening
            print(json.dumps(hardening.measure_seal("alias", 20, 2)))
            """
        )
    )
    assert sealed["sealed"] in {"kernel", "mappings", "library"}
    assert sealed["seal_us"] > 0 < sealed["open_us"]


def test_a_patch_is_compared_with_its_neighbour_in_the_same_round() -> None:
    times = {"a nop": (1, 2, 4), "a key that is off": (1, 4, 4)}
    samples = [{"group": "keys", "name": name, "ns": ns} for name, row in times.items() for ns in row]
    nop, key = patching.gather("alias", samples)
    assert nop == {"mode": "alias", "group": "keys", "name": "a nop", "ns": 2}
    assert (key["ns"], key["against"], key["ratio"]) == (4, "a nop", 1)


@pytest.mark.skipif(execmem.arch() != "x86_64", reason="the code is x86-64 code")
def test_what_patching_costs_is_measured() -> None:
    if patching.building.version_of(patching.building.compiler("CC", "cc")) == "not found":
        pytest.skip("no C compiler")
    rows, _compilers = patching.measure(["alias"], 1)
    found = {row["name"]: row for row in rows}
    assert patching.AGAINST.keys() <= found.keys()
    assert all(found[name]["against"] == other and other in found for name, other in patching.AGAINST.items())
    assert all(row["ns"] > 0 for row in rows)
    assert {row["group"] for row in rows} == {"keys", "calls", "hooks", "changes"}


def test_what_forks_cost_is_measured() -> None:
    if forks.building.version_of(forks.building.compiler("CC", "cc")) == "not found":
        pytest.skip("no C compiler")
    rows, _compilers = forks.measure([200], 1)
    found = {row["subject"]: row for row in rows}
    assert set(found) == {"bare", "plain", "syscall", "alias"}
    assert all(row["fork_us"] > 0 < row["fork_exec_us"] for row in rows)
    assert found["plain"]["resident_bytes"] == sum(found["syscall"][key] for key in ("resident_bytes", "ledger_bytes"))
    for mode in ("syscall", "alias"):
        assert found[mode]["held_bytes"] == found[mode]["used_bytes"] > 200 * 64
        assert 0 < found[mode]["held_blocks"] <= 100, "some of the blocks that were replaced came after the fork"


def test_figures_are_medians_of_what_the_subjects_told() -> None:
    told = [{"live": 1, "subject": "a", "what": "fork", "fork_us": value} for value in (5.0, 1.0, 2.0)]
    other = [{"live": 1, "subject": "a", "what": "child", "next_us": 7.0}]
    assert forks.gather([*told, *other]) == [{"live": 1, "subject": "a", "fork_us": 2.0, "next_us": 7.0}]


def test_a_part_says_how_the_driver_is_called() -> None:
    words = run.Part("v8", 1_000, threads=2, loads=True).command(Path("driver"), ["a", "b"], 7)
    assert words[:7] == ["driver", "--peers", "a,b", "--mix", "v8", "--live", "1000"]
    assert words[words.index("--threads") + 1] == "2"
    assert words[-2:] == ["--tails", "--loads"]


def test_subjects_take_turns_and_give_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 700))
    monkeypatch.setattr(python_layer.time, "process_time_ns", lambda: next(clock))
    calls: list[int] = []
    subject = python_layer.Subject("one", lambda: calls.append(1), 7, before=list)
    subject.calibrate(2100)
    for _ in range(4):
        subject.round()
    assert len(calls) == 1 + 3 + 4 * 3  # a trial, and three calls of 700 ns fill a round
    assert subject.row()["ns"] == 100
    rows = [{"what": "place + free, alias", "ns": 50.0}, {"what": python_layer.LLJIT, "ns": 5000.0}]
    assert python_layer.ratios(rows) == {python_layer.LLJIT: 100.0}


def test_the_packages_that_the_probes_name_are_those_of_the_page() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert all(library.package in page for library in run.building.LIBRARIES.values())


def test_what_is_committed_can_be_read() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        assert json.loads(path.read_text(encoding="utf-8")), path


def test_what_live_changes_cost_is_told_beside_a_synchronisation_and_mprotect() -> None:
    row = {
        "mode": "alias",
        "others": "none",
        "way": "breakpoints",
        "sync_ns": 600,
        "single_ns": 2400,
        "batch_ns": 17160,
    }
    row |= {"single_per_sync": 4.0, "site_above_three_syncs_ns": 60.0, "mprotect_per_single": 2.5}
    row |= {"mprotect_per_site": 90.0, "sites_huge": [8, 8], "mprotect_huge": [8, 0]}
    lines = report.table_poke({"poke": {"results": [row]}})
    told = "| `alias` | none | breakpoints | 600 ns | 2,400 ns (4.00x) | 17,160 ns (60.0 ns) | 2.50x | 90.0x "
    assert lines[2] == told + "| whole, split |"


def test_what_keys_cost_is_told_where_there_is_something_to_compare() -> None:
    row = {"mode": "alias", "group": "key", "name": "a nop", "ns": 1.0}
    off = row | {"name": "a key that is off", "ns": 1.01, "against": "a nop", "ratio": 1.01}
    assert report.table_patching({"patching": {"results": [row, off]}})[2:] == [
        "| `alias` | a key that is off | 1.01 ns | a nop | 1.01x |"
    ]
