"""replay_cli: `execmem replay`: what allocators would have made of a trace, on a simulated machine.

    execmem replay FILE                          a trace that `execmem directmap record` wrote, under every policy
    execmem replay tools --memory 8G             a made-up workload; --list tells their names
    execmem replay 'scn=ramp n=4000 pfrag=16 keep=200' --memory 1G --policy '6.1' ours

The table comes first, then how the splits grew, then how far each policy is from one of them (--against). Pictures as
files: --svg, --png, --html. It needs no compiled core.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from execmem import draw_html_replay, draw_svg_replay, picture
from execmem.directmap import replay, workload
from execmem.directmap.model import FIRST_FREE
from execmem.directmap.pages import PAGE, ZONE_AT, OutOfMemoryError
from execmem.directmap.policy import POLICIES
from execmem.directmap.replay import FIGURES
from execmem.directmap.trace import Trace, TraceError
from execmem.draw import Paint, clean, text_width
from execmem.draw_svg_replay import Comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from execmem.directmap.replay import Result
    from execmem.directmap.workload import Workload

MADE: Final[dict[str, Callable[[], Workload]]] = {
    "tools": workload.tools,
    "cilium": workload.cilium,
    "leak": workload.leak,
    "churn": workload.churn,
    "modules": workload.modules,
}
UNITS: Final = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
HELD_AT_BOOT: Final = 100_000  # pages of a fresh 4 GB machine that are not free
STEPS: Final = "▁▂▃▄▅▆▇█"
PLAIN_STEPS: Final = ".:-=+*#@"


# ---- what is asked ----


def to_memory(text: str) -> int:
    """Return pages of 4 KB from memory as people write it."""
    found = re.fullmatch(r"([1-9]\d{0,4})([MGT])", text, re.ASCII)
    size = int(found[1]) * UNITS[found[2]] if found else 0
    if not 64 * UNITS["M"] <= size <= 4 * UNITS["T"]:
        message = f"{text!r} is not memory such as 512M, 4G or 1T, from 64M to 4T"
        raise argparse.ArgumentTypeError(message)
    return size // PAGE


def to_policy(text: str) -> str:
    """Return the one policy that has this name, or this word in it, or this part.

    >>> to_policy("6.1"), to_policy("Song")
    ('prog_pack, 6.1', 'Song 2022')
    """
    wanted = text.lower()
    ways: list[Callable[[str], bool]] = [
        lambda name: wanted == name,
        lambda name: wanted in name.replace(",", "").split(),
        lambda name: wanted in name,
    ]
    several: list[str] = []
    for fits in ways:
        found = [name for name in POLICIES if fits(name.lower())]
        if len(found) == 1:
            return found[0]
        several = several or found
    if several:
        message = f"{text!r} is a part of {len(several)} of them, give more of one: {'; '.join(several)}"
    else:
        message = f"{text!r} is not a part of one of: {'; '.join(POLICIES)}"
    raise argparse.ArgumentTypeError(message)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem replay``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"made-up workloads: {', '.join(MADE)};\n"
        "  or a text such as 'scn=ramp n=4000 frag=32'\n"
        + textwrap.fill(f"policies: {'; '.join(POLICIES)}", 79, subsequent_indent="  ")
        + "\n\n"
        "examples:\n"
        "  execmem replay my.trace        what directmap record wrote, under every policy\n"
        "  execmem replay cilium --memory 8G --html whatif.html\n"
        "  execmem replay my.trace --policy 6.1 7.2 ours --against 6.1 --svg whatif.svg\n"
        "  execmem replay 'scn=ramp n=4000 pfrag=16 keep=200' --memory 1G --json\n"
        "  execmem replay tools --buddyinfo /proc/buddyinfo --memory 24G   that machine's\n"
        "exit code: 0 replayed; 1 it cannot be (stderr tells why); 2 wrong usage;\n"
        "130 Ctrl-C"
    )
    parser.add_argument("source", metavar="TRACE", help="a trace, the name of a made-up workload, or a lab's text")
    parser.add_argument(
        "--policy", type=to_policy, nargs="+", default=list(POLICIES), metavar="P", help="parts of names (all)"
    )
    parser.add_argument(
        "--against", type=to_policy, metavar="P", help="the policy that others are held against (the first)"
    )
    parser.add_argument("--memory", type=to_memory, default="4G", metavar="SIZE", help="of the machine (4G)")
    parser.add_argument(
        "--free",
        type=to_memory,
        metavar="SIZE",
        help="of it when the replay begins (what boot leaves, or the lists tell)",
    )
    parser.add_argument(
        "--buddyinfo",
        type=Path,
        metavar="FILE",
        help="free lists to begin with, as /proc/buddyinfo, of a machine of that --memory",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    picture.add_arguments(parser)


def take_workload(text: str) -> Workload:
    """Return what is to be replayed: a file, a made-up workload, or one of the lab's."""
    if text in MADE and not Path(text).exists():
        return MADE[text]()
    if text.startswith("scn="):
        return workload.from_lab(text)
    trace = Trace.open(text)
    try:
        found = workload.recorded(text, trace.rows())
    finally:
        trace.close()
    if not len(found.rows):
        message = f"{text}: no code was loaded in this trace, so there is nothing to replay"
        raise ValueError(message)
    return found


LISTS_MAX: Final = 1 << 20  # bytes: a kernel tells 150 a zone


def read_lists(path: Path) -> str:
    """Return the text of free lists; ValueError where there are none (that would be fresh memory) or too many."""
    with path.open("rb") as file:
        data = file.read(LISTS_MAX + 1)
    if not data.strip() or len(data) > LISTS_MAX:
        message = f"{path}: no buddyinfo: {f'more than {LISTS_MAX:,} bytes' if data.strip() else 'nothing is in it'}"
        raise ValueError(message)
    return data.decode("utf-8", "backslashreplace")


def count_listed(text: str) -> int:
    """Return how many pages are free by free lists, in zones that the simulated machine has.

    >>> count_listed("Node 0, zone DMA 9 9" + chr(10) + "Node 0, zone Normal 5 1 2")
    15
    """
    zones = [line.split() for line in text.splitlines() if line.startswith("Node")]
    return sum(
        int(count) << order
        for words in zones
        if words[ZONE_AT] != "DMA"
        for order, count in enumerate(words[ZONE_AT + 1 :])
    )


# ---- the pictures ----

COMPARED: Final = tuple(
    one for one in FIGURES if one.name in {"splits", "split_now", "splits_1g", "mapped_4k", "tlb", "held"}
)


def draw_heads(results: Sequence[Result], paint: Paint) -> str:
    """Return the line above a table."""
    return paint.head(f"{'':<17}" + "".join(f"{row.policy.split(',')[0]:>10}" for row in results))


def draw_table(results: Sequence[Result], paint: Paint) -> list[str]:
    """Return a line a figure, a column a policy: 78 columns for six."""
    lines = [draw_heads(results, paint)]
    for figure in FIGURES:
        cells = [figure.tell(figure.take(row)) for row in results]
        lines.append(f"{figure.words:<17}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def draw_difference(given: Comparison, paint: Paint) -> list[str]:
    """Return a line a figure, a column a policy: how far each is from one of them."""
    others = [row for row in given.results if row is not given.base]
    if not others:
        return []
    changes = [replay.differ(row, given.base) for row in others]
    lines = [f"against {given.base.policy}: below 0 is better, = is the same", draw_heads(others, paint)]
    for figure in COMPARED:
        cells = []
        for change in changes:
            told = figure.tell_change(change[figure.name])
            cell = f"{told:>10}"
            cells.append(cell if told == "=" else paint.verdict(cell, good=change[figure.name] < 0))
        lines.append(f"{figure.words:<17}" + "".join(cells))
    return [*lines, ""]


def draw_curves(results: Sequence[Result], rows: int, paint: Paint, width: int) -> list[str]:
    """Return a line a policy: how its splits grew from the first row of the trace to the last, all to one scale."""
    most = max(1, *(count for row in results for _, count in row.over_time))
    steps, cells = STEPS if paint.unicode else PLAIN_STEPS, max(10, width - 30)
    highest = max(row.splits for row in results)
    lines = [f"regions split, from the first of {rows:,} rows to the last; the highest is {highest:,}"]
    for row in results:
        heights = [0] * cells
        for at, count in row.over_time:
            heights[max(at - 1, 0) * cells // max(1, rows)] = count
        for at in range(1, cells):
            heights[at] = max(heights[at], heights[at - 1])
        line = "".join(steps[-(-count * len(steps) // most) - 1] if count else " " for count in heights)
        lines.append(f"{row.policy:<17}{line} {row.splits:>8,}")
    return lines


def tell_difference(results: Sequence[Result]) -> str:
    """Return what the policy with most splits would have spared with the one that has fewest."""
    worst, best = (choose(results, key=lambda row: (row.splits, row.held)) for choose in (max, min))
    if worst.splits == best.splits:
        return f"Regions split are the same under each policy: {best.splits:,}."
    return (
        f"Regions split: {worst.splits - best.splits:,} fewer with {best.policy!r} than with {worst.policy!r}; "
        f"held for each live byte: {best.fragmentation:,.2f} and {worst.fragmentation:,.2f}."
    )


# ---- execmem replay ----

PATIENCE: Final = 2.0  # seconds before anything is said
EVERY: Final = {True: 0.2, False: 10.0}  # seconds between two words on a terminal, and elsewhere


class Progress:
    """Says on stderr how far a replay is when it takes longer than two seconds: one line on a terminal."""

    def __init__(self, stream: TextIO, policies: Sequence[str], rows: int) -> None:
        """Begin to count the time."""
        self._stream, self._policies, self._rows = stream, policies, rows
        self._live = stream.isatty()
        self._due = time.monotonic() + PATIENCE
        self._shown = False

    def show(self, policy: str, done: int) -> None:
        """Tell that so many rows were replayed under a policy."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due, self._shown = now + EVERY[self._live], True
        place = self._policies.index(policy)
        share = (place + done / max(self._rows, 1)) / len(self._policies)
        text = f"replayed {share:4.0%}: policy {place + 1} of {len(self._policies)}, {policy}"
        self._stream.write(f"\r{text:<60}" if self._live else f"{text}\n")
        self._stream.flush()

    def finish(self) -> None:
        """Leave the terminal's line empty."""
        if self._live and self._shown:
            self._stream.write(f"\r{'':60}\r")
            self._stream.flush()


def silent(_: int) -> None:
    """Say nothing."""


def replay_all(options: argparse.Namespace, chosen: Workload, host: replay.Host) -> Comparison:
    """Replay under each policy, once if it was named twice, and under the one to hold them against."""
    against = options.against or options.policy[0]
    names = list(dict.fromkeys([*([] if against in options.policy else [against]), *options.policy]))
    progress = Progress(sys.stderr, names, len(chosen.rows))
    results = []
    try:
        for name in names:
            tell = silent if options.quiet else functools.partial(progress.show, name)
            results.append(replay.run(chosen, name, host, tell=tell))
    finally:
        progress.finish()
    return Comparison(chosen.name, len(chosen.rows), host.total * PAGE, results, names.index(against))


def to_json(given: Comparison, free: int) -> dict[str, Any]:
    """Return what was found, for programs: bytes, rows, numbers."""
    found = [asdict(row) | {"mapped": {size.name: held for size, held in row.mapped.items()}} for row in given.results]
    differences = [{"policy": row.policy} | replay.differ(row, given.base) for row in given.results]
    head = {"schema": 1, "workload": given.title, "rows": given.rows, "memory": given.memory, "free": free * PAGE}
    return head | {"results": found, "against": given.base.policy, "differences": differences}


def print_text(given: Comparison) -> None:
    """Print table, curves and difference."""
    paint, width = Paint.of(sys.stdout), text_width()
    print(paint.head(f"{clean(given.title)}: {given.rows:,} loads and unloads on {given.memory >> 20:,} MB"))
    print(paint.rule(width))
    for line in (*draw_table(given.results, paint), "", *draw_curves(given.results, given.rows, paint, width), ""):
        print(line)
    for line in draw_difference(given, paint):
        print(line)
    print(textwrap.fill(tell_difference(given.results), width))
    print("Simulated: docs/model.md tells how near real kernels come to it.")


def compare(options: argparse.Namespace) -> Comparison:
    """Replay what was asked for and write the files that were; a file is refused before minutes of work for it."""
    if options.free > options.memory:
        message = "--free is more than --memory"
        raise ValueError(message)
    picture.check_outputs(picture.names(options), options.source)
    chosen = take_workload(options.source)
    text = read_lists(options.buddyinfo) if options.buddyinfo else ""
    given = replay_all(options, chosen, replay.Host(options.free, options.memory, text))
    options.free = count_listed(text) if text else options.free
    picture.write_pictures(
        options, lambda: draw_svg_replay.draw_replay(given), lambda: draw_html_replay.draw_page(given)
    )
    return given


def run(options: argparse.Namespace) -> int:
    """Replay and print; 1 with a line that says why, when there is nothing to replay."""
    held = 0 if options.buddyinfo else min(HELD_AT_BOOT, options.memory // 10)  # the lists leave it out themselves
    options.free = options.free or options.memory - max(held, FIRST_FREE)
    try:
        given = compare(options)
    except FileNotFoundError as error:
        name = str(error.filename)
        known = f"no file, and none of {', '.join(MADE)}" if name == options.source else "no such file or folder"
        sys.stderr.write(f"execmem replay: {clean(name)}: {known}\n")
        return 1
    except OutOfMemoryError as error:
        sys.stderr.write(f"execmem replay: {error}: give the simulated machine more --memory\n")
        return 1
    except (OSError, TraceError, ValueError) as error:
        sys.stderr.write(f"execmem replay: {clean(str(error))}\n")
        return 1
    if options.json:
        print(json.dumps(to_json(given, options.free), indent=1))
    else:
        print_text(given)
    return 0
