"""``execmem export``: both text formats as an independent parser reads them, JSON, files, a server that bears all."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import execmem
from execmem import cli, export, export_cli, export_packs, watch
from execmem.directmap.source import NotAvailable
from execmem.draw import tell_version
from execmem.export import OPENMETRICS, PROMETHEUS, Page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from execmem.directmap import region

HOSTILE = 'a"}\\\n\x1b[2J# EOF\u2028<b>\U0001f4a3,x="'
PARSERS = {PROMETHEUS: "prometheus_client.parser", OPENMETRICS: "prometheus_client.openmetrics.parser"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["export", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def parse(text: str, form: str = PROMETHEUS) -> Samples:
    """Return the samples that another's parser reads; each series is there once, each has type, help and our prefix."""
    module = pytest.importorskip(PARSERS[form])
    found: Samples = {}
    families = list(module.text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.type in {"gauge", "counter"}
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            assert sample.name in export.FAMILIES
            assert math.isfinite(sample.value)
            found[key] = sample.value
    return found


def both(page: Page) -> Samples:
    """Return the samples of a page, which are the same in every format."""
    samples = parse(export.write_text(page, PROMETHEUS))
    assert parse(export.write_text(page, OPENMETRICS), OPENMETRICS) == samples
    told = json.loads(json.dumps(export.as_json(page)))
    assert {
        (metric["name"], tuple(sorted(sample["labels"].items()))): sample["value"]
        for metric in told["metrics"]
        for sample in metric["samples"]
    } == samples
    return samples


def labelled(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"execmem_{name}", tuple(sorted(labels.items()))))


# ---- formats ----


def test_names_have_their_units_and_counters_end_in_total() -> None:
    for name, family in export.FAMILIES.items():
        assert re.fullmatch(r"execmem_[a-z0-9_]+", name)
        assert (family.type == export.COUNTER) == name.endswith("_total")
        assert not set('"\\\n') & set(family.help)
        assert "bytes" not in name.removesuffix("_total").removesuffix("_bytes")


def test_hostile_labels_are_read_back_as_they_are_shown() -> None:
    page = Page()
    page.add("execmem_domains", 1, process=HOSTILE, domain="\\")
    shown = 'a"}\\\\n\\x1b[2J# EOF\\u2028<b>\U0001f4a3,x="'
    assert both(page) == {("execmem_domains", (("domain", "\\"), ("process", shown))): 1}
    text = export.write_text(page, PROMETHEUS)
    assert text.count("\n") == 3
    assert all(each.isprintable() for each in text.replace("\n", ""))


def test_equal_labels_are_one_series_and_large_numbers_are_whole() -> None:
    page = Page()
    for value in (2**63, 2**63 - 1):
        page.add("execmem_domain_fills_total", value, process="p", domain="d")
    page.add("execmem_scrape_duration_seconds", 0.125)
    assert 'execmem_domain_fills_total{process="p",domain="d"} 18446744073709551615\n' in export.write_text(
        page, PROMETHEUS
    )
    assert len(both(page)) == 2


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", PROMETHEUS),
        ("*/*", PROMETHEUS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0, */*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;q=0,text/plain", PROMETHEUS),
        ("application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.9", PROMETHEUS),
        (";,=;q=nan,application/openmetrics-text;q=1e9;=;;", OPENMETRICS),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.1", PROMETHEUS),
    ],
)
def test_the_format_is_the_one_preferred(accept: str, form: str) -> None:
    assert export.choose_format(accept) == form


# ---- the machine ----

MEMINFO = "MemTotal: 1 kB\nDirectMap4k: 8 kB\nDirectMap2M: 2048 kB\n"
VMSTAT = "direct_map_level2_splits 5\ndirect_map_level3_splits 2\n"


def test_what_is_missing_is_absent_and_told(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/vmstat").write_text(VMSTAT)
    page = Page()

    def walk() -> region.Walk:
        raise NotAvailable(why="it is not for\x1b this user", remedy="run as root")

    export.measure_machine(page, walk, tmp_path)
    samples = both(page)
    assert labelled(samples, "directmap_bytes", page_size="4k") == 8192
    assert labelled(samples, "directmap_splits_total", page_size="2m") == 5
    up = {dict(labels)["source"]: value for (name, labels), value in samples.items() if name == "execmem_source_up"}
    assert up == {"directmap": 1, "splits": 1, "vmallocinfo": 0, "jit": 0, "regions": 0}
    assert {name for name, _ in samples} == {
        "execmem_directmap_bytes", "execmem_directmap_splits_total", "execmem_source_up",
    }  # fmt: skip
    assert set(page.missing) == {"vmallocinfo", "jit", "regions"}
    assert "# regions: not available: it is not for\\x1b this user; run as root\n" in export.write_text(
        page, PROMETHEUS
    )


def test_this_machine_is_told_as_far_as_it_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    samples = parse(out)
    assert labelled(samples, "build_info", version=tell_version()) == 1
    for source, metric in (("directmap", "directmap_bytes"), ("vmallocinfo", "kernel_areas")):
        there = any(name == f"execmem_{metric}" for name, _ in samples)
        assert there == (labelled(samples, "source_up", source=source) == 1)
    assert not any("domain" in name for name, _ in samples)


def test_the_page_of_metrics_tells_each_with_its_help() -> None:
    page = (Path(__file__).parent.parent / "docs/export.md").read_text("utf-8")
    for name, family in export.FAMILIES.items():
        assert re.search(rf"^\| `{name}` \|.*\| {re.escape(family.help)} \|$", page, re.MULTILINE)


# ---- processes ----


@pytest.fixture
def fleet() -> Iterator[export_packs.Fleet]:
    execmem.default_domain()
    found = export_packs.Fleet([os.getpid()], 64)
    yield found
    found.close()


def scrape(fleet: export_packs.Fleet) -> Samples:
    page = Page()
    fleet.measure(page)
    return both(page)


COMMAND = Path("/proc/self/comm").read_text("utf-8").rstrip("\n")


def of(samples: Samples, name: str, domain: str, process: str = COMMAND) -> float | None:
    return labelled(samples, name, process=process, domain=domain)


def test_a_domain_is_told_as_its_owner_knows_it(
    fleet: export_packs.Fleet, domain: execmem.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    for name in ("blocks", "used", "names"):
        monkeypatch.setattr(watch.Ledger, name, refuse)
    blocks = [domain.place(b"\xc3" * 100, name=f"f{number}") for number in range(50)]
    span = domain.place(bytes(5 << 20))
    blocks.pop().free()
    with pytest.raises(execmem.InvalidArgumentError):
        domain.alloc(0)
    samples = scrape(fleet)
    stats = domain.stats()
    expected = {
        "live_blocks": 50, "live_bytes": 49 * 100 + (5 << 20), "used_bytes": stats.used_bytes, "retired_blocks": 0,
        "allocs_total": 51, "frees_total": 1, "fills_total": 51, "refusals_total": stats.refusals,
        "packs_made_total": stats.packs_made, "packs_returned_total": 0, "collapses_total": stats.collapses,
        "collapse_failures_total": stats.collapse_failures, "packs": 4, "quarantined_bytes": 0,
    }  # fmt: skip
    assert {name: of(samples, f"domain_{name}", "test") for name in expected} == expected
    assert of(samples, "domain_limit_bytes", "test") is None
    used, room = (of(samples, f"domain_pack_{name}", "test") for name in ("used_bytes", "bytes"))
    assert stats.used_bytes <= (used or 0) <= (room or 0)
    assert labelled(samples, "processes") == 1
    assert labelled(samples, "source_up", source="processes") == 1
    del blocks, span


def test_domains_of_one_name_are_summed_and_a_limit_is_only_told_if_all_have_one(fleet: export_packs.Fleet) -> None:
    with execmem.Domain("twin", limit="8M") as one, execmem.Domain("twin", limit="4M") as two:
        blocks = [one.place(b"x"), two.place(b"y")]
        samples = scrape(fleet)
        assert [of(samples, name, "twin") for name in ("domains", "domain_live_blocks")] == [2, 2]
        assert of(samples, "domain_limit_bytes", "twin") == 12 << 20
        with execmem.Domain("twin"):
            samples = scrape(fleet)
            assert [of(samples, f"domain_{name}_bytes", "twin") for name in ("limit", "charged")] == [None, None]
        del blocks


def test_what_children_have_counts_against_the_limit(fleet: export_packs.Fleet) -> None:
    with execmem.Domain("above", limit="8M") as above, execmem.Domain("below", parent=above) as below:
        block = below.place(bytes(1 << 20))
        samples = scrape(fleet)
        assert [of(samples, f"domain_{name}_bytes", "above") for name in ("used", "charged")] == [0, 1 << 20]
        assert of(samples, "domain_charged_bytes", "below") is None
        del block


def test_what_was_counted_stays_when_a_domain_closes(fleet: export_packs.Fleet) -> None:
    with execmem.Domain("short") as domain:
        domain.place(b"x").free()
        assert of(scrape(fleet), "domain_allocs_total", "short") == 1
        domain.place(b"x").free()  # after the last scrape that sees it open
    closed = scrape(fleet)
    assert of(closed, "domain_allocs_total", "short") == 2
    assert of(closed, "domain_live_blocks", "short") is None
    with execmem.Domain("short") as domain:
        domain.place(b"x").free()
        assert of(scrape(fleet), "domain_allocs_total", "short") == 3


def test_more_names_than_are_told_apart_are_others_and_stay_so() -> None:
    with contextlib.ExitStack() as stack:
        domains = [stack.enter_context(execmem.Domain(f"many{number}")) for number in range(5)]
        block = domains[3].place(bytes(24 << 20))  # most memory comes first, before what other tests left
        fleet = export_packs.Fleet([os.getpid()], 1)
        stack.callback(fleet.close)
        first = scrape(fleet)
        assert of(first, "domain_live_blocks", "many3") == 1
        others = of(first, "domains", "other", "other") or 0
        assert others >= 4
        assert len({labels for name, labels in first if name == "execmem_domains"}) == 2
        more = [domains[4].place(b"x") for _ in range(9)]
        again = scrape(fleet)
        assert (of(again, "domain_live_blocks", "many3"), of(again, "domains", "other", "other")) == (1, others)
        del block, more
        domains[3].close()
        assert of(scrape(fleet), "domain_allocs_total", "many3") == 1
        stack.enter_context(execmem.Domain("later"))  # takes the place of who is gone
        last = scrape(fleet)
        assert (of(last, "domains", "later"), of(last, "domain_allocs_total", "many3")) == (1, None)


CHILD = """if True:
    import execmem, sys
    domain = execmem.Domain(sys.argv[1])
    block = domain.place(b"x" * 100)
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def child(name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", CHILD, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_all_processes_are_found_and_those_that_end_leave_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    fleet = export_packs.Fleet(None, 1000)
    name = f'plug"{os.getpid()}'
    with child(f"{name}\n") as process:
        comm = Path(f"/proc/{process.pid}/comm").read_text("utf-8").rstrip("\n")
        samples = scrape(fleet)
        assert of(samples, "domain_live_bytes", rf"{name}\n", comm) == 100
        code, out, err = run(capsys, process.pid, "--format", OPENMETRICS)
        assert (code, err) == (0, "")
        assert of(parse(out, OPENMETRICS), "domain_live_bytes", rf"{name}\n", comm) == 100
        named = export_packs.Fleet([process.pid], 64)
    samples = scrape(fleet)
    assert of(samples, "domains", rf"{name}\n", comm) is None
    assert of(samples, "domain_allocs_total", rf"{name}\n", comm) == 1
    fleet.close()
    scrape(named)
    samples = scrape(named)
    assert labelled(samples, "source_up", source="processes") == 0
    named.close()


def test_a_process_that_cannot_be_read_is_counted_and_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"unread {os.getpid()}"  # another run of the tests has processes and domains of the same names
    domain = execmem.Domain(name)
    block = domain.place(b"x")
    fleet = export_packs.Fleet(None, 1000)
    before = scrape(fleet)

    def refuse(_: watch.Ledger) -> watch.Look:
        raise watch.WatchError(HOSTILE)

    monkeypatch.setattr(watch.Ledger, "look", refuse)
    samples = scrape(fleet)
    assert of(samples, "domain_allocs_total", name) == of(before, "domain_allocs_total", name) == 1
    assert of(samples, "domain_live_blocks", name) is None
    assert (labelled(samples, "processes_unreadable") or 0) > 0
    fleet.close()
    del block
    domain.close()


# ---- the command ----


def test_json_has_the_documented_keys(domain: execmem.Domain, capsys: pytest.CaptureFixture[str]) -> None:
    block = domain.place(b"x")
    code, out, _ = run(capsys, os.getpid(), "--machine", "--json")
    told = json.loads(out)
    assert (code, set(told), told["schema"]) == (0, {"schema", "metrics", "missing"}, export.SCHEMA)
    for metric in told["metrics"]:
        assert set(metric) == {"name", "type", "help", "unit", "samples"}
        assert all(set(sample) == {"labels", "value"} for sample in metric["samples"])
    names = {metric["name"] for metric in told["metrics"]}
    assert {"execmem_domain_packs", "execmem_source_up"} <= names <= set(export.FAMILIES)
    assert all(isinstance(why, str) for why in told["missing"].values())
    del block


def test_output_is_utf_8_whatever_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with execmem.Domain("f\u00fcr"), io.TextIOWrapper(out, encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["export", str(os.getpid())]) == 0
        assert of(parse(out.getvalue().decode()), "domains", "f\u00fcr") == 1
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["1", "--all"], "say PIDs or --all"),
        (["--every", "5"], "say --out FILE too"),
        (["--json", "--listen", "0"], "not with --json"),
        (["1", "--walk"], "say --machine too"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n"), words in err) == (2, "", 1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--listen", text] for text in ("x", "host:", "::1:80", ":99999", "1.2.3.4:-1", "")),
        *(["--max-domains", text] for text in ("0", "-1", "many", "65537")),
        *(["--every", text] for text in ("0", "nan", "inf", "x")),
        ["--listen", "0", "--out", "x"],
        ["--json", "--format", "prometheus"],
        ["0"],
        ["self"],
    ],
)
def test_options_that_are_wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", *arguments])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_process_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, 2**31 - 1)
    assert (code, out, err.count("\n"), "there is no process" in err) == (1, "", 1, True)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "execmem.prom"
    assert run(capsys, "--out", out) == (0, "", "")
    before = out.read_text("utf-8")
    assert parse(before)
    code, _, err = run(capsys, "--out", tmp_path / "none" / "execmem.prom")
    assert (code, err.count("\n")) == (1, 1)

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", fail)
    code, _, err = run(capsys, "--out", out)
    assert (code, "No space left" in err) == (1, True)
    assert [out.read_text("utf-8"), list(tmp_path.iterdir())] == [before, [out]]


def test_writing_again_and_again_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "execmem.prom"
    command = [sys.executable, "-m", "execmem", "export", "--every", "0.1", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        seen: set[int] = set()
        while len(seen) < 2 and process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                seen.add(out.stat().st_ino)
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert parse(out.read_text("utf-8"))
    assert list(tmp_path.iterdir()) == [out]


def test_serving_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "execmem", "export", "--listen", "0", "--format", OPENMETRICS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=_environment()) as process:
        assert process.stderr
        where = re.fullmatch(rb"serving http://127\.0\.0\.1:(\d+)/metrics until Ctrl-C\n", process.stderr.readline())
        assert where
        head, body = ask(int(where[1]), b"GET /metrics HTTP/1.1\r\nAccept: text/plain\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert b"application/openmetrics-text; version=1.0.0" in head
    assert parse(body.decode(), OPENMETRICS)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(execmem.__file__).parents[1])}


# ---- the server ----


def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send bytes and return head and body of what comes, until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        parts = []
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return head, body


class Counting:
    """Stands for an exporter: counts scrapes, and how many run at once."""

    def __init__(self) -> None:
        self.scrapes = self.running = self.most = 0
        self.error: Exception | None = None

    def scrape(self) -> Page:
        self.running += 1
        self.most = max(self.most, self.running)
        self.scrapes += 1
        time.sleep(0.02)
        self.running -= 1
        if self.error:
            raise self.error
        page = Page()
        page.add("execmem_processes", self.scrapes)
        return page


@pytest.fixture
def served() -> Iterator[tuple[int, Counting]]:
    exporter: Any = Counting()
    with export_cli.Server(("127.0.0.1", 0), exporter, None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, exporter
        server.shutdown()
        thread.join()
        server.settle()


def test_the_formats_are_served_with_their_types(served: tuple[int, Counting]) -> None:
    port, _ = served
    head, body = ask(port, b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert b"Content-Length: %d" % len(body) in head
    assert parse(body.decode()) == {("execmem_processes", ()): 1}
    head, body = ask(
        port, b"GET /metrics HTTP/1.1\r\nAccept: */*;q=0.1\r\nAccept: application/openmetrics-text\r\n\r\n"
    )
    assert b"Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8" in head
    assert parse(body.decode(), OPENMETRICS)
    head, body = ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (head.startswith(b"HTTP/1.0 200"), body) == (True, b"")
    assert b"/metrics" in ask(port, b"GET / HTTP/1.1\r\n\r\n")[1]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /<script>alert(1)</script>\x1b[2J HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", b"501"),
        (b"DELETE <b>\x1b HTTP/1.1\r\n\r\n", b"501"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"\r\n", b""),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
    ],
)
def test_hostile_requests_are_refused(
    request_bytes: bytes, status: bytes, served: tuple[int, Counting], capfd: pytest.CaptureFixture[str]
) -> None:
    port, exporter = served
    head, body = ask(port, request_bytes)
    assert (status in head) or (status in body[:200])
    assert b"<script>" not in body
    assert b"\x1b" not in head
    assert exporter.scrapes == 0
    assert parse(ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[1].decode())
    assert capfd.readouterr() == ("", "")


def test_a_scrape_that_fails_is_told_and_the_next_works(
    served: tuple[int, Counting], capfd: pytest.CaptureFixture[str]
) -> None:
    port, exporter = served
    exporter.error = RuntimeError("no\x1b luck")
    head, _ = ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"500" in head.split(b"\r\n")[0]
    exporter.error = None
    assert parse(ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[1].decode())
    assert capfd.readouterr().err == "execmem export: RuntimeError: no\\x1b luck\n"


def test_many_at_once_are_one_scrape(served: tuple[int, Counting]) -> None:
    port, exporter = served
    bodies: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: bodies.append(ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[1])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == 8
    assert len(set(bodies)) <= exporter.scrapes
    assert exporter.most == 1


def test_who_says_nothing_is_cut_off_and_keeps_nobody_out_for_long(
    served: tuple[int, Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = served
    monkeypatch.setattr(export_cli, "DEADLINE", 0.3)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(export_cli.CONNECTIONS_MAX)]
    for connection in silent:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nslow: ")
    extra = ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert extra == (b"", b"") or extra[0].startswith(b"HTTP/1.0 200")
    for connection in silent:
        while connection.recv(1 << 16):
            pass
        connection.close()
    while not ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")[1]:
        pass


def test_an_address_that_is_taken_is_one_line(served: tuple[int, Counting], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--listen", served[0])
    assert (code, out, err.count("\n"), "cannot be listened on" in err) == (1, "", 1, True)


# ---- the dashboard ----


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads(importlib.resources.files("execmem").joinpath("grafana.json").read_text("utf-8"))


def test_the_dashboard_is_printed(dashboard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--dashboard")
    assert (code, json.loads(out)) == (0, dashboard)


def test_every_metric_of_the_dashboard_is_exported(dashboard: Any) -> None:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    named = {name for query in queries for name in re.findall(r"\bexecmem_\w+", query)}
    assert named <= set(export.FAMILIES)
    assert len(named) > 20
    variables = {one["name"] for one in dashboard["templating"]["list"]} | {"__rate_interval"}
    for query in queries:
        assert set(re.findall(r"\$(\w+)", query)) <= variables
        assert [query.count(mark) for mark in "({["] == [query.count(mark) for mark in ")}]"]
        for name in re.findall(r"(?:rate|increase)\((\w+)", query):
            assert export.FAMILIES[name].type == export.COUNTER


def test_the_panels_of_the_dashboard_stand_beside_each_other(dashboard: Any) -> None:
    assert dashboard["schemaVersion"] >= 39
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
