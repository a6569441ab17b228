"""bench_loops: the machine code of ``execmem bench``, and a population of blocks of one peer that it works on.

    bench_loops.c --cc, or bench_loops.json--> one function --placed--> Population.place, cycle, free, call, verify

The loops are C, for what is timed must not be Python; they are placed by execmem, so that no compiler is needed where
the package is installed. What they call they are given: the core's C calls, and the C library's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import os
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import execmem
from execmem import demo_code
from execmem.demo_code import Code, DemoError, Machine

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem._core import ffi, lib
    from execmem.memory import to_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

NAME: Final = "bench_loops"
SOURCE: Final = Path(__file__).with_name(f"{NAME}.c")
SHIPPED: Final = Path(__file__).with_name(f"{NAME}.json")
REGENERATE: Final = "python -m execmem.bench_loops"
NO_TABLES: Final = "-fno-jump-tables"  # one would lie outside the function

# A `ret` of each CPU, with which every block begins.
RETURNS: Final = {"x86_64": b"\xc3", "aarch64": bytes.fromhex("c0035fd6")}
MACHINES: Final = {
    "x86_64": dataclasses.replace(demo_code.MACHINES["x86_64"], flags=(*demo_code.MACHINES["x86_64"].flags, NO_TABLES)),
    "aarch64": Machine(183, bytes.fromhex("000020d4"), ("-mno-outline-atomics", NO_TABLES)),
}
COMPILERS: Final = {"x86_64": "cc", "aarch64": "aarch64-linux-gnu-gcc"}  # that regenerating takes, unless CC is set


# ---- machine code: compile, or take what ships ----


def read_source() -> str:
    """Return the C source of the loops; DemoError when it is not there."""
    try:
        return SOURCE.read_text(encoding="utf-8")
    except OSError as error:
        message = f"the source of the loops cannot be read: {error}"
        raise DemoError(message) from error


def shipped_code(arch: str) -> Code:
    """Return the machine code that ships with the package; DemoError when there is none for `arch`."""
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))["machines"]
    if arch not in shipped:
        message = f"no machine code of the loops ships for {arch}, only for {', '.join(shipped)}"
        raise DemoError(message)
    entry = shipped[arch]
    origin = f"shipped with the package, made by {entry['compiler']}"
    return Code(origin, {NAME: bytes.fromhex(entry["code"])})


def choose_code(choice: str, arch: str) -> Code:
    """Return the loops compiled, or as they ship: `choice` is auto, compile or shipped. DemoError: there are none.

    Auto takes what ships: the same loops on every machine, and no compiler to wait for.
    """
    if arch not in MACHINES:
        message = f"there are no loops for {arch}; for {', '.join(MACHINES)} there are"
        raise DemoError(message)
    if choice == "compile":
        return demo_code.compile_sources({NAME: read_source()}, MACHINES[arch])
    return shipped_code(arch)


def regenerate(target: Path, archs: Sequence[str]) -> None:
    """Write `target` from the source: one compiler a CPU. DemoError when one of them is not there."""
    source = read_source()
    machines = {}
    for arch in archs:
        os.environ["CC"] = COMPILERS[arch]
        code = demo_code.compile_sources({NAME: source}, MACHINES[arch])
        machines[arch] = {
            "compiler": code.origin.removeprefix("compiled by "),
            "flags": [*demo_code.FLAGS, *MACHINES[arch].flags],
            "code": code.functions[NAME].hex(),
        }
    shipped = {"made_by": REGENERATE, "source_sha256": demo_code.digest(source), "machines": machines}
    target.write_text(json.dumps(shipped, indent=2) + "\n", encoding="utf-8")


# ---- the structures of bench_loops.c ----

# The peers and the verbs of bench_loops.c, in its order.
EXECMEM, MALLOC, PAGES, FILLED, PROGPACK, FLOOR = range(6)
PLACE, FREE, CYCLE, VERIFY, CALL, POKE, FLIP = range(7)
BLOCK: Final = np.dtype([("code", "u8"), ("writable", "u8"), ("size", "u4"), ("source", "u4")])
OP: Final = np.dtype([("slot", "u4"), ("size", "u4"), ("source", "u4")])

WORDS: Final = (
    *("blocks", "ops", "order", "source", "peer", "page", "cpu_ns", "wall_ns", "error", "domain", "first"),
    *("floor_code", "floor_writable", "floor_bytes", "floor_cursor", "holes", "holes_count", "changes", "change_size"),
)
CORE_CALLS: Final = {"place": "execmem_place", "free_in": "execmem_free_in", "poke": "execmem_poke"}
LIBC_CALLS: Final = {
    **{name: name for name in ("malloc", "free", "calloc", "memcpy", "memset", "memcmp", "mmap", "mprotect", "munmap")},
    **{name: name for name in ("madvise", "memfd_create", "ftruncate", "close")},
    "lock": "pthread_mutex_lock",
    "unlock": "pthread_mutex_unlock",
    "clock_gettime": "clock_gettime",
    "errno_location": "__errno_location",
}
CALLS: Final = {**CORE_CALLS, **LIBC_CALLS}
STATE: Final = np.dtype([(name, "u8") for name in (*WORDS, *CALLS)])
SIGNATURE: Final = "u64(ptr,u64,u64,u64)"
MUTEX_BYTES: Final = 128  # more than any pthread_mutex_t; zeros are an unlocked one

CHUNK: Final = 64
STARTS, STEP = 64, 64  # where a block's bytes may begin in the source


class PeerError(Exception):
    """A peer cannot do what was asked of it here: the text says why."""


def resolve_calls() -> dict[str, int]:
    """Return the addresses of what the loops call; PeerError when the C library lacks one."""
    addresses = {name: int(ffi.cast("uintptr_t", ffi.addressof(lib, call))) for name, call in CORE_CALLS.items()}
    library = ctypes.CDLL(None)
    for name, call in LIBC_CALLS.items():
        addresses[name] = find_symbol(library, call)
    return addresses


def find_symbol(library: ctypes.CDLL, name: str) -> int:
    """Return the address of a function of a library; PeerError when it has none of that name."""
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError as error:
        message = f"it has no {name}: {error}"
        raise PeerError(message) from error


def load_library(file: str) -> ctypes.CDLL:
    """Load a shared library for itself alone; PeerError when it is not there or will not load."""
    try:
        return ctypes.CDLL(file)
    except OSError as error:
        message = f"{file} was not found or does not load: {error}"
        raise PeerError(message) from error


# ---- peers ----


@dataclass(frozen=True)
class Peer:
    """Who hands out memory: which of the loops' peers it is, in which write mode, from which library."""

    name: str
    about: str
    kind: int
    mode: str | None = None
    library: tuple[str, str, str] | None = None  # its file, its malloc, its free
    page_a_block: bool = False

    @property
    def executable(self) -> bool:
        """Whether what it hands out can be run; the floor's can, but it keeps nothing."""
        return self.kind not in {MALLOC, FLOOR}

    @property
    def holds(self) -> bool:
        """Whether blocks keep their bytes."""
        return self.kind != FLOOR


MODES: Final = ("alias", "syscall", "pkey", "procmem", "flip")
MODE_ABOUT: Final = {
    "alias": "execmem, a second writable view",
    "syscall": "execmem, written with pwrite",
    "pkey": "execmem, a writable view behind a protection key",
    "procmem": "execmem, written through /proc/self/mem",
    "flip": "execmem, whole packs turned writable and back",
}
PEERS: Final = (
    *(Peer(f"execmem-{mode}", MODE_ABOUT[mode], EXECMEM, mode=mode) for mode in MODES),
    Peer("floor", "the bytes alone, new ones over those just freed: a bound", FLOOR),
    Peer("progpack", "Linux's bpf_prog_pack over doubly mapped 2 MB pages", PROGPACK),
    Peer("mmap", "mmap, write, mprotect, munmap for every block", PAGES, page_a_block=True),
    Peer("page", "the same, filled with traps first", FILLED, page_a_block=True),
    Peer("glibc", "malloc and free, not executable, no traps: a bound", MALLOC),
    Peer(
        *("mimalloc", "mimalloc 2, not executable, no traps: a bound", MALLOC),
        library=("libmimalloc.so.2", "mi_malloc", "mi_free"),
    ),
)


# ---- sizes and sequences, the same for every peer ----

MEDIAN, MEAN = 500, 820  # bytes, of the lognormal mix
SMALLEST, LARGEST = 64, 32768


def draw_sizes(count: int, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Return lognormal sizes of median 500 and mean 820, cut to 64 B .. 32 kB, as benchmarks/harness draws them."""
    sigma = np.sqrt(2 * np.log(MEAN / MEDIAN))
    sizes = np.exp(np.log(MEDIAN) + sigma * rng.standard_normal(count))
    cut: NDArray[np.uint32] = np.clip(sizes, SMALLEST, LARGEST).astype(np.uint32)
    return cut


@dataclass(frozen=True)
class Script:
    """What happens to a population: its first blocks, then replacements, of which each peer does what it comes to."""

    blocks: NDArray[Any]
    ops: NDArray[Any]
    source: NDArray[np.uint8]
    order: NDArray[np.uint32]

    @property
    def chunk_bytes(self) -> int:
        """The bytes of the first blocks, each rounded up to chunks."""
        return int((-(-self.blocks["size"].astype(np.int64) // CHUNK) * CHUNK).sum())


def write_script(live: int, count: int, seed: int) -> Script:
    """Draw a population of `live` blocks and `count` replacements; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, LARGEST + STARTS * STEP, dtype=np.uint8)
    back = np.frombuffer(RETURNS[platform.machine()], dtype=np.uint8)
    for start in range(0, STARTS * STEP, STEP):
        source[start : start + len(back)] = back
    blocks = np.zeros(live, dtype=BLOCK)
    ops = np.zeros(count, dtype=OP)
    for drawn in (blocks, ops):
        drawn["size"] = draw_sizes(len(drawn), rng)
        drawn["source"] = rng.integers(0, STARTS, len(drawn)) * STEP
    ops["slot"] = rng.integers(0, live, count)
    return Script(blocks, ops, source, rng.permutation(live).astype(np.uint32))


# ---- a population ----


@dataclass(frozen=True)
class Timed:
    """What a loop took, in nanoseconds a step: CPU time of the process, and time that passed."""

    steps: int
    cpu_ns: float
    wall_ns: float


class Population:
    """The live blocks of one peer in this process, and the loops over them. Not for several threads."""

    def __init__(self, peer: Peer, script: Script, code: bytes) -> None:
        """Open the peer, with no block yet; PeerError when it cannot be had here, in words."""
        self.peer = peer
        self.script = script
        self.blocks = script.blocks.copy()
        self.order = script.order
        self.grown = 0
        self.cursor = 0  # the next replacement of the script
        self._buffer = np.zeros(0, dtype=OP)
        self._holes = np.zeros(len(self.blocks) + 1 if peer.kind == FLOOR else 0, dtype=np.uint64)
        self._mutex = np.zeros(MUTEX_BYTES, dtype=np.uint8)
        self._state = np.zeros(1, dtype=STATE)
        self._domain: Any = None
        for name, address in resolve_calls().items():
            self._set(name, address)
        if peer.library is not None:
            library = load_library(peer.library[0])
            self._set("malloc", find_symbol(library, peer.library[1]))
            self._set("free", find_symbol(library, peer.library[2]))
        self._set("peer", peer.kind)
        self._set("page", mmap.PAGESIZE)
        self._set("floor_bytes", script.chunk_bytes + LARGEST)
        kept = {"blocks": self.blocks, "order": self.order, "source": script.source, "holes": self._holes}
        for name, array in kept.items():
            self._set(name, array.ctypes.data)
        self._set("domain", self._open_domain() if peer.kind == EXECMEM else self._mutex.ctypes.data)
        self._loops = execmem.default_domain().place(code, name=NAME)
        self._call: Callable[..., int] = self._loops.function(SIGNATURE)

    def _set(self, name: str, value: int) -> None:
        self._state[name] = value

    def _get(self, name: str) -> int:
        return int(self._state[name][0])

    def _open_domain(self) -> int:
        options = ffi.new("execmem_options *", {"write_mode": to_mode(self.peer.mode)})
        out = ffi.new("execmem_domain *[1]")
        if lib.execmem_domain_open(options, out):
            raise PeerError(tell_core_error())
        self._domain = out[0]
        return int(ffi.cast("uintptr_t", out[0]))

    def _run(self, verb: int, first: int, count: int, what: str) -> Timed:
        """Run a loop; PeerError when it did not come to its end."""
        done = self._call(self._state.ctypes.data, verb, first, count)
        if done != count:
            why = tell_core_error() if self.peer.kind == EXECMEM or verb == POKE else os.strerror(self._get("error"))
            message = f"{what} {first + done + 1:,} of {first + count:,} failed: {why}{self._hint()}"
            raise PeerError(message)
        return Timed(count, self._get("cpu_ns") / max(count, 1), self._get("wall_ns") / max(count, 1))

    def _hint(self) -> str:
        if not self.peer.page_a_block:
            return ""
        most = read_text("/proc/sys/vm/max_map_count")
        return f" (it needs a mapping a block, vm.max_map_count is {most})"

    def grow(self, most: int | None = None) -> Timed:
        """Place every block of the script that is not there, or at most so many of them."""
        left = len(self.blocks) - self.grown
        took = self._run(PLACE, self.grown, left if most is None else min(left, most), "placing block")
        self.grown += took.steps
        return took

    def drain(self) -> Timed:
        """Free all blocks, in random order."""
        took = self._run(FREE, 0, self.grown, "freeing block")
        self.grown = 0
        return took

    def cycle(self, count: int) -> Timed:
        """Replace `count` blocks, the next of the script; at its end it begins again."""
        if len(self._buffer) < count:
            self._buffer = np.zeros(count, dtype=OP)
            self._set("ops", self._buffer.ctypes.data)
        at = np.arange(self.cursor, self.cursor + count) % len(self.script.ops)
        self._buffer[:count] = self.script.ops[at]  # so that all peers find them as near
        self.cursor += count
        return self._run(CYCLE, 0, count, "replacing block")

    def call_blocks(self, count: int) -> Timed:
        """Call `count` random blocks, each of which returns at once."""
        return self._run(CALL, 0, min(count, self.grown), "calling block")

    def verify(self) -> int:
        """Return how many live blocks do not hold what they were given; 0 is right. The floor holds nothing."""
        if not self.peer.holds:
            return 0
        return self.grown - int(self._call(self._state.ctypes.data, VERIFY, 0, self.grown))

    def set_changes(self, changes: bytes) -> None:
        """Take two instructions of one size; the first block begins with the first of them."""
        self._changes = np.frombuffer(changes, dtype=np.uint8)
        self._set("changes", self._changes.ctypes.data)
        self._set("change_size", len(changes) // 2)

    def change(self, count: int) -> Timed:
        """Change the first instruction of the first block `count` times (even): by a poke, or between two mprotect."""
        return self._run(POKE if self.peer.kind == EXECMEM else FLIP, 0, count + count % 2, "change")

    def close(self) -> None:
        """Free all blocks and the domain; the packs of the other peers go with the process."""
        self.drain()
        if self._domain is not None:
            lib.execmem_domain_close(self._domain, 1)
            self._domain = None


def tell_core_error() -> str:
    """Return the text of the core's last error."""
    text: str = ffi.string(lib.execmem_error_text()).decode("utf-8", "replace")
    return text


def read_text(path: str) -> str:
    """Return what a file of the kernel says, in one line, or that it is not available."""
    try:
        return " ".join(Path(path).read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return "not available"


def main() -> int:
    """Run ``python -m execmem.bench_loops``: write the machine code that ships, from the source beside this file."""
    try:
        regenerate(SHIPPED, tuple(COMPILERS))
    except DemoError as error:
        sys.stderr.write(f"{REGENERATE}: {error}\n")
        return 1
    sys.stdout.write(f"written: {SHIPPED}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
