"""The rooms of arch/, read by somebody else: binutils disassembles what they encode, for every CPU, on every host."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = "build/c/debug/test_arch"
PAGE: Final = 4096
ALL_ONES: Final = (1 << 64) - 1

Instructions = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Sample:
    """What a room encoded: its words, to be run at `at`, to lead to `to`."""

    what: str
    at: int
    to: int
    code: bytes


def number(text: str) -> int:
    """Return a number as a disassembler writes it."""
    return int(text.lstrip("#$"), 0)


# ---- what instructions do, as words tell; addresses are those of the listing, where they stand at `here` ----


def read_x86_64(sample: Sample, here: int, instructions: Instructions) -> int:
    """Return where one instruction leads, or the address it loads."""
    ((name, operands),) = instructions
    if sample.what in {"branch", "call"}:
        assert name == {"branch": "jmp", "call": "call"}[sample.what]
        return number(operands[0]) - here + sample.at
    assert operands[-1].startswith({"result": "%rax", "first": "%rdi"}[sample.what])
    if name == "movabs":
        return number(operands[0])
    assert name == "lea"
    return number(operands[-1].split("# ")[1]) - here + sample.at


def read_aarch64(sample: Sample, here: int, instructions: Instructions) -> int:
    """Return where one instruction leads, or the address that a few load into x0."""
    if sample.what in {"branch", "call"}:
        ((name, operands),) = instructions
        assert name == {"branch": "b", "call": "bl"}[sample.what]
        return number(operands[0]) - here + sample.at
    value = 0
    for name, operands in instructions:
        assert operands[0] == "x0"
        if name == "adrp":
            value = number(operands[1]) - here // PAGE * PAGE + sample.at // PAGE * PAGE
        elif name == "add":
            assert operands[1] == "x0"
            value += number(operands[2])
        elif name == "mov":
            value = number(operands[1])
        else:
            shift = number(operands[2].removeprefix("lsl "))
            assert name == "movk"
            assert value >> shift & 0xFFFF == 0
            value |= number(operands[1]) << shift
    return value


def read_riscv64(sample: Sample, here: int, instructions: Instructions) -> int:
    """Return where two instructions lead, or the address that a few load into a0."""
    del here
    registers: Counter[str] = Counter()
    at = sample.at
    for name, commented in instructions:
        operands = [operand.split(" #")[0] for operand in commented]
        rd = operands[0]
        if name in {"auipc", "lui"}:
            upper = (number(operands[1]) << 12 ^ 1 << 31) - (1 << 31)
            registers[rd] = upper + (at if name == "auipc" else 0)
        elif name == "jalr":
            low, via = operands[1].rstrip(")").split("(")
            assert rd == {"branch": "zero", "call": "ra"}[sample.what]
            assert via == {"branch": "t2", "call": "ra"}[sample.what]
            return registers[via] + number(low) & ~1
        elif name == "slli":
            registers[rd] = registers[operands[1]] << number(operands[2])
        else:
            assert name in {"addi", "addiw"}
            value = registers[operands[1]] + number(operands[2])
            registers[rd] = ((value & 0xFFFFFFFF) ^ 1 << 31) - (1 << 31) if name == "addiw" else value
        at += 4
    return registers["a0"]


@dataclass(frozen=True)
class Room:
    """How a room's words are disassembled, and what those that are always the same are called."""

    objdump: str
    needs: str
    options: tuple[str, ...]
    slot: int  # bytes between samples
    between: bytes
    read: Callable[[Sample, int, Instructions], int]
    nops: frozenset[str]
    landing: str
    trap: str
    empty: tuple[str, ...]
    far: tuple[str, ...]


ROOMS: Final = {
    "x86_64": Room(
        "objdump",
        "binutils",
        ("-m", "i386:x86-64"),
        64,
        b"\x90",
        read_x86_64,
        frozenset({"nop", "nopw", "nopl", "xchg"}),
        "endbr64",
        "int3",
        ("xor %eax,%eax", "ret"),
        ("jmp *0x0(%rip)",),
    ),
    "aarch64": Room(
        "aarch64-linux-gnu-objdump",
        "binutils-aarch64-linux-gnu",
        ("-m", "aarch64"),
        2 * PAGE,
        b"\0",
        read_aarch64,
        frozenset({"nop"}),
        "bti c",
        "brk #0x0",
        ("mov w0,#0x0", "ret"),
        ("ldr x16,", "br x16"),
    ),
    "riscv64": Room(
        "riscv64-linux-gnu-objdump",
        "binutils-riscv64-linux-gnu",
        ("-m", "riscv:rv64", "-M", "no-aliases"),
        64,
        b"\0",
        read_riscv64,
        frozenset({"addi", "c.nop", "c.addi"}),
        "auipc zero,0x0",
        "c.unimp",
        ("addi a0,zero,0", "jalr zero,0(ra)"),
        ("auipc t2,0x0", "ld t2,16(t2)", "jalr zero,0(t2)"),
    ),
}


# ---- listing ----


@pytest.fixture(scope="module")
def encoded() -> dict[str, list[Sample]]:
    """Give what each room encoded, as the C test of the rooms lists it."""
    if not (shutil.which("make") and shutil.which("gcc")):
        pytest.skip("needs make and gcc")
    make = ["make", "-s", PROGRAM]
    subprocess.run(make, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
    listed = subprocess.run([ROOT / PROGRAM, "list"], capture_output=True, text=True, check=True, timeout=60).stdout
    samples: dict[str, list[Sample]] = {name: [] for name in ROOMS}
    for line in listed.splitlines():
        room, what, at, to, code = line.split()
        samples[room].append(Sample(what, int(at, 0), int(to, 0), bytes.fromhex(code)))
    return samples


def disassemble(room: Room, samples: list[Sample], file: Path) -> list[tuple[int, Instructions]]:
    """Return where each sample stands in a listing of all of them, and what it is said to be."""
    lowest = [sample.at % PAGE if room.slot > PAGE else 0 for sample in samples]  # what counts from page to page
    places = [index * room.slot + low for index, low in enumerate(lowest)]
    content = bytearray(room.between * (room.slot * len(samples)))
    for place, sample in zip(places, samples, strict=True):
        content[place : place + len(sample.code)] = sample.code
    file.write_bytes(content)
    command = [room.objdump, "-D", "-z", "-b", "binary", *room.options, "--no-show-raw-insn", str(file)]
    if room.slot > PAGE:
        command.remove("-z")
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    lines: dict[int, tuple[str, list[str]]] = {}
    for found in re.finditer(r"^ *([0-9a-f]+):\t(\S+)[ \t]*([^\n]*)", listed, re.MULTILINE):
        words = re.sub(r"\s*//.*", "", found[3]).strip()
        lines[int(found[1], 16)] = (found[2], re.split(r",\s*", words))
    return [
        (place, [lines[at] for at in range(place, place + len(sample.code)) if at in lines])
        for place, sample in zip(places, samples, strict=True)
    ]


def check_fixed(room: Room, sample: Sample, instructions: Instructions) -> None:
    """Look at what has no target, or has it in memory."""
    told = [f"{name} {','.join(operands)}".strip() for name, operands in instructions]
    if sample.what == "nops":
        assert {line.split()[0] for line in told} <= room.nops
    elif sample.what == "far":
        assert len(told) >= len(room.far)
        assert all(line.startswith(start) for line, start in zip(told, room.far, strict=False))
        assert int.from_bytes(sample.code[-8:], "little") == sample.to
    elif sample.what == "empty":
        assert tuple(told) == room.empty
    else:
        assert told == [room.landing if sample.what == "landing" else room.trap]


@pytest.mark.unsanitized
@pytest.mark.parametrize("name", ROOMS)
def test_a_disassembler_reads_what_was_meant(name: str, encoded: dict[str, list[Sample]], tmp_path: Path) -> None:
    room = ROOMS[name]
    if not shutil.which(room.objdump):
        pytest.skip(f"needs {room.objdump}, of Debian's package {room.needs}")
    kinds = Counter(sample.what for sample in encoded[name])
    for sample, (here, instructions) in zip(
        encoded[name], disassemble(room, encoded[name], tmp_path / "code"), strict=True
    ):
        if sample.what not in {"branch", "call", "result", "first"}:
            check_fixed(room, sample, instructions)
            continue
        read = room.read(sample, here, instructions)
        assert read & ALL_ONES == sample.to, (sample, instructions)
    assert set(kinds) == {"branch", "call", "result", "first", "nops", "landing", "empty", "far", "trap"}
    assert kinds["first"] > 500
