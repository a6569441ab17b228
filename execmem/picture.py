"""picture: pictures into files: each is written whole or not at all; a PNG is made of its SVG.

A command that draws declares its options with ``add_arguments`` and gives ``write_pictures`` what makes its SVG and its
page; neither is called when nobody asked for it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

ZOOM: Final = 2.0  # pixels of a PNG for one of its SVG
PAPER: Final = "#ffffff"  # where an SVG leaves its ground to who shows it
NO_RASTER: Final = "a PNG needs resvg_py: pip install 'execmem[png]', or write an --svg"
NO_FONTS: Final = "a PNG needs a font and this system has none: apt install fonts-dejavu-core, or write an --svg"
FONTS: Final = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")


class PictureError(OSError):
    """A picture cannot be made here; the text says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --svg, --png and --html."""
    parser.add_argument("--svg", metavar="OUT", help="draw a picture too, as SVG")
    parser.add_argument("--png", metavar="OUT", help="draw a picture too, as PNG; needs the extra execmem[png]")
    parser.add_argument("--html", metavar="OUT", help="draw a page too, which needs no network: zoom, hover, time")


def names(options: argparse.Namespace) -> list[str]:
    """Return the files that were asked for."""
    return [out for out in (options.svg, options.png, options.html) if out]


def check_outputs(outs: Iterable[str | None], source: str | None) -> None:
    """Raise PictureError where a file would take another's place or its source's, or has no folder to be in."""
    taken: set[Path] = set()
    for out in filter(None, outs):
        path = Path(out)
        if path.resolve() in taken and (path.is_file() or not path.exists()):
            message = f"{out} is named twice, and one of both would be lost; name two files"
            raise PictureError(message)
        taken.add(path.resolve())
        if source and path.exists() and Path(source).exists() and path.samefile(source):
            message = f"{out} is what is read, which would be lost; name another file"
            raise PictureError(message)
        if not path.resolve().parent.is_dir():
            message = f"{out}: {path.resolve().parent} is no folder; make it first"
            raise PictureError(message)


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[Path]:
    """Give a path to write to; it gets its name when all is written, and is gone when that went wrong.

    An error of the system is told with the name that was asked for, also one that came while bytes were written.
    """
    target = Path(path)
    special = target.exists() and not target.is_file()  # a pipe, /dev/stdout: nothing to take the place of
    target = target if special else target.resolve()
    part = target if special else target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield part
        if not special:
            part.replace(target)
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(part)}:
            error.filename = path
        raise
    finally:
        if not special:
            part.unlink(missing_ok=True)


def write_whole(path: str, content: str | bytes) -> None:
    """Write a file, all of it or nothing."""
    with written_whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_pictures(options: argparse.Namespace, svg: Callable[[], str], page: Callable[[], str]) -> None:
    """Write the files that were asked for."""
    if options.svg or options.png:
        drawn = svg()
        if options.svg:
            write_whole(options.svg, drawn)
        if options.png:
            write_whole(options.png, to_png(drawn))
    if options.html:
        write_whole(options.html, page())


def to_png(svg: str) -> bytes:
    """Return an SVG as a PNG of twice its size, light; raise PictureError where that cannot be made."""
    try:
        import resvg_py  # noqa: PLC0415 - an extra, which few need
    except ImportError:
        raise PictureError(NO_RASTER) from None
    if not any(next(Path(folder).expanduser().rglob("*.[ot]tf"), None) for folder in FONTS):
        raise PictureError(NO_FONTS)
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=ZOOM, background=PAPER))
