"""``execmem map`` and ``execmem top``: text at 80 and 120 columns, JSON, drill-down, and every way to fail."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import on_terminal, read_until

import execmem
from execmem import cli, draw_packs, map_cli, picture, survey, watch
from execmem.draw import Paint
from execmem.survey import NO_CLASS, RowFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CELL = 64 << 10
WATCHED = """if True:
    import execmem, sys
    domain = execmem.Domain("watched")
    blocks = [domain.place(b"\\xc3" * 100, name=f"numba:f{n}") for n in range(500)]
    print("ready", flush=True)
    while True:
        if not sys.stdin.read(1): break
"""
PACK_KEYS = {
    "number": int, "address": int, "kind": str, "state": str, "packs": int, "usable_bytes": int, "used_bytes": int,
    "fill": float, "largest_free_bytes": int, "blocks": int, "parked": int, "retired": int, "held": int,
    "draining": bool, "inherited": bool, "shard": int, "age_ms": int, "pages": dict, "cells": list, "classes": list,
    "oldest_ms": (int, type(None)), "pinned_by": (list, type(None)),
}  # fmt: skip
DOMAIN_KEYS = {
    "name": str, "number": int, "parent": int, "arch": str, "write_mode": str, "sealed": str,
    "limit_bytes": (int, type(None)), "age_ms": int, "live_blocks": int, "live_bytes": int, "used_bytes": int,
    "quarantined_bytes": int, "retired_blocks": int, "packs_live": int, "packs_made": int, "packs_returned": int,
    "collapses": int, "collapse_failures": int, "per_second": (dict, type(None)),
    "per_second_why": (str, type(None)), "interval": (float, type(None)), "packs": list, "packs_left_out": int,
    "fills": list, "by": str, "owners": list, "ages": list, "of_one_moment": bool,
}  # fmt: skip
SHARE_KEYS = {"name": str, "blocks": int, "bytes": int, "oldest_ms": int, "youngest_ms": int}
PAGES_KEYS = {
    "huge_bytes": (int, type(None)), "present_bytes": (int, type(None)), "source": str, "why": (str, type(None)),
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def has_keys(value: dict[str, Any], keys: dict[str, Any]) -> bool:
    assert set(value) == set(keys)
    return all(isinstance(value[key], kind) for key, kind in keys.items())


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[execmem.Domain, list[execmem.Block]]]:
    """A domain with one full pack, of which every second 64 kB are free, and the blocks in it."""
    monkeypatch.setenv("COLUMNS", "80")
    with execmem.Domain("striped") as domain:
        cells = [domain.place(bytes(CELL), name=f"v8:cell{number}") for number in range(32 * 3)]
        packs = [block.address >> 21 for block in cells]
        full = next(pack for pack in packs if packs.count(pack) == 32)
        kept = [block for block in cells if block.address >> 21 == full and block.address // CELL % 2 == 0]
        for block in cells:
            if block not in kept:
                block.free()
        del cells, block
        yield domain, kept
        kept.clear()


@pytest.fixture
def striped(stripes: tuple[execmem.Domain, list[execmem.Block]]) -> execmem.Domain:
    return stripes[0]


@pytest.fixture
def watched() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", WATCHED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def striped_line(out: str) -> list[str]:
    """Return the line of the pack of stripes, and those after it."""
    lines = out.splitlines()
    place = next(number for number, line in enumerate(lines) if "50.0%" in line)
    return lines[place : place + 2]


# ---- map, in text ----


@pytest.mark.parametrize(("columns", "each"), [("80", 1), ("120", 2)])
def test_a_bar_shows_what_is_where(
    striped: execmem.Domain,
    columns: str,
    each: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = run(capsys, "map", os.getpid(), "--domain", "striped", "--interval", "0")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= int(columns)
    assert "\x1b" not in out
    first, second = striped_line(out)
    assert ("█" * each + "·" * each) * 16 in first
    assert re.search(r"50\.0% +64\.0 kB +16 (1x2M|512x4k|4k|n/a)$", first)
    # By age: under a second, or on a busy machine up to a minute.
    assert re.search(f"(?:(?:A{{{each}}}|B{{{each}}}|C{{{each}}}) {{{each}}}){{16}}", second)
    assert "oldest" in second
    assert f"domain striped ({striped.number}): " in out
    assert "events per second: not available: one look only" in out
    assert re.search(r"^  v8 +16 +1\.0 MB +100\.0%", out, re.MULTILINE)
    assert "from new to old" in out


def test_without_unicode_it_is_ascii(striped: execmem.Domain) -> None:
    command = [sys.executable, "-m", "execmem", "map", str(os.getpid()), "--domain", str(striped.number)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    out = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True).stdout.decode("ascii")
    assert "#." * 16 in striped_line(out)[0]
    assert re.search(r"per second, over \d+\.\d\d s: 0 allocs", out)


def test_owners_have_letters_and_the_emptiest_packs_come_first(
    striped: execmem.Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [striped.place(b"\xc3" * 64, name=f"expr_{number}", kind="data") for number in range(3)]
    options = ("--by", "owner", "--sort", "fill", "--interval", "0")
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", *options)
    assert re.search(r"^A v8 +16 ", out, re.MULTILINE)
    assert re.search(r"^B expr +3 ", out, re.MULTILINE)
    assert out.index(" data ") < out.index("50.0%")
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--limit", "1", *options)
    assert re.search(r"and \d packs? more; packs by fill, 0 to 100 % in tenths: [\d ]+$", out, re.MULTILINE)
    del small


def test_who_pins_a_nearly_empty_pack_is_told(
    stripes: tuple[execmem.Domain, list[execmem.Block]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, kept = stripes
    for block in kept[3:]:
        block.free()
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--interval", "0")
    assert f"pinned by {', '.join(str(block.name) for block in kept[:3])}\n" in out


def test_retired_and_quarantined_blocks_are_told_beside_the_live_ones(capsys: pytest.CaptureFixture[str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with execmem.online():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    with execmem.Domain("waiting", quarantine="64K") as domain:
        kept = [domain.place(b"\xc3" * 100) for _ in range(50)]
        for block in kept[:20]:
            block.retire()
        for block in kept[20:23]:
            block.free()
        stats = domain.stats()
        _, out, _ = run(capsys, "map", os.getpid(), "--domain", "waiting", "--json")
        (found,) = json.loads(out)["domains"]
        _, out, _ = run(capsys, "map", os.getpid(), "--domain", "waiting")
        leave.set()
        thread.join()
        execmem.retire_wait(60)
        kept.clear()
    told = [found[key] for key in ("live_blocks", "live_bytes", "retired_blocks", "quarantined_bytes")]
    assert told == [stats.live_blocks, stats.live_bytes, stats.retired_blocks, stats.quarantined_bytes]
    assert told == [27, 2700, 20, 3 * 128]
    assert sum(pack["blocks"] for pack in found["packs"]) == sum(share["blocks"] for share in found["ages"]) == 27
    assert "1 pack, 27 blocks of 2.6 kB, 20 retired, 384 B in quarantine" in out


def test_pages_that_nobody_counted_are_not_counted() -> None:
    for source in ("ledger", "smaps"):
        found = watch.PagesFound(0, None, source)
        assert (draw_packs.tell_pages(found), draw_packs.short_pages(found)) == ("4 kB pages", "4k")


def test_two_domains_of_a_number_are_both_looked_at() -> None:
    ledgers: list[Any] = [SimpleNamespace(domain=1, look=lambda each=each: each) for each in "ab"]
    looks: list[Any] = [look for _, look in map_cli.look_at(ledgers).values()]
    assert looks == ["a", "b"]


def test_what_is_told_below_a_bar_fits_in_80_columns() -> None:
    pages = watch.PagesFound(0, 0, "pagemap")
    cells: list[float | None] = [1.0] * 32
    pack = survey.PackFacts(
        *(7, 1 << 30, "data", "span", 3, 6 << 20, 6 << 20, 1.0, 0, 1, 0, 0, 0, False, False, 0, 5, pages, cells),
        classes=[0] * 32,
        oldest_ms=600_001,
    )
    for more in ({}, {"state": "full", "parked": 5, "held": 7}, {"state": "small", "retired": 123}):
        lines = draw_packs.draw_pack(replace(pack, **more), "age", Paint(colour=False, unicode=True))  # type: ignore[arg-type]
        assert max(map(len, lines)) <= 80, lines
    assert "span of 3 packs, oldest 10.0 min" in draw_packs.draw_pack(pack, "age", Paint(colour=False, unicode=True))[1]
    head, bar = draw_packs.axis(32), lines[0]
    assert head.index("fill") + 4 == bar.index("100.0%") + 6
    assert head.index("pages") == bar.index("none")


def test_names_of_others_do_not_move_the_cursor(domain: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    block = domain.place(b"\xc3", name="evil\x1b[2J\n\u202e")
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", domain.number, "--interval", "0")
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "evil\\x1b[2J\\n" in out
    del block


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_colours_unless_they_are_unwanted(watched: subprocess.Popen[bytes], no_color: str) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "execmem", "map", str(watched.pid), "--domain", "watched", "--interval", "0"]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": no_color, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as shown:
        os.close(terminal)
        out = read_until(main, b" < G" if no_color else b"G\x1b[0m\r\n")
        assert shown.wait(60) == 0
    os.close(main)
    assert (b"\x1b[30;48;5;97mA" in out) is not bool(no_color)
    assert (b"\x1b" in out) is not bool(no_color)
    assert b"numba" in out


def test_colours_repeat_the_letters() -> None:
    plain, coloured = Paint(colour=False, unicode=True), Paint(colour=True, unicode=True)
    for by in ("age", "owner"):
        classes = [0, 0, 3, -1]
        shown = draw_packs.letter_bar(classes, by, coloured)
        assert re.sub(r"\x1b\[[\d;]*m", "", shown) == draw_packs.letter_bar(classes, by, plain) == "│AAD │"
        assert len(set(re.findall(r"48;5;(\d+)", shown))) == 2
    assert draw_packs.fill_bar([None, 0.0, 0.2, 0.3, 0.6, 1.0], None, "fill", plain) == "│ ·░▒▓█│"


# ---- map, deeper ----


def pack_of(capsys: pytest.CaptureFixture[str]) -> int:
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--interval", "0", "--json")
    packs = json.loads(out)["domains"][0]["packs"]
    return int(next(pack["number"] for pack in packs if pack["fill"] == 0.5))


def test_a_pack_has_rows_and_a_row_has_chunks(
    stripes: tuple[execmem.Domain, list[execmem.Block]], capsys: pytest.CaptureFixture[str]
) -> None:
    number = pack_of(capsys)
    code, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--pack", number)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(rf"│{'█' * 32}│ 100\.0%       0 B      1 [ABC]", out)
    assert f"│{'·' * 32}│   0.0%   64.0 kB      0" in out
    assert len(re.findall(r"^\d+ +\+[0-9a-f]{6} │", out, re.MULTILINE)) == 32
    code, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--pack", number, "--row", "0")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("│" + "a" * 64 + "│") == 16
    address = min(block.address for block in stripes[1])
    assert re.search(rf"^a {address:#014x} +65,536 +1,024 filled +(\d+ ms|\d+\.\d s)  v8:cell\d+$", out, re.MULTILINE)
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--pack", number, "--row", "1")
    assert "no live block lies here" in out


def test_a_narrow_row_has_the_colour_of_either_half() -> None:
    """A cell of 80 columns is two of 1 kB: a block in the second one alone is not drawn as nobody's."""
    shares: list[float | None] = [0.0, 1.0] * 32
    kinds = [NO_CLASS, 2] * 32
    row = RowFacts(0, 0, 0.5, 1024, 32, shares, kinds)
    pack = SimpleNamespace(address=0, number=0)
    line = draw_packs.draw_rows(pack, [row], Paint(colour=True, unicode=True), 80)[1]  # type: ignore[arg-type]
    assert f"38;5;{draw_packs.AGE_COLOURS[2]}m" in line
    assert "38;5;245m" not in line


def test_json_of_a_pack_and_of_a_row(striped: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    assert striped.name == "striped"
    number = pack_of(capsys)
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--pack", number, "--json")
    report = json.loads(out)
    assert set(report) == {"schema", "domain", "pack", "rows"}
    assert [row["blocks"] for row in report["rows"]] == [1, 0] * 16
    keys = {
        "row": int,
        "address": int,
        "fill": float,
        "largest_free_bytes": int,
        "blocks": int,
        "cells": list,
        "classes": list,
    }
    assert all(has_keys(row, keys) for row in report["rows"])
    _, out, _ = run(capsys, "map", os.getpid(), "--domain", "striped", "--pack", number, "--row", "2", "--json")
    report = json.loads(out)
    assert set(report) == {"schema", "domain", "pack", "row", "blocks", "chunks"}
    assert report["chunks"] == [0] * 1024
    keys = {
        "address": int,
        "size": int,
        "first_chunk": int,
        "chunks": int,
        "state": str,
        "age_ms": int,
        "name": str,
        "owner": str,
    }
    (block,) = report["blocks"]
    assert has_keys(block, keys)
    assert (block["size"], block["first_chunk"], block["owner"]) == (CELL, 2048, "v8")


def test_json_has_the_documented_keys(striped: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "map", os.getpid(), "--json", "--interval", "0.05")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) == {"schema", "pid", "command", "file", "domains"}
    assert (report["schema"], report["pid"], report["file"]) == ("execmem-map-1", os.getpid(), None)
    assert [domain["number"] for domain in report["domains"]] == sorted(d["number"] for d in report["domains"])
    domain = next(domain for domain in report["domains"] if domain["name"] == "striped")
    assert has_keys(domain, DOMAIN_KEYS)
    assert set(domain["per_second"]) == {"allocs", "frees", "fills", "refusals", "events"}
    assert all(has_keys(pack, PACK_KEYS) and has_keys(pack["pages"], PAGES_KEYS) for pack in domain["packs"])
    assert all(len(pack["cells"]) == len(pack["classes"]) == 64 for pack in domain["packs"])
    assert all(has_keys(share, SHARE_KEYS) for share in domain["owners"] + domain["ages"])
    assert sum(domain["fills"]) == domain["packs_live"]
    stats = striped.stats()
    assert (domain["live_blocks"], domain["live_bytes"]) == (stats.live_blocks, stats.live_bytes)


def test_a_saved_copy_is_read_like_the_process(
    striped: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "it.ledger"
    code, out, _ = run(capsys, "map", os.getpid(), "--domain", striped.number, "--save", path)
    assert code == 0
    assert re.fullmatch(rf"{path}: [\d,]+ bytes of data in a file of [\d,]+\n", out)
    assert path.stat().st_blocks * 512 < 8 << 20
    _, live, _ = run(capsys, "map", os.getpid(), "--domain", striped.number, "--interval", "0")
    code, copied, _ = run(capsys, "map", "--from", path)
    assert code == 0
    assert striped_line(copied)[0][:60] == striped_line(live)[0][:60]
    assert "times stand at its last event" in copied
    assert "events per second: not available: a copy does not move" in copied


# ---- failures ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["map"], "say the PID of a process, or --from FILE"),
        (["map", "1", "--from", "x"], "and not both"),
        (["map", "1", "--row", "3"], "--row is a row of a pack"),
        (["map", "1", "--pack", "0", "--row", "32"], "a pack has the rows 0 to 31"),
        (["map", "--from", "x", "--save", "y"], "--save copies the ledger of a PID"),
        (["map", "1", "--save", "x", "--svg", "y"], "--save copies the ledger of a PID"),
        (["map", "1", "--pack", "0", "--html", "y"], "draw all packs of domains"),
        (["top", "1", "--row", "3"], "--row is a row of a pack"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"execmem {arguments[0]}: .*{re.escape(words)}.*\n", err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["map", "x"],
        ["map", "0"],
        ["map", "-5"],
        ["map", "1", "--pack", "-1"],
        ["map", "1", "--by", "size"],
        ["top"],
        ["top", "1", "--every", "soon"],
        ["top", "1", "--count", "0"],
    ],
)
def test_options_that_are_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert f"usage: execmem {arguments[0]}" in capsys.readouterr().err


def test_several_domains_and_no_word_which(domain: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    with execmem.Domain("second") as second:
        blocks = [domain.place(b"\xc3"), second.place(b"\xc3")]
        code, _, err = run(capsys, "map", os.getpid(), "--pack", "0")
        assert code == 2
        assert "say --domain NAME or number, of " in err
        assert f"second ({second.number})" in err
        del blocks


@pytest.mark.parametrize("command", ["map", "top"])
def test_a_process_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, command, 2**31 - 1)
    assert (code, out) == (1, "")
    assert err == f"execmem {command}: there is no process 2147483647, or /proc hides it (hidepid): see `ps -e`\n"


def test_a_process_without_execmem(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        code, _, err = run(capsys, "map", child.pid)
        child.kill()
    assert code == 1
    assert f"process {child.pid} does not use execmem: none of its mappings" in err


def test_a_pack_or_domain_that_is_not_there(domain: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    block = domain.place(b"\xc3")
    code, _, err = run(capsys, "map", os.getpid(), "--domain", domain.number, "--pack", "77")
    assert (code, "has no pack 77; there are 0 to 0, 1 of them" in err) == (1, True)
    code, _, err = run(capsys, "map", os.getpid(), "--domain", "nobody")
    assert (code, "there is no domain 'nobody'; there are root (1)" in err) == (1, True)
    del block


def test_a_file_that_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PK" * 4000)
    code, _, err = run(capsys, "map", "--from", path)
    assert (code, err) == (
        1,
        f'execmem map: the file {path} is no ledger of execmem: it does not begin with "EXECMEM"\n',
    )
    code, _, err = run(capsys, "map", os.getpid(), "--domain", "root", "--save", tmp_path / "no" / "x")
    assert (code, "cannot be written: No such file or directory" in err) == (1, True)


@pytest.mark.parametrize("option", ["--from", "--history"])
def test_a_picture_does_not_take_the_place_of_what_is_read(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes((Path(__file__).parents[1] / "examples" / "packs.ledger.gz").read_bytes())
    before = source.read_bytes()
    code, out, err = run(capsys, "map", option, source, "--svg", source)
    assert (code, out) == (1, "")
    assert "is what is read, which would be lost; name another file" in err
    assert source.read_bytes() == before


def test_a_copy_does_not_take_the_place_of_a_device(
    striped: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    target.touch()
    link.symlink_to(target)
    code, out, err = run(capsys, "map", os.getpid(), "--domain", striped.number, "--save", pipe)
    assert (code, out, "cannot be written: it is a device or a pipe" in err) == (1, "", True)
    assert pipe.is_fifo()
    assert run(capsys, "map", os.getpid(), "--domain", striped.number, "--save", link)[0] == 0
    assert link.is_symlink()
    assert run(capsys, "map", "--from", target)[0] == 0


@pytest.mark.unsanitized
def test_a_process_of_somebody_else(watched: subprocess.Popen[bytes], run_child: Callable[..., str]) -> None:
    if os.geteuid():
        pytest.skip("only root can become nobody")
    source = f"""
        import contextlib, os, sys
        from execmem import cli
        with contextlib.redirect_stderr(sys.stdout):
            for command in ("map", "top"):  # what is imported late is not nobody's to read
                cli.main([command, "2147483647"])
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        with contextlib.redirect_stderr(sys.stdout):
            print(cli.main(["map", "{watched.pid}"]), cli.main(["top", "{watched.pid}"]))
    """
    *_, first, second, codes = run_child(source).splitlines()
    assert codes == "1 1"
    for command, line in (("map", first), ("top", second)):
        assert line.startswith(f"execmem {command}: not permitted to look at process {watched.pid}: it is of user 0")
        assert line.endswith("its user may, or root, with sudo")


def test_a_reader_that_leaves_early(watched: subprocess.Popen[bytes]) -> None:
    for command in (["map", str(watched.pid)], ["top", str(watched.pid), "--every", "0"]):
        reader, writer = os.pipe()
        os.close(reader)
        full = [sys.executable, "-m", "execmem", *command]
        done = subprocess.run(full, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


# ---- top ----


def test_top_prints_one_picture_after_another(striped: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--domain", striped.number, "--count", "2", "--every", "0.01")
    code, out, err = run(capsys, "top", os.getpid(), *options)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    first, second = out.strip().split("\n\nexecmem top ")
    for shown in (first, second):
        assert "█·" * 16 in shown
        assert re.search(r"16 (1x2M|512x4k|4k|n/a)$", shown, re.MULTILINE)
    assert "one look only" in first
    assert re.search(r"per second, over \d+\.\d\d s: 0 allocs, 0 frees, 0 fills, 0 refusals", second)
    assert max(map(len, out.splitlines())) <= 80


def test_top_reads_no_block_records(
    striped: execmem.Domain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("execmem.watch.Ledger._read_pack", lambda _, number: asked.append(number))
    code, _, _ = run(capsys, "top", os.getpid(), "--domain", striped.number, "--count", "1")
    assert (code, asked) == (0, [])


def test_top_looks_into_a_pack_and_prints_json(striped: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    number = pack_of(capsys)
    options = ("--domain", striped.number, "--count", "2", "--every", "0", "--pack", number)
    _, out, _ = run(capsys, "top", os.getpid(), *options)
    assert out.count("+1f0000") == 2
    _, out, _ = run(capsys, "top", os.getpid(), *options, "--row", "4", "--json")
    assert [len(json.loads(line)["blocks"]) for line in out.splitlines()] == [1, 1]
    _, out, _ = run(capsys, "top", os.getpid(), *options[:-2], "--json")
    for line in out.splitlines():
        (shown,) = json.loads(line)["domains"]
        assert shown["owners"] is None
        assert set(shown) == set(DOMAIN_KEYS)


def test_top_ends_well_when_the_process_does(watched: subprocess.Popen[bytes]) -> None:
    command = [sys.executable, "-m", "execmem", "top", str(watched.pid), "--every", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
        assert top.stdout
        assert top.stdout.readline().startswith("execmem top ")
        watched.kill()
        out, err = top.communicate(timeout=60)
    assert (top.returncode, err) == (0, "")
    assert out.endswith(f"process {watched.pid} has ended\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_top_leaves_the_terminal_as_it_was(watched: subprocess.Popen[bytes], number: int, code: int) -> None:
    command = [sys.executable, "-m", "execmem", "top", str(watched.pid), "--every", "0.05"]
    with on_terminal(command) as (top, main):
        shown = read_until(main, b"\x1b[J")
        top.send_signal(number)
        shown += read_until(main, b"\x1b[?1049l")
        assert top.wait(60) == code
    assert shown.startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"domain watched" in shown
    assert shown.rstrip(b"^C").endswith(b"\x1b[?7h\x1b[?25h\x1b[?1049l")
    assert b"Traceback" not in shown


# ---- pictures ----


def test_pictures_show_the_packs(striped: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    options = ("--domain", striped.number, "--interval", "0", "--by", "owner", "--svg", svg, "--html", page)
    code, out, err = run(capsys, "map", os.getpid(), *options)
    assert (code, err) == (0, "")
    assert "50.0%" in out
    drawn = svg.read_text(encoding="utf-8")
    assert drawn.count(" 8v-8h16v8z") == 16  # of the pack of stripes: every second 64 kB, which are 16 pages
    assert f"packs of process {os.getpid()}: " in drawn
    assert "domain striped" in drawn
    data = json.loads(page.read_text(encoding="utf-8").partition('id="data">')[2].partition("</script>")[0])
    assert [head["count"] for head in data["heads"] if head["facts"][0] == "50.0 %"] == [16]
    assert (data["by"], data["owners"][0][0]) == ("owner", "v8")


def test_pictures_of_a_copy_and_json_beside_them(
    striped: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy, svg = tmp_path / "it.ledger", tmp_path / "a.svg"
    assert run(capsys, "map", os.getpid(), "--domain", striped.number, "--save", copy)[0] == 0
    for _ in range(2):
        code, out, _ = run(capsys, "map", "--from", copy, "--json", "--svg", svg)
        assert (code, json.loads(out)["file"]) == (0, str(copy))
        drawn = svg.read_text(encoding="utf-8")
        assert "packs in it.ledger: times stand at its last event" in drawn
    assert run(capsys, "map", "--from", copy, "--by", "fill", "--limit", "1", "--svg", svg)[0] == 0
    drawn = svg.read_text(encoding="utf-8")
    assert "more; packs by fill" in drawn
    assert "owner" not in drawn


def test_a_png_is_made_of_the_svg(striped: execmem.Domain, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    out = tmp_path / "a.png"
    code, _, err = run(capsys, "map", os.getpid(), "--domain", striped.number, "--interval", "0", "--png", out)
    if code and picture.NO_FONTS in err:
        pytest.skip(picture.NO_FONTS)
    assert (code, out.read_bytes()[:8]) == (0, b"\x89PNG\r\n\x1a\n")


def test_pictures_that_cannot_be_written_are_told(
    striped: execmem.Domain,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("map", os.getpid(), "--domain", striped.number, "--interval", "0")
    out = tmp_path / "no" / "a.svg"
    code, _, err = run(capsys, *options, "--svg", out)
    assert (code, err) == (1, f"execmem map: {out}: {out.parent} is no folder; make it first\n")
    code, _, err = run(capsys, *options, "--svg", tmp_path / "a", "--html", tmp_path / "a")
    assert (code, "is named twice" in err) == (1, True)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    code, _, err = run(capsys, *options, "--png", tmp_path / "a.png")
    assert (code, err) == (1, f"execmem map: {picture.NO_RASTER}\n")


def test_the_picture_in_the_documents_is_made_of_the_example(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parent.parent
    svg = tmp_path / "packs.svg"
    code, out, _ = run(capsys, "map", "--from", root / "examples" / "packs.ledger.gz", "--svg", svg)
    assert (code, "domain compilers (2): 7 packs, 2,316 blocks" in out) == (0, True)
    same = svg.read_text(encoding="utf-8") == (root / "docs" / "packs.svg").read_text(encoding="utf-8")
    assert same, f"look at {svg}; if it is as it should be, copy it to docs/packs.svg"
