"""directmap_tui: ``execmem directmap watch --tui``: the atlas with a cursor, counters, the ledger, by keys."""

from __future__ import annotations

import platform
import textwrap
import time
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual.binding import Binding

from execmem.directmap import region
from execmem.directmap.record import HUGE
from execmem.draw import clean, tell_bytes
from execmem.draw_directmap import (
    CELLS,
    LETTERS,
    OFFSET,
    ROOMY,
    ROWS_MAX,
    Atlas,
    cut,
    draw_counters,
    draw_events,
    draw_jit,
    tell_legend,
    tell_sums,
    tell_walked,
)
from execmem.draw_svg import LOOKS
from execmem.screen import share_out
from execmem.tui import LiveApp, draw_text, draw_texts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from textual.binding import BindingType

    from execmem.directmap.live import Frame, Watch
    from execmem.draw import Paint

EVERY_MAX: Final = 1.0  # seconds: the kernel keeps events for a while only
COUNTERS_MAX: Final = 9
LEGEND: Final = 2  # lines
KEYS: Final = "arrows move  Enter zoom in  Esc out  PgUp/PgDn ledger  p pause  ? help  q quit"
STYLES: Final = {
    letter: "dim"
    if state == region.State.ABSENT
    else f"{'white' if state == region.State.GIGABYTE else 'black'} on {LOOKS[state].dark}"
    for state, (letter, _) in LETTERS.items()
}


class WatchApp(LiveApp):
    """The direct map."""

    LISTENS = True
    BINDINGS: ClassVar[list[BindingType]] = [Binding("z", "enter", "zoom in", priority=True)]
    KEYS_TOLD = (
        "execmem directmap watch --tui",
        "",
        "arrows        move through the atlas; Home, End: its ends",
        "Enter         zoom in: the line under the cursor becomes the atlas",
        "Esc           the whole again",
        "Page Down, Page Up   older and newer events of the ledger",
        "p             pause; what happens meanwhile is still heard",
        "q             quit",
        "",
        "A letter is the worst state of its regions of 2 MB, colours repeat it:",
        *(f"  {letter} {words}" for letter, words in LETTERS.values()),
        "",
        "? closes this",
    )

    def __init__(self, watch: Watch, every: float, paint: Paint) -> None:
        """Begin with the whole map."""
        super().__init__(min(every, EVERY_MAX), paint)
        self.source = watch
        self.frame: Frame | None = None
        self.first, self.count = 0, 0  # regions that are shown; 0: all
        self.cell = 0
        self.older = 0  # events scrolled over
        self._atlas: Atlas | None = None

    def look(self) -> Frame:
        """Look, in a thread."""
        return self.source.look()

    def take(self, found: Frame) -> None:
        """Keep it; a map that has shrunk is shown whole."""
        self.frame = found
        if found.state is None or self.first >= len(found.state):
            self.first = self.count = 0

    # ---- keys ----

    def action_step(self, key: str) -> None:
        """Move the cursor, or through the ledger."""
        if key in {"pageup", "pagedown"}:
            most = max(len(self.frame.events) - 1, 0) if self.frame else 0
            self.older = min(max(self.older + (5 if key == "pagedown" else -5), 0), most)
        else:
            last = max(len(self._atlas.cells) - 1, 0) if self._atlas else 0
            to = self.cell + {"up": -CELLS, "down": CELLS, "left": -1, "right": 1}.get(key, 0)
            to = {"home": 0, "end": last}.get(key, to)
            self.cell = to if 0 <= to <= last else self.cell
        self.redraw()

    def action_enter(self) -> None:
        """Zoom in: the regions of the line under the cursor, those of the cell in the middle of what is shown."""
        if self._atlas is None or self._atlas.each == 1:
            return
        line = self.cell // CELLS * CELLS
        cell = self.cell - line
        self.first += line * self._atlas.each
        self.count = CELLS * self._atlas.each
        begin = cell * self._atlas.each
        self.redraw()
        self.cell = begin // self._atlas.each
        self.redraw()

    def action_out(self) -> None:
        """Show the whole map again, with the cursor where it was."""
        if self.helping:
            self.helping = False
        elif self.count and self._atlas:
            place = self.first + self.cell * self._atlas.each
            self.first = self.count = 0
            self.redraw()
            self.cell = place // self._atlas.each
        self.redraw()

    # ---- drawing ----

    def draw(self, _: int, height: int) -> list[Text]:
        """Return the picture of the last frame."""
        frame, paint = self.frame, self.paint
        if frame is None:
            return [Text("looking ...")]
        wide = self.columns
        title = Text(f"direct map of Linux {clean(platform.release())}: {frame.seconds:,.1f} s", style="bold")
        paused = " PAUSED: p goes on" if self.paused else f" every {self.every:g} s"
        title.append(f"  {time.strftime('%H:%M:%S')}{paused}", "reverse bold" if self.paused else "")
        rule = draw_text(paint.rule(wide))
        jit = draw_jit(frame.jit, frame.missing.get("jit", ""), paint, wide)
        head = [title, *draw_texts(jit if height >= ROOMY or frame.jit is None else jit[:1]), rule]
        told = [f"{name}: {clean(why)}" for name, why in frame.missing.items() if name != "jit"]
        cell = 0 if frame.state is None else 2 + LEGEND
        events = max(len(frame.events) - self.older, 1)
        wanted = [min(len(frame.counters) + 1, COUNTERS_MAX), cell and ROWS_MAX, events, len(told)]
        rooms = share_out(max(height - len(head) - cell - 4, 4), wanted)
        lines = [*head, *draw_texts(draw_counters(frame.counters, rooms[0])), rule]
        if frame.state is not None:
            lines += [*self._draw_atlas(frame.state, rooms[1]), *self._tell_cell(frame, frame.state, wide)]
        ledger = f"since the start: {tell_sums(frame)}" + (f"; {self.older} later ones above" if self.older else "")
        lines += [Text(ledger, style="bold")]
        shown = frame.events[: len(frame.events) - self.older]
        lines += draw_texts(draw_events(shown, rooms[2], wide, paint))
        lines += [Text(cut(line, wide), style="dim") for line in told[: rooms[3]]]
        lines = lines[: height - 1]
        return [*lines, *[Text()] * (height - 1 - len(lines)), Text(KEYS, style="dim")]

    def _draw_atlas(self, state: npt.NDArray[np.uint8], rows: int) -> list[Text]:
        """Return the atlas, each letter on the colour of its state, the cursor reversed."""
        part = state[self.first : self.first + self.count] if self.count else state
        self._atlas = atlas = Atlas.of(part, rows)
        self.cell = min(self.cell, len(atlas.cells) - 1)
        lines = []
        for number, (_, letters) in enumerate(atlas.lines()):
            start = self.first + number * CELLS * atlas.each
            line = Text(f"{tell_bytes(start * HUGE):>9}  ")
            begin = 0
            while begin < len(letters):
                end = begin + len(letters[begin:]) - len(letters[begin:].lstrip(letters[begin]))
                line.append(letters[begin:end], STYLES[letters[begin]] if self.paint.colour else "")
                begin = end
            if self.cell // CELLS == number:
                at = OFFSET + self.cell % CELLS
                sign = "▶" if self.paint.unicode else ">"
                line.plain = line.plain[: OFFSET - 1] + sign + line.plain[OFFSET:]
                line.stylize("reverse bold", at, at + 1)
            lines.append(line)
        return lines

    def _tell_cell(self, frame: Frame, state: npt.NDArray[np.uint8], wide: int) -> list[Text]:
        """Return where the cell under the cursor is, and of what state its regions are; and the legend."""
        if self._atlas is None:
            return []
        first = self.first + self.cell * self._atlas.each
        part = state[first : first + self._atlas.each]
        counts = [(int((part == known).sum()), letter, words) for known, (letter, words) in LETTERS.items()]
        where = f"{first * HUGE:#x} to {(first + len(part)) * HUGE - 1:#x} ({tell_bytes(first * HUGE)} on)"
        told = f"{len(part):,} regions of 2 MB: " + ", ".join(
            f"{letter} {count:,}" for count, letter, _ in counts if count
        )
        if len(part) == 1:
            told = f"one region of 2 MB: {next(words for count, _, words in counts if count)}"
        legend = tell_legend(state, self._atlas.each).partition(": ")[2]
        return [
            Text(cut(f"cell {where}{tell_walked(frame)}", wide), style="bold"),
            Text(cut(told, wide)),
            *(Text(line, style="dim") for line in textwrap.wrap(legend, wide, max_lines=LEGEND, placeholder=" ..")),
        ]
