"""map_cli: ``execmem map``: another process's packs; what ``top_cli`` shows again and again is made here too.

    PID or --from FILE --watch--> Look --survey--> DomainFacts --draw_packs--> text, or JSON (docs/watch.md)

The watched process is neither stopped nor changed, and nothing is injected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from execmem import picture
from execmem.draw import Paint, clean, tell_bytes, text_width
from execmem.draw_svg import shorten

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem import draw_html_occupancy, draw_html_packs, draw_occupancy, draw_packs, draw_svg_packs, occupancy
    from execmem.survey import (
        ROW_CHUNKS,
        ROWS,
        DomainFacts,
        PackBlocks,
        PackFacts,
        Wish,
        chunks_of_nobody,
        pack_facts,
        survey_domain,
        survey_row,
        survey_rows,
    )
    from execmem.watch import Ledger, Look, Pages, Process, WatchError, open_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCHEMA: Final = "execmem-map-1"
JSON_CELLS: Final = 64
PACKS_SHOWN: Final = 16
LIVES_SHOWN: Final = 64
USAGE: Final = 2
DAY: Final = 86_400  # seconds
CHUNK: Final = 64  # bytes
SEARCH_EVERY: Final = 2.0  # seconds between searches for new domains: the list of mappings is dear to its process

Moment: TypeAlias = "dict[int, tuple[Ledger, Look]]"  # by id: two copies of the library in a process count alike


class UsageError(Exception):
    """What was asked for cannot be meant; the exit code is 2."""


# ---- options ----


def to_pid(text: str) -> int:
    """Return a process number, for argparse."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) < 1 << 31:
        message = f"{text!r} is no process number"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def to_seconds(text: str) -> float:
    """Return seconds of at least 0, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= DAY:
        message = f"{text!r} is no time in seconds, 0 to 86400"
        raise argparse.ArgumentTypeError(message)
    return seconds


def to_number(text: str) -> int:
    """Return a number of at least 0, for argparse."""
    if not (text.isascii() and text.isdecimal()):
        message = f"{text!r} is not a number of at least 0"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that both commands have."""
    parser.add_argument("--domain", metavar="NAME", help="only the domain of this name or number (all)")
    parser.add_argument("--sort", choices=("number", "fill"), default="number", help="fill: emptiest first (number)")
    parser.add_argument("--pack", type=to_number, metavar="N", help="look into this pack: its rows of 64 kB")
    parser.add_argument("--row", type=to_number, metavar="R", help="with --pack: the chunks and blocks of this row")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem map``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem map 4711                     its packs, their owners and ages\n"
        "  execmem map 4711 --by owner --sort fill --limit 5\n"
        "  execmem map 4711 --pack 3 --row 7    down to chunks and blocks\n"
        "  execmem map 4711 --save it.ledger; execmem map --from it.ledger\n"
        "  execmem map 4711 --by owner --svg packs.svg --html packs.html\n"
        "  execmem map --history it.jsonl --html it.html   what top --json printed\n"
        "  execmem map --history it.jsonl --limit 0 --json    the life of every pack\n"
        "exit code: 0 shown, 1 cannot be shown (stderr tells why), 2 wrong usage,\n"
        "130 Ctrl-C"
    )
    parser.add_argument("pid", nargs="?", type=to_pid, metavar="PID", help="a process that uses execmem")
    parser.add_argument(
        "--from", dest="file", metavar="FILE", help="a copy of a ledger, as --save writes it; gzip may pack it"
    )
    parser.add_argument(
        "--history", metavar="FILE", help="packs in the course of time, from what `execmem top --json` printed"
    )
    parser.add_argument(
        "--save", metavar="FILE", help="write a copy of the ledger, with its holes, instead of showing it"
    )
    shared_arguments(parser)
    parser.add_argument(
        "--by", choices=("age", "owner", "fill"), default="age", help="what letters and colours tell (age)"
    )
    parser.add_argument(
        "--limit",
        type=to_number,
        metavar="N",
        help=f"packs shown, 0: all ({PACKS_SHOWN}; with --history {LIVES_SHOWN})",
    )
    parser.add_argument(
        "--interval", type=to_seconds, default=0.25, metavar="S", help="to count events over, 0: do not (0.25)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; docs/watch.md has the schema")
    picture.add_arguments(parser)


# ---- choosing ----


def find_domains(ledgers: Sequence[Ledger], wanted: str | None) -> list[Ledger]:
    """Return the ledgers of a name or number, all without one; by number."""
    ordered = sorted(ledgers, key=lambda ledger: ledger.domain)
    if wanted is None:
        return ordered
    found = [ledger for ledger in ordered if wanted in {ledger.name, str(ledger.domain)}]
    if not found:
        message = f"there is no domain {wanted!r}; there are {list_domains(ordered)}"
        raise WatchError(message)
    return found


def list_domains(ledgers: Sequence[Ledger]) -> str:
    """Return the names and numbers of domains."""
    plain = Paint(colour=False, unicode=False)
    return ", ".join(f"{draw_packs.printable(ledger.name, plain)} ({ledger.domain})" for ledger in ledgers) or "none"


def pick_one(ledgers: Sequence[Ledger], what: str) -> Ledger:
    """Return the only domain, or the only one that has packs."""
    with_packs = [ledger for ledger in ledgers if ledger.header["packs_live"]]
    for found in (ledgers, with_packs):
        if len(found) == 1:
            return found[0]
    message = f"{what} is of one domain: say --domain NAME or number, of {list_domains(ledgers)}"
    raise UsageError(message)


def look_at(ledgers: Sequence[Ledger]) -> Moment:
    """Return a look at each domain; of one that closed meanwhile the last state is still there."""
    return {id(ledger): (ledger, ledger.look()) for ledger in ledgers}


class Looks:
    """Looks at a process one after another, each with the one before it: so events per second are known."""

    def __init__(self, process: Process, pages: Pages, domain: str | None) -> None:
        """Begin with no earlier look; `domain` is the only one wanted, None: all."""
        self.process, self.pages, self.domain = process, pages, domain
        self._before: Moment = {}
        self._searched = time.monotonic()

    def ledgers(self) -> list[Ledger]:
        """Return the domains that are wanted; now and then new ones are searched for."""
        if time.monotonic() - self._searched >= SEARCH_EVERY:
            self.process.refresh()
            self._searched = time.monotonic()
        self.pages.refresh()
        return find_domains(list(self.process.ledgers.values()), self.domain)

    def survey(self, looks: Moment, wishes: Sequence[Wish]) -> list[DomainFacts]:
        """Return what domains say now, as it is wished of each."""
        domains = []
        for wish, (number, (ledger, look)) in zip(wishes, looks.items(), strict=True):
            earlier = self._before.get(number)
            before = earlier[1] if earlier and earlier[0] is ledger else None
            domains.append(survey_domain(ledger, before, look, self.pages, wish))
        self._before = looks
        return domains


@contextlib.contextmanager
def open_source(options: argparse.Namespace) -> Iterator[tuple[list[Ledger], Process | None, Pages | None]]:
    """Open the process or the file that was named."""
    with contextlib.ExitStack() as stack:
        if options.pid is None:
            ledger = open_copy(options.file)
            stack.callback(ledger.close)
            yield [ledger], None, None
        else:
            process = Process(options.pid)
            stack.callback(process.close)
            pages = Pages(options.pid)
            stack.callback(pages.close)
            yield list(process.ledgers.values()), process, pages


# ---- map ----


def run(options: argparse.Namespace) -> int:
    """Show a process's packs, or write a copy of its ledger."""
    try:
        check_map(options)
        check_pictures(options)
        if options.history is not None:
            show_history(options)
            return 0
        with open_source(options) as (ledgers, process, pages):
            chosen = find_domains(ledgers, options.domain)
            if options.save is not None:
                return save(pick_one(chosen, "--save"), Path(options.save))
            if options.pack is not None:
                show_pack(pick_one(chosen, "--pack"), pages, options)
                return 0
            show_map(chosen, process, pages, options)
    except UsageError as error:
        print(f"execmem {options.command}: {error}", file=sys.stderr)
        return USAGE
    return 0


def check_map(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.limit is None:
        options.limit = PACKS_SHOWN if options.history is None else LIVES_SHOWN
    if options.history is not None:
        check_history(options)
        return
    if (options.pid is None) == (options.file is None):
        message = "say the PID of a process, or --from FILE, and not both"
        raise UsageError(message)
    drawn = picture.names(options)
    if options.save is not None and (options.file is not None or options.pack is not None or options.json or drawn):
        message = "--save copies the ledger of a PID and shows nothing: not with --from, --pack, --json or pictures"
        raise UsageError(message)
    if options.pack is not None and drawn:
        message = (
            "--svg, --png and --html draw all packs of domains, of which the page shows rows and chunks: not --pack"
        )
        raise UsageError(message)
    check_row(options)


def check_history(options: argparse.Namespace) -> None:
    """Refuse what does not go with a recording."""
    others = (options.pid, options.file, options.save, options.pack, options.row)
    if any(other is not None for other in others):
        message = (
            "--history is text, --json, --svg, --png or --html of a recording: not with a PID, --from, --save or --pack"
        )
        raise UsageError(message)


def check_pictures(options: argparse.Namespace) -> None:
    """Refuse a picture that would take the place of another, or of the file it is drawn from."""
    try:
        picture.check_outputs(picture.names(options), options.file or options.history)
    except picture.PictureError as error:
        raise WatchError(str(error)) from None


def check_row(options: argparse.Namespace) -> None:
    """Refuse a row without a pack, or beyond one."""
    if options.row is not None and options.pack is None:
        message = "--row is a row of a pack: say --pack N too"
        raise UsageError(message)
    if options.row is not None and options.row >= ROWS:
        message = f"--row {options.row}: a pack has the rows 0 to {ROWS - 1}"
        raise UsageError(message)


def save(ledger: Ledger, path: Path) -> int:
    """Write a copy of a ledger."""
    if path.exists() and not path.is_file() and not path.is_dir():
        message = f"{path} cannot be written: it is a device or a pipe, which cannot hold a copy with its holes"
        raise WatchError(message)
    try:
        copied, steady = ledger.save(path)
    except WatchError:
        raise
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise WatchError(message) from None
    print(f"{clean(str(path))}: {copied:,} bytes of data in a file of {path.stat().st_size:,}")
    if not steady:
        print("execmem map: blocks came and went meanwhile: the copy is of several moments", file=sys.stderr)
    return 0


def show_map(
    ledgers: Sequence[Ledger], process: Process | None, pages: Pages | None, options: argparse.Namespace
) -> None:
    """Print every domain."""
    before: Moment = {}
    if process is not None and options.interval:
        before = look_at(ledgers)
        time.sleep(options.interval)
    looks = look_at(ledgers)
    width = text_width()
    cells = JSON_CELLS if options.json else draw_packs.cells_for(width)
    domains = survey_all(looks, before, pages, Wish(cells, options.limit or None, options.sort, options.by))
    write_pictures(looks, before, process, pages, options)
    if options.json:
        print(json.dumps(as_json(domains, process, options), indent=2))
        return
    paint = Paint.of(sys.stdout)
    print("\n".join(draw_map(domains, title(process, options, paint), paint, width)))


def survey_all(
    looks: Moment, before: Moment, pages: Pages | None, wish: Wish, kept: dict[int, PackBlocks] | None = None
) -> list[DomainFacts]:
    """Return what there is to say about every domain."""
    return [
        survey_domain(ledger, before[number][1] if number in before else None, look, pages, wish, kept)
        for number, (ledger, look) in looks.items()
    ]


def write_pictures(
    looks: Moment, before: Moment, process: Process | None, pages: Pages | None, options: argparse.Namespace
) -> None:
    """Write the files that were asked for; blocks are read again for them, in finer parts than text has."""
    if process is None:
        heading = f"packs in {Path(options.file).name}: times stand at its last event"
    else:
        heading = f"packs of process {process.pid}: {process.command}"

    def draw() -> str:
        wish = Wish(draw_svg_packs.CELLS, options.limit or None, options.sort, options.by)
        return draw_svg_packs.draw_packs_of(survey_all(looks, before, pages, wish), shorten(heading, 110))

    def write_page() -> str:
        wish = Wish(JSON_CELLS, None, options.sort, "owner")
        told = []
        for number, (ledger, look) in looks.items():
            kept: dict[int, PackBlocks] = {}
            facts = survey_all({number: (ledger, look)}, before, pages, wish, kept)[0]
            alone = {pack.number: chunks_of_nobody(ledger, pack, kept[pack.number].blocks) for pack in facts.packs}
            held = {key: draw_html_packs.Held(blocks, alone[key]) for key, blocks in kept.items()}
            told.append(draw_html_packs.Told(facts, held))
        return draw_html_packs.draw_page(told, heading, options.by)

    write_files(options, draw, write_page)


def write_files(options: argparse.Namespace, svg: Callable[[], str], page: Callable[[], str]) -> None:
    """Write the files that were asked for, or raise with what cannot be written."""
    try:
        picture.write_pictures(options, svg, page)
    except WatchError:
        raise
    except OSError as error:
        if isinstance(error, picture.PictureError):
            raise WatchError(str(error)) from None
        message = f"{' or '.join(picture.names(options))} cannot be written: {error.strerror}"
        raise WatchError(message) from None


# ---- the course of time ----


def show_history(options: argparse.Namespace) -> None:
    """Print the domains of a recording, and draw them."""
    paint, limit = Paint.of(sys.stdout), options.limit or None
    where = f"the file {draw_packs.printable(options.history, paint, 200)}"
    try:
        with Path(options.history).open("rb") as file:
            found, notes = occupancy.read(file, where)
    except WatchError:
        raise
    except OSError as error:
        message = f"{where} cannot be read: {error.strerror}"
        raise WatchError(message) from None
    chosen = [history for history in found if options.domain in {None, history.name, str(history.number)}]
    chosen = [history for history in chosen if history.lives] or chosen
    if not chosen:
        there = ", ".join(f"{draw_packs.printable(history.name, paint)} ({history.number})" for history in found)
        message = (
            f"{where} has no domain{'' if options.domain is None else f' {options.domain!r}'}; it has {there or 'none'}"
        )
        raise WatchError(message)
    title = shorten(f"packs in the course of time, recorded in {Path(options.history).name}", 110)
    plain = Paint(colour=False, unicode=True)
    write_files(
        options,
        lambda: draw_occupancy.draw_svg(chosen, title, limit, plain),
        lambda: draw_html_occupancy.draw_page(chosen, title, limit),
    )
    if options.json:
        print(json.dumps(occupancy.as_json(chosen, options.history, notes, limit)))
    else:
        heading = f"execmem map --history {draw_packs.printable(options.history, paint)}"
        lines = [paint.head(heading), paint.rule(text_width())]
        for history in chosen:
            lines += [*draw_occupancy.draw_text(history, limit, paint, text_width()), ""]
        print("\n".join(lines + draw_occupancy.legend(paint)))
    for note in notes:
        print(f"execmem map: {note}", file=sys.stderr)


def title(process: Process | None, options: argparse.Namespace, paint: Paint) -> str:
    """Return what is shown, in a line."""
    if process is None:
        return f"execmem map --from {draw_packs.printable(options.file, paint)}: times stand at its last event"
    return f"execmem {options.command} {process.pid}: {draw_packs.printable(process.command, paint)}"


def draw_map(domains: Sequence[DomainFacts], heading: str, paint: Paint, width: int) -> list[str]:
    """Return the whole picture of a map."""
    lines = [paint.head(heading), paint.rule(width)]
    for facts in domains:
        lines += [*draw_packs.draw_domain(facts, paint, width), ""]
    return lines + draw_packs.legend(domains[0].by, draw_packs.cells_for(width), paint)


def as_json(domains: Sequence[DomainFacts], process: Process | None, options: argparse.Namespace) -> dict[str, object]:
    """Return what is printed as JSON; docs/watch.md has the schema."""
    return {
        "schema": SCHEMA,
        "pid": None if process is None else process.pid,
        "command": None if process is None else process.command,
        "file": options.file if process is None else None,
        "domains": [asdict(facts) for facts in domains],
    }


# ---- one pack ----


def find_pack(ledger: Ledger, pages: Pages | None, number: int) -> tuple[PackFacts, int]:
    """Return a pack's facts and the ledger's time, or raise with the packs there are."""
    look = ledger.look()
    shown = look.shown
    if number not in shown:
        some = f"{shown[0]} to {shown[-1]}, {len(shown)} of them" if shown else "none"
        message = f"{list_domains([ledger])} has no pack {number}; there are {some} (a large block has one number)"
        raise WatchError(message)
    return pack_facts(ledger, look, number, JSON_CELLS, pages), look.now_ms


def show_pack(ledger: Ledger, pages: Pages | None, options: argparse.Namespace) -> None:
    """Print a pack's rows, or one row's chunks and blocks."""
    pack, now_ms = find_pack(ledger, pages, options.pack)
    if options.json:
        print(json.dumps(pack_as_json(ledger, pack, now_ms, options.row), indent=2))
        return
    print("\n".join(draw_pack(ledger, pack, now_ms, options.row)))


def pack_as_json(ledger: Ledger, pack: PackFacts, now_ms: int, row: int | None) -> dict[str, object]:
    """Return what --pack prints as JSON."""
    report: dict[str, object] = {"schema": SCHEMA, "domain": ledger.name, "pack": asdict(pack)}
    if row is None:
        return report | {"rows": [asdict(one) for one in survey_rows(ledger, pack, now_ms)]}
    blocks, chunks = survey_row(ledger, pack, row, now_ms)
    return report | {"row": row, "blocks": [asdict(block) for block in blocks], "chunks": chunks}


def draw_pack(ledger: Ledger, pack: PackFacts, now_ms: int, row: int | None) -> list[str]:
    """Return the picture of a pack or of a row of it."""
    paint, width = Paint.of(sys.stdout), text_width()
    name = draw_packs.printable(ledger.name, paint)
    full = f"{pack.fill:.1%} of {tell_bytes(pack.usable_bytes)} in use"
    made = f"made {draw_packs.tell_age(pack.age_ms)} ago"
    count = f"{pack.blocks:,} block{'s' * (pack.blocks != 1)}"
    lines = [
        paint.head(f"pack {pack.number} of domain {name} ({ledger.domain}), {pack.kind}, at {pack.address:#x}"),
        f"{count}, {full}, {made}; {draw_packs.tell_pages(pack.pages)}",
        *([", ".join(draw_packs.notes(pack))] if draw_packs.notes(pack) else []),
        *([f"pages: {pack.pages.why}"] if pack.pages.why else []),
        paint.rule(width),
    ]
    if row is None:
        rows = survey_rows(ledger, pack, now_ms)
        return lines + draw_packs.draw_rows(pack, rows, paint, width) + draw_packs.legend("age", ROWS * 64, paint)[2:]
    blocks, chunks = survey_row(ledger, pack, row, now_ms)
    start = row * ROW_CHUNKS * CHUNK
    return lines + draw_packs.draw_row(start, blocks, chunks, paint, width)
