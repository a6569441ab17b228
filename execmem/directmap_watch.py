"""directmap_watch: ``execmem directmap watch``: the direct map again and again, as ``top`` does it for a process."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from typing import TYPE_CHECKING, Final

from execmem.directmap import record
from execmem.directmap.live import Watch
from execmem.draw import Paint, text_width
from execmem.draw_directmap import draw_frame, frame_as_dict
from execmem.screen import Screen, TuiError, check_tui

if TYPE_CHECKING:
    from collections.abc import Callable

    from execmem.directmap.live import Frame

LISTEN_EVERY: Final = 1.0  # seconds: the kernel keeps events for a while only
LINES: Final = 60  # of a picture where no screen bounds it


def add_arguments(parser: argparse.ArgumentParser, seconds: Callable[[str], float]) -> None:
    """Declare the options of ``execmem directmap watch``; `seconds` parses a time."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem directmap watch             until Ctrl-C\n"
        "  execmem directmap watch --every 5 --count 3 --json\n"
        "  execmem directmap watch --tui       move through the atlas, scroll the ledger\n"
        "exit code: 0 shown, 1 cannot be shown, 2 wrong usage, 130 Ctrl-C"
    )
    parser.add_argument("--every", type=seconds, default=1.0, metavar="S", help="seconds between pictures (1)")
    parser.add_argument("--count", type=to_count, metavar="N", help="pictures, then end (until Ctrl-C)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON a picture")
    parser.add_argument(
        "--tui", action="store_true", help="on the whole terminal, with keys; needs the extra execmem[tui]"
    )


def to_count(text: str) -> int:
    """Parse a number of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        message = f"{text!r} is not a number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def title(frame: Frame, every: float) -> str:
    """Return what is shown, in a line."""
    return f"direct map of Linux {platform.release()}: {frame.seconds:,.1f} s, every {every:g} s"


def run(options: argparse.Namespace) -> int:
    """Show the direct map until the count is reached, or Ctrl-C."""
    if options.tui and (options.json or options.count):
        print("execmem directmap watch: --tui is for people: not with --json or --count", file=sys.stderr)
        return 2
    if options.tui:
        return run_tui(options)
    screen, paint = Screen(json=options.json), Paint.of(sys.stdout)
    with record.open_means() as means:
        watch = Watch(means)
        with screen.taken():
            shown = 0
            while True:
                frame = watch.look()
                if options.json:
                    screen.show([json.dumps(frame_as_dict(frame))])
                else:
                    heading = f"{title(frame, options.every)}  {time.strftime('%H:%M:%S')}"
                    screen.show(draw_frame(frame, heading, paint, text_width(), screen.height(LINES) - 1))
                shown += 1
                if shown == options.count:
                    return 0
                wait(watch, options.every)


def wait(watch: Watch, seconds: float) -> None:
    """Wait until the next picture, and listen meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > LISTEN_EVERY:
        time.sleep(min(left, LISTEN_EVERY))
        watch.sample()
    time.sleep(max(left, 0))


def run_tui(options: argparse.Namespace) -> int:
    """Show it on the whole terminal."""
    try:
        check_tui()
    except TuiError as error:
        print(f"execmem directmap watch: {error}", file=sys.stderr)
        return 1
    from execmem.directmap_tui import WatchApp  # noqa: PLC0415 - textual is an extra, which few need
    from execmem.tui import show  # noqa: PLC0415

    with record.open_means() as means:
        return show(WatchApp(Watch(means), options.every, Paint.of(sys.stdout)))
