"""What does a function cost from Python, beside what Python programs use today? Writes results/python.json.

    python benchmarks/python_layer.py --out benchmarks/results/python.json

Each subject places machine code and takes it away again; the subjects take turns, round by round, in one process, and a
figure is the median over the rounds, in CPU time. Beside execmem stand the loader that programs write by hand (mmap,
copy, mprotect, munmap through ctypes) and the object path of LLVM through llvmlite: a prebuilt object of one empty
function goes into an engine (MCJIT) or a library of its own (LLJIT), is linked, looked up, and removed where
LLVM can.
llvmlite is left out, with the reason, where it is not installed.
"""

# ruff: noqa: ANN401 - modules that may be missing, and what comes from them, have no type

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import itertools
import json
import mmap
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import building
import machine
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[], object]
    Row = dict[str, Any]

SMALL = b"\xc3" * 64  # x86-64: ret
MANY = 10_000
SOME = 500
BASE = "place + free, alias"
ROUNDS = 15
ROUND_NS = 20_000_000
NAME = "function_"  # of the function in LLVM's object; others of its length are written over it
CTYPES = "ctypes mmap + mprotect + munmap"
MCJIT = "llvmlite MCJIT, an object each, never freed"
MCJIT_ENGINE = "llvmlite MCJIT, an engine each"
LLJIT = "llvmlite LLJIT, a library each"
OTHERS = (CTYPES, MCJIT, MCJIT_ENGINE, LLJIT)


class Subject:
    """A call to be timed, with how many blocks it handles and how often a round makes it."""

    def __init__(self, name: str, call: Call, blocks: int = 1, before: Call | None = None) -> None:
        """Take a call; `before` runs ahead of each call, off the clock."""
        self.name, self.call, self.blocks, self.before = name, call, blocks, before
        self.times = 1
        self.ns: list[float] = []

    def _time(self) -> int:
        call = self.call
        if self.before is None:
            start = time.process_time_ns()
            for _ in range(self.times):
                call()
            return time.process_time_ns() - start
        took = 0
        for _ in range(self.times):
            self.before()
            start = time.process_time_ns()
            call()
            took += time.process_time_ns() - start
        return took

    def calibrate(self, round_ns: int) -> None:
        """Decide how many calls fill a round."""
        while (took := self._time()) < round_ns:
            self.times = max(self.times + 1, min(self.times * 10, int(self.times * round_ns / max(took, 1))))
            if took > round_ns * 0.8:
                break

    def round(self) -> None:
        """Take one more figure."""
        self.ns.append(self._time() / self.times / self.blocks)

    def row(self) -> Row:
        """Return the median and its neighbours."""
        ns = sorted(self.ns)
        quarter = len(ns) // 4
        return {
            "what": self.name,
            "ns": round(statistics.median(ns), 1),
            "ns_min": round(ns[0], 1),
            "ns_q1": round(ns[quarter], 1),
            "ns_q3": round(ns[-1 - quarter], 1),
            "blocks": self.blocks,
            "calls": self.times,
        }


# ---- execmem ----


def place_and_free(domain: Any) -> Call:
    place = domain.place

    def cycle() -> None:
        place(SMALL).free()

    return cycle


def single(execmem: Any) -> list[Subject]:
    """Return the subjects of one block at a time: objects, the three calls, and the crossing into C alone."""
    subjects = []
    for mode in ("alias", "syscall"):
        domain = execmem.Domain(f"bench-{mode}", write_mode=mode)
        domain.place(SMALL * 1000, name="kept")  # the pack's birth is not what is measured
        subjects.append(Subject(f"place + free, {mode}", place_and_free(domain)))

    def three_calls() -> None:
        address = execmem.execmem_alloc(len(SMALL))
        execmem.execmem_fill(address, SMALL)
        execmem.execmem_free(address)

    execmem.execmem_alloc(4096)
    return [*subjects, Subject("alloc + fill + free, the default mode", three_calls), *crossings()]


def crossings() -> list[Subject]:
    """Return what the bare binding costs: the difference to the objects is Python's own."""
    core = importlib.import_module("execmem._core")
    ffi, lib = core.ffi, core.lib
    if not hasattr(lib, "execmem_place"):
        return []
    options = ffi.new("execmem_options *", {"name": ffi.NULL, "write_mode": lib.EXECMEM_MODE_ALIAS})
    handle, out = ffi.new("execmem_domain **"), ffi.new("void *[1]")
    if lib.execmem_domain_open(options, handle):
        raise RuntimeError(ffi.string(lib.execmem_error_text()))
    domain, text, place, free = handle[0], lib.EXECMEM_TEXT, lib.execmem_place, lib.execmem_free_in
    place(domain, text, SMALL * 1000, len(SMALL) * 1000, 16, ffi.NULL, out)

    def crossing() -> None:
        place(domain, text, SMALL, len(SMALL), 16, ffi.NULL, out)
        free(domain, out[0])

    return [
        Subject("place + free through cffi alone, alias", crossing),
        Subject("an empty call through cffi", lib.execmem_error_code),
    ]


def batches(execmem: Any) -> list[Subject]:
    """Return placing and freeing 10,000 blocks of 64 bytes, each by itself, from arrays and from a list."""
    data = np.frombuffer(SMALL * MANY, dtype=np.uint8)
    offsets = np.arange(MANY + 1, dtype=np.uint64) * len(SMALL)
    held: list[Any] = []

    def drop_arrays() -> None:
        while held:
            execmem.execmem_free_many(held.pop())

    def place_arrays() -> None:
        held.append(execmem.execmem_place_many(data, offsets))

    def has_one() -> None:
        if not held:
            place_arrays()

    subjects = [
        Subject("place_many of arrays, the default mode", place_arrays, MANY, drop_arrays),
        Subject("free_many of arrays, the default mode", drop_arrays, MANY, has_one),
    ]
    codes = [SMALL] * MANY
    for mode in ("alias", "syscall"):
        domain = execmem.Domain(f"bench-many-{mode}", write_mode=mode)
        subjects += list_batch(domain, codes, mode)
    return subjects


def list_batch(domain: Any, codes: list[bytes], mode: str) -> list[Subject]:
    held: list[Any] = []

    def drop() -> None:
        while held:
            held.pop().free()

    def place() -> None:
        held.append(domain.place_many(codes))

    def has_one() -> None:
        if not held:
            place()

    return [
        Subject(f"place_many of a list, {mode}", place, len(codes), drop),
        Subject(f"free of place_many's, {mode}", drop, len(codes), has_one),
    ]


# ---- what programs use today ----


def by_hand() -> Subject:
    """Return the loader that is written by hand: pages of its own for each function."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    page = mmap.PAGESIZE
    writable, executable = mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

    def cycle() -> None:
        address = libc.mmap(None, page, writable, flags, -1, 0)
        ctypes.memmove(address, SMALL, len(SMALL))
        libc.mprotect(address, page, executable)
        libc.munmap(address, page)

    return Subject(CTYPES, cycle)


def object_image(binding: Any) -> bytes:
    """Return the object file of one empty function of a name that is easy to find in it."""
    with binding.parse_assembly(f"define void @{NAME}() {{ ret void }}") as module:
        image: bytes = host_machine(binding).emit_object(module)
    return image


def host_machine(binding: Any) -> Any:
    return binding.Target.from_default_triple().create_target_machine(cpu=binding.get_host_cpu_name())


def mcjit_objects(binding: Any, image: bytes) -> Subject:
    """Return the cheapest way that MCJIT has: one engine, an object for each function. It cannot take one out again."""
    images = [
        (name, image.replace(NAME.encode(), name.encode())) for name in (f"{n:0{len(NAME)}}" for n in range(SOME))
    ]
    engines: list[Any] = []

    def new_engine() -> None:
        while engines:
            engines.pop().close()
        engines.append(binding.create_mcjit_compiler(binding.parse_assembly(""), host_machine(binding)))

    def add_all() -> None:
        engine = engines[0]
        for name, data in images:
            engine.add_object_file(binding.ObjectFileRef.from_data(data))
            engine.finalize_object()
            if not engine.get_function_address(name):
                raise RuntimeError(name)

    return Subject(MCJIT, add_all, SOME, new_engine)


def mcjit_engines(binding: Any, image: bytes) -> Subject:
    """Return the way in which MCJIT can free a function: an engine for each, closed at the end."""

    def cycle() -> None:
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), host_machine(binding))
        engine.add_object_file(binding.ObjectFileRef.from_data(image))
        engine.finalize_object()
        if not engine.get_function_address(NAME):
            raise RuntimeError(NAME)
        engine.close()

    return Subject(MCJIT_ENGINE, cycle)


def lljit_libraries(binding: Any, image: bytes) -> Subject:
    """Return ORC's way: a library for each function, taken out when its tracker goes."""
    lljit = binding.create_lljit_compiler()
    number = itertools.count()

    def cycle() -> None:
        builder = binding.JITLibraryBuilder().add_object_img(image).export_symbol(NAME)
        if not builder.link(lljit, f"library{next(number)}")[NAME]:
            raise RuntimeError(NAME)

    return Subject(LLJIT, cycle)


def llvm() -> tuple[list[Subject], dict[str, str], str]:
    """Return the subjects of llvmlite, what is left out and why, and llvmlite's version."""
    try:
        binding = importlib.import_module("llvmlite.binding")
    except ImportError as error:
        return [], {"llvmlite": f"not installed (pip install llvmlite): {error}"}, "not available"
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    image = object_image(binding)
    subjects = [mcjit_objects(binding, image), mcjit_engines(binding, image)]
    missing = {}
    if hasattr(binding, "create_lljit_compiler"):
        subjects.append(lljit_libraries(binding, image))
    else:
        missing["lljit"] = "this llvmlite has no LLJIT"
    return subjects, missing, str(importlib.import_module("llvmlite").__version__)


# ---- the run ----


def ratios(rows: list[Row]) -> dict[str, float]:
    """Return how many times longer each of the others takes than execmem's place and free in mode alias."""
    ns = {row["what"]: row["ns"] for row in rows}
    return {name: round(ns[name] / ns[BASE], 2) for name in OTHERS if name in ns and ns.get(BASE)}


def measure(rounds: int = ROUNDS, round_ns: int = ROUND_NS, *, only: tuple[str, ...] = ()) -> Row:
    """Run the subjects (those named, or all) in turns; return rows, ratios and what was left out."""
    missing: dict[str, str] = {}
    subjects = [by_hand()]
    version = "not asked"
    if not only or any(name.startswith("llvmlite") for name in only):
        more, left_out, version = llvm()
        subjects += more
        missing |= left_out
    try:
        execmem = importlib.import_module("execmem")
    except ImportError as error:
        missing["execmem"] = f"the extension is not built (make build): {error}"
    else:
        subjects += [*single(execmem), *batches(execmem)]
    subjects = [subject for subject in subjects if not only or subject.name in only]
    gc.collect()
    gc.disable()
    try:
        for subject in subjects:
            subject.calibrate(round_ns)
        for _ in range(rounds):
            for subject in subjects:
                subject.round()
    finally:
        gc.enable()
    rows = [subject.row() for subject in subjects]
    return {"results": rows, "ratios": ratios(rows), "missing": missing, "llvmlite": version}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the Python layer beside ctypes and llvmlite.")
    parser.add_argument("--out", type=Path, help="where the JSON goes; without it only the table is printed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"the figure is their median (default: {ROUNDS})")
    parser.add_argument("--round-ms", type=float, default=ROUND_NS / 1e6, help="length of a round")
    options = parser.parse_args(arguments)
    run = measure(options.rounds, int(options.round_ms * 1e6))
    for row in run["results"]:
        print(f"{row['what']:44} {row['ns']:12,.1f} ns a block")
    for name, ratio in run["ratios"].items():
        print(f"{name}: {ratio:.1f} times as long as {BASE}")
    for name, why in run["missing"].items():
        print(f"left out: {name}: {why}")
    if options.out:
        compilers = {"c": building.version_of(building.compiler("CC", "cc"))}
        head = {
            "schema": 1,
            "what": "ns of CPU time a block, 64 bytes of code",
            "machine": machine.describe(compilers) | {"llvmlite": run.pop("llvmlite"), "numpy": np.__version__},
            "options": {"rounds": options.rounds, "round_ms": options.round_ms},
        }
        options.out.write_text(json.dumps(head | run, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
