"""Build the C harness with the system's compiler into ``build/bench``, and talk to its driver.

A peer whose library is not installed is left out; the reason is kept and told. Nothing is compiled again while the
sources, the compiler and the libraries found stay the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "benchmarks"
OUT = ROOT / "build" / "bench"

CORE = ("csrc/*.c", "csrc/*.S", "arch/*.c", "arch/*.S", "arch/*/*.c", "arch/*/*.S")
HEADERS = ("csrc/*.h", "arch/*.h", "arch/*/*.h", "benchmarks/*.h", "benchmarks/harness/*.h")
POPCNT = ["-mpopcnt"] if platform.machine() == "x86_64" else []  # as the package is built
COMMON = [*POPCNT, "-O2", "-g", "-fPIC", "-pthread", "-D_GNU_SOURCE", "-Icsrc", "-Iarch", "-Ibenchmarks"]
STRICT = ["-Wall", "-Wextra", "-Wundef", "-Wshadow"]
C_FLAGS = [*COMMON, *STRICT, "-std=c11"]
CXX_FLAGS = [*COMMON, "-Wall", "-Wextra", "-std=c++17"]


@dataclasses.dataclass(frozen=True)
class Library:
    """What a peer needs: a program that shows it is there, how it is linked, and where it comes from."""

    probe: str
    link: tuple[str, ...]
    package: str  # as Debian names it
    cxx: bool = False


LIBRARIES = {
    "asmjit": Library(
        "#include <asmjit/core.h>\nint main() { asmjit::JitAllocator a; return a.blockSize() == 0; }\n",
        ("-lasmjit",),
        "libasmjit-dev",
        cxx=True,
    ),
    # The driver loads mimalloc itself, in one peer's process: linked, it would take the place of malloc in all of them.
    "mimalloc": Library(
        "#include <mimalloc.h>\nint main(void) { return sizeof(&mi_heap_new_in_arena) == 0; }\n", (), "libmimalloc-dev"
    ),
    "libffi": Library(
        "#include <ffi.h>\nint main(void) { void *p; return ffi_closure_alloc(sizeof(ffi_closure), &p) == 0; }\n",
        ("-lffi",),
        "libffi-dev",
    ),
    "tcc": Library("#include <libtcc.h>\nint main(void) { return tcc_new() == 0; }\n", ("-ltcc", "-ldl"), "libtcc-dev"),
}


@dataclasses.dataclass(frozen=True)
class Harness:
    """What was built, and what was left out and why."""

    driver: Path
    pack_design: Path
    missing: dict[str, str]
    compilers: dict[str, str]


def compiler(variable: str, default: str) -> list[str]:
    return shlex.split(os.environ.get(variable, default))


def version_of(command: list[str]) -> str:
    try:
        run = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not found"
    return run.stdout.splitlines()[0]


def find(*patterns: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern))


def call(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if run.returncode != 0:
        message = f"{shlex.join(command)}\n{run.stderr}"
        raise RuntimeError(message)


def probe(name: str, cc: list[str], cxx: list[str]) -> str | None:
    """Return why a library cannot be used, or None."""
    library = LIBRARIES[name]
    tool, standard, suffix = (cxx, "-std=c++17", "cpp") if library.cxx else (cc, "-std=c11", "c")
    if version_of(tool) == "not found":
        return f"no compiler: {shlex.join(tool)} is not found"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"probe.{suffix}"
        source.write_text(library.probe, encoding="utf-8")
        command = [*tool, standard, str(source), "-o", str(Path(scratch) / "probe"), *library.link, "-lm", "-pthread"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if run.returncode == 0 else f"not installed (Debian: apt install {library.package})"


def state(sources: list[Path], *words: object) -> str:
    digest = hashlib.sha256(json.dumps([str(word) for word in words]).encode())
    for path in sources:
        digest.update(str(path).encode() + b"\0" + (ROOT / path).read_bytes())
    return digest.hexdigest()


def compile_all(sources: list[Path], cc: list[str], cxx: list[str], defines: list[str]) -> dict[Path, str]:
    """Compile each source, return its object."""
    objects: dict[Path, str] = {}
    for path in sources:
        target = OUT / (str(path).replace("/", "_") + ".o")
        tool = [*cxx, *CXX_FLAGS] if path.suffix == ".cpp" else [*cc, *C_FLAGS]
        hidden = [] if path.parts[0] == "benchmarks" else ["-fvisibility=hidden"]
        call([*tool, *hidden, *defines, "-c", str(path), "-o", str(target)])
        objects[path] = str(target)
    return objects


def build() -> Harness:
    """Build what is not up to date."""
    cc, cxx = compiler("CC", "cc"), compiler("CXX", "c++")
    compilers = {"c": version_of(cc), "c++": version_of(cxx)}
    missing = {name: why for name in LIBRARIES if (why := probe(name, cc, cxx))}
    found = [name for name in LIBRARIES if name not in missing]
    core = find(*CORE)
    left_out = {f"peer_{name}" for name in missing}
    harness = [p for p in find("benchmarks/harness/*.c", "benchmarks/harness/*.cpp") if p.stem not in left_out]
    design = Path("benchmarks/pack_design.c")
    built = Harness(OUT / "driver", OUT / "pack_design", missing, compilers)
    now = state([*core, *harness, design, *find(*HEADERS)], cc, cxx, compilers, missing, C_FLAGS, CXX_FLAGS)
    stamp = OUT / "state"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == now:
        return built
    OUT.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    defines = ["-DBENCH_EXECMEM", *(f"-DBENCH_{name.upper()}" for name in found)]
    objects = compile_all([*core, *harness, design], cc, cxx, defines)
    link = cxx if any(LIBRARIES[name].cxx for name in found) else cc
    libraries = [word for name in found for word in LIBRARIES[name].link]
    call([*link, "-pthread", *(objects[p] for p in [*core, *harness]), *libraries, "-lm", "-o", str(built.driver)])
    mix = objects[Path("benchmarks/harness/mix.c")]
    call(
        [*cc, "-pthread", objects[design], mix, *(objects[path] for path in core), "-lm", "-o", str(built.pack_design)]
    )
    stamp.write_text(now, encoding="utf-8")
    return built


def build_program(source: str) -> tuple[Path, dict[str, str]]:
    """Build a program that needs the core and the mixes alone; return it and the compiler."""
    cc = compiler("CC", "cc")
    compilers = {"c": version_of(cc)}
    sources = [Path(source), Path("benchmarks/harness/mix.c"), *find(*CORE)]
    program = OUT / Path(source).stem
    stamp = program.with_suffix(".state")
    now = state([*sources, *find(*HEADERS)], cc, compilers, C_FLAGS)
    if not (program.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == now):
        OUT.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        call([*cc, *C_FLAGS, *map(str, sources), "-lm", "-o", str(program)])
        stamp.write_text(now, encoding="utf-8")
    return program, compilers


class Bench:
    """One peer with its population, in a process of its own that answers on pipes."""

    def __init__(self, harness: Harness, peer: str, mix: str, live: int) -> None:
        """Grow and age the population; RuntimeError says why that failed."""
        command = [str(harness.driver), "--serve", "--peers", peer, "--mix", mix, "--live", str(live)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        word, _, rest = line.strip().partition(" ")
        if word != "ok":
            self.close()
            raise RuntimeError(rest or "the driver died")
        return rest

    def _ask(self, order: str) -> str:
        if self._process.stdin:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        return self._answer()

    def draw(self, cycles: int) -> None:
        """Decide what the next `cycles` cycles free and place."""
        self._ask(f"draw {cycles}")

    def run(self) -> float:
        """Run what was drawn; nanoseconds, as the driver's clock saw it."""
        return float(self._ask("run"))

    def wrong(self) -> int:
        """Count live blocks that do not hold what was written."""
        return int(self._ask("verify"))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def driver_lines(command: list[str]) -> list[dict[str, object]]:
    """Run a program of the harness that prints JSON objects, one a line."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        message = f"{shlex.join(command)} ended with {run.returncode}: {run.stderr}"
        raise RuntimeError(message)
    return [json.loads(line) for line in run.stdout.splitlines()]
