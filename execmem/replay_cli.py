"""replay_cli: `execmem replay`: what allocators would have made of a trace, on a simulated machine.

    execmem replay FILE                          a trace that `execmem directmap record` wrote, under every policy
    execmem replay tools --memory 8G             a made-up workload; --list tells their names
    execmem replay 'scn=ramp n=4000 pfrag=16 keep=200' --memory 1G --policy '6.1' ours

The table comes first, then how the splits grew. It needs no compiled core.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from execmem.directmap import replay, workload
from execmem.directmap.model import Size
from execmem.directmap.pages import PAGE, OutOfMemoryError
from execmem.directmap.policy import POLICIES
from execmem.directmap.trace import Trace, TraceError
from execmem.draw import Paint, text_width

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
    """Return the one policy whose name holds this text."""
    found = [name for name in POLICIES if text.lower() in name.lower()]
    if len(found) != 1 and text not in POLICIES:
        message = f"{text!r} is not a part of one of: {', '.join(POLICIES)}"
        raise argparse.ArgumentTypeError(message)
    return text if text in POLICIES else found[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem replay``."""
    parser.epilog = f"Made-up workloads: {', '.join(MADE)}; or a text such as 'scn=ramp n=4000 frag=32'."
    parser.add_argument("source", metavar="TRACE", help="a trace, the name of a made-up workload, or a lab's text")
    parser.add_argument(
        "--policy", type=to_policy, nargs="+", default=list(POLICIES), metavar="P", help="parts of names (all)"
    )
    parser.add_argument("--memory", type=to_memory, default="4G", metavar="SIZE", help="of the machine (4G)")
    parser.add_argument(
        "--free", type=to_memory, metavar="SIZE", help="of it when the replay begins (what boot leaves)"
    )
    parser.add_argument("--buddyinfo", type=Path, metavar="FILE", help="free lists to begin with, as /proc/buddyinfo")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


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


# ---- the pictures ----

LINES: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    ("regions split", lambda row: f"{row.splits:,}"),
    ("split at the end", lambda row: f"{row.split_now:,}"),
    ("no policy below", lambda row: f"{row.least:,}"),
    ("1 GB pages split", lambda row: f"{row.splits_1g:,}"),
    ("4 KB mapped, MB", lambda row: f"{row.mapped[Size.PAGE] >> 20:,}"),
    ("TLB entries", lambda row: f"{row.tlb:,}"),
    ("code live, MB", lambda row: f"{row.live / 2**20:.1f}"),
    ("held, MB", lambda row: f"{row.held / 2**20:.1f}"),
    ("held / live", lambda row: f"{row.fragmentation:,.2f}"),
    ("headers, KB", lambda row: f"{row.waste['header'] >> 10:,}"),
    ("rounding, KB", lambda row: f"{row.waste['rounding'] >> 10:,}"),
    ("free in packs, KB", lambda row: f"{row.waste['free'] >> 10:,}"),
)


def draw_table(results: Sequence[Result], paint: Paint) -> list[str]:
    """Return a line a figure, a column a policy: 78 columns for six."""
    short = [row.policy.split(",")[0] for row in results]
    lines = [paint.head(f"{'':<17}" + "".join(f"{name:>10}" for name in short))]
    for name, tell in LINES:
        cells = [tell(row) for row in results]
        lines.append(f"{name:<17}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def draw_curves(results: Sequence[Result], rows: int, paint: Paint, width: int) -> list[str]:
    """Return a line a policy: how its splits grew from the first row of the trace to the last, all to one scale."""
    most = max(1, *(count for row in results for _, count in row.over_time))
    steps, cells = STEPS if paint.unicode else PLAIN_STEPS, max(10, width - 30)
    lines = [f"regions split, from the first of {rows:,} rows to the last; the highest is {most:,}"]
    for row in results:
        heights = [0] * cells
        for at, count in row.over_time:
            heights[min(cells - 1, at * cells // max(1, rows))] = count
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


def replay_all(options: argparse.Namespace, chosen: Workload, host: replay.Host) -> list[Result]:
    """Replay under each policy; says on stderr how far it is when it takes longer than a second."""
    results: list[Result] = []
    begin = time.monotonic()
    for name in options.policy:
        if not options.quiet and time.monotonic() - begin > 1:
            sys.stderr.write(f"{len(results)} of {len(options.policy)} policies replayed; now {name}\n")
        results.append(replay.run(chosen, name, host))
    return results


def run(options: argparse.Namespace) -> int:
    """Replay and print; 1 with a line that says why, when there is nothing to replay."""
    free = options.free or options.memory - min(HELD_AT_BOOT, options.memory // 10)
    try:
        if free > options.memory:
            message = "--free is more than --memory"
            raise ValueError(message)  # noqa: TRY301 - told as the others are
        chosen = take_workload(options.source)
        text = options.buddyinfo.read_text(encoding="ascii") if options.buddyinfo else ""
        results = replay_all(options, chosen, replay.Host(free, options.memory, text))
    except FileNotFoundError as error:
        known = f"no file, and none of {', '.join(MADE)}" if error.filename == options.source else "no file"
        sys.stderr.write(f"execmem replay: {error.filename}: {known}\n")
        return 1
    except OutOfMemoryError as error:
        sys.stderr.write(f"execmem replay: {error}: give the simulated machine more --memory\n")
        return 1
    except (OSError, TraceError, ValueError) as error:
        sys.stderr.write(f"execmem replay: {error}\n")
        return 1
    if options.json:
        found = [asdict(row) | {"mapped": {size.name: held for size, held in row.mapped.items()}} for row in results]
        head = {"schema": 1, "workload": chosen.name, "rows": len(chosen.rows), "memory": options.memory * PAGE}
        print(json.dumps(head | {"free": free * PAGE, "results": found}, indent=1))
        return 0
    paint, width = Paint.of(sys.stdout), text_width()
    print(paint.head(f"{chosen.name}: {len(chosen.rows):,} loads and unloads on {options.memory * PAGE >> 20:,} MB"))
    print(paint.rule(width))
    for line in (*draw_table(results, paint), "", *draw_curves(results, len(chosen.rows), paint, width), ""):
        print(line)
    print(tell_difference(results))
    print("Simulated: docs/model.md tells how near real kernels come to it.")
    return 0
