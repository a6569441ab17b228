"""A Chromium without a window, driven through its pipe, for the tests of pages."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE: Final = 60.0  # seconds that an answer may take on a busy machine
OPTIONS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--remote-debugging-pipe"),
)


def find() -> str | None:
    """Return where a browser is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. Commands are those of the DevTools protocol: JSON, each ended by a zero byte."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._number = write, read, b"", 0
        self.requests: list[str] = []  # addresses that the page asked for
        self.complaints: list[str] = []  # of scripts
        self._session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], PATIENCE)[0], "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(answer["params"]["request"]["url"])
        warned = answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error"
        if warned or answer.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(answer["params"]))
        return answer

    def open(self, path: Path, way: str) -> None:
        """Show a file, "light" or "dark", and wait until its script has run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": way}])
        self.call("Page.navigate", url=path.as_uri())
        self.wait(lambda: self.ask("document.documentElement.dataset.ready"))

    def wait(self, come: Callable[[], object]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + PATIENCE
        while not come():
            assert time.monotonic() < end, f"what was waited for has not come; complaints: {self.complaints}"
            time.sleep(0.02)

    def ask(self, expression: str) -> Any:
        """Return the value of an expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def point(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send an event of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Press and release."""
        for kind in ("mousePressed", "mouseReleased"):
            self.point(kind, x, y, button="left", clickCount=1, buttons=1)

    def press(self, key: str) -> None:
        """Press a key."""
        code = {"Home": 36, "End": 35, "ArrowRight": 39}.get(key, ord(key[0].upper()))
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)


@contextlib.contextmanager
def browse(program: str, profile: Path) -> Iterator[Browser]:
    """Run a browser; its commands come in by descriptor 3, answers leave by 4."""
    pipes = [os.pipe(), os.pipe()]
    (to_child, mine_out), (mine_in, from_child) = pipes
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_child, from_child)]
    null = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
    arguments = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    pid = os.posix_spawn(program, arguments, os.environ, file_actions=actions)
    for fd in (to_child, from_child, *high, null):
        os.close(fd)
    try:
        yield Browser(mine_out, mine_in)
    finally:
        os.close(mine_out)  # which ends it
        os.close(mine_in)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
