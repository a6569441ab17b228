"""trace: what happened to executable kernel memory and the direct map, as rows of 32 bytes.

A row is an event or a sample of a counter; `EVENT` is its layout, little-endian on every machine.

    LOAD    code came: at its address (0: not known), size in bytes, id: a number, of its client's (functions of a
            BPF program have one), owner: who loaded it, name: what it is called, client: what it is for
    UNLOAD  it went; the same fields
    SPLIT   large mappings were split: at the offset of the region in the direct map (0: not known), size in bytes of a
            mapping that was split, id: how many, owner: who did it, name: why that is believed
    JOIN    they were joined again; the same fields
    SAMPLE  a counter was read: name of the counter, at: its value
    TEXT    a text that owner and name point at: name is its number, from 1, owner the part of it, from 0; the bytes of
            the part, up to 24, lie where ns, at, size and id are, client is how many

`ns` is CLOCK_MONOTONIC of the machine the trace is of. Text 0 is "not known".

A file of rows is a line of JSON, padded to a page, and then rows until the first of kind 0 or the end. A ``Writer``
adds them through a mapping, the kind last; a ``Trace`` reads them, also while they are written. ``docs/trace.md`` has
the format.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import json
import os
import platform
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy.typing as npt
    from typing_extensions import Self


class Kind(enum.IntEnum):
    """What a row tells; 0 is a row not yet written."""

    NOTHING = 0
    LOAD = 1
    UNLOAD = 2
    SPLIT = 3
    JOIN = 4
    SAMPLE = 5
    TEXT = 6


class Client(enum.IntEnum):
    """What code is for."""

    UNKNOWN = 0
    BPF = 1
    CLASSIC = 2  # classic BPF: socket filters, seccomp
    TRAMPOLINE = 3
    MODULE = 4
    OTHER = 5


EVENT: Final = np.dtype(
    [
        ("ns", "<u8"),
        ("at", "<u8"),
        ("size", "<u4"),
        ("id", "<u4"),
        ("name", "<u4"),
        ("owner", "<u2"),
        ("kind", "u1"),
        ("client", "u1"),
    ]
)


# ---- texts ----

TEXT_BYTES: Final = 24  # of a TEXT row: the fields before its number
TEXT_MAX: Final = 4096  # bytes of a text; longer ones are cut
OWNERS_MAX: Final = 0xFFFF  # `owner` has 16 bits; the last number is the text below
OWNERS_REST: Final = "not told: the file has more owners than numbers for them"
NAMES_FROM: Final = OWNERS_MAX + 1  # so that names leave owners their numbers


class TraceError(ValueError):
    """A file is not what it should be; the message tells what is wrong and, where there is one, the remedy."""


class Event(NamedTuple):
    """A row with its texts, for those who write."""

    kind: Kind
    ns: int = 0
    at: int = 0
    size: int = 0
    id: int = 0
    client: Client = Client.UNKNOWN
    owner: str = ""
    name: str = ""


def spell(number: int, text: str) -> npt.NDArray[np.void]:
    """Return the TEXT rows of a text: one for each 24 bytes of its UTF-8 form, at most 4,096 bytes of it.

    >>> spell(7, "bpf_prog_6deef7357e7b4530 of systemd")["client"].tolist()
    [24, 12]
    """
    coded = text.encode("utf-8", "backslashreplace")
    if len(coded) > TEXT_MAX:
        coded = coded[:TEXT_MAX].decode("utf-8", "ignore").encode()
    parts = max(1, -(-len(coded) // TEXT_BYTES))
    rows = np.zeros(parts, dtype=EVENT)
    body = np.frombuffer(coded.ljust(parts * TEXT_BYTES, b"\0"), dtype=np.uint8)
    rows.view(np.uint8).reshape(parts, EVENT.itemsize)[:, :TEXT_BYTES] = body.reshape(parts, TEXT_BYTES)
    rows["name"], rows["owner"], rows["kind"] = number, np.arange(parts), Kind.TEXT
    rows["client"] = TEXT_BYTES
    rows["client"][-1] = len(coded) - (parts - 1) * TEXT_BYTES
    return rows


class Lexicon:
    """Numbers for texts: the same for the same text; it keeps every text, about 150 bytes each."""

    def __init__(self) -> None:
        """Begin with no texts."""
        self._owners: dict[str, int] = {"": 0}
        self._names: dict[str, int] = {"": 0}
        self._new: list[npt.NDArray[np.void]] = []

    def owner(self, text: str) -> int:
        """Return the number of an owner; when the 65,534 there are have gone, that of a text which says so."""
        number = self._owners.get(text)
        if number is None:
            if len(self._owners) >= OWNERS_MAX and text != OWNERS_REST:
                return self.owner(OWNERS_REST)
            number = self._owners[text] = len(self._owners)
            self._new.append(spell(number, text))
        return number

    def name(self, text: str) -> int:
        """Return the number of a name."""
        number = self._names.get(text)
        if number is None:
            number = self._names[text] = NAMES_FROM + len(self._names) - 1
            self._new.append(spell(number, text))
        return number

    def pack(self, events: Iterable[Event]) -> npt.NDArray[np.void]:
        """Return events as rows, those of texts that are new here before them; about 2 us an event."""
        fields = [
            (one.ns, one.at, one.size, one.id, self.name(one.name), self.owner(one.owner), one.kind, one.client)
            for one in events
        ]
        new, self._new = self._new, []
        return np.concatenate([*new, np.array(fields, dtype=EVENT)])


T = TypeVar("T")


class Living(Generic[T]):
    """Pieces of code that came and have not gone, each with something of the caller's. Constant time for each.

    Pieces are told apart by client, id and address: functions of a BPF program have one id, and each client counts for
    itself. Where an address is not known, when it came or when it goes, the last that fits is the one that goes.

    >>> living = Living()
    >>> living.take(Client.BPF, 7, 0, "loaded before, when addresses were hidden")
    >>> living.give(Client.BPF, 7, 0xC000_1000), living.give(Client.BPF, 7, 0xC000_1000)
    ('loaded before, when addresses were hidden', None)
    """

    def __init__(self) -> None:
        """Begin with nothing alive."""
        self._pieces: dict[tuple[int, int], dict[int, list[T]]] = {}

    def take(self, client: int, number: int, at: int, what: T) -> None:
        """Note a piece that came."""
        self._pieces.setdefault((client, number), {}).setdefault(at, []).append(what)

    def give(self, client: int, number: int, at: int) -> T | None:
        """Return what was noted of a piece that goes, None where nobody saw it come."""
        pieces = self._pieces.get((client, number))
        if not pieces:
            return None
        if number and at not in pieces:
            at = 0 if at else next(reversed(pieces))
        if at not in pieces:
            return None
        what = pieces[at].pop()
        if not pieces[at]:
            del pieces[at]
            if not pieces:
                del self._pieces[client, number]
        return what

    def rest(self) -> Iterator[tuple[int, T]]:
        """Give client and what was noted of each piece that has not gone."""
        for (client, _), pieces in self._pieces.items():
            for found in pieces.values():
                for what in found:
                    yield client, what


class Texts:
    """The texts of rows. Cost: about 0.1 us a row, and 0.5 us a text."""

    def __init__(self, rows: npt.NDArray[np.void]) -> None:
        """Put together the TEXT rows among rows, or raise a ``TraceError`` that says which is not lawful."""
        parts = rows[rows["kind"] == Kind.TEXT]
        parts = parts[np.lexsort((parts["owner"], parts["name"]))]
        number, part = parts["name"], parts["owner"]
        first = np.ones(len(parts), dtype=bool)
        first[1:] = number[1:] != number[:-1]
        starts = np.flatnonzero(first)
        expected = np.arange(len(parts)) - np.repeat(starts, np.diff(np.append(starts, len(parts))))
        refuse(number, number == 0, "has number 0, which is no text's")
        refuse(number, part > expected, "lacks a part: the file is damaged")
        refuse(number, part < expected, "is there twice: the file is damaged")
        refuse(number, parts["client"] > TEXT_BYTES, f"has a part of more than {TEXT_BYTES} bytes: the file is damaged")
        body = parts.view(np.uint8).reshape(len(parts), EVENT.itemsize)[:, :TEXT_BYTES]
        coded = body[np.arange(TEXT_BYTES) < parts["client"][:, None]].tobytes()
        ends = np.append(np.cumsum(parts["client"], dtype=np.int64), 0)[np.append(starts[1:], len(parts)) - 1].tolist()
        self.numbers: npt.NDArray[np.uint32] = number[starts]
        self._texts = np.empty(len(starts) + 1, dtype=object)  # and a last one, so that looking past the end is lawful
        begin = 0
        for index, end in enumerate(ends if len(starts) else ()):
            try:
                self._texts[index] = coded[begin:end].decode()
            except UnicodeDecodeError as error:
                message = f"text {self.numbers[index]} is not UTF-8 ({error.reason}): the file is damaged"
                raise TraceError(message) from error
            begin = end

    def take(self, numbers: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """Return the texts of numbers, as an array of ``str``; that of 0 is empty."""
        wanted = np.atleast_1d(np.asarray(numbers))
        index = np.searchsorted(self.numbers, wanted)
        known = (np.append(self.numbers, np.uint32(0))[index] == wanted) | (wanted == 0)
        refuse(wanted, ~known, "is not in the file, though a row points at it: the file is damaged")
        found = self._texts[index]
        found[wanted == 0] = ""
        return found

    def __getitem__(self, number: int) -> str:
        """Return one text."""
        return str(self.take([number])[0])


def refuse(numbers: npt.NDArray[Any], bad: npt.NDArray[np.bool_], why: str) -> None:
    """Raise a ``TraceError`` for the first text for which `bad` is true, if there is one."""
    if bad.any():
        message = f"text {numbers[bad.argmax()]} {why}"
        raise TraceError(message)


# ---- the header ----

FORMAT: Final = "execmem-directmap-trace"
VERSION: Final = 1
ROWS_AT: Final = 4096  # where our rows begin, or at a multiple of it; a reader goes by what the header says
HEADER_MAX: Final = 1 << 16  # a longer first line is nobody's header
CLOCK: Final = "CLOCK_MONOTONIC"
HUGE: Final = 2 << 20
FIELDS: Final[Mapping[str, type]] = {  # every header has these; a recorder adds what else it knows
    "format": str,
    "version": int,
    "row": int,
    "rows_at": int,
    "machine": str,
    "kernel": str,
    "page_sizes": list,
    "clock": str,
    "start_ns": int,
    "start_realtime_ns": int,
}


def describe_machine() -> dict[str, Any]:
    """Return the header's fields about this machine and this moment; page sizes are those a direct map can have."""
    base = os.sysconf("SC_PAGESIZE")
    leaf = base * (base // 8)  # what a table of 8-byte entries covers
    return {
        "machine": platform.machine(),
        "kernel": f"{platform.release()} {platform.version()}",
        "page_sizes": [base, leaf, leaf * (base // 8)],
        "clock": CLOCK,
        "start_ns": time.monotonic_ns(),
        "start_realtime_ns": time.time_ns(),
    }


def write_header(fields: Mapping[str, Any]) -> bytes:
    """Return the header line, padded with spaces so that rows begin at a page: at the first that has room before it."""
    for rows_at in range(ROWS_AT, HEADER_MAX + 1, ROWS_AT):
        fixed = {"format": FORMAT, "version": VERSION, "row": EVENT.itemsize, "rows_at": rows_at}
        line = json.dumps(fixed | {key: value for key, value in fields.items() if key not in fixed})
        if len(line) < rows_at:
            return line.ljust(rows_at - 1).encode() + b"\n"
    message = f"the header has {len(line)} bytes, {HEADER_MAX - 1} fit: leave something out"
    raise TraceError(message)


def parse_header(head: bytes) -> dict[str, Any]:
    """Return the header that the first bytes of a file hold, or raise a ``TraceError`` that tells why there is none."""
    mark = f'{{"format": "{FORMAT}", '.encode()
    if not head:
        message = "the file is empty: its recorder has written nothing yet, or was killed before it did"
    elif not head.strip(b"\0"):
        message = "the header is not written: the recorder has just begun, or was killed before it wrote it"
    elif head[: len(mark)] != mark[: len(head)]:
        message = f"not a trace: a trace begins with {mark.decode()}"
    elif b"\n" not in head:
        message = f"the header is not whole: no end of the line in {len(head)} bytes; the file was cut"
    else:
        return check_header(head[: head.index(b"\n") + 1])
    raise TraceError(message)


def check_header(line: bytes) -> dict[str, Any]:
    """Return the fields of a header line, or raise a ``TraceError`` that tells which is not lawful."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"the header is not JSON: {error}"
        raise TraceError(message) from error
    version = header.get("version")
    if isinstance(version, int) and version > VERSION:
        message = f"the trace has version {version}, this reader knows {VERSION}: a newer execmem reads it"
        raise TraceError(message)
    for name, kind in FIELDS.items():
        if type(header.get(name)) is not kind:
            message = f"the header's {name} is {str(header.get(name))[:80]!r}, not of type {kind.__name__}"
            raise TraceError(message)
    if version != VERSION or header["row"] != EVENT.itemsize or header["rows_at"] != len(line):
        message = (
            f"the header says version {version}, rows of {header['row']} bytes from {header['rows_at']}; "
            f"it must be {VERSION}, {EVENT.itemsize} and {len(line)}, where the line ends: the file is damaged"
        )
        raise TraceError(message[:300])
    if header["clock"] != CLOCK or not 0 <= header["start_ns"] < 1 << 63:
        message = f"the header says clock {header['clock']!r}, start {header['start_ns']}: {CLOCK} is meant"
        raise TraceError(message[:300])
    return dict(header)


# ---- writing ----

STEP_MIN: Final = 64 << 10  # bytes a file grows by: a quarter of itself within these two, whole pages
STEP_MAX: Final = 8 << 20
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FENCE: Final = threading.Lock()


class TraceFullError(OSError):
    """There is no room for more rows; those written before are whole and stay."""


def fence() -> None:
    """Let other processes see what was stored before this before what is stored after it, on every CPU."""
    # Leaving a lock and entering it again are a release and an acquire, and these two keep their order.
    for _ in range(2):
        with FENCE:
            pass


def allocate(fd: int, start: int, size: int) -> None:
    """Make a file longer by blocks it really has, so that writing through a mapping cannot fail (by SIGBUS) later."""
    try:
        os.posix_fallocate(fd, start, size)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:  # no fallocate in this file system, nor an emulation
            if os.pwrite(fd, bytes(size), start) == size:
                return
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, start)
        raise error from None


class Writer:
    """A new trace file, and the only one who writes it; one thread at a time.

    Rows are there for readers, and survive the end of this process, when ``append`` returns: they lie in the page cache
    (what a machine that loses power keeps is up to its file system). A file without ``close`` has room for rows that
    were never written; a reader stops there.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "first.trace")
    >>> with Writer(path) as writer:
    ...     writer.add([Event(Kind.LOAD, ns=5, size=213, id=1, client=Client.BPF, owner="pid 7 tc", name="cls_main")])
    >>> with Trace.open(path) as trace:
    ...     rows = trace.rows()
    ...     rows["size"][-1:].tolist(), Texts(rows).take(rows["name"][-1:]).tolist(), trace.state()
    ([213], ['cls_main'], 'closed')
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None) -> None:
        """Create the file, which must not exist; `header` has fields to add to those of ``describe_machine``."""
        line = write_header(describe_machine() | dict(header or {}))
        self.path = os.fspath(path)
        self.count = 0  # rows written
        self.events = 0  # of them those that are no text: events and samples
        self._lexicon = Lexicon()
        self._window = np.empty(0, dtype=EVENT)  # the part of the file that is mapped; it ends with the file
        self._start = 0  # number of its first row
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells readers that a recorder lives
            self._size = self._rows_at = len(line)
            self._grow()  # first: a file that ends where its rows begin would be taken for one closed with none
            os.pwrite(self._fd, line, 0)
        except BaseException:
            self._window = np.empty(0, dtype=EVENT)
            os.close(self._fd)
            Path(self.path).unlink()
            raise

    def _grow(self) -> None:
        """Make the file longer and map what is new, and the row before, which was kept blank."""
        if self._fd < 0:
            message = f"{self.path} is closed: no rows can be added"
            raise ValueError(message)
        step = min(max(self._size // 4 & ~0xFFFF, STEP_MIN), STEP_MAX)
        for size in (step, ROWS_AT):  # the last of a disk is used too
            try:
                allocate(self._fd, self._size, size)
                break
            except OSError as error:
                if error.errno not in FULL:
                    raise
                reason = error
        else:
            message = (
                f"no room for more rows ({reason.strerror}); the {self.count} before are whole: "
                "make room and record to another file"
            )
            raise TraceFullError(reason.errno, message, self.path)
        self._size += size
        rows = (self._size - self._rows_at) // EVENT.itemsize
        with open(self._fd, "r+b", closefd=False) as file:
            self._window = np.memmap(
                file,
                dtype=EVENT,
                mode="r+",
                offset=self._rows_at + self.count * EVENT.itemsize,
                shape=rows - self.count,
            ).view(np.ndarray)
        self._start = self.count

    def append(self, rows: npt.NDArray[np.void]) -> None:
        """Add rows, those of their texts included; numbers of texts are the caller's. About 5 us and 10 ns a row.

        A ``TraceFullError`` tells how many rows there are: all that were there before, and perhaps some of these.
        """
        rows = np.asarray(rows, dtype=EVENT)
        if rows.ndim != 1 or not ((rows["kind"] > 0) & (rows["kind"] <= max(Kind))).all():
            message = f"rows must be a one-dimensional array of EVENT, each of a kind from 1 to {max(Kind)}"
            raise ValueError(message)
        done = 0
        while done < len(rows):
            free = len(self._window) - (self.count - self._start) - 1  # the last row stays blank: see Trace.state
            if free <= 0:
                self._grow()
                continue
            part = rows[done : done + free]
            place = self._window[self.count - self._start :][: len(part)]
            blank = part.copy()
            blank["kind"] = Kind.NOTHING
            place[:] = blank
            fence()
            place["kind"] = part["kind"]
            self.count += len(part)
            self.events += int(np.count_nonzero(part["kind"] != Kind.TEXT))
            done += len(part)

    def add(self, events: Iterable[Event]) -> None:
        """Add events, with rows of those of their texts that are new. About 10 us, and 2 us an event."""
        self.append(self._lexicon.pack(events))

    def close(self) -> None:
        """Cut the file to what was written; twice is well."""
        if self._fd >= 0:
            self._window = np.empty(0, dtype=EVENT)
            fd, self._fd = self._fd, -1
            try:
                os.ftruncate(fd, self._rows_at + self.count * EVENT.itemsize)
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)  # a mapping that somebody still holds would keep it locked
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


# ---- reading ----

CHUNK: Final = 1 << 16  # rows read at once


class Trace:
    """A trace file, read. It may be growing, closed, or left by a recorder that was killed.

    Rows are copied, not mapped: a recorder that closes its file cuts it, and a process that looks at a mapping beyond
    the end of its file dies.
    """

    def __init__(self, fd: int, header: dict[str, Any]) -> None:
        """Take over a descriptor; see ``open``."""
        self._fd = fd
        self.header = header

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a file, or raise a ``TraceError`` that tells why it is no trace."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                message = "not a file"
                raise TraceError(message)  # noqa: TRY301 - the path is added below
            return cls(fd, parse_header(os.pread(fd, HEADER_MAX, 0)))
        except TraceError as error:
            os.close(fd)
            message = f"{os.fspath(path)}: {error}"
            raise TraceError(message) from error
        except BaseException:
            os.close(fd)
            raise

    def rows(self, start: int = 0) -> npt.NDArray[np.void]:
        """Return the rows from a number on, as far as they are written, TEXT rows among them; about 10 ns a row."""
        chunks = []
        while True:
            kinds = self._read(start, CHUNK)["kind"]
            blank = kinds == Kind.NOTHING
            whole = int(blank.argmax()) if blank.any() else len(kinds)
            if (kinds[:whole] > max(Kind)).any():
                bad = int((kinds[:whole] > max(Kind)).argmax())
                message = f"row {start + bad} is of kind {kinds[bad]}, version {VERSION} has none: the file is damaged"
                raise TraceError(message)
            fence()
            # Read again: a copy that is taken while a row is written may have the kind and not what was stored before.
            chunks.append(self._read(start, whole))
            start += whole
            if whole < CHUNK:
                return np.concatenate(chunks)

    def _read(self, start: int, count: int) -> npt.NDArray[np.void]:
        """Return the rows from a number on that are wholly in the file, at most `count`, written or not."""
        raw = os.pread(self._fd, count * EVENT.itemsize, self.header["rows_at"] + start * EVENT.itemsize)
        return np.frombuffer(raw, dtype=EVENT, count=len(raw) // EVENT.itemsize)

    def state(self) -> str:
        """Tell how the file stands: "recording", "closed", or "cut off" when its recorder was killed.

        Where the file system has no locks a file that was cut off is told to be recording.
        """
        unfinished = "cut off"
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BlockingIOError:
            return "recording"
        except OSError:
            unfinished = "recording"
        # A recorder keeps the last row of its file blank until it closes it.
        size = os.fstat(self._fd).st_size - self.header["rows_at"]
        rows, rest = divmod(size, EVENT.itemsize)
        whole = rest == 0 and (rows == 0 or self._read(rows - 1, 1)["kind"][0] != Kind.NOTHING)
        return "closed" if whole else unfinished

    def follow(self, every: float = 0.1, stop: Callable[[], bool] | None = None) -> Iterator[npt.NDArray[np.void]]:
        """Give new rows as they come, until the recorder ends, or `stop` returns true when there are none.

        Where it has nothing to give it looks again after `every` seconds.
        """
        start = 0
        while True:
            ended = self.state() != "recording"  # asked first: what was written before the end is then still read
            rows = self.rows(start)
            start += len(rows)
            if len(rows):
                yield rows
            elif ended or (stop and stop()):
                return
            else:
                time.sleep(every)

    def close(self) -> None:
        """Close the file; twice is well."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        """Return the trace."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()
