"""demo_code: the machine code of the demo, and what each function must compute.

    examples/*.c --cc -c--> one object each --read_function--> bytes --regenerate--> demo_code.json, which ships

A function taken out of its object stands alone: one that has relocations is refused. Without a compiler, or without the
sources, the machine code in ``demo_code.json`` is used. Nothing here needs the compiled core.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

# Within the package when it is installed, beside it in a checkout.
_PLACES = [Path(__file__).resolve().parents[up] / "examples" for up in (0, 1)]
EXAMPLES = next((place for place in _PLACES if place.is_dir()), _PLACES[1])
SHIPPED = "demo_code.json"


class DemoError(Exception):
    """The demo cannot go on: the text says why and what to do."""


class ObjectError(DemoError):
    """An object file is not what the demo can take a function from."""


# ---- machine code: compile, or take what ships ----


@dataclass(frozen=True)
class Machine:
    """What the demo must know about a CPU: its number in ELF, its trap, and flags only its compilers take."""

    elf: int
    trap: bytes
    flags: tuple[str, ...]


MACHINES = {"x86_64": Machine(62, b"\xcc", ("-fcf-protection=none",))}

FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-fno-plt",
    "-ffreestanding",  # no calls into a C library
    "-fno-asynchronous-unwind-tables",
    "-fno-stack-protector",
    "-fno-tree-vectorize",  # vector constants would live in .rodata, outside the function
    "-fno-tree-slp-vectorize",
    "-ffp-contract=off",  # round after each step, as Python does
)


@dataclass(frozen=True)
class Code:
    """Machine code of every example by name, and where it came from, in words."""

    origin: str
    functions: Mapping[str, bytes]


_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_REL = 2, 4, 8, 9
_SHF_EXECINSTR = 4
_ET_REL = 1
_STT_FUNC = 2


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    kind: int
    section: int
    start: int
    size: int


def _cut(image: bytes, offset: int, size: int, what: str) -> bytes:
    if offset + size > len(image):
        message = f"{what} would end at byte {offset + size:,}, but the file has {len(image):,}: it is damaged"
        raise ObjectError(message)
    return image[offset : offset + size]


def _read_sections(image: bytes, machine: Machine) -> list[_Section]:
    header = _EHDR.unpack(_cut(image, 0, _EHDR.size, "the ELF header"))
    ident, file_type, elf, sections_at, entry_size, count = (header[i] for i in (0, 1, 2, 6, 11, 12))
    if ident[:4] != b"\x7fELF" or ident[4:6] != b"\x02\x01":
        message = "not a 64-bit little-endian ELF file: the compiler wrote something else"
        raise ObjectError(message)
    if file_type != _ET_REL or entry_size != _SHDR.size:
        message = f"not a relocatable object (ELF type {file_type}): compile with -c and do not link"
        raise ObjectError(message)
    if elf != machine.elf:
        message = f"made for another CPU (ELF machine {elf}, this one is {machine.elf}): use the native compiler"
        raise ObjectError(message)
    table = _cut(image, sections_at, count * _SHDR.size, "the section table")
    return [
        _Section(kind, flags, at, size, link, info)
        for _, kind, flags, _, at, size, link, info, _, _ in _SHDR.iter_unpack(table)
    ]


def _read_symbols(image: bytes, sections: Sequence[_Section]) -> list[_Symbol]:
    for section in sections:
        if section.kind != _SHT_SYMTAB or section.link >= len(sections):
            continue
        names = sections[section.link]
        strings = _cut(image, names.offset, names.size, "the string table")
        table = _cut(image, section.offset, section.size - section.size % _SYM.size, "the symbol table")
        return [
            _Symbol(strings[at:].split(b"\0", 1)[0].decode("ascii", "replace"), info & 15, index, start, size)
            for at, info, _, index, start, size in _SYM.iter_unpack(table)
        ]
    message = "no symbol table: do not strip the object"
    raise ObjectError(message)


def _refuse_relocations(image: bytes, sections: Sequence[_Section], function: _Symbol) -> None:
    symbols = _read_symbols(image, sections)
    for section in sections:
        if section.kind not in (_SHT_RELA, _SHT_REL) or section.info != function.section:
            continue
        entry = 24 if section.kind == _SHT_RELA else 16
        table = _cut(image, section.offset, section.size, "the relocation table")
        for at in range(0, len(table) - entry + 1, entry):
            offset, info = struct.unpack_from("<QQ", table, at)
            if not function.start <= offset < function.start + function.size:
                continue
            number = info >> 32
            target = (symbols[number].name if number < len(symbols) else "") or "a section, such as .rodata"
            message = (
                f"{function.name} has a relocation at byte {offset - function.start} (to {target}), so it needs"
                " something outside itself: write it without tables, string literals, globals and calls"
            )
            raise ObjectError(message)


def read_function(image: bytes, name: str, machine: Machine) -> bytes:
    """Take the bytes of function `name` out of a relocatable ELF object.

    The object must hold that one function and the function must need no relocation, because nobody will relocate it.
    Raises ObjectError, which says what to change. Cost: one pass over the symbols and the relocations.
    """
    sections = _read_sections(image, machine)
    found = [symbol for symbol in _read_symbols(image, sections) if symbol.kind == _STT_FUNC and symbol.section]
    names = [symbol.name for symbol in found]
    if name not in names:
        message = f"no function {name}: the object defines {', '.join(names) or 'none'}"
        raise ObjectError(message)
    if len(found) > 1:
        message = f"more than one function ({', '.join(names)}): {name} could call a neighbour that stays behind"
        raise ObjectError(message)
    function = found[0]
    if function.section >= len(sections) or function.size == 0:
        message = f"{name} has no bytes of its own (section {function.section}, size {function.size})"
        raise ObjectError(message)
    section = sections[function.section]
    inside = function.start + function.size <= section.size
    if not section.flags & _SHF_EXECINSTR or section.kind == _SHT_NOBITS or not inside:
        message = f"{name} does not lie within a section of machine code"
        raise ObjectError(message)
    _refuse_relocations(image, sections, function)
    return _cut(image, section.offset + function.start, function.size, f"function {name}")


def compiler_command() -> list[str]:
    """Return the C compiler to run, with its arguments if any: ``$CC`` or ``cc``."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def read_shipped() -> Any:  # noqa: ANN401 - as JSON is
    """Return what is in ``demo_code.json``."""
    return json.loads(importlib.resources.files("execmem").joinpath(SHIPPED).read_text(encoding="utf-8"))


def read_sources(folder: Path) -> dict[str, str]:
    """Return the source of every example by name; DemoError when `folder` has not all of them."""
    try:
        return {example.name: (folder / f"{example.name}.c").read_text(encoding="utf-8") for example in FUNCTIONS}
    except OSError as error:
        message = f"the sources of the examples cannot be read: {error}"
        raise DemoError(message) from error


def digest(source: str) -> str:
    """Return the SHA-256 of a source, by which a test notices shipped code that is out of date."""
    return hashlib.sha256(source.encode()).hexdigest()


def compile_sources(sources: Mapping[str, str], machine: Machine) -> Code:
    """Compile every source with the system's compiler and take its function out of the object.

    Raises DemoError when there is no compiler, a source does not compile, or an object is refused.
    Cost: one run of the compiler, 0.2 s or so.
    """
    compiler = compiler_command()
    if shutil.which(compiler[0]) is None:
        message = f"no C compiler ({compiler[0]} was not found; set CC or install gcc)"
        raise DemoError(message)
    with tempfile.TemporaryDirectory(prefix="execmem-demo-") as scratch:
        for name, source in sources.items():
            (Path(scratch) / f"{name}.c").write_text(source, encoding="utf-8")
        command = [*compiler, *FLAGS, *machine.flags, "-c", *(f"{name}.c" for name in sources)]
        done = subprocess.run(  # noqa: S603 - the compiler the user named, our own sources
            command, cwd=scratch, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            message = f"{compiler[0]} failed: {next((line for line in lines if 'error' in line), lines[0])}"
            raise DemoError(message)
        functions = {name: _read_example(Path(scratch), name, machine) for name in sources}
    return Code(f"compiled by {compiler_version(compiler)}", functions)


def _read_example(scratch: Path, name: str, machine: Machine) -> bytes:
    try:
        return read_function((scratch / f"{name}.o").read_bytes(), name, machine)
    except ObjectError as error:
        message = f"{name}.c, compiled by {compiler_command()[0]}: {error}"
        raise ObjectError(message) from error


def compiler_version(compiler: Sequence[str]) -> str:
    """Return the first line of the compiler's own answer to ``--version``."""
    done = subprocess.run(  # noqa: S603 - the compiler the user named
        [*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False
    )
    return (done.stdout.splitlines() or [compiler[0]])[0].strip()


def shipped_code(arch: str) -> Code:
    """Return the machine code that ships with the package; DemoError when there is none for `arch`."""
    shipped = read_shipped()
    if shipped["arch"] != arch:
        message = f"the machine code that ships is for {shipped['arch']}, this CPU is {arch}: install a C compiler"
        raise DemoError(message)
    functions = {name: bytes.fromhex(entry["code"]) for name, entry in shipped["functions"].items()}
    return Code(f"shipped with the package, made by {shipped['compiler']}", functions)


def regenerate(folder: Path, target: Path, arch: str) -> str:
    """Write `target` from the sources in `folder`; return where the code came from, in words."""
    sources = read_sources(folder)
    code = compile_sources(sources, MACHINES[arch])
    shipped = {
        "made_by": "python -m execmem.demo --regenerate",
        "arch": arch,
        "compiler": code.origin.removeprefix("compiled by "),
        "flags": [*FLAGS, *MACHINES[arch].flags],
        "functions": {
            name: {"source_sha256": digest(sources[name]), "code": body.hex()} for name, body in code.functions.items()
        },
    }
    target.write_text(json.dumps(shipped, indent=2) + "\n", encoding="utf-8")
    return code.origin


def choose_code(choice: str, arch: str) -> Code:
    """Return compiled code, or what ships: `choice` is auto, compile or shipped. DemoError when there is none."""
    if arch not in MACHINES:
        message = f"the demo knows no machine code for {arch}; it has {', '.join(MACHINES)}"
        raise DemoError(message)
    if choice == "shipped":
        return shipped_code(arch)
    try:
        return compile_sources(read_sources(EXAMPLES), MACHINES[arch])
    except DemoError as error:
        if choice == "compile":
            raise
        code = shipped_code(arch)
        return Code(f"{code.origin}, because: {error}", code.functions)


# ---- the examples: what each computes, and Python's own answer ----


@dataclass(frozen=True)
class Case:
    """One call: native arguments, the arrays they point into, and what Python says must come out."""

    arguments: tuple[int, ...]
    arrays: tuple[NDArray[Any], ...]
    expected: object
    output: NDArray[np.float64] | None = None

    def holds(self, function: Callable[..., object]) -> bool:
        """Call `function` and tell whether the result is exactly the expected one."""
        value = function(*self.arguments)
        return (value if self.output is None else self.output.tolist()) == self.expected


@dataclass(frozen=True)
class Example:
    """One C function of examples/: its name, its signature, what it does, and a maker of random cases."""

    name: str
    signature: str
    summary: str
    make_case: Callable[[np.random.Generator], Case]


def fnv1a(data: bytes) -> int:
    """Return the 64-bit FNV-1a hash, in plain Python.

    >>> hex(fnv1a(b"a"))
    '0xaf63dc4c8601ec8c'
    """
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _bytes_case(compute: Callable[[bytes], int]) -> Callable[[np.random.Generator], Case]:
    def make(rng: np.random.Generator) -> Case:
        data = rng.integers(0, 256, int(rng.integers(0, 400)), dtype=np.uint8)
        return Case((_address(data), len(data)), (data,), compute(data.tobytes()))

    return make


def _popcount_case(rng: np.random.Generator) -> Case:
    words = rng.integers(0, 1 << 64, int(rng.integers(0, 100)), dtype=np.uint64)
    return Case((_address(words), len(words)), (words,), sum(word.bit_count() for word in words.tolist()))


def _dot_i64_case(rng: np.random.Generator) -> Case:
    a, b = rng.integers(-(1 << 63), 1 << 63, (2, int(rng.integers(0, 100))), dtype=np.int64)
    total = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    wrapped = ((total + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)
    return Case((_address(a), _address(b), len(a)), (a, b), wrapped)


def _dot_f64_case(rng: np.random.Generator) -> Case:
    a, b = rng.standard_normal((2, int(rng.integers(0, 100))))
    total = 0.0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        total += x * y  # one rounding after the other, as the C code has it; sum() may compensate
    return Case((_address(a), _address(b), len(a)), (a, b), total)


def _matmul4_case(rng: np.random.Generator) -> Case:
    a, b = rng.standard_normal((2, 4, 4))
    left, right, product = a.tolist(), b.tolist(), []
    for row in range(4):
        for column in range(4):
            total = 0.0
            for k in range(4):
                total += left[row][k] * right[k][column]
            product.append(total)
    out = np.zeros(16)
    return Case((_address(out), _address(a), _address(b)), (a, b), product, out)


FUNCTIONS = (
    Example("fnv1a", "u64(ptr,u64)", "64-bit FNV-1a hash of bytes", _bytes_case(fnv1a)),
    Example("crc32", "u32(ptr,u64)", "CRC-32, against zlib", _bytes_case(zlib.crc32)),
    Example("adler32", "u32(ptr,u64)", "Adler-32, against zlib", _bytes_case(zlib.adler32)),
    Example("popcount", "u64(ptr,u64)", "bits set in 64-bit words", _popcount_case),
    Example("dot_i64", "i64(ptr,ptr,u64)", "dot product modulo 2^64", _dot_i64_case),
    Example("dot_f64", "f64(ptr,ptr,u64)", "dot product of doubles", _dot_f64_case),
    Example("matmul4", "void(ptr,ptr,ptr)", "4x4 matrix product", _matmul4_case),
)
