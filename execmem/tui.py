"""tui: what views with keys share: looks in a thread, drawing on every look, key and resize, and how they end.

    look (thread) --what was found--> take --> draw --> lines on the screen      every so often, or after a key

A line is rich ``Text``, never markup: names come from other processes. Colours repeat letters; NO_COLOR leaves
greys, and what is reversed. The terminal is given back by q, Ctrl-C, SIGTERM and errors alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.widgets import Static

from execmem.draw import WIDTH_MAX, WIDTH_MIN, Paint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual.app import ComposeResult
    from textual.binding import BindingType

RESTS: Final = 4  # times what a look cost, before the next
INTERRUPTED: Final = 130


def draw_text(line: str) -> Text:
    """Return a line of ``draw*`` with its colours; whoever made it has taken escapes out of names."""
    return Text.from_ansi(line, no_wrap=True, overflow="crop")


def draw_texts(lines: Iterable[str]) -> list[Text]:
    """Return lines of ``draw*`` with their colours."""
    return [draw_text(line) for line in lines]


def window(offset: int, first: int, last: int, total: int, room: int) -> int:
    """Return where a window on lines begins, moved no more than is needed to show those from `first` to `last`.

    >>> window(0, 30, 32, 100, 10), window(40, 30, 32, 100, 10), window(95, 96, 97, 100, 10)
    (23, 30, 90)
    """
    offset = max(offset, last + 1 - room)
    return max(min(offset, first, total - room), 0)


class LiveApp(App[int]):
    """A view that is looked at again and again; what it shows is up to `look`, `take` and `draw`."""

    CSS = "Screen { layers: base; } #picture { width: 100%; height: 100%; }"
    ENABLE_COMMAND_PALETTE = False
    LISTENS: ClassVar[bool] = False  # looks go on while it is paused: what is missed would be lost
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave(0)", "quit", priority=True),
        Binding("ctrl+c", f"leave({INTERRUPTED})", "quit", priority=True),
        Binding("p", "pause", "pause", priority=True),
        Binding("question_mark", "help", "help", priority=True),
        *(Binding(key, f"step('{key}')", key, priority=True) for key in ("up", "down", "left", "right")),
        *(Binding(key, f"step('{key}')", key, priority=True) for key in ("pageup", "pagedown", "home", "end")),
        Binding("enter", "enter", "look inside", priority=True),
        Binding("escape", "out", "back", priority=True),
    ]
    KEYS_TOLD: ClassVar[Sequence[str]] = ()

    def __init__(self, every: float, paint: Paint) -> None:
        """Show nothing yet."""
        super().__init__()
        self.every, self.paint = every, paint
        self.paused = self.helping = self.over = False
        self.failure: Exception | None = None
        self.shown: list[Text] = []
        self.looks = 0  # that were taken
        self._asked = asyncio.Event()

    # ---- what a view is ----

    @abstractmethod
    def look(self) -> Any:  # noqa: ANN401 - each view's own
        """Read, in a thread."""

    @abstractmethod
    def take(self, found: Any) -> None:  # noqa: ANN401
        """Keep what was found, and move what it moves."""

    @abstractmethod
    def draw(self, width: int, height: int) -> list[Text]:
        """Return the lines of the picture."""

    @abstractmethod
    def action_step(self, key: str) -> None:
        """Move the cursor."""

    @abstractmethod
    def action_enter(self) -> None:
        """Look inside what the cursor is on."""

    @abstractmethod
    def action_out(self) -> None:
        """Look at the whole again."""

    # ---- looking ----

    def compose(self) -> ComposeResult:
        """Give the one thing on the screen."""
        yield Static(id="picture", markup=False)

    def on_mount(self) -> None:
        """Begin to look."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread, as in some tests
                loop.add_signal_handler(number, self.action_leave, 128 + number)
        self.run_worker(self._live())

    async def _live(self) -> None:
        """Look, one look at a time, until it is over."""
        while not self.over:
            cost = 0.0
            if self.LISTENS or not self.paused or self._asked.is_set():
                asked = self._asked.is_set()
                self._asked.clear()
                began = time.monotonic()
                try:
                    found = await asyncio.to_thread(self.look)
                    cost = time.monotonic() - began
                    if asked or not self.paused:
                        self.take(found)
                        self.looks += 1
                except Exception as error:  # noqa: BLE001 - raised again by `show`, on a terminal that is whole
                    self.failure = error
                    self.exit(return_code=1)
                    return
                self.redraw()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), max(self.every, RESTS * cost))

    def ask(self) -> None:
        """Look again now."""
        self._asked.set()

    # ---- drawing ----

    def redraw(self) -> None:
        """Draw what is known."""
        width, height = self.size
        if not (width and height):
            return
        lines = draw_texts(self.KEYS_TOLD) if self.helping else self.draw(width, height)
        self.shown = lines[:height]
        for line in self.shown:
            line.truncate(width)
        self.query_one("#picture", Static).update(Text("\n", end="").join(self.shown), layout=False)

    def on_resize(self) -> None:
        """Draw for the new size, and look for what it needs."""
        self.redraw()
        self.ask()

    @property
    def columns(self) -> int:
        """How wide pictures are drawn."""
        return min(max(self.size.width, WIDTH_MIN), WIDTH_MAX)

    # ---- keys ----

    def action_leave(self, code: int) -> None:
        """End, with an exit code."""
        self.exit(return_code=code)

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self.paused = not self.paused
        self.redraw()
        if not self.paused:
            self.ask()

    def action_help(self) -> None:
        """Tell the keys, or stop telling them."""
        self.helping = not self.helping
        self.redraw()


def show(app: LiveApp) -> int:
    """Run a view until somebody leaves it; what went wrong is raised when the terminal is whole again."""
    app.run(mouse=False)  # the terminal keeps its own ways to select and copy
    if app.failure is not None:
        raise app.failure
    return app.return_code or 0
