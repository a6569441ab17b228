"""directmap on the command line: what the kernel's direct map is now, what happens to it, and what has happened.

    execmem directmap show              counters, an atlas of regions, and which sources can be read
    execmem directmap watch             the same again and again, with what was split, joined, came and went
    execmem directmap record FILE       sample and listen into a trace, until Ctrl-C or for --seconds
    execmem directmap report FILE       what a trace tells: code that came and went, splits and who did them

Pictures: show and report take --svg OUT, --png OUT and --html OUT.

Where the compiled core is missing the same runs as ``python -m execmem.directmap_cli show``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import platform
import select
import signal
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from execmem import directmap_watch, draw_html, draw_svg, picture
from execmem.directmap import convert, history, perf, record, region, source
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import EVENT, Client, Kind, Texts, Trace, TraceError, Writer, describe_machine
from execmem.draw import Paint, clean, columns, tell_bytes, tell_time, text_width
from execmem.draw_directmap import draw_atlas, draw_jit, jit_as_dict, tell_free, tell_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from typing_extensions import Self

SOURCES: Final = (*source.SOURCES, region.SOURCE, perf.SOURCE)
TOP: Final = 10  # owners and reasons that a report lists


# ---- pictures ----


def write_pictures(options: argparse.Namespace, told: history.History) -> None:
    """Write the files that were asked for."""
    picture.write_pictures(options, lambda: draw_svg.draw_history(told), lambda: draw_html.draw_page(told))


def walk_now(header: Mapping[str, Any]) -> region.Walk:
    """Return the regions as they are now, if a trace is of this machine since it was started."""
    here = describe_machine()
    booted = [known["start_realtime_ns"] - known["start_ns"] for known in (header, here)]
    if header["kernel"] != here["kernel"] or abs(booted[0] - booted[1]) > SAME_BOOT:
        why = "--walk reads the page tables of this machine as it runs, the trace is of another or of before its start"
        raise NotAvailable(why=why, remedy="leave out --walk: what the trace itself tells is shown")
    return region.walk()


SAME_BOOT: Final = 60 * record.NS  # clocks are set while a machine runs


def sum_regions(walk: region.Walk | None) -> dict[str, Any]:
    """Return how many regions are in each state, and which are split; None where nobody looked."""
    return {
        "regions": walk and {state.name.lower(): walk.count(state) for state in region.State},
        "split_regions": walk and np.flatnonzero(np.isin(walk.state, region.SPLIT)).tolist(),
    }


# ---- show ----


def show(options: argparse.Namespace) -> int:
    """Print what the direct map is now, as far as this user may know."""
    root = Path("/")
    counters: dict[str, int] = {}
    for count in (record.count_directmap, record.count_splits, record.count_areas, record.count_unseen):
        with contextlib.suppress(NotAvailable):  # told below, with the other sources
            counters |= count(root)
    walk = None
    with contextlib.suppress(NotAvailable):
        walk = region.walk()
    jit, zones = None, None
    with contextlib.suppress(NotAvailable):
        zones = source.read_buddyinfo()
    with contextlib.suppress(NotAvailable):
        jit = source.read_jit()
    picture.check_outputs(picture.names(options), None)
    if picture.names(options):
        state = walk.state if walk else region.walk().state  # again: for the error that tells why not
        write_pictures(options, history.tell(np.zeros(0, EVENT), describe_machine(), state))
    missing = {one.name: one.missing() for one in SOURCES}
    if options.json:
        found = {
            "machine": platform.machine(),
            "kernel": platform.release(),
            "counters": counters,
            **sum_regions(walk),
            "jit": jit and jit_as_dict(jit),
            "free": zones and [asdict(zone) for zone in zones],
            "sources": {name: "available" if why is None else str(why) for name, why in missing.items()},
        }
        print(json.dumps(found, indent=2))
        return 0
    paint, width = Paint.of(sys.stdout), text_width()
    print(paint.head(f"direct map of Linux {platform.release()} {platform.machine()}"))
    print(paint.rule(width))
    for name, value in counters.items():
        print(columns([name, tell_value(name, value)], [32, -16]))
    for text in tell_free(zones or ()):
        print("\n".join(textwrap.wrap(text, width, subsequent_indent="  ")))
    print(paint.rule(width))
    if jit:
        print("\n".join([*draw_jit(jit, "", paint, width), paint.rule(width)]))
    if walk:
        print("\n".join(draw_atlas(walk.state, paint)))
        print(paint.rule(width))
    for one in SOURCES:
        why = missing[one.name]
        mark = paint.good("yes") if why is None else paint.bad("no ")
        first, *more = textwrap.wrap(one.tells if why is None else clean(str(why)), width - 17)
        print(f"{one.name:<12} {mark} {first}")
        for line in more:
            print(f"{'':<16} {line}")
    return 0


# ---- record ----


class Stop:
    """Ctrl-C and SIGTERM end a wait and nothing else, so that what is being written is written to its end."""

    def __init__(self) -> None:
        """Begin with nobody having asked."""
        self.asked = False

    def __enter__(self) -> Self:
        """Take the signals."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        # Written to whichever thread gets the signal: numpy may have some.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def wait(self, seconds: float) -> bool:
        """Wait for so many seconds, or until somebody asks to stop; tell whether they did."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            if select.select([self._read], [], [], left)[0]:
                os.read(self._read, 4096)
        return self.asked


def run_record(options: argparse.Namespace) -> int:
    """Record into a file until Ctrl-C or for a time; show on a terminal what has come so far."""
    live = sys.stderr.isatty()
    began = time.monotonic()
    with Stop() as stop, record.open_means() as means:
        header = record.make_header(means, options.every)
        for name, why in means.missing.items():
            print(f"{name}: {clean(why)}", file=sys.stderr)
        until = "Ctrl-C" if options.seconds is None else f"{options.seconds:g} s have gone, or Ctrl-C"
        print(f"recording into {clean(options.file)} until {until}", file=sys.stderr, flush=True)
        with Writer(options.file, header) as writer:
            recorder = record.Recorder(writer, means)

            def wait(seconds: float) -> bool:
                if live:
                    print(
                        f"\r{time.monotonic() - began:8.0f} s  {tell_sums(writer, recorder)}",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
                return stop.wait(seconds)

            try:
                recorder.run(seconds=options.seconds, every=options.every, wait=wait)
            finally:
                if live:
                    print(file=sys.stderr)
    print(f"{clean(options.file)}: {tell_sums(writer, recorder)} in {tell_time(time.monotonic() - began)}")
    return 0


def tell_sums(writer: Writer, recorder: record.Recorder) -> str:
    """Return what has been recorded so far; rows are counted as `report` does."""
    return (
        f"{writer.events:,} rows, {recorder.loads:,} loads, {recorder.unloads:,} unloads, "
        f"{recorder.splits:,} splits, {recorder.joins:,} joins"
    )


# ---- report ----


def summarise(trace: Trace) -> dict[str, Any]:
    """Return what a trace tells, as a dictionary for JSON. About 0.3 us a row."""
    rows = trace.rows()
    texts = Texts(rows)
    rows = rows[rows["kind"] != Kind.TEXT]
    start = trace.header["start_ns"]
    recorded = rows[rows["ns"] >= start]
    return {
        "kernel": trace.header["kernel"],
        "machine": trace.header["machine"],
        "state": trace.state(),
        "rows": len(rows),
        "seconds": round((int(recorded["ns"].max()) - start) / record.NS, 3) if len(recorded) else 0.0,
        "sources": trace.header.get("sources"),
        "counters": sum_counters(rows, texts),
        "code": sum_code(rows, start),
        "owners": sum_owners(rows[rows["ns"] >= start], texts),
        "splits": sum_splits(rows, texts, start),
    }


def sum_counters(rows: npt.NDArray[np.void], texts: Texts) -> dict[str, dict[str, int]]:
    """Return first and last value of each counter."""
    samples = rows[rows["kind"] == Kind.SAMPLE]
    numbers, first = np.unique(samples["name"], return_index=True)
    last = len(samples) - 1 - np.unique(samples["name"][::-1], return_index=True)[1]
    names = texts.take(numbers).tolist()
    values = zip(names, samples["at"][first].tolist(), samples["at"][last].tolist(), strict=True)
    return {name: {"first": begin, "last": end} for name, begin, end in values}


def sum_code(rows: npt.NDArray[np.void], start: int) -> dict[str, dict[str, int]]:
    """Return for each client how much code was there before, came and went: pieces and bytes."""
    found = {}
    clients = np.where(rows["client"] <= max(Client), rows["client"], Client.UNKNOWN)
    for client in Client:
        ours = rows[clients == client]
        old = ours["ns"] < start
        parts = {
            "before": ours[(ours["kind"] == Kind.LOAD) & old],
            "loads": ours[(ours["kind"] == Kind.LOAD) & ~old],
            "unloads": ours[ours["kind"] == Kind.UNLOAD],
        }
        sums = {name: len(part) for name, part in parts.items()}
        sums |= {f"{name}_bytes": int(part["size"].sum(dtype=np.uint64)) for name, part in parts.items()}
        if sums["before"] or sums["loads"] or sums["unloads"]:
            found[client.name.lower()] = sums
    return found


def sum_whole(
    place: npt.NDArray[np.intp], values: npt.NDArray[np.unsignedinteger[Any]], count: int
) -> npt.NDArray[np.int64]:
    """Return the sum of the values of each place; numpy's `bincount` would round those above 2**53."""
    sums = np.zeros(count, np.int64)
    np.add.at(sums, place, values.astype(np.int64))
    return sums


def sum_owners(rows: npt.NDArray[np.void], texts: Texts) -> list[dict[str, Any]]:
    """Return who loaded how much, those first who loaded most pieces."""
    loads = rows[rows["kind"] == Kind.LOAD]
    numbers, place, counts = np.unique(loads["owner"], return_inverse=True, return_counts=True)
    sizes = sum_whole(place, loads["size"], len(numbers))
    names = texts.take(numbers).tolist()
    order = np.argsort(-counts, kind="stable").tolist()
    return [{"owner": names[at], "loads": int(counts[at]), "bytes": int(sizes[at])} for at in order]


def sum_splits(rows: npt.NDArray[np.void], texts: Texts, start: int) -> list[dict[str, Any]]:
    """Return splits and joins by who did them and why, those first that are most; when each was first, and where."""
    events = rows[(rows["kind"] == Kind.SPLIT) | (rows["kind"] == Kind.JOIN)]
    keys, place = np.unique(events[["kind", "size", "owner", "name"]], return_inverse=True)
    counts = sum_whole(place, events["id"], len(keys))
    # Sorted once: looking for each kind among all rows would take minutes where there are 100,000 kinds.
    parts = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place, minlength=len(keys)))[:-1])
    owners, reasons = texts.take(keys["owner"]).tolist(), texts.take(keys["name"]).tolist()
    found = []
    for number in np.argsort(-counts, kind="stable").tolist():
        ours = events[parts[number]]
        key = keys[number]
        found.append(
            {
                "kind": Kind(int(key["kind"])).name.lower(),
                "size": int(key["size"]),
                "count": int(counts[number]),
                "owner": owners[number] or None,
                "why": reasons[number],
                "first_s": round((int(ours["ns"].min()) - start) / record.NS, 3),
                "at": sorted(int(at) for at in ours["at"] if at),
            }
        )
    return found


def print_report(found: Mapping[str, Any]) -> None:
    """Print what ``summarise`` found."""
    paint, width = Paint.of(sys.stdout), text_width()
    print(paint.head(clean(f"{found['seconds']:,} s of Linux {found['kernel'].partition(' ')[0]} {found['machine']}")))
    print(f"{found['rows']:,} rows, the file is {found['state']}")
    print(paint.rule(width))
    print(columns(["counter", "first", "last", "change"], [32, -14, -14, -12]))
    for name, values in found["counters"].items():
        first, last = values["first"], values["last"]
        change = ("+" if last > first else "-") + tell_value(name, abs(last - first)) if last != first else ""
        print(columns([clean(name), tell_value(name, first), tell_value(name, last), change], [32, -14, -14, -12]))
    print(paint.rule(width))
    if not found["code"]:
        print("no code came or went")
    for client, sums in found["code"].items():
        parts = (
            f"{sums[key]:,} {word} ({tell_bytes(sums[f'{key}_bytes'])})" for key, word in WORDS.items() if sums[key]
        )
        print(f"{client:<12} {', '.join(parts)}")
    for one in found["owners"][:TOP]:
        print(f"  {one['loads']:>8,} loads, {tell_bytes(one['bytes']):>9}  {clean(one['owner']) or 'not known'}")
    if len(found["owners"]) > TOP:
        print(f"  and {len(found['owners']) - TOP:,} more owners")
    print(paint.rule(width))
    if not found["splits"]:
        print(paint.good("nothing was split"))
    for one in found["splits"][:TOP]:
        what = f"{one['count']:,} x {tell_bytes(one['size'])} {one['kind']}"
        owner = clean(one["owner"]) if one["owner"] else "unattributed"
        first = f"at {one['first_s']:,} s" if one["first_s"] >= 0 else "before the start"
        print(f"{what:<22} {paint.bad(owner) if one['owner'] else owner}, first {first}")
        for line in textwrap.wrap(clean(one["why"]), width - 23):
            print(f"{'':<22} {line}")
    if len(found["splits"]) > TOP:
        print(f"and {len(found['splits']) - TOP:,} more kinds: --json has them all")


def open_text(path: Path, *, packed: bool) -> TextIO:
    """Open a file for text, which is compressed on its way."""
    if packed:
        return gzip.open(path, "wt", compresslevel=3, encoding="utf-8")
    return path.open("w", encoding="utf-8")


LARGE: Final = 64 << 20
WORDS: Final = {"before": "there before", "loads": "came", "unloads": "went"}


def report(options: argparse.Namespace) -> int:
    """Print what a trace tells, and write it for other tools."""
    with Trace.open(options.file) as trace:
        size = Path(options.file).stat().st_size
        if size > LARGE:
            print(f"reading {tell_bytes(size)} of rows: some seconds, and five times as much memory", file=sys.stderr)
        files = (options.csv, options.parquet, options.perfetto, *picture.names(options))
        picture.check_outputs(files, options.file)
        walk = walk_now(trace.header) if options.walk else None
        if options.csv:
            with picture.written_whole(options.csv) as part, part.open("w", encoding="utf-8", newline="") as file:
                convert.write_csv(trace.rows(), file)
        if options.parquet:
            with picture.written_whole(options.parquet) as part:
                convert.write_parquet(trace.rows(), part, trace.header)
        if options.perfetto:
            packed = options.perfetto.endswith(".gz")
            with picture.written_whole(options.perfetto) as part, open_text(part, packed=packed) as file:
                convert.write_perfetto(trace.rows(), trace.header, file)
        if picture.names(options):
            write_pictures(options, history.tell(trace.rows(), trace.header, walk.state if walk else None))
        found = summarise(trace) | sum_regions(walk)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print_report(found)
        if walk:
            paint = Paint.of(sys.stdout)
            print(paint.rule(text_width()))
            print("regions as page tables have them now, not as the trace ends:")
            print("\n".join(draw_atlas(walk.state, paint)))
    return 0


# ---- the commands ----


def positive(text: str) -> float:
    """Parse seconds: from a tenth of a millisecond to 30 years."""
    value = float(text)
    if not 1e-4 <= value <= 1e9:  # noqa: PLR2004 - as told
        message = f"{text!r} is not a number of seconds from 0.0001 to 1e9"
        raise argparse.ArgumentTypeError(message)
    return value


SHOW_EXAMPLES: Final = (
    "examples:\n"
    "  execmem directmap show               counters, and why others are not there\n"
    "  sudo execmem directmap show          with an atlas of regions\n"
    "  sudo execmem directmap show --svg map.svg --html map.html\n"
    "  execmem directmap show --json\n"
    "exit code: 0 shown, 1 a picture cannot be made (stderr tells why), 2 wrong usage"
)
RECORD_EXAMPLES: Final = (
    "examples:\n"
    "  sudo execmem directmap record my.trace                until Ctrl-C\n"
    "  sudo execmem directmap record my.trace --seconds 3600 --every 5\n"
    "exit code: 0 recorded, until its end, Ctrl-C or SIGTERM; 1 it cannot be, or\n"
    "there is no more room (what was written is whole); 2 wrong usage"
)
REPORT_EXAMPLES: Final = (
    "examples:\n"
    "  execmem directmap report my.trace\n"
    "  execmem directmap report my.trace --html my.html    a page with a time slider\n"
    "  execmem directmap report my.trace --json --csv rows.csv\n"
    "exit code: 0 told, 1 it is no trace, or a file cannot be written (stderr tells\n"
    "why), 2 wrong usage"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem directmap``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem directmap show\n"
        "  sudo execmem directmap record my.trace --seconds 3600\n"
        "  execmem directmap report my.trace\n"
        "exit code: 0 done, 1 it cannot be (stderr tells why), 2 wrong usage\n"
        "show, watch and report take --json; each explains itself with --help"
    )
    pictures = argparse.ArgumentParser(add_help=False)
    picture.add_arguments(pictures)
    names = parser.add_subparsers(dest="action", metavar="show|watch|record|report", required=True)

    def add(name: str, summary: str, epilog: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        told, form = f"{summary[0].upper()}{summary[1:]}.", argparse.RawDescriptionHelpFormatter
        return names.add_parser(
            name, parents=parents, help=summary, description=told, epilog=epilog, formatter_class=form
        )

    one = add("show", "what the direct map is now, and what can be known here", SHOW_EXAMPLES, pictures)
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(act=show)
    one = add("watch", "the same again and again: what changes, and who is suspected, until Ctrl-C", "")
    directmap_watch.add_arguments(one, positive)
    one.set_defaults(act=directmap_watch.run)
    one = add("record", "record into a trace what happens, until Ctrl-C", RECORD_EXAMPLES)
    one.add_argument("file", metavar="FILE", help="a new file; it is whole whenever the recording ends, and however")
    one.add_argument("--seconds", type=positive, metavar="N", help="end after so many seconds")
    one.add_argument("--every", type=positive, default=1.0, metavar="S", help="seconds between samples (1)")
    one.set_defaults(act=run_record)
    one = add("report", "what a trace tells: code that came and went, splits and suspects", REPORT_EXAMPLES, pictures)
    one.add_argument("file", metavar="FILE", help="a trace; also one that is being recorded")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--csv", metavar="OUT", help="write all rows as CSV too")
    one.add_argument("--parquet", metavar="OUT", help="write all rows as Parquet too; needs pyarrow")
    one.add_argument(
        "--perfetto", metavar="OUT", help="write all rows for ui.perfetto.dev too; compressed if OUT ends in .gz"
    )
    one.add_argument(
        "--walk", action="store_true", help="tell and draw all regions, as page tables have them now; for root"
    )
    one.set_defaults(act=report)


def run(options: argparse.Namespace) -> int:
    """Run the command that was asked for; what goes wrong outside is one line."""
    try:
        code: int = options.act(options)
    except BrokenPipeError:
        raise
    except (NotAvailable, TraceError, OSError, ImportError) as error:
        print(f"execmem directmap {options.action}: {clean(str(error))}", file=sys.stderr)
        return 1
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run without the rest of the command line, as where the compiled core is missing."""
    parser = argparse.ArgumentParser(prog="python -m execmem.directmap_cli", description=__doc__.partition("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
