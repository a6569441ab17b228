"""screen: pictures one after another: over each other on a terminal, one below the other elsewhere.

The terminal's other screen is given back whatever ends the view: its count, Ctrl-C, SIGTERM or an error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # other screen, no cursor, no wrapping
LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"


def stop(number: int, _: FrameType | None) -> None:
    """End as a terminated program does, but through what puts the terminal back."""
    raise SystemExit(128 + number)


class Screen:
    """Where pictures go. `live`: they replace each other; else they follow, lines of JSON without a gap."""

    def __init__(self, *, json: bool = False) -> None:
        """Look at what stdout is."""
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not json
        self._gap = "\n" if json else "\n\n"

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take the terminal's other screen, and give it back whatever happens."""
        if not self.live:
            yield
            return
        before = signal.signal(signal.SIGTERM, stop)
        try:
            sys.stdout.write(ENTER)
            yield
        finally:
            sys.stdout.write(LEAVE)
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, before)

    def height(self, elsewhere: int) -> int:
        """Return the lines there are for a picture: `elsewhere` is for where there is no end of them."""
        return shutil.get_terminal_size().lines if self.live else elsewhere

    def show(self, lines: Sequence[str]) -> None:
        """Print a picture."""
        if self.live:
            body = "\x1b[K\r\n".join(lines[: shutil.get_terminal_size().lines - 1])
            sys.stdout.write(f"\x1b[H{body}\x1b[K\x1b[J")
        else:
            sys.stdout.write("\n".join(lines) + self._gap)
        sys.stdout.flush()


def share_out(lines: int, wanted: Sequence[int]) -> list[int]:
    """Return how many lines each gets: at least one if it wants any, none more than it wants, the rest in turns.

    >>> share_out(10, [0, 20, 2]), share_out(1, [5, 5])
    ([0, 8, 2], [1, 1])
    """
    given = [min(count, 1) for count in wanted]
    while sum(given) < lines and given != list(wanted):
        for place, count in enumerate(wanted):
            if given[place] < count and sum(given) < lines:
                given[place] += 1
    return given


class TuiError(Exception):
    """A view with keys cannot be shown here: why, and the remedy."""


def check_tui() -> None:
    """Raise where there is no textual, or no terminal."""
    if importlib.util.find_spec("textual") is None:
        message = "--tui needs textual, which is not installed; python -m pip install 'execmem[tui]'"
        raise TuiError(message)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        message = "--tui needs a terminal on stdin and stdout; leave it out to print one picture after another"
        raise TuiError(message)
