"""export_cli: ``execmem export``: numbers for Prometheus, printed once, written again and again, or served.

    options --> Exporter.scrape() --> Page --+--> stdout
                                             +--> --out FILE, whole, once or --every S
                                             +--> --listen: GET /metrics, a few connections at a time, one scrape

Without processes it needs no compiled core. docs/export.md has the metrics.
"""

# ruff: noqa: ANN401 - what socketserver hands over has no type

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import json
import resource
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from execmem import export, picture
from execmem.directmap import region
from execmem.directmap_cli import Stop
from execmem.draw import clean

if TYPE_CHECKING:
    from typing_extensions import Self

    from execmem.export_packs import Fleet

USAGE: Final = 2
DOMAINS_MOST: Final = 64
PORT_MAX: Final = 65535
FOREVER: Final = 1e9  # seconds


class UsageError(Exception):
    """What was asked for cannot be meant; the exit code is 2."""


# ---- options ----


def to_pid(text: str) -> int:
    """Return a process number, for argparse; needs the compiled core, as everything about processes does."""
    from execmem import map_cli  # noqa: PLC0415 - the machine's numbers are to be had without it

    return map_cli.to_pid(text)


def to_count(text: str) -> int:
    """Return how many, for argparse."""
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) <= 1 << 16:
        message = f"{text!r} is not a number from 1 to 65536"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def to_seconds(text: str) -> float:
    """Return seconds between writes, for argparse."""
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 1e6:  # noqa: PLR2004 - as told
            return float(text)
    message = f"{text!r} is not a number of seconds from 0.1 to 1e6"
    raise argparse.ArgumentTypeError(message)


def to_address(text: str) -> tuple[str, int]:
    """Return host and port, for argparse; a port alone is of this machine.

    >>> to_address("9123"), to_address("[::1]:0"), to_address("0.0.0.0:80")
    (('127.0.0.1', 9123), ('::1', 0), ('0.0.0.0', 80))
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (port.isascii() and port.isdecimal()) or int(port) > PORT_MAX or (":" in bare and bare == host):
        message = f"{text!r} is not HOST:PORT, [ADDRESS]:PORT or PORT, the port up to {PORT_MAX}"
        raise argparse.ArgumentTypeError(message)
    return bare or "127.0.0.1", int(port)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem export``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem export               the machine: direct map, splits, kernel code\n"
        "  execmem export 4711          the domains of a process\n"
        "  execmem export --all --machine --listen 9123\n"
        "  execmem export --all --machine --every 15 --out /run/metrics/execmem.prom\n"
        "  execmem export --dashboard > execmem.json     for Grafana\n"
        "exit code: 0 told, or serving or writing again was ended by Ctrl-C or SIGTERM;\n"
        "1 cannot be (stderr tells why); 2 wrong usage"
    )
    parser.add_argument("pids", nargs="*", type=to_pid, metavar="PID", help="processes whose domains are told")
    parser.add_argument("--all", action="store_true", help="every process that may be looked at and has a domain")
    parser.add_argument("--machine", action="store_true", help="the machine too; alone without PID and --all")
    parser.add_argument("--walk", action="store_true", help="regions of the direct map by state too; for root")
    parser.add_argument(
        "--max-domains", type=to_count, default=DOMAINS_MOST, metavar="N",
        help=f'so many names of domains are told apart, the rest is summed as "other" ({DOMAINS_MOST})',
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--out", metavar="FILE", help="write a file, whole, as node_exporter's textfile collector wants it"
    )
    how.add_argument(
        "--listen", type=to_address, metavar="HOST:PORT", help="serve /metrics until Ctrl-C; PORT alone: 127.0.0.1"
    )
    how.add_argument("--dashboard", action="store_true", help="print a Grafana dashboard of these metrics")
    parser.add_argument("--every", type=to_seconds, metavar="S", help="with --out: again every S seconds, until Ctrl-C")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=tuple(export.CONTENT_TYPES),
        help="text format (prometheus; with --listen as the Accept header prefers)",
    )  # fmt: skip
    form.add_argument("--json", action="store_true", help="JSON instead; docs/export.md has the schema")


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.pids and options.all:
        message = "--all is every process: say PIDs or --all"
        raise UsageError(message)
    if options.every is not None and options.out is None:
        message = "--every writes a file again and again: say --out FILE too"
        raise UsageError(message)
    if options.json and options.listen:
        message = "--listen serves the text formats: not with --json"
        raise UsageError(message)
    machine = options.machine or not (options.pids or options.all)
    if options.walk and not machine:
        message = "--walk is of the machine: say --machine too"
        raise UsageError(message)
    options.machine = machine


# ---- scrapes ----


class Exporter:
    """Makes pages of what was asked for. One scrape at a time: ``scrape`` is not for two threads at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Open the processes that were named; one that cannot be is an error."""
        self._options = options
        self._undo = contextlib.ExitStack()
        self._walker: region.Walker | None = None
        self._fleet: Fleet | None = None
        if options.pids or options.all:
            from execmem import export_packs  # noqa: PLC0415 - the machine's numbers are to be had without the core

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a domain is an open file
            self._undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            self._fleet = export_packs.Fleet(None if options.all else options.pids, options.max_domains)
            self._undo.callback(self._fleet.close)

    def __enter__(self) -> Self:
        """Return the exporter."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
        self._undo.close()

    def _walk(self) -> region.Walk:
        """Walk the page tables; what reads them is made once and kept."""
        if self._walker is None:
            self._walker = self._undo.enter_context(region.Walker())
        return self._walker.walk()

    def scrape(self) -> export.Page:
        """Read everything that was asked for."""
        began = time.perf_counter()
        page = export.Page()
        export.about_us(page)
        if self._options.machine:
            export.measure_machine(page, self._walk if self._options.walk else None)
        if self._fleet is not None:
            self._fleet.measure(page)
        page.add("execmem_scrape_duration_seconds", time.perf_counter() - began)
        return page

    def text(self) -> str:
        """Scrape, and return what is printed or written."""
        page = self.scrape()
        if self._options.json:
            return json.dumps(export.as_json(page), indent=2) + "\n"
        return export.write_text(page, self._options.format or export.PROMETHEUS)


# ---- serving ----

CONNECTIONS_MAX: Final = 16
DEADLINE: Final = 10.0  # seconds for a connection, whatever it does
YOUNG: Final = 0.5  # seconds for which a scrape is given again, so that asking often costs little
INDEX: Final = b"execmem: /metrics has the numbers\n"


class Server(ThreadingHTTPServer):
    """Serves /metrics: at most 16 connections, each for at most ten seconds, and one scrape at a time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], exporter: Exporter, form: str | None) -> None:
        """Bind and listen; an OSError as the system has it."""
        self.form = form
        self._exporter = exporter
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._scraping = threading.Lock()
        self._last: tuple[float, export.Page] | None = None
        family, _, _, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(found[0]), int(found[1])), Handler)

    def server_bind(self) -> None:
        """Bind; the parent would look for the name of this machine, which nobody needs."""
        socketserver.TCPServer.server_bind(self)
        host, port, *_ = self.server_address
        self.server_name, self.server_port = str(host), int(port)

    def page(self) -> export.Page:
        """Return a page that is not older than half a second."""
        with self._scraping:
            if self._last is None or time.monotonic() - self._last[0] > YOUNG:
                page = self._exporter.scrape()
                self._last = time.monotonic(), page
            return self._last[1]

    def settle(self) -> None:
        """Wait for the scrape that runs, and let none begin any more."""
        self._scraping.acquire(timeout=DEADLINE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, or close it when there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and end it when its time is over."""
        timer = threading.Timer(DEADLINE, end_connection, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._places.release()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Say in one line what went wrong here; a client that leaves early did not."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"execmem export: {clean(f'{type(error).__name__}: {error}')}", file=sys.stderr)


def end_connection(request: socket.socket) -> None:
    """End a connection in both directions: who reads from it or writes to it goes on with an end or an error."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of /metrics; one request a connection (HTTP/1.0)."""

    server: Server
    timeout = DEADLINE

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(INDEX, "text/plain; charset=utf-8")
        elif path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, explain="/metrics has the numbers")
        else:
            form = self.server.form or export.choose_format(", ".join(self.headers.get_all("Accept", [])))
            try:
                body = export.write_text(self.server.page(), form)
            except Exception:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
                raise  # told by Server.handle_error
            self._answer(body.encode(), export.CONTENT_TYPES[form])

    do_HEAD = do_GET  # noqa: N815 - the name is the parent's

    def _answer(self, body: bytes, content_type: str) -> None:
        """Send a whole answer."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Tell what this is, and no version of it or of Python."""
        return "execmem"

    def log_message(self, *_: object) -> None:
        """Write no log: what was asked for is the client's choice of text."""


def serve(options: argparse.Namespace, exporter: Exporter) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    host, port = options.listen
    try:
        server = Server((host, port), exporter, options.format)
    except (OSError, UnicodeError) as error:
        message = f"{host}:{port} cannot be listened on: {error}; name another address or a free port"
        raise OSError(message) from None
    with Stop() as stop, server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        where = f"[{host}]" if ":" in host else host
        print(f"serving http://{where}:{server.server_port}/metrics until Ctrl-C", file=sys.stderr, flush=True)
        stop.wait(FOREVER)
        server.shutdown()
        server.settle()


def write_again(options: argparse.Namespace, exporter: Exporter) -> None:
    """Write the file again and again until Ctrl-C or SIGTERM; the last one stays."""
    with Stop() as stop:
        while True:
            began = time.monotonic()
            picture.write_whole(options.out, exporter.text())
            if stop.wait(max(options.every - (time.monotonic() - began), 0)):
                return


def run(options: argparse.Namespace) -> int:
    """Print, write or serve."""
    try:
        check(options)
        if options.dashboard:
            print(importlib.resources.files("execmem").joinpath("grafana.json").read_text("utf-8"), end="")
            return 0
        with Exporter(options) as exporter:
            if options.listen:
                serve(options, exporter)
            elif options.every is not None:
                write_again(options, exporter)
            elif options.out:
                picture.write_whole(options.out, exporter.text())
            else:
                sys.stdout.flush()
                sys.stdout.buffer.write(exporter.text().encode())  # UTF-8, whatever the terminal is
    except UsageError as error:
        print(f"execmem export: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"execmem export: {clean(str(error))}", file=sys.stderr)
        return 1
    return 0
