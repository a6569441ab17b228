"""Domains, blocks and tables: who holds what, limits, windows, write modes, closing, forks."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ADD7, MODES, PACK, TRAP

import execmem
from execmem import ledger
from execmem._core import ffi, lib
from execmem.memory import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("text", "rodata", "data")


# ---- blocks ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_placed_and_freed(kind: str, mode: str) -> None:
    with execmem.Domain("d", write_mode=mode) as domain:
        block = domain.place(ADD7, name="añadir", kind=kind, align=256)
        assert (len(block), block.size, block.name, block.kind, block.state) == (5, 5, "añadir", kind, "filled")
        assert block.address % 256 == 0
        assert int.__index__(block.address) == block.__index__() == int(ctypes.c_void_p(block.address).value or 0)
        assert bytes(block) == ADD7
        assert block.pack == (block.address - domain.stats().window) // PACK
        assert block.domain is domain
        assert repr(block) == f"<Block 'añadir' {block.address:#x} 5 bytes {kind} filled>"
        info = domain.find(block.address + 4)
        assert (info.address, info.size, info.rounded, info.kind, info.name) == (block.address, 5, 64, kind, "añadir")
        assert info.domain == domain.number
        domain.check()
        block.free()
        assert block.state == "freed"
        assert repr(block).endswith("freed>")
        assert domain.write_mode == mode
        domain.check()


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_never_filled_is_blank(kind: str, mode: str) -> None:
    blank = bytes([TRAP if kind == "text" else 0])
    with execmem.Domain("d", write_mode=mode) as domain:
        block = domain.alloc(1000, kind=kind)
        assert block.state == "reserved"
        assert bytes(block) == blank * 1000
        block.fill(b"abc", offset=10)
        assert block.state == "filled"
        assert bytes(block) == blank * 10 + b"abc" + blank * 987
        block.free()
        again = domain.alloc(1000, kind=kind)
        assert bytes(again) == blank * 1000


@pytest.mark.parametrize("size", [PACK - 1, PACK, PACK + 1, 5 * PACK + 100])
def test_blocks_as_large_as_packs(size: int, mode: str) -> None:
    code = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    with execmem.Domain("d", write_mode=mode) as domain:
        small = domain.place(b"before")
        block = domain.place(code)
        assert np.array_equal(block.view, code)
        assert domain.find(block.address + size - 1).address == block.address
        domain.check()
        del block
        domain.check()
        assert bytes(small) == b"before"
        assert len(domain) == 1


def test_a_dropped_block_is_freed(domain: execmem.Domain) -> None:
    block = domain.place(ADD7)
    address = block.address
    del block
    assert len(domain) == 0
    with pytest.raises(execmem.FreedAddressError):
        execmem.find(address)


def test_a_block_is_a_context_manager(domain: execmem.Domain) -> None:
    with domain.place(ADD7) as block:
        assert len(domain) == 1
    assert block.state == "freed"
    with domain.place(ADD7) as block:
        block.free()
    with domain.place(ADD7) as block:
        view = block.view
        with pytest.raises(execmem.BlockBusyError), block:
            pass
        with pytest.raises(KeyError), block:  # the error is not hidden behind the view
            raise KeyError
        assert view[0] == ADD7[0]
        del view
    assert len(domain) == 0


def test_a_freed_block_refuses(domain: execmem.Domain) -> None:
    block = domain.place(ADD7, name="gone")
    block.free()
    with pytest.raises(execmem.DoubleFreeError, match="'gone'"):
        block.free()
    for use in (
        lambda: block.fill(b"x"),
        lambda: block.view,
        lambda: bytes(block),
        lambda: block.function("void()"),
        lambda: block.pack,
        lambda: hex(block),
    ):
        with pytest.raises(execmem.FreedAddressError, match="'gone'"):
            use()


@pytest.mark.parametrize(("offset", "length"), [(0, 65), (64, 1), (60, 5), (2**64 - 1, 1), (1000, 0)])
def test_a_block_is_not_filled_beyond_its_end(offset: int, length: int, domain: execmem.Domain) -> None:
    blocks = [domain.alloc(64) for _ in range(3)]
    with pytest.raises(execmem.BoundsError, match="would leave"):
        blocks[1].fill(b"x" * length, offset)
    assert all(bytes(block) == bytes([TRAP]) * 64 for block in blocks)


@pytest.mark.parametrize("offset", [-1, 1.0, None, 2**64])
def test_a_wrong_offset_is_refused(offset: Any, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="offset"):
        domain.alloc(64).fill(b"x", offset)


def test_a_block_freed_behind_its_back_is_told(domain: execmem.Domain) -> None:
    block = domain.place(ADD7)
    execmem.execmem_free(block.address)
    assert block.state == "freed"
    with pytest.raises(execmem.DoubleFreeError):
        block.free()
    block._live = False  # or dropping it would tell again, as an unraisable error


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "", "a name with spaces", "\N{SNOWMAN}" * 85])
def test_a_name_is_kept(name: str, domain: execmem.Domain) -> None:
    block = domain.place(ADD7, name=name)
    assert domain.find(block).name == name
    assert domain.names(domain.blocks()) == [name]


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "a\0b", "\ud800", 5, b"bytes"])
def test_a_wrong_name_is_refused(name: Any, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="name"):
        domain.place(ADD7, name=name)
    with pytest.raises(execmem.InvalidArgumentError, match="name"):
        domain.place_many([ADD7], names=[name])
    assert len(domain) == 0


@pytest.mark.parametrize("kind", ["Text", "", None, 0, []])
def test_a_wrong_kind_is_refused(kind: Any, domain: execmem.Domain) -> None:
    for call in (domain.alloc, domain.place, domain.alloc_many, domain.place_many):
        argument: Any = {domain.alloc: 5, domain.place: b"x", domain.alloc_many: [5], domain.place_many: [b"x"]}[call]
        with pytest.raises(execmem.InvalidArgumentError, match="kind"):
            call(argument, kind=kind)


@pytest.mark.parametrize("size", [0, -1, 2**64, 1.5, None])
def test_a_wrong_size_is_refused(size: Any, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError):
        domain.alloc(size)
    with pytest.raises(execmem.InvalidArgumentError):
        domain.alloc_many([8, size])


def test_nothing_cannot_be_placed(domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="at least 1 byte"):
        domain.place(b"")
    with pytest.raises(execmem.InvalidArgumentError, match="at least 1 byte") as caught:
        domain.place_many([b"x", b""])
    assert caught.value.index == 1


# ---- views ----


def test_a_view_shows_the_block_and_keeps_it(domain: execmem.Domain) -> None:
    block = domain.place(ADD7, name="seen")
    view = block.view
    assert view.dtype == np.uint8
    assert view.tobytes() == ADD7
    assert view.ctypes.data == block.address
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        view.flags.writeable = True
    block.fill(b"\x90")
    assert view[0] == 0x90
    part = view[2:4]
    del view
    with pytest.raises(execmem.BlockBusyError, match=r"'seen' .* held by 1 view"):
        block.free()
    del block
    assert len(domain) == 1
    assert part.tolist() == list(ADD7[2:4])
    del part
    assert len(domain) == 0


def test_a_failed_view_holds_nothing(domain: execmem.Domain) -> None:
    block = domain.place(ADD7)
    block.free()
    with pytest.raises(execmem.FreedAddressError):
        _ = block.view
    gc.collect()
    assert not domain._holders


# ---- batches ----


def test_a_batch_is_a_sequence_of_blocks(mode: str) -> None:
    codes = [bytes([number % 256]) * (number + 1) for number in range(500)]
    names = [f"function number {number} of a batch with long names" for number in range(500)]
    with execmem.Domain("d", write_mode=mode) as domain:
        blocks = domain.place_many(codes, names=names, align=32)
        assert len(blocks) == 500
        assert [bytes(block) for block in blocks] == codes
        assert [block.name for block in blocks] == names
        assert blocks.sizes.tolist() == list(range(1, 501))
        assert not (blocks.addresses % 32).any()
        assert blocks[7] is blocks[7]
        assert blocks[-1].name == names[-1]
        assert [block.name for block in blocks[3:5]] == names[3:5]
        with pytest.raises(IndexError):
            _ = blocks[500]
        with pytest.raises(ValueError, match="read-only"):
            blocks.addresses[0] = 1
        assert domain.names(domain.blocks()) == [name for _, name in sorted(zip(blocks.addresses, names, strict=True))]
        domain.check()
        element = blocks[3]
        del blocks
        assert len(domain) == 500
        assert bytes(element) == codes[3]
        del element
        assert len(domain) == 0


def test_elements_of_a_batch_are_freed_once(domain: execmem.Domain) -> None:
    blocks = domain.alloc_many([64] * 10)
    element = blocks[3]
    element.free()
    assert (element.state, blocks[3].state, blocks[4].state, len(domain)) == ("freed", "freed", "reserved", 9)
    with pytest.raises(execmem.DoubleFreeError):
        element.free()
    blocks.free([3, 4])
    blocks.free(slice(None, None, 2))
    assert len(domain) == 4
    assert repr(blocks) == "<Blocks of 'test': 4 of 10 live, text>"
    view = blocks[5].view
    with pytest.raises(execmem.BlockBusyError, match="1 view"):
        blocks.free()
    assert len(domain) == 4
    del view
    blocks.free()
    blocks.free()
    assert len(domain) == 0


def test_a_batch_survives_its_domain() -> None:
    domain = execmem.Domain()
    blocks = domain.place_many([b"a", b"b"])
    element = blocks[0]
    domain.close(force=True)
    for use in (blocks.free, element.free, lambda: element.view):
        with pytest.raises(execmem.ClosedError):
            use()
    assert element.state == "freed"


@pytest.mark.parametrize("codes", [[5], ["text"], [None], [b"a", [1]], 5])
def test_wrong_codes_are_refused(codes: Any, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match=r"codes|contiguous buffer"):
        domain.place_many(codes)


@pytest.mark.parametrize("names", [["one"], ["a", "b", "c"], "ab", ["a", None], ["a", "b\0c"], 5, iter("a")])
def test_wrong_names_are_refused(names: Any, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="name"):
        domain.place_many([b"a", b"b"], names=names)
    assert len(domain) == 0


def test_names_are_any_iterable_and_copied(domain: execmem.Domain) -> None:
    names = ["a", "b"]
    blocks, others = domain.place_many([b"1", b"2"], names=names), domain.alloc_many([1, 2], names=iter(names))
    names.clear()
    assert [block.name for block in (*blocks, *others)] == ["a", "b", "a", "b"]


def test_batches_take_any_buffer(domain: execmem.Domain) -> None:
    blocks = domain.place_many([np.arange(3, dtype=np.uint16), bytearray(b"x"), memoryview(b"yz")])
    assert [bytes(block) for block in blocks] == [bytes([0, 0, 1, 0, 2, 0]), b"x", b"yz"]


# ---- limits ----


@pytest.mark.parametrize(
    ("text", "number"),
    [("64M", 64 << 20), ("2g", 2 << 30), ("4 KiB", 4096), ("10", 10), ("1.5k", 1536), ("1TB", 1 << 40), (7, 7)],
)
def test_sizes_as_texts(text: str, number: int) -> None:
    assert parse_bytes(text, "limit") == number


@pytest.mark.parametrize("value", ["", "M", "64X", "-1", "1e3", 0, "0", -1, 2**64, 1.5, [], "64MM"])
def test_wrong_sizes_are_refused(value: Any) -> None:
    for argument in ("limit", "window"):
        with pytest.raises(execmem.InvalidArgumentError, match=argument):
            execmem.Domain(**{argument: value})


def test_a_limit_counts_rounded_bytes_up_the_tree() -> None:
    with execmem.Domain("parent", limit=640) as parent, execmem.Domain("child", parent=parent, limit=256) as child:
        assert (parent.limit, child.limit) == (640, 256)
        blocks = [child.alloc(1) for _ in range(4)]
        with pytest.raises(execmem.LimitError, match='"child" has 256 of 256'):
            child.alloc(1)
        with pytest.raises(execmem.LimitError) as caught:
            child.alloc_many([1, 1])
        assert caught.value.index == 0
        assert len(child) == 4
        more = [parent.alloc(64) for _ in range(6)]
        assert parent.stats().charged_bytes == 640
        with pytest.raises(execmem.LimitError, match='"parent" has 640 of 640'):
            parent.alloc(1)
        blocks.pop().free()
        more.append(parent.alloc(1))
        child.limit = None
        assert child.limit is None
        with pytest.raises(execmem.LimitError, match='"parent"'):
            child.alloc(1)
        parent.limit = "1K"
        blocks.append(child.alloc(1))
        child.limit = 64  # below what is charged: stops further blocks only
        with pytest.raises(execmem.LimitError):
            child.alloc(1)
        child.check()
        parent.check()


# ---- windows ----


def test_a_full_window_is_told() -> None:
    with execmem.Domain("small", window="2M") as domain:
        assert domain.stats().window_bytes == PACK
        whole = domain.alloc(PACK)
        for size in (1, PACK, PACK + 1):
            with pytest.raises(execmem.OutOfWindowError, match="small"):
                domain.alloc(size)
        with pytest.raises(execmem.OutOfWindowError):
            domain.alloc(1, kind="data")
        whole.free()
        domain.alloc(1)
        domain.check()


@pytest.mark.parametrize("window", ["1M", "16G", 1])
def test_an_impossible_window_is_refused(window: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="window"):
        execmem.Domain(window=window)


def libc_function() -> int:
    return ctypes.cast(ctypes.CDLL(None).printf, ctypes.c_void_p).value or 0


@pytest.mark.parametrize("near", [execmem.LIBC, "printf", libc_function()], ids=["LIBC", "symbol", "address"])
def test_a_window_is_near(near: Any) -> None:
    with execmem.Domain("near", near=near, reach="1G", window="16M") as domain:
        stats = domain.stats()
        for edge in (stats.window, stats.window + stats.window_bytes):
            assert abs(edge - libc_function()) <= (1 << 30) + (4 << 20)
        assert not stats.far
        block = domain.place(ADD7)
        with execmem.Domain("beside", near=block, window="16M") as other:
            assert abs(other.place(ADD7).address - block.address) < 2 << 30


def test_out_of_reach_is_an_error_or_the_fallback() -> None:
    with pytest.raises(execmem.OutOfWindowError, match="fallback"):
        execmem.Domain(near=1 << 20, reach="4M", window="64M")
    with execmem.Domain(near=1 << 20, reach="4M", window="64M", fallback=True) as domain:
        assert domain.stats().far
        assert domain.place(ADD7).address > 1 << 30


@pytest.mark.parametrize("near", [0, -1, 2**64, 1.5, "no_such_symbol_anywhere", "a\0b"])
def test_a_wrong_neighbour_is_refused(near: Any) -> None:
    with pytest.raises((execmem.InvalidArgumentError, execmem.InvalidAddressError)):
        execmem.Domain(near=near)


def test_reach_needs_near() -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="near"):
        execmem.Domain(reach="1G")


def test_windows_lie_at_random() -> None:
    windows = set()
    for _ in range(8):
        with execmem.Domain(window="2M") as domain:
            windows.add(domain.stats().window)
    assert len(windows) == 8


# ---- write modes, pages ----


@pytest.mark.parametrize("write_mode", ["auto", "SYSCALL", 1, [], ""])
def test_a_wrong_write_mode_is_refused(write_mode: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="write_mode"):
        execmem.Domain(write_mode=write_mode)


def test_the_default_mode_has_no_writable_view(domain: execmem.Domain) -> None:
    assert domain.write_mode == domain.stats().write_mode
    assert domain.write_mode in MODES


def test_pages_are_told_as_they_are(mode: str) -> None:
    for small_pages in (False, True):
        with execmem.Domain(write_mode=mode, small_pages=small_pages) as domain:
            blocks = domain.place_many([b"x" * 4000] * 2000)
            stats = domain.stats()
            assert stats.packs >= 4
            assert stats.huge_packs is not None
            assert stats.huge_packs <= stats.full_packs
            assert stats.huge_bytes == stats.huge_packs * PACK
            if small_pages:
                assert stats.huge_packs == 0
            del blocks


def test_one_small_block_does_not_hold_a_pack(domain: execmem.Domain) -> None:
    block = domain.place(b"x" * 200)
    assert 0 < domain.stats().resident_bytes < PACK // 4
    assert bytes(block) == b"x" * 200


# ---- statistics and tables ----


def test_stats_have_the_fields_of_the_core(domain: execmem.Domain) -> None:
    names = [name for name, _ in ffi.typeof("execmem_stats").fields]
    assert [field.name for field in dataclasses.fields(execmem.Stats)] == names
    stats = domain.stats()
    assert list(stats.as_dict()) == names
    assert (stats.domain, stats.parent, stats.limit) == (domain.number, 1, None)


@pytest.mark.parametrize(
    ("dtype", "record"),
    [
        (ledger.HEADER_DTYPE, "execmem_header"),
        (ledger.PACK_DTYPE, "execmem_pack"),
        (ledger.RECORD_DTYPE, "execmem_block"),
        (ledger.SHARD_DTYPE, "execmem_shard"),
        (ledger.EVENT_DTYPE, "execmem_event"),
    ],
)
def test_records_have_the_layout_of_the_core(dtype: Any, record: str) -> None:
    assert dtype.itemsize == ffi.sizeof(record)
    for name, field in ffi.typeof(record).fields:
        if name != "reserved":
            assert dtype.fields[name][1] == field.offset
            assert dtype.fields[name][0].itemsize == ffi.sizeof(field.type)
    assert ledger.NAME_DTYPE.itemsize == lib.EXECMEM_NAME_CELL


def test_tables_show_the_domain() -> None:
    with execmem.Domain("shown", parent=None, limit="1M") as domain:
        blocks = domain.place_many([ADD7] * 300, names=[f"f{number}" for number in range(300)])
        blocks.free(slice(0, 100))
        header, packs, shards, events = domain.header(), domain.packs(), domain.shards(), domain.events()
        assert header["magic"][0] == b"EXECMEM"
        assert header["name"][0] == b"shown"
        assert (header["pid"][0], header["domain"][0], header["limit"][0]) == (os.getpid(), domain.number, 1 << 20)
        assert shards[["allocs", "frees", "live_bytes"]].tolist() == [(300, 100, 1000)]
        assert packs["blocks"].sum() == 200
        assert (packs["address"][0], packs["state"][0]) == (header["window"][0], lib.EXECMEM_PACK_SMALL)
        live = domain.blocks()
        assert live["address"].tolist() == sorted(blocks.addresses[100:].tolist())
        assert (live["size"] == 5).all()
        assert (np.diff(live["address"].astype(np.int64)) > 0).all()
        assert sorted(domain.names(live)) == sorted(f"f{number}" for number in range(100, 300))
        assert (len(events), events["op"][-1]) == (shards["events"][0], lib.EXECMEM_EVENT_FREE)
        assert (np.diff(events["sequence"].astype(np.int64)) == 1).all()
        extra = domain.place(ADD7)
        assert shards["allocs"][0] == 301  # not a copy
        for table in (header, packs, shards):
            assert not table.flags.writeable
            assert not table.flags.owndata
        with pytest.raises(execmem.BusyError, match="3 tables"):
            domain.close(force=True)
        del header, packs, shards, table, extra


def test_events_of_a_ring_stay_in_order_when_a_batch_makes_a_pack() -> None:
    """The batch's time is read once, so the pack's is later than that of the blocks after it."""
    for _ in range(20):
        with execmem.Domain("order") as domain:
            blocks = domain.place_many([ADD7] * 4_000)  # fewer than the ring holds
            events = domain.events()
            assert lib.EXECMEM_EVENT_PACK in events["op"]
            assert (np.diff(events["sequence"].astype(np.int64)) == 1).all()
            del blocks


def test_a_table_keeps_its_domain() -> None:
    packs = execmem.Domain("dropped").packs()
    gc.collect()
    assert packs.shape == (0,)
    with execmem.Domain("used") as domain:
        domain.place(ADD7)
        packs = domain.packs()[:1]
        del domain
        gc.collect()
        assert packs["usable_chunks"][0] > 0
        del packs


def test_names_are_read_after_others_have_gone(domain: execmem.Domain) -> None:
    names = [f"{number}" * (1 + number % 60) for number in range(400)]
    blocks = [domain.place(ADD7, name=name) for name in names]
    blocks = blocks[::3]
    assert sorted(domain.names(domain.blocks())) == sorted(names[::3])
    more = [domain.place(ADD7, name=name) for name in names[:100]]
    assert sorted(domain.names(domain.blocks())) == sorted(names[::3] + names[:100])
    del blocks, more


# ---- the end ----


def test_a_closed_domain_refuses() -> None:
    domain = execmem.Domain("over")
    block = domain.place(ADD7)
    with pytest.raises(execmem.BusyError, match="1 live block"):
        domain.close()
    domain.close(force=True)
    domain.close()
    assert domain.closed
    assert repr(domain) == "<Domain 'over' closed>"
    assert block.state == "freed"
    for use in (
        lambda: domain.place(ADD7),
        lambda: domain.alloc(1),
        lambda: domain.place_many([ADD7]),
        lambda: domain.alloc_many([1]),
        domain.stats,
        domain.check,
        domain.packs,
        domain.shards,
        lambda: domain.limit,
        lambda: setattr(domain, "limit", 5),
        lambda: domain.find(block.address),
        lambda: execmem.Domain(parent=domain),
        lambda: len(domain),
        block.free,
        lambda: block.view,
        lambda: bytes(block),
        lambda: block.fill(b""),
    ):
        with pytest.raises(execmem.ClosedError, match="'over' is closed"):
            use()
    with block:  # nothing is left to free
        pass


def test_an_empty_domain_closes() -> None:
    domain = execmem.Domain("empty")
    domain.place(ADD7).free()
    assert bool(domain)
    domain.close()
    assert domain.closed


def test_leaving_a_with_is_refused_under_a_view() -> None:
    domain = execmem.Domain("held")
    view = domain.place(ADD7).view
    with pytest.raises(execmem.BusyError, match="1 view"), domain:
        pass
    with pytest.raises(KeyError), domain:  # the error is not hidden behind the view
        raise KeyError
    assert view.tobytes() == ADD7
    del view
    domain.close()


def test_children_go_with_their_parent() -> None:
    parent = execmem.Domain("parent")
    child = execmem.Domain("child", parent=parent)
    grandchild = execmem.Domain("grandchild", parent=child)
    block = grandchild.place(ADD7)
    assert (child.parent, child.stats().parent) == (parent, parent.number)
    with pytest.raises(execmem.BusyError, match="children"):
        parent.close()
    view = block.view
    with pytest.raises(execmem.BusyError, match="1 view"):
        parent.close(force=True)
    assert not parent.closed
    del view
    parent.close(force=True)
    assert (child.closed, grandchild.closed, block.state) == (True, True, "freed")


def test_a_dropped_domain_is_closed() -> None:
    gc.collect()
    root = execmem.default_domain()
    before = root.stats().charged_bytes
    domain = execmem.Domain("dropped")
    block = domain.place(ADD7)
    address = block.address
    del domain
    assert bytes(block) == ADD7
    assert root.stats().charged_bytes == before + 64
    del block
    gc.collect()
    assert root.stats().charged_bytes == before
    with pytest.raises(execmem.InvalidAddressError, match="no window"):
        execmem.find(address)


def test_a_cycle_is_collected() -> None:
    gc.collect()
    before = execmem.default_domain().stats().charged_bytes

    class Holder:
        pass

    holder: Any = Holder()
    holder.domain = execmem.Domain("cycle")
    holder.block = holder.domain.place(ADD7)
    holder.view, holder.blocks = holder.block.view, holder.domain.place_many([ADD7] * 3)
    holder.element, holder.self = holder.blocks[1], holder
    del holder
    gc.collect()
    assert execmem.default_domain().stats().charged_bytes == before


class Last:
    """Has a ``__del__`` that a collection runs while everything around it is garbage too."""

    def __init__(self, told: list[Any], tell: Callable[[Any], Any]) -> None:
        self.told, self.tell, self.me = told, tell, self

    def __del__(self) -> None:
        self.told.append(self.tell(self))


def test_a_collected_child_knows_that_it_is_closed() -> None:
    told: list[str] = []
    before = execmem.default_domain().stats().charged_bytes
    last: Any = Last(told, lambda last: repr(last.child))
    last.parent = execmem.Domain("parent")
    last.child = execmem.Domain("child", parent=last.parent)
    last.block = last.child.place(ADD7)
    del last
    gc.collect()
    assert len(told) == 1
    assert told[0].startswith("<Domain 'child' ")
    assert execmem.default_domain().stats().charged_bytes == before


@pytest.mark.parametrize("batch", [False, True])
def test_what_a_finalizer_saves_lives_until_it_is_dropped(batch: bool) -> None:
    told: list[Any] = []
    before = execmem.default_domain().stats().charged_bytes
    last: Any = Last(told, lambda last: (last.block.view, last.domain.packs()))
    last.domain = execmem.Domain("saved", parent=execmem.Domain("above"))
    last.blocks = last.domain.place_many([ADD7] * 2) if batch else [last.domain.place(ADD7)]
    last.block = last.blocks[0]
    del last
    gc.collect()
    assert told[0][0].tobytes() == ADD7
    assert len(told[0][1]) == 1
    told.clear()
    gc.collect()
    assert execmem.default_domain().stats().charged_bytes == before


def test_the_default_domain_is_never_closed() -> None:
    root = execmem.default_domain()
    assert root is execmem.default_domain()
    assert (root.name, root.number, root.parent, root.limit) == ("root", 1, None, None)
    for force in (False, True):
        with pytest.raises(execmem.BusyError, match="as long as the process"):
            root.close(force=force)
    root.check()


def test_a_block_of_another_domain_is_not_found(domain: execmem.Domain) -> None:
    with execmem.Domain("other") as other:
        block = other.place(ADD7)
        with pytest.raises(execmem.InvalidAddressError, match="not of 'test'"):
            domain.find(block)


@pytest.mark.parametrize("name", ["x" * 64, "a\0b", 5, "\ud800"])
def test_a_wrong_name_of_a_domain_is_refused(name: Any) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="name"):
        execmem.Domain(name)


def test_a_wrong_parent_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(execmem.InvalidArgumentError, match="parent is 3"):
        execmem.Domain(parent=wrong)


def test_a_domain_without_a_name() -> None:
    with execmem.Domain() as domain:
        assert domain.name == "unnamed"
        assert repr(domain).startswith("<Domain 'unnamed' (")


def test_a_broken_law_is_raised(domain: execmem.Domain) -> None:
    domain._header.packs_made += 1
    with pytest.raises(execmem.BrokenLawError, match="'test': "):
        domain.check()
    domain._header.packs_made -= 1


def test_one_of_two_threads_frees_a_block(domain: execmem.Domain) -> None:
    freed: list[int] = []

    def free(number: int) -> None:
        barrier.wait()
        for place, block in enumerate(blocks):
            try:
                block.free()
            except execmem.DoubleFreeError:
                continue
            freed.append(place)
        assert number < 2

    for _ in range(20):
        barrier = threading.Barrier(2)
        blocks = [domain.place(ADD7) for _ in range(50)]
        freed.clear()
        threads = [threading.Thread(target=free, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(freed) == list(range(50))
    assert len(domain) == 0


def test_a_domain_is_asked_while_it_closes(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import sys, threading, time, execmem
        sys.setswitchinterval(1e-6)
        current, stop, wrong = [execmem.Domain()], threading.Event(), []

        def ask():
            while not stop.is_set():
                domain = current[0]
                try:
                    while not stop.is_set():
                        len(domain), domain.limit, domain.write_mode, domain.closed or repr(domain)
                except execmem.ClosedError:
                    pass
                except BaseException as error:
                    wrong.append(error)
                    raise

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            current[0] = domain = execmem.Domain(window="2M")
            domain.close()
        stop.set()
        for thread in threads:
            thread.join()
        print(wrong)
        """
    )
    assert told == "[]"


def test_a_fork_waits_for_other_threads(run_child: Callable[..., str]) -> None:
    told = run_child(
        """
        import os, signal, threading, warnings, execmem
        warnings.simplefilter("ignore", DeprecationWarning)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                execmem.Domain(window="2M").close()

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(20):
            if os.fork() == 0:
                signal.alarm(60)
                execmem.Domain(window="2M").close()
                os._exit(0)
            assert os.wait()[1] == 0
        stop.set()
        thread.join()
        print("forked")
        """
    )
    assert told == "forked"


def test_daemon_threads_do_not_hold_up_the_end(run_child: Callable[..., str]) -> None:
    told = run_child("""
        import sys, threading, time, types
        import execmem
        from execmem.ledger import GATE
        sys.modules["keeper"] = types.ModuleType("keeper")  # its names go at the end, unlike those a thread needs
        sys.modules["keeper"].kept = execmem.Domain("kept")
        inside = threading.Event()
        def stay_inside():
            with GATE:
                inside.set()
                time.sleep(0.3)  # unless the main thread waits, Python ends the thread here, and GATE is never left
        threading.Thread(target=stay_inside, daemon=True).start()
        inside.wait()
        print("ends")
    """)
    assert told == "ends"
