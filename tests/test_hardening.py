"""Hardened hosts: each of ``tests/hosts.py`` is set up for real, and must give exactly what stands there.

What `probe` tells must be what use meets, refusals name their policy and what to do, and docs/hardening.md has the
table that comes of it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hosts
import pytest
from conftest import ADD7, MODES, PACK, needs_x86
from hosts import HOSTS, Host

import execmem
from execmem._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

Seen = dict[str, dict[str, Any]]
PLACES = ("/dev/shm", "/run", "/tmp", "/var/tmp")  # noqa: S108 - where the library looks

pytestmark = needs_x86
real = pytest.mark.unsanitized  # limits and missing files are not for a sanitizer


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Visit all hosts once, in a process that has no other threads."""
    done = subprocess.run(
        [sys.executable, "-W", "error", hosts.__file__],
        cwd=Path(execmem.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["host"] for one in told] == [host.name for host in HOSTS]
    return {one["host"]: one for one in told}


def visit(seen: Seen, name: str) -> dict[str, Any]:
    """Return what came of a host that could be set up."""
    told = seen[name]
    if "skip" in told:
        pytest.skip(told["skip"])
    assert "crash" not in told, told["crash"]
    return told


def texts(policy: str) -> tuple[str, str]:
    """Return who refuses by a policy, and what to do."""
    number = next(n for n in range(lib.EXECMEM_POLICIES) if ffi.string(lib.execmem_policy_name(n)).decode() == policy)
    return (
        ffi.string(lib.execmem_policy_text(number)).decode(),
        ffi.string(lib.execmem_policy_remedy(number)).decode(),
    )


# ---- every host ----


@real
@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_host_gives_what_is_promised(host: Host, seen: Seen) -> None:
    told = visit(seen, host.name)
    assert hosts.tell_row(told) == [host.name, host.default, *host.modes, host.huge]


@real
@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_probe_tells_what_use_meets(host: Host, seen: Seen) -> None:
    told = visit(seen, host.name)
    used = [told["default"], *told["modes"].values()]
    for one, met in zip([told["probe"]["default"], *told["probe"]["modes"]], used, strict=True):
        assert one["works"] == met["works"], (one, met)
        if one["works"]:
            assert one["mode"] == met["mode"]
            assert one["backing"] == met["backing"]
            assert not one["policy"]
            assert met["resident"] >= 24 * 300_000
            assert met["huge"] is not None or met["vmas"] is None
        else:
            text, remedy = texts(one["policy"])
            assert text
            assert text in one["reason"]
            assert remedy in one["reason"]
            assert one["remedy"] == remedy
            # Where no mode works at all, the root domain's refusal comes first, of all modes at once.
            assert one["error"] == met["error"]
            assert one["policy"] in met["text"] or text in met["text"]


@real
def test_the_page_has_the_table_that_was_seen(seen: Seen) -> None:
    page = hosts.PAGE.read_text(encoding="utf-8")
    drawn = hosts.TRACES.search(page)
    assert drawn
    rows = [line.strip("| ").split(" | ") for line in drawn[0].splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [host.name for host in HOSTS]
    for row in rows:
        if "skip" not in seen[row[0]]:
            assert row == hosts.tell_row(visit(seen, row[0]))


@real
def test_every_policy_is_in_the_page(seen: Seen) -> None:
    page = hosts.PAGE.read_text(encoding="utf-8")
    for number in range(1, lib.EXECMEM_POLICIES):
        assert f"| `{ffi.string(lib.execmem_policy_name(number)).decode()}` |" in page
    refused = {cell for told in seen.values() if "probe" in told for cell in hosts.tell_row(told)[2:6]}
    assert {cell.removeprefix("no: ") for cell in refused if cell.startswith("no: ")} <= set(
        re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    )


# ---- single hosts ----


@real
@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("plain", "proc", True),
        ("plain", "file_size", None),
        ("PR_SET_MDWE", "mdwe", True),
        ("memfd_noexec=1", "memfd_noexec", 1),
        ("memfd_noexec=2", "memfd_noexec", 2),
        ("seccomp: memfd_create", "seccomp", "filter"),
        ("RLIMIT_FSIZE 0", "file_size", 0),
        ("no /proc", "proc", False),
        ("no /proc", "memfd_noexec", None),
        ("no huge pages", "huge_disabled", True),
        ("systemd MDWE", "mdwe", True),
        ("systemd MDWE", "seccomp", "filter"),
    ],
)
def test_policies_are_found(name: str, field: str, value: object, seen: Seen) -> None:
    assert visit(seen, name)["probe"]["policies"][field] == value


@real
def test_a_refused_membarrier_is_told_and_stops_nobody(seen: Seen) -> None:
    assert visit(seen, "plain")["probe"]["sync"] is None
    assert "seccomp" in visit(seen, "seccomp: membarrier")["probe"]["sync"]


@real
def test_the_call_that_was_refused_is_named(seen: Seen) -> None:
    for name, words in (
        ("seccomp: mmap(PROT_EXEC)", "map a memory file executable (mmap)"),
        ("systemd MDWE, no memfd, noexec", "create a memory file (memfd_create)"),
        ("systemd MDWE, no memfd, noexec", "all are mounted noexec"),
        ("systemd MDWE, no memfd, read-only", "Read-only file system; a writable tmpfs would"),
    ):
        assert words in visit(seen, name)["probe"]["modes"][0]["reason"]
    assert "mprotect" in visit(seen, "PR_SET_MDWE")["probe"]["modes"][3]["reason"]
    everything = visit(seen, "container, no memfd, two threads")["default"]["text"]
    assert "(syscall: seccomp, procmem: proc, flip: proc)" in everything


@real
def test_pages_that_cannot_be_huge_are_counted_as_failures(seen: Seen) -> None:
    told = visit(seen, "no huge pages")["default"]
    assert told["failures"] >= told["full"] > 0
    told = visit(seen, "no /proc")["default"]  # untold is no failure: the collapse itself said that it went well
    assert told["failures"] == 0
    assert told["vmas"] is None


@real
def test_a_file_ends_at_its_limit_with_an_error(seen: Seen) -> None:
    told = visit(seen, "RLIMIT_FSIZE 64 MB")["outgrown"]
    assert 0 < told["placed"] < 16
    assert told["refusal"].startswith("OutOfMemoryError: could not grow the memory file")
    assert "RLIMIT_FSIZE" in told["refusal"]
    assert visit(seen, "RLIMIT_FSIZE 0")["outgrown"] == {"placed": 24, "refusal": None}  # procmem has no file


@real
def test_nothing_is_left_in_any_directory(seen: Seen) -> None:
    assert "probe" in visit(seen, "seccomp: memfd_create, O_TMPFILE")
    assert not [path for place in PLACES for path in Path(place).glob(".execmem-*")]


def test_a_file_limit_lowered_later_is_an_error_and_passes(run_child: Callable[..., str]) -> None:
    source = f"""
    import resource
    import execmem

    code = bytes.fromhex("{ADD7.hex()}")
    domain = execmem.Domain("late", write_mode="syscall")
    blocks = domain.place_many([code + bytes(300_000)] * 24)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    for call in (lambda: domain.place(code), lambda: blocks[23].fill(code)):
        try:
            call()
        except execmem.OutOfMemoryError as error:
            assert "RLIMIT_FSIZE" in str(error)
            print("refused")
    assert blocks[3].function("i64(i64)")(35) == 42
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    domain.check()
    blocks[23].fill(code)
    assert blocks[23].function("i64(i64)")(35) == 42
    blocks.free()
    domain.check()
    """
    assert run_child(source).split() == ["refused"] * 2


# ---- failures that no host here can be made to give ----


def test_an_unlinked_file_backs_code_where_memfd_is_refused(script: Callable[[str], None]) -> None:
    script("memfd=F*:EACCES")
    for mode in ("syscall", "alias"):
        with execmem.Domain("unlinked", write_mode=mode) as domain:
            blocks = domain.place_many([ADD7 + bytes(100_000)] * 50)
            assert blocks[49].function("i64(i64)")(35) == 42
            stats = domain.stats()
            assert stats.backing in {"tmpfs", "disk"}
            assert stats.resident_bytes >= stats.full_packs * PACK
            domain.check()
            del blocks
            domain.check()


def count_files() -> int:
    """Count open files of the library: those without a name, and memory. The watch over mappings opens others."""
    files = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            files += str(entry.readlink()).endswith((" (deleted)", "/mem"))
    return files


@pytest.mark.parametrize("error", ["EACCES", "EPERM", "ENOSYS", "EINVAL"])
def test_no_file_at_all_is_a_refusal_that_leaks_nothing(error: str, script: Callable[[str], None]) -> None:
    before = count_files()
    script(f"memfd=F*:{error} tmpfile=F*:EROFS")
    with pytest.raises(
        execmem.ExecmemError, match=r"nor does a directory .* have an unlinked file instead: Read-only"
    ) as refused:
        execmem.probe("syscall")
    assert refused.value.code in {lib.EXECMEM_EDENIED, lib.EXECMEM_EUNSUPPORTED, lib.EXECMEM_ESYSTEM}
    assert count_files() == before


@pytest.mark.parametrize("steps", ["F", ".F", "...F", "F*"])
@pytest.mark.parametrize(
    "op", ["tmpfile", "resize", "discard", "write", "view", "unview", "collapse", "populate", "scan"]
)
@pytest.mark.parametrize("mode", ["syscall", "alias"])
def test_failures_on_an_unlinked_file_leave_it_lawful(
    mode: str, op: str, steps: str, script: Callable[[str], None]
) -> None:
    execmem.default_domain()
    gc.collect()
    before = count_files()
    script(f"memfd=F*:EPERM {op}={steps}")
    with suppress(execmem.ExecmemError):
        domain = execmem.Domain("failing", write_mode=mode, window="64M")
        kept: list[object] = []
        for code in (b"x", b"x" * 300_000, b"x" * (3 * PACK + 1), b"x" * (65 << 20)):
            with suppress(execmem.ExecmemError):
                kept.append(domain.place(code))
            with suppress(execmem.ExecmemError):
                kept.append(domain.place_many([code[:5000]] * 10))
        lib.execmem_test_script(ffi.NULL)
        domain.check()
        kept.clear()
        domain.check()
        domain.close(force=True)
    lib.execmem_test_script(ffi.NULL)
    assert count_files() == before


def test_a_shortage_of_files_is_not_tried_around(script: Callable[[str], None]) -> None:
    script("memfd=F*:EMFILE")
    with pytest.raises(execmem.OutOfMemoryError, match="RLIMIT_NOFILE"):
        execmem.probe("syscall")


def test_a_kernel_that_does_not_force_writes_is_named(script: Callable[[str], None]) -> None:
    script("write=F*:EIO")
    one = execmem.probe()["procmem"]
    assert (one.works, one.policy, one.error) == (False, "proc_mem", execmem.ExecDeniedError)


# ---- probe ----


def test_a_probe_is_complete_and_plain_data() -> None:
    before = count_files()
    found = execmem.probe()
    assert count_files() == before
    modes = (*hosts.MODES, "pkey")
    assert tuple(one.mode for one in found.modes) == modes
    assert found["alias"] is found.modes[1]
    assert found.default.mode in MODES
    told = json.loads(json.dumps(found.as_dict()))
    assert [one["mode"] for one in told["modes"]] == list(modes)
    assert set(told["policies"]) == {field.name for field in dataclasses.fields(execmem.Policies)}
    assert found.policies.open_files is None or found.policies.open_files > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.sync = "no"  # type: ignore[misc]


def test_a_probe_of_one_mode_raises_or_tells(mode: str, script: Callable[[str], None]) -> None:
    if mode != "flip":  # which must stop the other threads of this process in time
        assert execmem.probe(mode) == execmem.probe()[mode]
    script("reserve=F*")
    assert not execmem.probe()[mode].works
    with pytest.raises(execmem.OutOfMemoryError):
        execmem.probe(mode)


@pytest.mark.parametrize("mode", ["wrong", None, 3])
def test_a_matrix_has_no_other_modes(mode: Any) -> None:
    with pytest.raises(KeyError):
        execmem.probe()[mode]


def test_a_verdict_needs_a_mode_and_a_place() -> None:
    verdict = ffi.new("execmem_verdict *")
    for number in (-1, lib.EXECMEM_MODES):
        assert lib.execmem_probe_mode(number, verdict) == lib.EXECMEM_EINVAL
    assert lib.execmem_probe_mode(0, ffi.NULL) == lib.EXECMEM_EINVAL
    assert lib.execmem_probe_policies(ffi.NULL) == lib.EXECMEM_EINVAL


def test_every_policy_has_words() -> None:
    names = set()
    for number in range(1, lib.EXECMEM_POLICIES):
        name = ffi.string(lib.execmem_policy_name(number)).decode()
        assert all(len(text) > 10 for text in texts(name))
        names.add(name)
    assert len(names) == lib.EXECMEM_POLICIES - 1
    for number in (-1, lib.EXECMEM_POLICIES):
        assert ffi.string(lib.execmem_policy_name(number)) == b"unknown"
        assert not ffi.string(lib.execmem_policy_text(number))
        assert not ffi.string(lib.execmem_policy_remedy(number))
        assert ffi.string(lib.execmem_backing_name(number)) == b"unknown"


def test_statistics_do_not_know_what_cannot_be_asked(run_child: Callable[..., str]) -> None:
    source = """
        import sys
        from execmem import cli
        from execmem._core import lib
        lib.execmem_test_script(b"scan=F* maps=F*")
        sys.exit(cli.main(["demo", "--count", "200", "--code", "shipped", "--calls", "50", "--quiet"]))
    """
    assert "not available" in run_child(source)
