"""Ledgers of other processes: found, read as their owner reads them, and believed in nothing that cannot be true."""

from __future__ import annotations

import contextlib
import gzip
import mmap
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import execmem
from execmem import survey, watch
from execmem._core import lib
from execmem.ledger import HEADER_DTYPE, PACK_DTYPE

if TYPE_CHECKING:
    from collections.abc import Iterator

WISH = survey.Wish(32, None, "number", "owner")
WINDOW = 16 << 20


@pytest.fixture
def own() -> Iterator[watch.Process]:
    execmem.default_domain()  # a process without any is refused
    process = watch.Process(os.getpid())
    yield process
    process.close()


def ledger_of(process: watch.Process, domain: execmem.Domain) -> watch.Ledger:
    process.refresh()
    return next(ledger for ledger in process.ledgers.values() if ledger.domain == domain.number)


def fill(domain: execmem.Domain) -> list[execmem.Block]:
    """Place blocks of all kinds and lengths, with names and without, and free every third."""
    rng = random.Random(7)
    blocks = [domain.place(bytes(rng.choice((1, 60, 64, 700, 5000))), name=f"v8:f{n}" * (n % 3)) for n in range(600)]
    blocks += [domain.place(b"r" * 3000, kind="rodata", name="x" * 255), domain.place(b"d", kind="data")]
    blocks.append(domain.place(bytes((4 << 20) + 5), name="span"))
    for block in blocks[:600:3]:
        block.free()
    return [block for block in blocks if block._live]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the ledger of a small domain."""
    path = tmp_path_factory.mktemp("ledger") / "small.ledger"
    execmem.default_domain()
    process = watch.Process(os.getpid())
    with execmem.Domain("saved", window=WINDOW) as domain:
        blocks = fill(domain)
        _, steady = ledger_of(process, domain).save(path)
        del blocks
    process.close()
    assert steady
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.ledger"
    shutil.copyfile(saved, path)
    return path


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read_header(path: Path) -> Any:
    return np.fromfile(path, dtype=HEADER_DTYPE, count=1)[0]


def poke_header(path: Path, field: str, value: int) -> None:
    kind, offset = HEADER_DTYPE.fields[field][:2] if HEADER_DTYPE.fields else (None, 0)
    poke(path, offset, np.array(value, dtype=kind).tobytes())


def read_all(path: Path) -> survey.DomainFacts:
    """Read everything there is in a copy, down to the chunks of every row of its first packs."""
    ledger = watch.open_copy(str(path))
    try:
        look = ledger.look()
        facts = survey.survey_domain(ledger, None, look, None, WISH)
        for pack in facts.packs[:2]:
            survey.survey_rows(ledger, pack, look.now_ms)
            survey.survey_row(ledger, pack, 0, look.now_ms)
        return facts
    finally:
        ledger.close()


# ---- what is read is what the owner reads ----


def test_another_reader_sees_what_the_owner_sees(own: watch.Process, domain: execmem.Domain) -> None:
    blocks = fill(domain)
    ledger = ledger_of(own, domain)
    look = ledger.look()
    stats = domain.stats()
    assert (ledger.name, look.live_blocks, look.total("live_bytes")) == ("test", stats.live_blocks, stats.live_bytes)
    assert look.packs.tobytes() == domain.packs().tobytes()
    read = [ledger.blocks(number) for number in look.shown]
    assert all(steady for _, steady in read)
    records = np.concatenate([found for found, _ in read])
    expected = domain.blocks()
    assert records[np.argsort(records["address"])].tolist() == expected.tolist()
    assert ledger.names(expected["name"]) == domain.names(expected)
    assert {len(name) for name in ledger.names(expected["name"])} >= {0, 255}
    for number in look.shown:
        if look.packs["state"][number] != lib.EXECMEM_PACK_SPAN:
            assert ledger.used(number).sum() == look.packs["used_chunks"][number]
    del blocks


def test_reading_takes_no_memory_of_the_watched(own: watch.Process, domain: execmem.Domain) -> None:
    blocks = fill(domain)
    ledger = ledger_of(own, domain)
    before = domain.stats().ledger_bytes
    survey.survey_domain(ledger, None, ledger.look(), None, WISH)
    ledger._read(int(ledger.header["blocks_offset"]), 64 << 20)  # mostly holes
    assert domain.stats().ledger_bytes == before
    del blocks


def count_ledgers() -> int:
    """Return how many descriptors of ledgers are open; others come and go, as other threads read."""
    count = 0
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += str(one.readlink()).startswith("/memfd:execmem-ledger")
    return count


def test_a_process_that_cannot_be_opened_leaves_no_files_open(
    domain: execmem.Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    execmem.default_domain()
    assert domain.number > 1  # there are two
    seen: list[watch.Ledger] = []
    check = watch.Ledger._check_layout

    def refuse(ledger: watch.Ledger, header: np.void, size: int) -> None:
        seen.append(ledger)
        if len(seen) > 1:
            ledger._refuse("is damaged")
        check(ledger, header, size)

    monkeypatch.setattr(watch.Ledger, "_check_layout", refuse)
    before = count_ledgers()
    with pytest.raises(watch.WatchError, match="is damaged"):
        watch.Process(os.getpid())
    assert count_ledgers() == before


def test_a_new_domain_is_found_and_a_closed_one_let_go(own: watch.Process) -> None:
    late = execmem.Domain("late")
    ledger = ledger_of(own, late)
    late.close()
    assert ledger.look().live_blocks == 0  # its last state
    own.refresh()
    assert ledger not in own.ledgers.values()


def test_a_ledger_without_a_header_yet_is_left_for_later(own: watch.Process) -> None:
    descriptor = os.memfd_create("execmem-ledger:new")
    os.ftruncate(descriptor, 1 << 20)
    with mmap.mmap(descriptor, 1 << 20) as mapping:
        before = set(own.ledgers)
        own.refresh()
        assert set(own.ledgers) == before
        mapping[:8] = b"EXECMEM?"
        with pytest.raises(watch.WatchError, match="does not begin with"):
            own.refresh()
    os.close(descriptor)


def test_a_process_that_closed_its_descriptors_is_read_through_its_mappings() -> None:
    if os.geteuid():
        pytest.skip("map_files is for root")
    source = """if True:
        import execmem, os, sys
        domain = execmem.Domain("daemon"); block = domain.place(b"\\xc3", name="kept")
        for fd in range(3, 256):
            try: path = os.readlink(f"/proc/self/fd/{fd}")
            except OSError: continue
            if "execmem-ledger" in path: os.close(fd)
        print("ready", flush=True); sys.stdin.read(); os._exit(0)
    """
    with subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        process = watch.Process(child.pid)
        names = {ledger.name: ledger.look().live_blocks for ledger in process.ledgers.values()}
        child.communicate()
        assert names["daemon"] == 1
        assert process.ended
        process.close()


def test_a_copy_is_sparse_and_says_the_same(own: watch.Process, domain: execmem.Domain, tmp_path: Path) -> None:
    blocks = fill(domain)
    ledger = ledger_of(own, domain)
    path = tmp_path / "a.ledger"
    copied, steady = ledger.save(path)
    assert steady
    assert path.stat().st_size == ledger.header["ledger_size"] > 1 << 30
    assert copied < 4 << 20
    assert list(tmp_path.iterdir()) == [path]
    facts = read_all(path)
    assert facts.live_blocks == domain.stats().live_blocks
    assert sum(share.blocks for share in facts.owners or ()) == facts.live_blocks
    assert next(iter(facts.owners or ())).name == "span"
    assert [pack.pages.source for pack in facts.packs] == ["ledger"] * len(facts.packs)
    del blocks


def test_a_copy_that_cannot_be_written_leaves_nothing(
    own: watch.Process, domain: execmem.Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_of(own, domain)

    def fail(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.Ledger, "_copy", fail)
    with pytest.raises(KeyboardInterrupt):
        ledger.save(tmp_path / "a.ledger")
    assert not list(tmp_path.iterdir())


# ---- pages ----


def test_pages_are_as_the_owner_knows_them(own: watch.Process, domain: execmem.Domain) -> None:
    blocks = domain.place_many([b"\0" * 65536] * 64)
    look = ledger_of(own, domain).look()
    pages = watch.Pages(os.getpid())
    found = [pages.find(int(look.packs["address"][n]), lib.EXECMEM_PACK_SIZE) for n in look.shown]
    pages.close()
    stats = domain.stats()
    if stats.huge_packs is None or found[0].huge_bytes is None:
        pytest.skip(f"this kernel does not tell: {found[0].why}")
    assert sum(one.huge_bytes == lib.EXECMEM_PACK_SIZE for one in found) == stats.huge_packs
    del blocks


def test_smaps_is_asked_where_the_page_map_is_refused(domain: execmem.Domain) -> None:
    block = domain.place(b"\xc3")
    pages = watch.Pages(os.getpid())
    pages.close()
    pages.refused = "PAGEMAP_SCAN: Invalid argument"
    found = pages.find(block.address, 4096)
    assert found.source == "smaps"
    assert found.huge_bytes == 0


@pytest.mark.parametrize(
    ("smaps", "huge", "why"),
    [
        ("Rss: 4096 kB\nShmemPmdMapped: 4096 kB", 2 << 20, None),
        ("Rss: 4096 kB\nShmemPmdMapped: 0 kB", 0, None),
        ("Rss: 4096 kB\nAnonHugePages: 2048 kB", None, "only that 2 of 4 MB around it are huge; no scan"),
    ],
)
def test_smaps_is_believed_only_where_a_mapping_is_all_alike(
    smaps: str, huge: int | None, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = watch.Pages(os.getpid())
    pages.close()
    pages.refused = "no scan"
    monkeypatch.setattr(Path, "read_bytes", lambda _: f"400000-800000 r-xs 0 00:01 7 /x\n{smaps}\n".encode())
    found = pages.find(0x400000, 2 << 20)
    assert found.huge_bytes == huge
    assert found.why == why if why is None else why in (found.why or "")
    assert "no single mapping" in (pages.find(0x700000, 2 << 20).why or "")


def test_pages_that_cannot_be_asked_are_not_available_and_why() -> None:
    pages = watch.Pages(2**31 - 1)
    found = pages.find(4096, 4096)
    assert found.huge_bytes is None
    assert "No such file" in (found.why or "")


# ---- lies ----


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("version", 2, "version 2, older than 3, which this execmem reads: look with the execmem that wrote it"),
        ("version", 4, "version 4, newer than 3, which this execmem reads: update execmem here"),
        ("header_size", 8, "its header says it has 8 bytes"),
        ("ledger_size", 1 << 50, "is truncated: "),
        ("packs_max", 0, "packs_max is 0"),
        ("packs_max", 2**32 - 1, "packs_max is 4,294,967,295"),
        ("shards_max", 17, "shards_max is 17"),
        ("events_max", 1 << 30, "events_max is"),
        ("extents_at", 2**64 - 1, "extents_at is"),
        ("maps_stride", 0, "maps_stride is 0"),
        ("maps_stride", 1 << 40, "maps_stride is"),
        ("blocks_stride", 0, "blocks_stride is 0"),
        ("blocks_stride", 1 << 60, "blocks_stride is"),
        ("packs_offset", 2**64 - 4096, "packs lie at"),
        ("names_offset", 0, "names lie at 0"),
        ("names_max", 2**32 - 1, "names lie at"),
        ("shards", 17, "shards is 17"),
        ("packs_top", 2**32 - 1, "packs_top is 4,294,967,295"),
        ("names_top", 2**32 - 1, "names_top is"),
        ("window", 4096, "address of pack 0 is"),
    ],
)
def test_a_header_that_lies_is_refused(copy: Path, field: str, value: int, words: str) -> None:
    poke_header(copy, field, value)
    with pytest.raises(watch.WatchError) as told:
        read_all(copy)
    assert words in str(told.value)
    assert str(told.value).startswith(f"the file {copy} is ")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("state", 9, "state of pack 0 is 9"), ("kind", 3, "kind of pack 0 is 3"), ("usable_chunks", 40000, "40,000"),
     ("shard", 200, "pack 0 is of shard 200"), ("usable_chunks", 1, "lie where none can be")],
)  # fmt: skip
def test_a_pack_that_lies_is_refused(copy: Path, field: str, value: int, words: str) -> None:
    kind, offset = PACK_DTYPE.fields[field][:2] if PACK_DTYPE.fields else (None, 0)
    poke(copy, int(read_header(copy)["packs_offset"]) + offset, np.array(value, dtype=kind).tobytes())
    with pytest.raises(watch.WatchError, match=words):
        read_all(copy)


def test_a_span_that_has_nothing_is_told(copy: Path) -> None:
    header = read_header(copy)
    raw = copy.open("rb")
    with raw:
        raw.seek(int(header["packs_offset"]))
        packs = np.frombuffer(raw.read(int(header["packs_top"]) * PACK_DTYPE.itemsize), PACK_DTYPE)
    span = next(number for number, pack in enumerate(packs) if pack["state"] == lib.EXECMEM_PACK_SPAN)
    for field in ("span_packs", "usable_chunks"):
        kind, offset = PACK_DTYPE.fields[field][:2] if PACK_DTYPE.fields else (None, 0)
        at = int(header["packs_offset"]) + span * PACK_DTYPE.itemsize + offset
        poke(copy, at, np.array(0, dtype=kind).tobytes())
    with pytest.raises(watch.WatchError, match=f"the blocks of pack {span} lie where none can be"):
        read_all(copy)
    ledger = watch.open_copy(str(copy))
    assert survey.pack_facts(ledger, ledger.look(), span, 64, None).fill == 0
    ledger.close()


def test_records_that_lie_outside_are_refused(copy: Path) -> None:
    header = read_header(copy)
    poke(copy, int(header["maps_offset"] + header["extents_at"]), b"\xff" * 64)
    with pytest.raises(watch.WatchError, match="the blocks of pack 0 lie where none can be"):
        read_all(copy)


def test_names_in_a_circle_end(copy: Path) -> None:
    header = read_header(copy)
    cells = b"".join(n.to_bytes(4, "little") + b"abcdefghijklmnopqrstuvwxyz01" for n in range(128))
    poke(copy, int(header["names_offset"]), cells)
    ledger = watch.open_copy(str(copy))
    assert len(ledger.names(np.array([5], dtype=np.uint32))[0]) == watch.NAME_HOPS * 28
    assert ledger.names(np.array([0, 2**32 - 1], dtype=np.uint32)) == ["", ""]
    ledger.close()


@pytest.mark.parametrize("size", [0, 100, 5000, 70_000, -1])
def test_a_truncated_copy_is_told(copy: Path, size: int) -> None:
    os.truncate(copy, size if size >= 0 else copy.stat().st_size - 1)
    with pytest.raises(watch.WatchError, match="is truncated"):
        read_all(copy)


def test_a_ledger_that_shrinks_under_the_reader_is_an_error(copy: Path) -> None:
    ledger = watch.open_copy(str(copy))
    os.truncate(copy, 4096)
    with pytest.raises(watch.WatchError, match=r"is truncated: it ends at byte 4,096, and \d"):
        ledger.look()
    ledger.close()


def test_a_layout_that_changes_under_the_reader_is_an_error(copy: Path) -> None:
    ledger = watch.open_copy(str(copy))
    poke_header(copy, "blocks_stride", 12)
    with pytest.raises(watch.WatchError, match="its layout changed while it was read"):
        ledger.look()
    ledger.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [("text", "no ledger of execmem: it does not begin"), ("folder", "is no file of memory or disk"),
     ("pipe", "is no file of memory or disk"), ("nothing", "cannot be read: No such file or directory")],
)  # fmt: skip
def test_what_is_no_ledger_is_told(tmp_path: Path, what: str, words: str) -> None:
    path = tmp_path / what
    if what == "text":
        path.write_text("x" * 5000)
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(watch.WatchError, match=words):
        watch.open_copy(str(path))


def test_a_copy_that_gzip_packed_is_read_like_itself(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "it.ledger.gz"
    path.write_bytes(gzip.compress(saved.read_bytes(), 1))
    plain, packed = watch.open_copy(str(saved)), watch.open_copy(str(path))
    one, other = plain.look(), packed.look()
    assert one.packs.tobytes() == other.packs.tobytes()
    for number in one.shown:
        assert plain.blocks(number)[0].tobytes() == packed.blocks(number)[0].tobytes()
    assert os.fstat(packed._descriptor).st_blocks * 512 < os.fstat(packed._descriptor).st_size // 4  # holes are kept
    plain.close()
    packed.close()


@pytest.mark.parametrize(
    ("what", "words"),
    [("cut", "is packed by gzip, and truncated or damaged"), ("damaged", "is packed by gzip, and truncated or damaged"),
     ("text", "no ledger of execmem: it does not begin"), ("short", "is truncated or no ledger: 7 bytes"),
     ("small", "is truncated: ")],
)  # fmt: skip
def test_what_gzip_packed_badly_is_told(saved: Path, tmp_path: Path, what: str, words: str) -> None:
    path = tmp_path / "bad.gz"
    whole = gzip.compress(saved.read_bytes(), 1)
    raw = {
        "cut": whole[:-40], "damaged": whole[:200] + bytes(400) + whole[600:], "text": gzip.compress(b"x" * 5000),
        "short": gzip.compress(b"EXECMEM"), "small": gzip.compress(saved.read_bytes()[:100_000]),
    }[what]  # fmt: skip
    path.write_bytes(raw)
    with pytest.raises(watch.WatchError, match=words):
        watch.open_copy(str(path))


def test_random_damage_ends_in_words_or_in_a_picture(saved: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    header = read_header(saved)
    starts = [0, *(int(header[f"{part}_offset"]) for part in ("shards", "packs", "maps", "blocks", "names"))]
    path = tmp_path / "damaged.ledger"
    shutil.copyfile(saved, path)
    ends = {"told": 0, "drawn": 0}
    for _ in range(60):
        at = rng.choice(starts) + rng.randrange(400)
        with path.open("r+b") as file:
            file.seek(at)
            kept = file.read(8)
        poke(path, at, rng.randbytes(rng.randint(1, 8)))
        try:
            read_all(path)
            ends["drawn"] += 1
        except watch.WatchError:
            ends["told"] += 1
        poke(path, at, kept)
    assert min(ends.values()) > 4
