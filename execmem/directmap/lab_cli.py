"""lab_cli: `execmem lab`: its options, its progress, and what it prints of kernels, runs and comparisons."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from execmem.directmap import kernels, lab
from execmem.directmap.kernels import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TextIO

    from typing_extensions import Self

TOLD_AFTER: Final = 2.0  # seconds: what takes less needs no progress
BOOTS: Final = 3  # of a kernel that panics before its first step, as QEMU's emulation makes some do now and then
TICK: Final = 1.0
STEP: Final = "{:<14}{:>6}{:>9}{:>9}{:>7}{:>6}{:>11}{:>9}{:>9}"


def plain(text: str) -> str:
    r"""Return a text, which may hold names of files, without what a terminal would act on but the ends of lines.

    >>> print(plain("a" + chr(27) + "[2Jb"))
    a\x1b[2Jb
    """
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


class Progress:
    """A line on a terminal that tells what goes on and for how long, once that is longer than two seconds.

    Where there is no terminal each new thing is told once, on a line of its own.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        """Watch nothing yet."""
        self.stream = stream
        self.live = stream.isatty() and not quiet
        self.quiet = quiet
        self.text = self.told = ""
        self.since = time.monotonic()
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.tick, daemon=True)

    def __enter__(self) -> Self:
        """Begin to tell."""
        if self.live:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave a clean line."""
        self.done.set()
        if self.live:
            self.thread.join()
            self.say()

    def tick(self) -> None:
        """Draw the line anew, each second."""
        while not self.done.wait(TICK):
            with self.lock:
                seconds = time.monotonic() - self.since
                if self.text and seconds > TOLD_AFTER:
                    self.stream.write(f"\r\x1b[K{self.text}, {seconds:.0f} s")
                    self.stream.flush()

    def say(self, text: str = "", now: str = "") -> None:
        """Print a text on stdout, the line out of its way; then tell that something else goes on."""
        with self.lock:
            if self.live:
                self.stream.write("\r\x1b[K")
                self.stream.flush()
            sys.stdout.write(text)
            sys.stdout.flush()
            self.text = now or self.text

    def begin(self, text: str) -> None:
        """Tell of something new that goes on."""
        text = plain(text)
        with self.lock:
            self.text, self.since = text, time.monotonic()
            if not self.live and not self.quiet:
                self.stream.write(f"{text}\n")
                self.stream.flush()

    def download(self, url: str, done: int, whole: int) -> None:
        """Tell of a part of a download that has arrived."""
        if url != self.told:
            self.told = url
            self.begin(f"fetching {url}")
        if self.live:
            share = f" of {whole / 1e6:.1f}" if whole else ""
            with self.lock:
                self.text = f"fetching {url}: {done / 1e6:.1f}{share} MB"


# ---- execmem lab fetch, execmem lab list ----


def fetch(options: argparse.Namespace) -> int:
    """Download kernels into the cache."""
    if not options.series and not options.deb:
        message = f"name what to fetch: {', '.join(kernels.SUITES)}, all; or --deb FILE"
        raise LabError(message)
    series = list(kernels.SUITES) if "all" in options.series else options.series
    with Progress(sys.stderr, quiet=options.quiet) as progress:
        for name in series:
            kernel, new = kernels.fetch(name, progress.download, options.mirror)
            progress.say(tell_kernel(kernel, "fetched" if new else "already there", as_json=options.json))
        for path in options.deb:
            progress.begin(f"unpacking {path}")
            try:
                package = path.read_bytes()
            except OSError as error:
                message = f"{path} cannot be read: {error}"
                raise LabError(message) from error
            version = re.fullmatch(r"[^_]+_([^_]+)_[^_]+\.deb", path.name)
            kernel = kernels.keep(package, path.name, version[1] if version else "")
            progress.say(tell_kernel(kernel, "unpacked", as_json=options.json))
    return 0


def tell_kernel(kernel: kernels.Kernel, what: str, *, as_json: bool) -> str:
    """Return a line about a kernel of the cache."""
    if as_json:
        return json.dumps({**asdict(kernel), "image": str(kernel.image), "series": kernel.series}) + "\n"
    return f"{kernel.series:<6} {kernel.release:<32} {kernel.version:<14} {what}".rstrip() + "\n"


def show(options: argparse.Namespace) -> int:
    """Print which kernels are there, which workloads there are, and what is missing."""
    found = kernels.cached()
    lines = [tell_kernel(kernel, "", as_json=options.json) for kernel in found]
    sys.stdout.write("".join(lines) if options.json else "".join([f"kernels in {kernels.cache()}\n", *lines]))
    if options.json:
        return 0
    lacking = sorted(set(kernels.SUITES) - {kernel.series for kernel in found} - {kernels.NEWEST}, key=kernels.order)
    if lacking:
        sys.stdout.write(f"not there: {', '.join(lacking)}; execmem lab fetch {' '.join(lacking)} downloads them\n")
    sys.stdout.write("\nworkloads\n")
    for name, workload in lab.WORKLOADS.items():
        sys.stdout.write(f"{name:<11} {workload.summary}\n{'':<11} {workload.text}\n")
    try:
        qemu = lab.find_qemu()
        told = f"{lab.tell_qemu(qemu)}, {lab.choose_accel(qemu)}"
    except LabError as error:
        told = f"not available: {error}"
    sys.stdout.write(f"\n{told}\n")
    return 0


# ---- execmem lab run ----


def run_kernels(options: argparse.Namespace) -> int:
    """Boot each kernel with each workload, print its steps, and write them to a file."""
    workloads = [lab.read_workload(name) for name in options.workload]
    found = [kernels.find(name) for name in options.kernel]
    qemu = lab.find_qemu(options.qemu)
    accel = lab.choose_accel(qemu, options.accel)
    if options.output and not options.output.parent.is_dir():
        message = f"{options.output} cannot be written: there is no folder {options.output.parent}"
        raise LabError(message)
    init = lab.compile_init().read_bytes()
    rows: list[lab.Row] = []
    with Progress(sys.stderr, quiet=options.quiet) as progress:
        for kernel in found:
            for workload in workloads:
                machine = lab.Machine(init, qemu, accel, options.memory or workload.memory, options.timeout)
                for _ in range(options.repeat):
                    rows += run_one(machine, kernel, workload, progress, as_json=options.json)
                    if options.output:  # after each run, so that an end midway leaves the runs before it
                        lab.write_rows(options.output, rows)
    return 0


def run_one(
    machine: lab.Machine,
    kernel: kernels.Kernel,
    workload: lab.Workload,
    progress: Progress,
    *,
    as_json: bool,
) -> lab.Run:
    """Boot a kernel with a workload, print its steps as they come, and return them."""
    name = plain(kernel.release or kernel.image.name)
    if not as_json:
        sys.stdout.write(f"{name}, {workload.text} ({machine.memory}, {machine.accel})\n")
        head = ("step", "live", "4 kB", "2 MB", "split", "areas", "code", "free", "time")
        sys.stdout.write(STEP.format(*head) + "\n")
    sys.stdout.flush()
    done: lab.Run = []
    for boots in range(1, BOOTS + 1):
        progress.begin(f"{name}, {workload.text}: booting")
        try:
            with contextlib.closing(machine.run(kernel, workload.text)) as rows:
                for row in rows:
                    done.append(row)
                    line = lab.tell_row(row) if as_json else tell_step(done) + "\n"
                    progress.say(line, f"{name}, {workload.text}: {row['step']} is done")
            break
        except lab.PanicError as error:
            if done or boots == BOOTS:
                raise
            progress.say()
            sys.stderr.write(f"execmem lab: {str(error).splitlines()[0]} left out; booting again\n")
    if not as_json:
        sys.stdout.write("\n")
    return done


def tell_step(done: lab.Run) -> str:
    """Return the last step of a run so far as a line of the table; regions split are since its zero point."""
    row = done[-1]
    sizes = [f"{row[name] // 1024:,} MB" for name in ("dm4k_kB", "dm2m_kB")]
    code, free = f"{row['jit_kB']:,} kB", f"{row['memfree_kB'] // 1024:,} MB"
    return STEP.format(
        row["step"],
        row["live"],
        *sizes,
        lab.count_splits(done)[row["step"]],
        row["jit_areas"],
        code,
        free,
        f"{row['t']:.1f} s",
    )


# ---- execmem lab compare ----


def compare(options: argparse.Namespace) -> int:
    """Print the regions that were split at each step in two files, side by side."""
    found = lab.compare(lab.read_rows(options.ours), lab.read_rows(options.theirs))
    if not found:
        message = (
            f"{options.ours} and {options.theirs} have no kernel series with the same memory and workload in common"
        )
        raise LabError(message)
    if options.json:
        sys.stdout.writelines(json.dumps({**asdict(one), "apart": one.apart}) + "\n" for one in found)
        return 0
    for text in tell_comparison(found, every=options.every):
        sys.stdout.write(text + "\n")
    return 0


def tell_range(values: Sequence[int]) -> str:
    """Return values as people read them: one where they are all the same.

    >>> tell_range([3, 3]), tell_range([15, 12, 16])
    ('3', '12-16')
    """
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def tell_comparison(found: Iterable[lab.Comparison], *, every: bool) -> Iterable[str]:
    """Give the lines of a comparison; steps in which nothing changed on both sides are left out, unless `every`."""
    last = before = None
    for one in found:
        key = f"{one.series}, {one.memory}, {one.args}"
        if key != last:
            yield key
        now = (one.ours, one.theirs)
        if every or key != last or now != before:
            yield f"    {one.step:<14}{tell_range(one.ours):>10}{tell_range(one.theirs):>10}" + (
                f"   {one.apart} apart" if one.apart else ""
            )
        last, before = key, now


# ---- the command line ----


def to_count(text: str) -> int:
    """Return a number of at least 1 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is not a number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def to_memory(text: str) -> str:
    """Return memory as QEMU writes it."""
    if not re.fullmatch(r"[1-9]\d{0,4}[MG]", text, re.ASCII):
        message = f"{text!r} is not memory such as 512M or 4G"
        raise argparse.ArgumentTypeError(message)
    return text


def to_seconds(text: str) -> float:
    """Return a time from the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds < threading.TIMEOUT_MAX:
        message = f"{text!r} is not a number of seconds"
        raise argparse.ArgumentTypeError(message)
    return seconds


EXIT_CODES: Final = "exit code: 0 done, 1 it cannot be (stderr tells why), 2 wrong usage, 130 Ctrl-C"
EXAMPLES: Final = {
    "run": (
        "  execmem lab run --kernel 6.1 --workload churn\n"
        "  execmem lab run --kernel 5.10 6.1 --workload ramp aged -o steps.jsonl\n"
        "  execmem lab run --kernel newest --workload 'scn=ramp n=500' --json\n"
    ),
    "fetch": (
        "  execmem lab fetch 5.10 6.1 6.12 newest    50 MB or less each\n"
        "  execmem lab fetch --deb linux-image-6.1.0-37-cloud-amd64_6.1.140-1_amd64.deb\n"
    ),
    "list": "  execmem lab list\n  execmem lab list --json                   kernels, a line each\n",
    "compare": (
        "  execmem lab compare steps.jsonl other.jsonl\n  execmem lab compare steps.jsonl other.jsonl --every --json\n"
    ),
}


def add_run(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem lab run``."""
    names = ", ".join(lab.WORKLOADS)
    parser.add_argument(
        "--kernel",
        nargs="+",
        required=True,
        metavar="K",
        help="series, release, 'newest' in the cache, or path of an image",
    )
    parser.add_argument(
        "--workload",
        nargs="+",
        default=["ramp"],
        metavar="W",
        help=f"{names}, or a text such as 'scn=ramp n=50' (ramp)",
    )
    parser.add_argument(
        "--memory", type=to_memory, metavar="SIZE", help="of the machine (1G, or what the workload needs)"
    )
    parser.add_argument("--repeat", type=to_count, default=1, metavar="N", help="times that each is run (1)")
    parser.add_argument("--timeout", type=to_seconds, default=1800.0, metavar="SECONDS", help="for each run (1800)")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="how QEMU runs code (auto)")
    parser.add_argument("--qemu", default=lab.QEMU, metavar="PATH", help=f"the emulator ({lab.QEMU})")
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="write the steps here, as JSON lines")
    parser.add_argument("--json", action="store_true", help="print the steps as JSON lines instead of tables")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and options of ``execmem lab``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem lab fetch 6.1\n"
        "  execmem lab list\n"
        "  execmem lab run --kernel 6.1 --workload churn\n"
        f"{EXIT_CODES}\n"
        "execmem lab ACTION --help tells the options of an action; all have --json"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        told, form = f"{summary[0].upper()}{summary[1:]}.", argparse.RawDescriptionHelpFormatter
        epilog = f"examples:\n{EXAMPLES[name]}{EXIT_CODES}"
        sub = actions.add_parser(name, help=summary, description=told, epilog=epilog, formatter_class=form)
        sub.set_defaults(act=act)
        return sub

    add_run(add("run", run_kernels, "boot kernels with workloads and print the counters of each step"))
    sub = add("fetch", fetch, "download Debian's kernels into the cache; nothing else downloads anything")
    sub.add_argument("series", nargs="*", help=f"{', '.join(kernels.SUITES)} (that of sid), or all")
    sub.add_argument("--mirror", metavar="URL", help=f"of Debian ({kernels.MIRROR})")
    sub.add_argument("--deb", type=Path, nargs="+", default=[], metavar="FILE", help="take these packages instead")
    sub.add_argument("--json", action="store_true", help="print the kernels as JSON lines")
    sub.add_argument("--quiet", action="store_true", help="no progress on stderr")
    sub = add("list", show, "tell which kernels, workloads and emulator there are")
    sub.add_argument("--json", action="store_true", help="print the kernels as JSON lines")
    sub = add("compare", compare, "show regions split, step by step, of two files that `run --output` wrote")
    sub.add_argument("ours", type=Path, metavar="FILE")
    sub.add_argument("theirs", type=Path, metavar="FILE")
    sub.add_argument("--every", action="store_true", help="steps that changed nothing, too")
    sub.add_argument("--json", action="store_true", help="print the steps as JSON lines")


def leave(number: int, _: object) -> None:
    """End with what shells report for a signal, by way of every `finally`."""
    raise SystemExit(128 + number)


def run(options: argparse.Namespace) -> int:
    """Run ``execmem lab`` and return its exit code; 1 with a line that says why, when it cannot do what it is told.

    SIGTERM and SIGHUP end it as Ctrl-C does: no machine goes on, and no file is left.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, leave)
    try:
        code: int = options.act(options)
    except LabError as error:
        sys.stderr.write(f"execmem lab: {plain(str(error))}\n")
        return 1
    return code
