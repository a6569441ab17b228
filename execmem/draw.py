"""draw: numbers to text that people read, on a terminal or not.

A ``Paint`` says what a stream can show: colour or none, block characters or ASCII. Everything returns text; nothing
here prints, asks the kernel or imports the rest of the package.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH_MIN, WIDTH_MAX = 76, 120
FSI, PDI = "\u2068", "\u2069"  # around text whose direction is its own: Unicode annex 9, isolates
# Blocks of letters, and of numbers, that are read from right to left, or that turn what is beside them.
_TURNED_LETTERS = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"
TURNED = re.compile(f"[{_TURNED_LETTERS}]+(?:[ _.'\"-]+[{_TURNED_LETTERS}]+)*")
ISOLATED = re.compile(f"({FSI}{TURNED.pattern}{PDI})")


def text_width() -> int:
    """Return how many columns a report takes: those of the terminal, within 76 and 120."""
    return min(max(shutil.get_terminal_size().columns, WIDTH_MIN), WIDTH_MAX)


def tell_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("execmem")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Paint:
    """Text with colour, bars and lines, or the plain form of each."""

    colour: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO) -> Paint:
        """Return what suits a stream, NO_COLOR and TERM."""
        colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(colour, (stream.encoding or "").lower().replace("-", "") == "utf8")

    def _wrap(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def head(self, text: str) -> str:
        """Emphasise."""
        return self._wrap(text, "1")

    def dim(self, text: str) -> str:
        """Step back."""
        return self._wrap(text, "2")

    def good(self, text: str) -> str:
        """Approve."""
        return self._wrap(text, "32")

    def bad(self, text: str) -> str:
        """Warn."""
        return self._wrap(text, "1;31")

    def verdict(self, text: str, *, good: bool) -> str:
        """Approve or warn."""
        return self.good(text) if good else self.bad(text)

    def rule(self, width: int) -> str:
        """Return a line across."""
        return self.dim(("─" if self.unicode else "-") * width)

    def bar(self, share: float, cells: int, *, trough: bool = False) -> str:
        """Return a bar of at most `cells`; what is not filled is drawn when `trough` is true."""
        eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
        if self.unicode:
            full = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
            rest = "░" * (cells - len(full)) if trough else ""
        else:
            full = "#" * ((eighths + 4) // 8)
            rest = "." * (cells - len(full)) if trough else ""
        return self._wrap(full, "36") + self.dim(rest)


def make_visible(text: str, *, unicode: bool = True) -> str:
    r"""Return a text that others wrote without what a terminal would act on, also marks that turn the order of letters.

    >>> print(make_visible("a" + chr(27) + "[2Jb" + chr(0x202E)), make_visible(chr(0x5D0), unicode=False))
    a\x1b[2Jb\u202e \u05d0
    """
    if text.isprintable() and (unicode or text.isascii()):
        return text
    return "".join(
        each if each.isprintable() and (unicode or each.isascii()) else each.encode("unicode_escape").decode()
        for each in text
    )


def clean(text: str) -> str:
    r"""Return a text for people, visible, in which letters that are read from right to left turn nothing else around.

    Each run of them stands between marks of Unicode (FSI, PDI), which have no width: what is beside it, such as numbers
    of ours, keeps its place. A run is words of such letters. What this has returned is returned as it is. Names for
    programs, in JSON or metrics, are not for this.

    >>> ascii(clean(chr(0x5D0) + " 12")), clean(clean(chr(0x5D0))) == clean(chr(0x5D0))
    ("'\\u2068\\u05d0\\u2069 12'", True)
    """
    if text.isprintable() and not TURNED.search(text):
        return text
    pieces = ISOLATED.split(text)  # every second one is such a run
    return "".join(
        piece
        if place % 2 and piece[1:-1].isprintable()
        else TURNED.sub(lambda run: FSI + run[0] + PDI, make_visible(piece))
        for place, piece in enumerate(pieces)
    )


def close(text: str) -> str:
    """Return a text that was cut, with the end of the run in it that lost its own."""
    return text + PDI if text.rfind(FSI) > text.rfind(PDI) else text


def tell_bytes(value: float) -> str:
    """Return a size as people read it; 1 MB is 2**20 bytes, as in "2 MB pages".

    >>> tell_bytes(213), tell_bytes(92_000_000)
    ('213 B', '87.7 MB')
    """
    for unit, scale in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def tell_time(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> tell_time(2.5), tell_time(0.0123), tell_time(4.2e-6), tell_time(9e-8)
    ('2.50 s', '12.3 ms', '4.20 us', '90 ns')
    """
    for unit, scale, digits in (("s", 1.0, 2), ("ms", 1e-3, 1), ("us", 1e-6, 2)):
        if seconds >= scale:
            return f"{seconds / scale:.{digits}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each wide letter, none for a mark.

    >>> width_of("ab"), width_of(chr(0x6F22) * 2), width_of("e" + chr(0x301)), width_of(chr(0xE01) + chr(0xE31))
    (2, 4, 1, 1)
    """
    if text.isascii():
        return len(text)
    seen = [char for char in text if char not in {FSI, PDI} and unicodedata.category(char) not in {"Mn", "Me"}]
    return len(seen) + sum(unicodedata.east_asian_width(char) in "WF" for char in seen)


def cut(text: str, most: int) -> str:
    """Return a text in so many columns of a terminal, with ".." where it was longer.

    >>> cut("abcdef", 5), cut(chr(0x6F22) * 3, 5) == chr(0x6F22) + ".."
    ('abc..', True)
    """
    if width_of(text) <= most:
        return text
    kept = ""
    for char in text:
        if width_of(kept + char) > most - 2:
            break
        kept += char
    return close(kept) + ".."


def columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return one line of a table: a positive width puts a cell left, a negative one right; the ends stay bare.

    Cells hold no colour, so that their length is what is seen.

    >>> columns(["packs", "45", "note"], [8, -5, 0])
    'packs       45 note'
    """
    padded = []
    for cell, width in zip(cells, widths, strict=True):
        room = " " * (abs(width) - width_of(cell))
        padded.append(cell + room if width >= 0 else room + cell)
    return " ".join(padded).rstrip()
