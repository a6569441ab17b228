"""notebook: what a notebook shows of a domain of its own process: the picture that ``execmem map --svg`` draws.

Nothing here fails because a picture cannot be made: then it says why. It reads the domain's ledger as any other
process would, so it takes no lock and stops nobody; about 1 ms a pack.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from execmem.draw_svg import document, notes, shorten
from execmem.draw_svg_packs import CELLS, draw_packs_of
from execmem.errors import ExecmemError
from execmem.survey import Wish, survey_domain
from execmem.watch import Pages, Process, WatchError

PACKS_SHOWN: Final = 16


def draw_svg(number: int, window: int | None, told: str) -> str:
    """Return a domain of this process as SVG; `window` is where it is, None: closed; `told`, its repr, titles it."""
    key = f"-{os.getpid()}-{number}"
    title = shorten(told, 130)
    if window is None:
        return document(title, [notes(["It is closed: it has no packs any more."])], key=key)
    try:
        return draw_live(number, window, title, key)
    except (ExecmemError, OSError) as error:
        return document(title, [notes([f"Its packs cannot be drawn: {error}"])], key=key)


def draw_html(number: int, window: int | None, told: str) -> str:
    """Return the same for a page of others."""
    return f'<div style="max-width:1200px;overflow-x:auto">{draw_svg(number, window, told)}</div>'


def draw_live(number: int, window: int, title: str, key: str) -> str:
    """Return the picture of a domain, or raise with the reason why there is none.

    Its number alone does not tell it: two copies of the library in a process both count from 1.
    """
    with contextlib.closing(Process(os.getpid())) as process, contextlib.closing(Pages(os.getpid())) as pages:
        ledgers = process.ledgers.values()
        found = [ledger for ledger in ledgers if (ledger.domain, ledger.header["window"]) == (number, window)]
        if not found:
            message = "its books are private memory, or were closed meanwhile (`execmem doctor` tells what is refused)"
            raise WatchError(message)
        wish = Wish(CELLS, PACKS_SHOWN, "number", "age")
        facts = survey_domain(found[0], None, found[0].look(), pages, wish)
    return draw_packs_of([facts], title, key=key)
