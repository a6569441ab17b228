"""Functions: signatures, values of every type, and how a callable keeps its block."""

from __future__ import annotations

import gc
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ADD7, needs_x86

import execmem
from execmem.function import C_TYPES, parse_signature

if TYPE_CHECKING:
    from collections.abc import Callable

# System V calling convention: integers in rdi, rsi, ...; results in rax or xmm0.
FIRST = bytes.fromhex("4889f8c3")  # mov rax, rdi; ret
LAST_OF_8 = bytes.fromhex("488b442410c3")  # mov rax, [rsp + 16]; ret
SUM = bytes.fromhex("488d0437c3")  # lea rax, [rdi + rsi]; ret
SAME_FLOAT = bytes.fromhex("c3")  # ret: the first float argument is the result
LOAD = bytes.fromhex("488b07c3")  # mov rax, [rdi]; ret
STORE = bytes.fromhex("488937c3")  # mov [rdi], rsi; ret


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("i64(i64,i64)", ("i64", ("i64", "i64"))),
        (" f64 ( ptr , ptr,i64 ) ", ("f64", ("ptr", "ptr", "i64"))),
        ("void()", ("void", ())),
        ("bool( )", ("bool", ())),
    ],
)
def test_a_signature_is_read(text: str, parsed: tuple[str, tuple[str, ...]]) -> None:
    assert parse_signature(text) == parsed


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "form"),
        ("i64", "form"),
        ("i64(", "form"),
        ("i64(i64))", "form"),
        ("i64(i64) x", "form"),
        ("(i64)", "form"),
        ("int(i64)", "'int' is no type"),
        ("i64(void)", r"write \(\)"),
        ("i64(i64,)", "parameter 2 is ''"),
        ("i64(i64, long)", "parameter 2 is 'long'"),
        ("I64(i64)", "'I64'"),
        (None, "form"),
        (5, "form"),
    ],
)
def test_a_wrong_signature_is_told(text: Any, part: str, domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match=part):
        parse_signature(text)
    block = domain.place(ADD7)
    with pytest.raises(execmem.InvalidArgumentError, match=part):
        block.function(text)
    block.free()  # what was refused does not hold


@needs_x86
def test_code_is_called(domain: execmem.Domain) -> None:
    add7 = domain.place(ADD7, name="add7").function("i64(i64)")
    assert add7(35) == 42
    assert add7(-8) == -1
    assert repr(add7) == f"<Function add7 i64(i64) at {int(add7.address):#x}>"
    assert add7.__name__ == "add7"
    assert add7.signature == "i64(i64)"


@needs_x86
@pytest.mark.parametrize("kind", ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"])
def test_integers_keep_their_range(kind: str, domain: execmem.Domain) -> None:
    same = domain.place(FIRST).function(f"{kind}({kind})")
    bits = int(kind[1:])
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "i" else (0, (1 << bits) - 1)
    for value in (lowest, highest, 0, 1):
        assert same(value) == value
    for value in (lowest - 1, highest + 1):
        with pytest.raises(OverflowError):
            same(value)


@needs_x86
def test_other_types(domain: execmem.Domain) -> None:
    first, ret = domain.place(FIRST), domain.place(SAME_FLOAT)
    truth = first.function("bool(bool)")
    assert truth(True) is True
    assert truth(False) is False
    assert ret.function("f64(f64)")(math.pi) == math.pi
    assert ret.function("f32(f32)")(0.5) == 0.5
    assert ret.function("void()")() is None
    assert domain.place(SUM).function("u64(u64,u64)")(1 << 63, 5) == (1 << 63) + 5
    assert domain.place(LAST_OF_8).function(f"i64({','.join(['i64'] * 8)})")(*range(8)) == 7


@needs_x86
def test_pointers(domain: execmem.Domain) -> None:
    same = domain.place(FIRST).function("ptr(ptr)")
    array = np.arange(4, dtype=np.int64)
    block = domain.place(b"data", kind="rodata")
    assert same(None) == 0
    assert same(2**64 - 1) == 2**64 - 1
    assert same(block) == block.address
    assert same(array) == array.ctypes.data
    load, store = domain.place(LOAD).function("i64(ptr)"), domain.place(STORE).function("void(ptr,i64)")
    store(array, 77)
    assert array[0] == 77
    assert load(array) == 77
    assert load((5).to_bytes(8, "little")) == 5
    assert load(bytearray(8)) == 0
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError, match="no address"):
            same(wrong)
    for strange in ("text", 1.5, [1]):
        with pytest.raises(TypeError):
            same(strange)


@needs_x86
def test_a_wrong_number_of_arguments_is_a_type_error(domain: execmem.Domain) -> None:
    for signature, arguments in (("i64(i64)", ()), ("i64(i64)", (1, 2)), ("i64(ptr)", ()), ("i64(ptr)", (None, None))):
        with pytest.raises(TypeError):
            domain.place(FIRST).function(signature)(*arguments)


def test_only_filled_text_is_called(domain: execmem.Domain) -> None:
    with pytest.raises(execmem.InvalidArgumentError, match="never filled"):
        domain.alloc(64).function("void()")
    for kind in ("rodata", "data"):
        with pytest.raises(execmem.InvalidArgumentError, match="cannot be executed"):
            domain.place(ADD7, kind=kind).function("void()")


def test_a_callable_keeps_its_block(domain: execmem.Domain) -> None:
    block = domain.place(ADD7, name="add7")
    first, second = block.function("i64(i64)"), block.function("i64(i64)")
    with pytest.raises(execmem.BlockBusyError, match="2 callables"):
        block.free()
    with pytest.raises(execmem.BusyError, match="2 callables"):
        domain.close(force=True)
    del first
    view = block.view
    with pytest.raises(execmem.BlockBusyError, match="1 callable and 1 view"):
        block.free()
    del view
    address = block.address
    del block
    gc.collect()
    assert domain.find(address).name == "add7"
    del second
    with pytest.raises(execmem.FreedAddressError):
        domain.find(address)


@needs_x86
def test_a_refused_callable_holds_nothing(domain: execmem.Domain) -> None:
    with domain.place(ADD7) as block:
        for signature in ("bogus", "i64(what)"):
            with pytest.raises(execmem.InvalidArgumentError) as caught:
                block.function(signature)
            assert not block._holders, caught
    assert block.state == "freed"


@needs_x86
def test_a_callable_is_called_by_a_finalizer_of_a_collection() -> None:
    told: list[int] = []
    before = execmem.default_domain().stats().charged_bytes

    class Last:
        def __init__(self) -> None:
            self.function = execmem.Domain("cycle").place(ADD7).function("i64(i64)")
            self.me = self

        def __del__(self) -> None:
            told.append(self.function(35))

    Last()
    gc.collect()
    assert told == [42]
    assert execmem.default_domain().stats().charged_bytes == before


def test_a_call_in_flight_keeps_its_block(run_child: Callable[..., str]) -> None:
    # The code spins until a byte of its argument is set: pause; cmp byte [rdi], 0; je -7; ret
    told = run_child(
        """
        import threading, time, execmem, numpy as np
        domain = execmem.Domain()
        spin = bytes.fromhex("f390803f0074f9c3")
        flag = np.zeros(64, np.uint8)
        thread = threading.Thread(target=domain.place(spin).function("void(ptr)"), args=(flag,))
        thread.start()
        time.sleep(0.05)
        assert len(domain) == 1
        try:
            domain.close(force=True)
        except execmem.BusyError as error:
            print(error)
        flag[0] = 1
        thread.join()
        del thread
        assert len(domain) == 0
        """
    )
    assert "1 callable" in told


def test_every_type_is_in_the_documentation() -> None:
    text = execmem.function.__doc__ or ""
    assert all(name in text for name in [*C_TYPES, "void"])
