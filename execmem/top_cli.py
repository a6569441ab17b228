"""top_cli: ``execmem top``: another process's packs again and again, from counters and bits, whatever is live."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from execmem import map_cli
from execmem.demo import to_count
from execmem.draw import Paint, text_width
from execmem.screen import Screen, TuiError, check_tui, share_out

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem import draw_packs
    from execmem.survey import Wish
    from execmem.watch import Ledger, Pages, Process, WatchError

FRAME_LINES, DOMAIN_LINES = 5, 6  # of a picture, and of each domain with packs in it, that are no bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem top``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem top 4711                     until Ctrl-C, or the process ends\n"
        "  execmem top 4711 --sort fill --every 2\n"
        "  execmem top 4711 --count 3 --json    three lines of JSON\n"
        "  execmem top 4711 --tui               move through packs, rows and blocks\n"
        "  execmem top 4711 --limit 0 --json > it.jsonl; execmem map --history it.jsonl\n"
        "exit code: 0 shown, or the process ended; 1 cannot be shown (stderr tells why);\n"
        "2 wrong usage; 130 Ctrl-C"
    )
    parser.add_argument("pid", type=map_cli.to_pid, metavar="PID", help="a process that uses execmem")
    parser.add_argument(
        "--every", type=map_cli.to_seconds, default=0.5, metavar="S", help="seconds between pictures (0.5)"
    )
    parser.add_argument("--count", type=to_count, metavar="N", help="pictures, then end (until Ctrl-C)")
    map_cli.shared_arguments(parser)
    parser.add_argument(
        "--limit",
        type=map_cli.to_number,
        metavar="N",
        help="packs shown of each domain, 0: all (what a screen has room for)",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON a picture")
    parser.add_argument(
        "--tui", action="store_true", help="on the whole terminal, with keys; needs the extra execmem[tui]"
    )


class Top:
    """Pictures of a process, one after another: drawn from the counters and bits of the packs shown, O(packs)."""

    def __init__(self, process: Process, pages: Pages, options: argparse.Namespace) -> None:
        """Begin with no earlier look."""
        self.process = process
        self.pages = pages
        self.looks = map_cli.Looks(process, pages, options.domain)
        self.options = options
        self.paint = Paint.of(sys.stdout)
        self.screen = Screen(json=options.json)

    def picture(self) -> list[str]:
        """Return the lines of the next picture."""
        ledgers = self.looks.ledgers()
        if self.options.pack is not None:
            return self._pack_picture(map_cli.pick_one(ledgers, "--pack"))
        looks = map_cli.look_at(ledgers)
        width, height = text_width(), self.screen.height(map_cli.PACKS_SHOWN + FRAME_LINES + DOMAIN_LINES)
        counts = [len(look.shown) for _, look in looks.values()]
        busy = sum(count > 0 for count in counts)
        rooms = share_out(height - FRAME_LINES - DOMAIN_LINES * busy - 2 * (len(counts) - busy), counts)
        cells = map_cli.JSON_CELLS if self.options.json else draw_packs.cells_for(width)
        asked = self.options.limit
        wishes = [Wish(cells, room if asked is None else asked or None, self.options.sort, "fill") for room in rooms]
        domains = self.looks.survey(looks, wishes)
        if self.options.json:
            return [json.dumps(map_cli.as_json(domains, self.process, self.options))]
        heading = f"{map_cli.title(self.process, self.options, self.paint)}  {time.strftime('%H:%M:%S')}"
        if not domains:
            return [self.paint.head(heading), "no domain is open now"]
        return map_cli.draw_map(domains, heading, self.paint, width)

    def _pack_picture(self, ledger: Ledger) -> list[str]:
        """Return the lines of one pack, for which its block records are read."""
        pack, now_ms = map_cli.find_pack(ledger, self.pages, self.options.pack)
        if self.options.json:
            return [json.dumps(map_cli.pack_as_json(ledger, pack, now_ms, self.options.row))]
        return map_cli.draw_pack(ledger, pack, now_ms, self.options.row)

    def run(self) -> None:
        """Show pictures until their count, the process's end or an interrupt."""
        shown = 0
        while not self.process.ended:
            self.screen.show(self.picture())
            shown += 1
            if self.options.count is not None and shown >= self.options.count:
                return
            time.sleep(self.options.every)
        raise EndedError


class EndedError(Exception):
    """The watched process ended."""


def run(options: argparse.Namespace) -> int:
    """Show a process's packs again and again; 0 when it ended, or all pictures were shown."""
    try:
        map_cli.check_row(options)
        if options.tui:
            return run_tui(options)
        with contextlib.closing(Process(options.pid)) as process, contextlib.closing(Pages(options.pid)) as pages:
            view = Top(process, pages, options)
            try:
                with view.screen.taken():
                    view.run()
            except (EndedError, WatchError):
                if not process.ended:
                    raise
                print(f"process {options.pid} has ended", file=sys.stderr if options.json else sys.stdout)
    except map_cli.UsageError as error:
        print(f"execmem {options.command}: {error}", file=sys.stderr)
        return map_cli.USAGE
    return 0


def run_tui(options: argparse.Namespace) -> int:
    """Show them on the whole terminal, until somebody leaves."""
    if options.json or options.count or options.pack is not None:
        message = (
            "--tui is for people, and goes through packs and rows by keys: not with --json, --count, --pack, --row"
        )
        raise map_cli.UsageError(message)
    try:
        check_tui()
    except TuiError as error:
        print(f"execmem top: {error}", file=sys.stderr)
        return 1
    from execmem.top_tui import TopApp  # noqa: PLC0415 - textual is an extra, which few need
    from execmem.tui import show  # noqa: PLC0415

    with contextlib.closing(Process(options.pid)) as process, contextlib.closing(Pages(options.pid)) as pages:
        return show(TopApp(process, pages, options, Paint.of(sys.stdout)))
