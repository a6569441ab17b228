"""The demo: its reader of object files, its machine code, sizes, watcher, progress and table, and whole runs of it."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import needs_x86

import execmem
from execmem import demo, demo_code
from execmem.draw import Paint

if TYPE_CHECKING:
    from pathlib import Path

X86 = demo_code.MACHINES["x86_64"]
BODY = bytes.fromhex("488d4707c3")  # lea rax, [rdi + 7]; ret
needs_cc = pytest.mark.skipif(
    shutil.which(demo_code.compiler_command()[0]) is None or not demo_code.EXAMPLES.is_dir(),
    reason="there is no C compiler, or no examples/",
)
PLAIN = Paint(colour=False, unicode=True)
COLOUR = Paint(colour=True, unicode=True)
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")


# ---- the reader of object files ----


def make_object(**change: Any) -> bytes:
    """Return an object of the function add7 in 16 bytes of .text; each field may be changed by its name."""
    it: dict[str, Any] = {
        "magic": b"\x7fELF\x02\x01\x01", "type": 1, "machine": 62, "flags": 6, "text_size": 16, "names_link": 3,
        "symtab_kind": 2, "func_kind": 0x12, "section": 1, "start": 8, "size": 5, "second": 0, "reloc_at": 0,
        "reloc_kind": 4, "text_at": 64,
    } | change  # fmt: skip
    strings = b"\0add7\0other\0"
    symbols = [(0, 0, 0, 0, 0, 0), (1, it["func_kind"], 0, it["section"], it["start"], it["size"])]
    symbols += [(6, it["second"], 0, 1, 0, 5)]
    relocation = struct.pack("<QQq", it["reloc_at"], (2 << 32) | 4, -4)
    relocation = relocation if it["reloc_kind"] == 4 else relocation[:16]
    parts = {
        "text": (b"\xcc" * 8 + BODY).ljust(16, b"\xcc"),
        "symtab": b"".join(struct.pack("<IBBHQQ", *s) for s in symbols),
    }
    parts |= {"strtab": strings, "rela": relocation}
    body, at = b"", {}
    for name, part in parts.items():
        at[name] = 64 + len(body)
        body += part
    table = [
        (0,) * 10,
        (0, 1, it["flags"], 0, it["text_at"], it["text_size"], 0, 0, 16, 0),
        (0, it["symtab_kind"], 0, 0, at["symtab"], len(parts["symtab"]), it["names_link"], 1, 8, 24),
        (0, 3, 0, 0, at["strtab"], len(strings), 0, 0, 1, 0),
        (0, it["reloc_kind"], 0, 0, at["rela"], len(relocation), 2, 1, 8, 24),
    ]
    header = (it["magic"].ljust(16, b"\0"), it["type"], it["machine"], 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 5, 0)
    return (
        struct.pack("<16sHHIQQQIHHHHHH", *header) + body + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in table)
    )


def test_a_function_is_taken_out_of_its_object() -> None:
    assert demo_code.read_function(make_object(), "add7", X86) == BODY


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"magic": b"\x7fELF\x01\x01\x01"}, "not a 64-bit little-endian ELF"),
        ({"magic": b"MZ"}, "not a 64-bit little-endian ELF"),
        ({"type": 3}, "not a relocatable object"),
        ({"machine": 183}, "made for another CPU"),
        ({"symtab_kind": 1}, "no symbol table"),
        ({"names_link": 99}, "no symbol table"),
        ({"func_kind": 0x11}, "no function add7: the object defines none"),
        ({"section": 0}, "no function add7"),
        ({"second": 0x12}, "more than one function"),
        ({"section": 0xFFF1}, "no bytes of its own"),
        ({"size": 0}, "no bytes of its own"),
        ({"size": 9}, "does not lie within"),
        ({"flags": 3}, "does not lie within"),
        ({"section": 3}, "does not lie within"),
        ({"text_at": 1 << 40}, "it is damaged"),
        ({"reloc_at": 8}, r"relocation at byte 0 \(to other\)"),
        ({"reloc_at": 12, "reloc_kind": 9}, r"relocation at byte 4 \(to other\)"),
    ],
)
def test_an_object_that_will_not_do_is_refused(change: dict[str, object], error: str) -> None:
    with pytest.raises(demo_code.ObjectError, match=error):
        demo_code.read_function(make_object(**change), "add7", X86)


@pytest.mark.parametrize("reloc_at", [7, 13])
def test_a_relocation_beside_the_function_does_not_matter(reloc_at: int) -> None:
    assert demo_code.read_function(make_object(reloc_at=reloc_at), "add7", X86) == BODY


def test_every_truncation_is_refused() -> None:
    whole = make_object()
    for length in range(len(whole)):
        with pytest.raises(demo_code.ObjectError):
            demo_code.read_function(whole[:length], "add7", X86)


@needs_cc
@needs_x86
def test_a_compiled_table_is_refused_by_name() -> None:
    source = "extern int sums[];\nlong fnv1a(long n) { return sums[n]; }\n"
    with pytest.raises(demo_code.ObjectError, match=r"fnv1a\.c, compiled by .*: fnv1a has a relocation .* \(to sums\)"):
        demo_code.compile_sources({"fnv1a": source}, X86)


# ---- machine code ----


@needs_x86
def test_without_a_compiler_the_shipped_code_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    code = demo_code.choose_code("auto", "x86_64")
    assert code.origin.startswith("shipped with the package")
    assert "no-such-compiler was not found" in code.origin
    with pytest.raises(demo_code.DemoError, match="no C compiler"):
        demo_code.choose_code("compile", "x86_64")


@needs_cc
@needs_x86
def test_without_the_sources_the_shipped_code_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_code, "EXAMPLES", tmp_path)
    code = demo_code.choose_code("auto", "x86_64")
    assert code.origin.startswith("shipped with the package")
    assert "the sources of the examples cannot be read" in code.origin
    with pytest.raises(demo_code.DemoError, match="cannot be read"):
        demo_code.regenerate(tmp_path, tmp_path / "code.json", "x86_64")


@needs_cc
@needs_x86
def test_a_compiler_that_fails_is_quoted() -> None:
    with pytest.raises(demo_code.DemoError, match=r"failed: .*fnv1a\.c:1.* error"):
        demo_code.compile_sources({"fnv1a": "this is no C\n"}, X86)


def test_other_cpus_are_told_so() -> None:
    with pytest.raises(demo_code.DemoError, match="no machine code for vax"):
        demo_code.choose_code("auto", "vax")
    with pytest.raises(demo_code.DemoError, match="this CPU is vax"):
        demo_code.shipped_code("vax")


@pytest.mark.skipif(not demo_code.EXAMPLES.is_dir(), reason="there is no examples/")
def test_the_shipped_code_is_of_the_sources_at_hand() -> None:
    shipped = demo_code.read_shipped()
    current = {name: demo_code.digest(text) for name, text in demo_code.read_sources(demo_code.EXAMPLES).items()}
    made_of = {name: entry["source_sha256"] for name, entry in shipped["functions"].items()}
    assert made_of == current, "run python -m execmem.demo --regenerate"
    assert shipped["flags"] == [*demo_code.FLAGS, *X86.flags], "run python -m execmem.demo --regenerate"


@needs_cc
@needs_x86
def test_regenerating_writes_what_is_read(tmp_path: Path) -> None:
    target = tmp_path / "code.json"
    demo_code.regenerate(demo_code.EXAMPLES, target, "x86_64")
    written = json.loads(target.read_text(encoding="utf-8"))
    compiled = demo_code.choose_code("compile", "x86_64").functions
    assert {name: bytes.fromhex(entry["code"]) for name, entry in written["functions"].items()} == compiled


@needs_x86
@pytest.mark.parametrize("choice", ["shipped", pytest.param("compile", marks=needs_cc)])
@pytest.mark.parametrize("example", demo_code.FUNCTIONS, ids=lambda example: example.name)
def test_the_code_computes_what_python_does(example: demo_code.Example, choice: str, domain: execmem.Domain) -> None:
    block = domain.place(demo_code.choose_code(choice, "x86_64").functions[example.name])
    function = block.function(example.signature)
    rng = np.random.default_rng(7)
    assert all(example.make_case(rng).holds(function) for _ in range(50))


@pytest.mark.parametrize("example", demo_code.FUNCTIONS, ids=lambda example: example.name)
def test_a_wrong_result_does_not_hold(example: demo_code.Example) -> None:
    case = example.make_case(np.random.default_rng(1))
    assert not case.holds(lambda *_: -12345)


# ---- sizes ----


@pytest.mark.parametrize("mix", demo.SIZE_MIXES)
def test_sizes_follow_the_mix(mix: str) -> None:
    sizes = demo.draw_sizes(mix, 200_000, np.random.default_rng(3))
    measured = np.percentile(sizes, (50, 90, 99))
    assert measured == pytest.approx(demo.SIZE_MIXES[mix][:3], rel=0.07)
    assert sizes.min() >= 1
    assert sizes.max() <= demo.SIZE_MIXES[mix][3]


@pytest.mark.parametrize("mix", demo.MIXES)
def test_a_seed_gives_the_same_sizes(mix: str) -> None:
    first, again, other = (demo.draw_sizes(mix, 500, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


# ---- the watcher ----


def test_a_mapping_writable_and_executable_is_found() -> None:
    lines = ["1000-2000 r-xp 0 00:01 7 /lib", "2000-3000 rw-p 0 00:00 0", "3000-4000 rwxp 0 00:00 0 [heap]"]
    assert demo.writable_and_executable(lines) == lines[2:]


@pytest.mark.parametrize(
    ("writable", "views"),
    [
        ("9000-a000 rw-s 00003000 00:01 7 /memfd:a", 1),
        ("9000-b000 rw-s 00002000 00:01 7 /memfd:a", 1),
        ("9000-a000 rw-s 00002000 00:01 7 /memfd:a", 0),  # the page before
        ("9000-a000 rw-s 00005000 00:01 7 /memfd:a", 0),  # the page after
        ("9000-a000 rw-s 00003000 00:01 8 /memfd:a", 0),  # another file
        ("9000-a000 rw-s 00003000 00:02 7 /memfd:a", 0),  # another device
        ("9000-a000 rw-p 00003000 00:01 7 /memfd:a", 0),  # a copy of its own
        ("9000-a000 r--s 00003000 00:01 7 /memfd:a", 0),
    ],
)
def test_a_second_view_of_code_is_found(writable: str, views: int) -> None:
    assert demo.writable_views(["1000-3000 r-xs 00003000 00:01 7 /memfd:a", writable]) == views


def test_the_watcher_keeps_what_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "3000-4000 rwxp 0 00:00 0"
    seen = iter([[bad]])
    monkeypatch.setattr(demo, "read_maps", lambda: next(seen, []))
    with demo.Watcher() as watcher:
        pass
    assert watcher.bad == [bad]
    assert watcher.looks >= 2


# ---- progress ----


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, *, quiet: bool = False) -> str:
    progress = demo.Progress(stream, quiet=quiet)
    progress.interval = 0.0
    with progress.step("place", 4, aside="generate") as clock:
        with clock.aside():
            pass
        clock.advance(2)
    progress.finish()
    assert [(step.name, step.items) for step in progress.steps] == [("generate", 4), ("place", 4)]
    return stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = show(Terminal())
    assert "\r\x1b[K" in shown
    assert "█" in shown
    assert "\x1b[32m" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert set(ESCAPE.findall(show(Terminal()))) == {"\x1b[K"}


def test_other_streams_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(io.StringIO()).splitlines()
    assert lines[1].split() == ["place", "2", "of", "4"]
    assert lines[2].startswith("place ")
    assert not ESCAPE.search("".join(lines))
    monkeypatch.setenv("TERM", "dumb")
    assert not ESCAPE.search(show(Terminal()))


def test_quiet_shows_nothing() -> None:
    assert show(Terminal(), quiet=True) == ""


# ---- the table ----


def make_report(**change: object) -> demo.Report:
    with execmem.Domain("table") as domain:
        empty = domain.stats()
    full = replace(
        empty,
        live_blocks=1_000_000,
        live_bytes=1_234_567_890,
        resident_bytes=1_300_000_000,
        packs=1024,
        full_packs=1024,
        huge_packs=1000,
        ledger_bytes=88_000_000,
    )
    report = demo.Report("x86_64", 1_000_000, "mixed", 1, "compiled by cc " + "with a long name " * 12, "syscall")
    report.sizes = {"p50": 250, "p90": 1_600, "p99": 8_700, "largest": 131_072}
    report.tallies = [demo.Tally(example, 100, 200_000, 100_000, 100_000) for example in demo_code.FUNCTIONS]
    moments = ("before", "placed", "half freed", "all freed")
    report.snapshots = [demo.Snapshot(m, 100 + i, full if i else None) for i, m in enumerate(moments)]
    report.steps = [demo.Step("place", 1_000_000, 3.5), demo.Step("call survivors", 0, 0.1)]
    report.looks = 12
    for name, value in change.items():
        setattr(report, name, value)
    return report


@pytest.mark.parametrize("width", [76, 80, 100, 120])
def test_the_table_keeps_its_width_with_and_without_colour(width: int) -> None:
    report = make_report()
    plain = demo.Table(report, PLAIN, width).text()
    assert not ESCAPE.search(plain)
    assert max(map(len, plain.splitlines())) == width
    assert not [line for line in plain.splitlines() if line != line.rstrip()]
    coloured = demo.Table(report, COLOUR, width).text()
    assert ESCAPE.sub("", coloured) == plain
    assert "94.9" in plain or "95.0" in plain
    assert "1,000 of 1,024" in plain
    assert "+3" in plain


def test_a_plain_terminal_gets_ascii() -> None:
    assert demo.Table(make_report(), Paint(colour=False, unicode=False), 120).text().isascii()


def test_nothing_broken_is_ok() -> None:
    report = make_report()
    assert report.ok
    assert "FAILED" not in demo.Table(report, PLAIN, 80).text()
    assert make_report(write_mode="alias", writable_views=2).ok


def test_what_is_broken_fails_and_is_told() -> None:
    wrong = make_report()
    wrong.tallies[0].matched -= 1
    assert not wrong.ok
    assert re.search(r"results +FAILED +699,999 of 700,000", demo.Table(wrong, PLAIN, 80).text())
    both = make_report(bad_mappings=["1-2 rwxp 0 00:00 0"])
    assert not both.ok
    assert "VIOLATED: 1-2 rwxp" in demo.Table(both, PLAIN, 80).text()
    view = make_report(writable_views=1)
    assert not view.ok
    assert re.search(r"views +FAILED", demo.Table(view, PLAIN, 80).text())


def test_what_is_not_there_is_not_zero() -> None:
    report = make_report(looks=0)
    report.snapshots = [replace(snapshot, mappings=None) for snapshot in report.snapshots]
    text = demo.Table(report, PLAIN, 80).text()
    assert re.search(r"^W\^X +-  +not available: /proc/self/maps cannot be read$", text, re.MULTILINE), "and not ok"
    assert re.search(r"^mappings +not available", text, re.MULTILINE)


# ---- whole runs ----


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = demo.main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@needs_x86
def test_the_demo_ends_well_in_every_mode(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--count", "3,000", "--calls", "300", "--mode", mode, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"]
    assert report["write_mode"] == mode
    assert sum(entry["matched"] for entry in report["functions"]) == 600
    assert sum(entry["copies"] for entry in report["functions"]) == 3000
    live = [report["memory"][moment]["stats"]["live_blocks"] for moment in ("placed", "half freed", "all freed")]
    assert live == [3000, 1500, 0]
    assert report["watcher"]["bad"] == []
    assert (report["watcher"]["writable_views"] > 0) == (mode in demo.MODES_WITH_VIEWS)
    assert err.startswith("compile ")


@needs_x86
@pytest.mark.parametrize("count", [1, 2, demo.BATCH, demo.BATCH + 1])
def test_the_demo_ends_well_at_odd_counts(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--count", str(count), "--code", "shipped", "--quiet")
    assert code == 0
    assert "calls gave exactly Python's result" in out
    assert not err


@needs_x86
def test_a_wrong_function_fails_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code = demo_code.shipped_code("x86_64")
    prime = struct.pack("<Q", 0x100000001B3)
    assert prime in code.functions["fnv1a"]
    wrong = code.functions["fnv1a"].replace(prime, struct.pack("<Q", 0x100000001B1))
    monkeypatch.setattr(demo, "choose_code", lambda *_: replace(code, functions={**code.functions, "fnv1a": wrong}))
    exit_code, out, _ = run(capsys, "--count", "500", "--calls", "100")
    assert exit_code == 1
    assert re.search(r"^fnv1a .* only$", out, re.MULTILINE)
    assert re.search(r"^results +FAILED", out, re.MULTILINE)


@needs_x86
def test_no_code_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    code, out, err = run(capsys, "--code", "compile", "--quiet")
    assert (code, out) == (1, "")
    assert err == "execmem demo: no C compiler (no-such-compiler was not found; set CC or install gcc)\n"


def test_a_plan_beyond_the_default_window_gets_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run_of_it = demo.Demo.__new__(demo.Demo)
    monkeypatch.setattr(run_of_it, "sizes", np.full(1000, 1 << 20), raising=False)
    assert run_of_it.window() is None
    monkeypatch.setattr(run_of_it, "sizes", np.full(3000, 1 << 20))
    window = run_of_it.window()
    assert window is not None
    assert window >= 3000 << 20
    assert window % demo.PACK_BYTES == 0


@needs_x86
@pytest.mark.unsanitized
def test_a_hundred_thousand_functions_cost_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--json", "--quiet", "--code", "shipped")
    assert code == 0
    memory = json.loads(out)["memory"]
    placed, freed = memory["placed"]["stats"], memory["all freed"]["stats"]
    assert placed["live_blocks"] == 100_000
    assert memory["placed"]["mappings"] - memory["before"]["mappings"] <= 16
    assert placed["resident_bytes"] <= 1.15 * placed["live_bytes"]
    assert freed["resident_bytes"] <= 4 << 20
    if placed["collapse_failures"] == 0:  # else this kernel gives no 2 MB pages here, and the rest holds all the same
        assert placed["huge_packs"] >= 0.95 * placed["full_packs"]
