"""lab: real kernels, booted under QEMU, load and unload BPF programs and tell what their direct map suffers.

    workload text --> initramfs (lab_init.c, compiled; the text) --> QEMU --> serial line --> rows, a dict a step

A run is one kernel and one workload, on one emulated CPU. Each row has the counters after a step of it, in the fields
of `FIELDS`; docs/lab.md tells what they and the words of a workload mean. Nobody needs to be root, and nothing is
downloaded: kernels come from the cache (kernels.py), or from a path.

A machine that hangs, panics or prints what cannot be read ends in a `LabError` with the last lines of its console. QEMU
never outlives the generator that `Machine.run` returns.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from execmem.directmap import kernels
from execmem.directmap.kernels import Kernel, LabError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    Row = dict[str, Any]
    Run = list[Row]

SOURCE: Final = Path(__file__).with_name("lab_init.c")
QEMU: Final = "qemu-system-x86_64"
TAIL_LINES: Final = 24  # of the console, told when something went wrong
TOLD_COLUMNS: Final = 300
LINE_LIMIT: Final = 1 << 16
X86_64: Final = b"\x3e\x00"  # the machine, in the header of an ELF file
PROBE_PATIENCE: Final = 15

# What a machine prints of a step, and what is put before and behind it.
TOLD: Final = {
    **dict.fromkeys(("kernel", "scn", "step"), str),
    **dict.fromkeys(("live", "loads", "unloads", "dm4k_kB", "dm2m_kB", "dm1g_kB"), int),
    **dict.fromkeys(("split2m", "split1g", "coll2m", "coll1g", "jit_areas", "jit_kB", "memfree_kB"), int),
    "t": float,
}
KINDS: Final = {"mem": str, "args": str, **TOLD, "series": str}
FIELDS: Final = tuple(KINDS)


# ---- workloads ----


@dataclass(frozen=True)
class Workload:
    """A text for lab_init.c, a line about it, and the memory of the machine that suits it."""

    text: str
    summary: str
    memory: str = "1G"


WORKLOADS: Final = {
    "ramp": Workload("scn=ramp n=4000", "load 4,000 programs; free half, load them; free all, load all"),
    "churn": Workload("scn=churn live=1000 steps=10000", "keep 1,000 programs, replace a random one 10,000 times"),
    "busy": Workload(
        "scn=churn live=1000 steps=10000 hog=400", "churn, while others take and give back pages of 400 MB"
    ),
    "aged": Workload("scn=ramp n=6000 pfrag=16 keep=200", "ramp, on memory whose free pages lie scattered"),
    "aged-churn": Workload("scn=churn live=1000 steps=10000 pfrag=16 keep=200", "churn, on such memory"),
    "full": Workload("scn=ramp n=4000 frag=32", "ramp, on memory full of pages that the kernel may move"),
    "small": Workload("scn=ramp n=4000 insns=4-8", "ramp, with programs of 4 to 8 instructions"),
    "large": Workload("scn=ramp n=4000 insns=300-400", "ramp, with programs of 300 to 400 instructions"),
    "many": Workload("scn=ramp n=20000", "ramp, with 20,000 programs: minutes", memory="4G"),
}
SCENES: Final = {"ramp": {"n"}, "churn": {"live", "steps"}}
LIMITS: Final = {"n": 1_000_000, "live": 1_000_000, "steps": 10**8, "frag": 10**6, "pfrag": 10**6, "keep": 10**6}
HOG_LIMIT: Final = 10**6
INSNS: Final = (2, 4096)


def complain(text: str, why: str) -> LabError:
    """Return the complaint about a workload."""
    names = ", ".join(WORKLOADS)
    return LabError(f"workload {text!r}: {why}; known are {names}, or a text such as 'scn=churn live=100 steps=1000'")


def read_numbers(text: str, words: dict[str, str]) -> dict[str, int]:
    """Return the numbers of a workload's text, looked at one by one."""
    numbers = {}
    for name, value in words.items():
        limit = {**LIMITS, "hog": HOG_LIMIT}.get(name)
        if limit is None:
            raise complain(text, f"there is no word {name}=")
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= limit:
            raise complain(text, f"{name}={value} is not a number from 1 to {limit}")
        numbers[name] = int(value)
    return numbers


def read_workload(name: str) -> Workload:
    """Return the workload of that name, or of that text with its words apart by one blank.

    >>> read_workload("ramp").text
    'scn=ramp n=4000'
    >>> read_workload("scn=churn  live=10 steps=100").text
    'scn=churn live=10 steps=100'
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    text = " ".join(name.split())
    if "=" not in text:
        raise complain(name, "there is no workload of this name")
    pairs = [word.partition("=")[::2] for word in text.split(" ")]
    words = dict(pairs)
    if len(words) < len(pairs):
        raise complain(text, "a word is there twice")
    scene, insns = words.pop("scn", ""), words.pop("insns", "20-219")
    if scene not in SCENES:
        raise complain(text, "scn= is ramp or churn")
    found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", insns, re.ASCII)
    if not found or not INSNS[0] <= int(found[1]) <= int(found[2]) <= INSNS[1]:
        raise complain(text, f"insns={insns} is not a range such as 20-219, within {INSNS[0]}-{INSNS[1]}")
    numbers = read_numbers(text, words)
    others = set().union(*SCENES.values()) - SCENES[scene]
    for lacking in sorted(SCENES[scene] - numbers.keys()):
        raise complain(text, f"scn={scene} needs {lacking}=")
    for other in sorted(others & numbers.keys()):
        raise complain(text, f"{other}= says nothing to scn={scene}")
    if "hog" in numbers and scene != "churn":
        raise complain(text, "hog= needs scn=churn")
    if ("pfrag" in numbers) != ("keep" in numbers) or {"frag", "pfrag"} <= numbers.keys():
        raise complain(text, "pfrag= and keep= need each other, and go without frag=")
    return Workload(text, "as given")


# ---- the program that runs in the machine ----


def compile_init() -> Path:
    """Return the compiled program of the machine, from the cache unless its source or the compiler has changed."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not shutil.which(compiler[0]):
        message = f"the lab compiles a program for its machines, and {compiler[0]} is missing; install gcc or set CC"
        raise LabError(message)
    command = [*compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-static"]
    key = hashlib.sha256(SOURCE.read_bytes() + shlex.join(command).encode()).hexdigest()[:16]
    made = kernels.cache() / "init" / f"lab_init-{key}"
    if made.is_file():
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with kernels.replacing(made) as path:
            done = subprocess.run(  # noqa: S603 - the compiler the user named, our own source
                [*command, "-o", str(path), str(SOURCE)], capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode:
                told = "\n".join(done.stderr.strip().splitlines()[-TAIL_LINES:])
                message = (
                    f"{shlex.join(command)} cannot compile {SOURCE}; it needs a static C library and Linux's headers "
                    f"(libc6-dev in Debian, glibc-static and kernel-headers in Fedora):\n{told}"
                )
                raise LabError(message)
            if path.read_bytes()[18:20] != X86_64:
                message = (
                    f"{compiler[0]} makes no programs for x86-64; set CC to one that does, as x86_64-linux-gnu-gcc"
                )
                raise LabError(message)
    except OSError as error:
        message = f"{made} cannot be made: {error}; EXECMEM_LAB_CACHE names another folder"
        raise LabError(message) from error
    return made


# ---- the files in memory: an archive in cpio's "newc" form, which Linux unpacks at boot ----


def archive_entry(name: str, mode: int, content: bytes) -> bytes:
    """Return one file or directory of the archive."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)


def make_archive(init: bytes, text: str) -> bytes:
    """Return the compressed archive with /init and /workload."""
    entries = (
        archive_entry("init", 0o100755, init),
        archive_entry("workload", 0o100644, f"{text}\n".encode()),
        archive_entry("TRAILER!!!", 0, b""),
    )
    return gzip.compress(b"".join(entries), compresslevel=1, mtime=0)


# ---- the machine ----


class PanicError(LabError):
    """The kernel in the machine stopped."""


def find_qemu(name: str = QEMU) -> str:
    """Return the path of QEMU for x86-64."""
    path = shutil.which(name)
    if not path:
        message = f"{name} is missing; install qemu-system-x86 (Debian, Fedora) or qemu-system-x86_64 of your system"
        raise LabError(message)
    return path


def tell_qemu(path: str) -> str:
    """Return the version that QEMU says it has."""
    try:
        done = subprocess.run(  # noqa: S603 - the emulator the user named
            [path, "--version"], capture_output=True, text=True, check=False, timeout=PROBE_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{path} cannot be run: {error}"
        raise LabError(message) from error
    return (done.stdout.splitlines() or [f"{path}, which tells no version"])[0]


def choose_accel(qemu: str, wanted: str = "auto") -> str:
    """Return kvm where QEMU can start a machine with it, else tcg; or what is wanted. Cost: 0.1 s.

    That /dev/kvm opens says little: in some containers it does, and QEMU aborts. So it is asked, in a folder of its
    own, for an abort may leave a core file.
    """
    if wanted != "auto" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg" if wanted == "auto" else wanted
    command = [qemu, "-machine", "q35,accel=kvm", "-cpu", "host", "-nodefaults", "-S"]
    command += ["-display", "none", "-monitor", "stdio"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603 - the emulator the user named
                command, cwd=folder, input=b"quit\n", capture_output=True, check=False, timeout=PROBE_PATIENCE
            )
        except (OSError, subprocess.TimeoutExpired):
            return "tcg"  # that it works without is seen when it is run
    return "kvm" if done.returncode == 0 else "tcg"


def clean(line: str) -> str:
    """Return what a console line shows: no control characters, no colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e]", "", line)


def read_row(text: str, memory: str, args: str) -> Row | None:
    """Return the row of a step that the machine printed, or nothing when it is not one."""
    try:
        told = json.loads(text)
    except ValueError:
        return None
    if not isinstance(told, dict) or tuple(told) != tuple(TOLD):
        return None
    if not all(type(told[name]) is kind for name, kind in TOLD.items()):
        return None
    return {"mem": memory, "args": args, **told, "series": Kernel(Path(), told["kernel"]).series}


LIBC: Final = ctypes.CDLL(None)
PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that made it ends, be it by SIGKILL."""
    LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@dataclass(frozen=True)
class Machine:
    """What boots: its first program, QEMU's path and way of running code, memory as QEMU writes it, patience."""

    init: bytes
    qemu: str = QEMU
    accel: str = "tcg"
    memory: str = "1G"
    seconds: float = 1800

    def command(self, image: Path, archive: Path) -> list[str]:
        """Return the command that boots an image with an archive of files."""
        return [
            *(self.qemu, "-machine", f"q35,accel={self.accel}", "-cpu", "host" if self.accel == "kvm" else "max"),
            *("-m", self.memory, "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-serial", "stdio", "-kernel", str(image), "-initrd", str(archive)),
            *("-append", "console=ttyS0 quiet panic=-1 nokaslr"),
        ]

    def run(self, kernel: Kernel, text: str) -> Generator[Row, None, None]:
        """Boot a kernel with a workload and give each row as it comes. Cost: 7 to 300 s, mostly of another process."""
        console: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        try:
            with tempfile.TemporaryDirectory(prefix="execmem-lab-") as folder:
                archive = Path(folder) / "initramfs"
                archive.write_bytes(make_archive(self.init, text))
                with contextlib.closing(self.lines(self.command(kernel.image, archive))) as lines:
                    yield from self.read(lines, console, text)
        except PanicError as error:
            raise PanicError(self.tell(kernel, text, str(error), console)) from error
        except LabError as error:
            why = str(error)
        except TimeoutError:
            why = f"it took longer than {self.seconds:g} s (--timeout)"
        except OSError as error:
            why = f"the machine's files cannot be written: {error} (TMPDIR names another folder)"
        else:
            return
        raise LabError(self.tell(kernel, text, why, console))

    def tell(self, kernel: Kernel, text: str, why: str, console: Iterable[str]) -> str:
        """Return what went wrong with a run, and the end of its console."""
        tail = "\n".join(f"    {line}" for line in console) or "    nothing"
        return f"{kernel.release or kernel.image}, {text}: {why}; the console's last lines:\n{tail}"

    def read(self, lines: Iterable[str], console: collections.deque[str], text: str) -> Iterator[Row]:
        """Give the rows among the lines of a console, which is left with the last of these."""
        count = 0
        panic = ""
        for line in lines:
            console.append(clean(line)[:TOLD_COLUMNS])
            panic = panic or (console[-1] if "Kernel panic" in line else "")
            _, mark, told = line.partition("== ")
            kind, _, told = told.partition(" ")
            if not mark or kind not in {"step", "error", "end"}:
                continue
            row = read_row(told, self.memory, text) if kind == "step" else None
            if row:
                count += 1
                yield row
                continue
            message = {
                "step": "a step cannot be read, something else was on the serial line",
                "error": f"the program in the machine gave up: {clean(told)}",
                "end": f"{count} steps of {clean(told)} arrived, the others were lost on the serial line",
            }[kind]
            if kind == "end" and told == str(count):
                return
            raise LabError(message)
        if panic:
            message = f"the kernel panicked: {panic}"
            raise PanicError(message)
        message = "the machine ended before its workload did"
        raise LabError(message)

    def lines(self, command: Sequence[str]) -> Generator[str, None, None]:
        """Give what a machine prints, line by line; it is gone when this ends. Raises TimeoutError when late."""
        try:
            run = subprocess.Popen(  # noqa: S603 - the emulator the user named
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call, and no lock
            )
        except OSError as error:
            message = f"{self.qemu} cannot be run: {error}"
            raise LabError(message) from error
        late = threading.Event()

        def stop() -> None:
            late.set()
            run.kill()

        clock = threading.Timer(self.seconds, stop)
        clock.daemon = True
        with run:
            try:
                clock.start()
                while line := run.stdout.readline(LINE_LIMIT) if run.stdout else "":
                    yield line.rstrip("\r\n")
            finally:
                clock.cancel()
                run.kill()
        if late.is_set():
            raise TimeoutError


# ---- rows ----


def split_runs(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Run]]:
    """Return the runs in rows, by series, memory and workload: each begins with its step boot."""
    runs: dict[tuple[str, str, str], list[Run]] = {}
    for row in rows:
        found = runs.setdefault((row["series"], row["mem"], row["args"]), [])
        if row["step"] == "boot" or not found:
            found.append([])
        found[-1].append(row)
    return runs


def count_splits(run: Run) -> dict[str, int]:
    """Return how many 2 MB regions were split by each step since the run's zero point, after memory was prepared.

    By the kernel's own counter where it has one. Else by how much more of the direct map is in 4 KB pages; that is the
    same, unless a mapping of 1 GB was split directly into 4 KB.
    """
    zero = next((row for row in run if row["step"] == "fragmented"), run[0])
    if zero["split2m"] >= 0:
        return {row["step"]: row["split2m"] - zero["split2m"] for row in run}
    return {row["step"]: (row["dm4k_kB"] - zero["dm4k_kB"]) // 2048 for row in run}


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise LabError(message) from error
    rows = []
    for number, line in enumerate(lines, 1):
        row: Any = None
        with contextlib.suppress(ValueError):
            row = json.loads(line)
        known = isinstance(row, dict) and set(row) == set(FIELDS)
        if not known or not all(type(row[name]) is kind for name, kind in KINDS.items()):
            message = f"{path}:{number} is no row of the lab, a JSON object of the fields {', '.join(FIELDS)}"
            raise LabError(message)
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, in place of what the file had: whole or not at all."""
    try:
        with kernels.replacing(path) as new:
            new.write_text("".join(tell_row(row) for row in rows), encoding="utf-8")
            new.chmod(0o644)
    except OSError as error:
        message = f"{path} cannot be written: {error}"
        raise LabError(message) from error


def tell_row(row: Row) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(row, separators=(",", ":")) + "\n"


@dataclass(frozen=True)
class Comparison:
    """A step of a workload on a kernel, in two files: regions split, in each run that reached it."""

    series: str
    memory: str
    args: str
    step: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    @property
    def apart(self) -> int:
        """Return how far apart the two are: 0 where the ranges of their runs meet."""
        return max(0, min(self.ours) - max(self.theirs), min(self.theirs) - max(self.ours))


def compare(ours: Iterable[Row], theirs: Iterable[Row]) -> list[Comparison]:
    """Return every step that runs of the same series, memory and workload have in both."""
    other = split_runs(theirs)
    found = []
    for key, runs in split_runs(ours).items():
        mine = [count_splits(run) for run in runs]
        yours = [count_splits(run) for run in other.get(key, [])]
        for step in mine[0]:
            here, there = (tuple(run[step] for run in side if step in run) for side in (mine, yours))
            if there:
                found.append(Comparison(*key, step, here, there))
    return found
