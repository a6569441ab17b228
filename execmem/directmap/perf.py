"""perf: code that comes and goes in the kernel, one event each, as the kernel tells perf.

    kernel --KSYMBOL, BPF_EVENT--> a ring for each CPU --Listener.read---+
    perf record -a -e dummy -k CLOCK_MONOTONIC --> perf.data --read_data-+--> Event, Event, ...
    perf script --show-bpf-events --> text --read_script-----------------+

A KSYMBOL record has address, length and name of a function that came or went; the BPF_EVENT record of its program
follows, with the program's number and tag. Events here are the first kind, with what the second kind adds.

Laws: (1) an event is told once. (2) Within one reading events are in order of time; an event of another CPU may come in
a later reading than one that is younger by less than a reading takes. (3) What the kernel could not tell, because a
ring was full, is counted in `lost`.

Classic BPF (socket filters, seccomp) is in no record: `source.read_unseen` counts those. Modules are in none either.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import struct
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from execmem.directmap import source
from execmem.directmap.source import NotAvailable
from execmem.directmap.trace import Client, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Self


@dataclass(frozen=True)
class Event:
    """A function came into the kernel's executable memory (LOAD), or went (UNLOAD).

    `id` is the number of the BPF program it belongs to, also of its other functions; 0 of what is no program, and where
    the kernel did not tell. `pid` is the process that did it; of an UNLOAD often a thread of the kernel, which cleans
    up after others. It is 0 where a text did not tell.
    """

    kind: Kind
    ns: int  # by the clock of who recorded; 0: not told, or there before the recording
    at: int
    size: int
    id: int
    client: Client
    name: str
    tag: str = ""  # of the program: 16 hexadecimal digits
    pid: int = 0
    cpu: int = 0


# ---- records ----

LOST, KSYMBOL, BPF_EVENT = 2, 17, 18
UNREGISTER = 1
OUT_OF_LINE = 2  # a KSYMBOL's type: code that is no BPF
BPF_LOAD, BPF_UNLOAD = 1, 2
HEADER: Final = struct.Struct("<IHH")  # type, misc, size
SYMBOL: Final = struct.Struct("<QIHH")  # address, length, type, flags; then the name
PROGRAM: Final = struct.Struct("<HHI8s")  # type, flags, id, tag

SAMPLE_TID, SAMPLE_TIME, SAMPLE_ID, SAMPLE_CPU, SAMPLE_STREAM, SAMPLE_IDENTIFIER = 2, 4, 64, 128, 512, 65536
WHO: Final = (SAMPLE_TID, SAMPLE_TIME, SAMPLE_ID, SAMPLE_STREAM, SAMPLE_CPU, SAMPLE_IDENTIFIER)  # as they lie


@dataclass(frozen=True)
class Told:
    """What a BPF_EVENT says of the symbols before it."""

    kind: Kind
    ns: int
    id: int
    tag: str

    def own(self, waiting: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
        """Return those of a thread's symbols that are of this program: from the last one named with its tag on.

        Before it are symbols whose own BPF_EVENT was lost. A text has no tags: then all are taken.
        """
        starts = [at for at, (_, event) in enumerate(waiting) if event.name.startswith(f"bpf_prog_{self.tag}")]
        return waiting[starts[-1] if self.tag else 0 :] if starts else []


@dataclass(frozen=True)
class Attribute:
    """What an event was asked to tell with each record."""

    sample: int  # SAMPLE_ bits; 0: nothing
    clock: int | None = None
    ids: tuple[int, ...] = ()


def payload_end(what: int, body: bytes) -> int:
    """Return where a record's own fields end and begins who did it, when and where.

    It is not counted from the end: a kernel that tells one record to several listeners makes it longer for each, and
    leaves what it likes behind it (seen with 6.18; perf 6.1 reads no times then).
    """
    end = PROGRAM.size
    if what == KSYMBOL:
        name = body.find(b"\0", SYMBOL.size)
        end = (name + 8) // 8 * 8 if name >= 0 else len(body) + 1
    if end > len(body):
        message = f"a record of type {what} is too short"
        raise ValueError(message)
    return end


def who_of(rest: bytes, attributes: Sequence[Attribute]) -> dict[int, int]:
    """Return the fields after a record's own: those of its event, whose number is the last of them if events differ."""
    for one in attributes:
        fields = [field for field in WHO if one.sample & field]
        if len(rest) < 8 * len(fields):
            continue
        who = dict.fromkeys(WHO, 0) | dict(zip(fields, struct.unpack_from(f"<{len(fields)}Q", rest), strict=True))
        alone = len(attributes) == 1 or len({each.sample & sum(WHO) for each in attributes}) == 1
        if alone or who[SAMPLE_IDENTIFIER] in one.ids:
            return who
    message = "a record does not tell of which event it is"
    raise ValueError(message)


def client_of(name: str, kind: int) -> Client:
    """Return what a symbol is for.

    >>> client_of("bpf_prog_6deef7357e7b4530_probe", 1), client_of("bpf_trampoline_6442536467", 1)
    (<Client.BPF: 1>, <Client.TRAMPOLINE: 3>)
    """
    if name.startswith("bpf_prog_"):
        return Client.BPF
    if name.startswith(("bpf_trampoline_", "bpf_dispatcher_", "ftrace_trampoline")):
        return Client.TRAMPOLINE
    return Client.OTHER if kind == OUT_OF_LINE else Client.UNKNOWN


class Records:
    """Turns records into events: one for each KSYMBOL, in the order of time once they are sorted.

    Symbols of programs wait for their BPF_EVENT, which comes from the same thread, right after; one that still waits
    when the second reading ends gets no number.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lost = 0
        self._new: list[tuple[int, Event | Told]] = []  # with the thread it came from
        self._waiting: list[tuple[int, Event]] = []

    def add(self, what: int, body: bytes, attributes: Sequence[Attribute]) -> None:
        """Take a record of the types above: `body` is what follows its header."""
        end = payload_end(what, body)
        who = who_of(body[end:], attributes)
        thread, pid = divmod(who[SAMPLE_TID], 1 << 32)
        ns, cpu = who[SAMPLE_TIME], who[SAMPLE_CPU] & 0xFFFFFFFF
        if what == LOST:
            self.lost += int(struct.unpack_from("<QQ", body)[1])
        elif what == KSYMBOL:
            address, size, kind, flags = SYMBOL.unpack_from(body)
            name = body[SYMBOL.size : end].split(b"\0", 1)[0].decode(errors="replace")
            event = Kind.UNLOAD if flags & UNREGISTER else Kind.LOAD
            symbol = Event(event, ns, address, size, 0, client_of(name, kind), name, "", pid, cpu)
            self._new.append((thread, symbol))
        elif what == BPF_EVENT:
            kind, _, number, tag = PROGRAM.unpack_from(body)
            if kind in {BPF_LOAD, BPF_UNLOAD}:
                event = Kind.LOAD if kind == BPF_LOAD else Kind.UNLOAD
                self._new.append((thread, Told(event, ns, number, tag.hex() if any(tag) else "")))

    def take(self, *, last: bool = False) -> list[Event]:
        """Return the events of the records that were added, in order of time; with `last` also those that wait."""
        old, waiting, out = self._waiting, list(self._waiting), []
        for thread, one in sorted(self._new, key=lambda pair: pair[1].ns):
            if isinstance(one, Told):
                own = one.own([pair for pair in waiting if pair[0] == thread and pair[1].kind == one.kind])
                out += [replace(event, id=one.id, tag=one.tag) for _, event in own]
                waiting = [pair for pair in waiting if pair not in own]
            elif one.client == Client.BPF:
                waiting.append((thread, one))
            else:
                out.append(one)
        given_up = [pair for pair in waiting if last or pair in old]
        self._new, self._waiting = [], [pair for pair in waiting if pair not in given_up]
        return sorted(out + [event for _, event in given_up], key=lambda event: event.ns)


# ---- listening ----

LISTENS: Final = Attribute(SAMPLE_TID | SAMPLE_TIME | SAMPLE_CPU)
SAMPLE_ID_ALL, USE_CLOCKID, WANT_KSYMBOL, WANT_BPF_EVENT = 1 << 18, 1 << 25, 1 << 29, 1 << 30
PAGE: Final = mmap.PAGESIZE
HEAD_AT, TAIL_AT, DATA_AT = 1024, 1032, 1040


class Listener:
    """Hears of all code that comes and goes in the kernel from now on: 0.1 ms to open a CPU, 40 us an event.

    A ring of `ring_bytes` for each CPU (256 KB: some 2,000 programs between two readings) is kept until `close`. Needs
    CAP_PERFMON, or root. Use it as a context manager, in one thread at a time.
    """

    def __init__(self, ring_bytes: int = 1 << 18) -> None:
        """Open the events, or raise NotAvailable; `ring_bytes` is rounded up to a power of two of pages."""
        size = PAGE << max(0, (ring_bytes - 1) // PAGE).bit_length()
        self._records = Records()
        flags = SAMPLE_ID_ALL | USE_CLOCKID | WANT_KSYMBOL | WANT_BPF_EVENT
        self._rings: list[mmap.mmap] = []
        self._poll = select.poll()
        with contextlib.ExitStack() as undo:
            for cpu in online_cpus():
                file = source.perf_event(flags, LISTENS.sample, cpu, time.CLOCK_MONOTONIC)
                undo.callback(os.close, file)
                try:
                    ring = mmap.mmap(file, PAGE + size)
                except OSError as error:
                    why = f"no ring of {size} bytes for a CPU ({error.strerror})"
                    raise NotAvailable(why, "run as root, ask for less, or raise kernel.perf_event_mlock_kb") from error
                undo.callback(ring.close)
                self._rings.append(ring)
                self._poll.register(file, select.POLLIN)
            self._undo = undo.pop_all()

    @property
    def lost(self) -> int:
        """How many records the kernel could not tell, as far as it has said so."""
        return self._records.lost

    def wait(self, seconds: float) -> bool:
        """Wait until something happened, or for so long; tell which."""
        return bool(self._poll.poll(seconds * 1000))

    def read(self, *, last: bool = False) -> list[Event]:
        """Return the events since the reading before; `last`: also those whose program was not told yet."""
        for ring in self._rings:
            (head,), (tail,) = struct.unpack_from("<Q", ring, HEAD_AT), struct.unpack_from("<Q", ring, TAIL_AT)
            start, size = struct.unpack_from("<QQ", ring, DATA_AT)
            at, count = tail % size, head - tail
            data = ring[start + at : start + min(at + count, size)] + ring[start : start + max(0, at + count - size)]
            struct.pack_into("<Q", ring, TAIL_AT, head)
            for what, body in split_records(data):
                if what in {LOST, KSYMBOL, BPF_EVENT}:
                    self._records.add(what, body, [LISTENS])
        return self._records.take(last=last)

    def close(self) -> None:
        """Stop listening; a second time does nothing."""
        self._undo.close()

    def __enter__(self) -> Self:
        """Return the listener."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def online_cpus(root: Path = source.ROOT) -> list[int]:
    """Return the numbers of the CPUs that run."""
    cpus: list[int] = []
    text = source.read_text(root, "sys/devices/system/cpu/online", "mount /sys")
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def split_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give type and body of each record; ValueError if they do not fill the bytes."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            break
        what, _, size = HEADER.unpack_from(data, at)
        if size < HEADER.size or at + size > len(data):
            break
        yield what, data[at + HEADER.size : at + size]
        at += size
    if at != len(data):
        message = f"records end in the middle of one, {len(data) - at} bytes before the end"
        raise ValueError(message)


# ---- what perf recorded ----


@dataclass(frozen=True)
class Recording:
    """The events of a file of perf's; `clock` is what their times are of, None: perf's own, which no file explains."""

    events: tuple[Event, ...]
    lost: int
    clock: str | None


MAGIC: Final = b"PERFILE2"
FILE: Final = struct.Struct("<8sQQQQQQ")  # magic, size, size of an attribute; where attributes and data are
AUXTRACE, COMPRESSED = 71, {81, 83}
CLOCK_FROM: Final = 112  # bytes of an attribute that has a clock, with its numbers
CLOCKS: Final = {1: "monotonic", 4: "monotonic_raw", 7: "boottime"}


def read_data(path: str | os.PathLike[str]) -> Recording:
    """Read the events of a perf.data file, as `perf record -a -e dummy -k CLOCK_MONOTONIC` writes it; 40 us an event.

    Programs that lived when the recording began are LOAD events at time 0. A file that is none, or is cut off, is a
    ValueError; one that perf compressed or wrote to a pipe is NotAvailable.
    """
    with Path(path).open("rb") as file:
        data = file.read(FILE.size)
        if len(data) < FILE.size or not data.startswith(MAGIC):
            message = f"{path} is no perf.data file of a little-endian machine"
            raise ValueError(message)
        _, size, each, attributes_at, attributes_size, data_at, data_size = FILE.unpack(data)
        if size < FILE.size:
            raise NotAvailable(why=f"{path} was written to a pipe", remedy="record to a file, with -o")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            attributes = read_attributes(content, attributes_at, attributes_size, each)
            if data_at + data_size > len(content) or not data_size:
                message = f"{path} is cut off: perf was killed, or still records"
                raise ValueError(message)
            records = Records()
            for what, body in records_of(content, data_at, data_at + data_size):
                if what in COMPRESSED:
                    raise NotAvailable(why=f"{path} is compressed", remedy="record without -z")
                if what in {LOST, KSYMBOL, BPF_EVENT}:
                    records.add(what, body, attributes)
    clocks = {one.clock for one in attributes}
    clock = CLOCKS.get(clocks.pop() or -1) if len(clocks) == 1 else None
    return Recording(tuple(records.take(last=True)), records.lost, clock)


def read_attributes(content: mmap.mmap, at: int, size: int, each: int) -> list[Attribute]:
    """Read what a file's events were asked to tell."""
    if not each or size % each or at + size > len(content):
        message = "the table of events lies outside of the file"
        raise ValueError(message)
    attributes = []
    for start in range(at, at + size, each):
        sample, _, flags = struct.unpack_from("<QQQ", content, start + 24)
        (clock,) = struct.unpack_from("<i", content, start + 92) if each >= CLOCK_FROM else (0,)
        ids_at, ids_size = struct.unpack_from("<QQ", content, start + each - 16)
        if ids_at + ids_size > len(content):
            message = "the numbers of an event lie outside of the file"
            raise ValueError(message)
        ids = struct.unpack_from(f"<{ids_size // 8}Q", content, ids_at)
        attributes.append(
            Attribute(sample if flags & SAMPLE_ID_ALL else 0, clock if flags & USE_CLOCKID else None, ids)
        )
    return attributes


def records_of(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Give type and body of each record of a file; the data of AUXTRACE records are passed over."""
    while at < end:
        what, _, size = HEADER.unpack_from(content, at) if end - at >= HEADER.size else (0, 0, 0)
        if size < HEADER.size or at + size > end:
            message = f"no record begins at byte {at} of the file"
            raise ValueError(message)
        yield what, content[at + HEADER.size : at + size]
        at += size
        if what == AUXTRACE:
            at += int(struct.unpack_from("<Q", content, at - size + HEADER.size)[0])


LINE: Final = re.compile(
    r"^.*?(?P<pid>\d{1,9})(?:/\s*\d+)?\s+(?:\[(?P<cpu>\d{1,9})\]\s+)?(?P<seconds>\d{1,9})\.(?P<part>\d{6,9}):\s+"
    r"PERF_RECORD_(?P<rest>KSYMBOL addr (?P<at>[0-9a-f]{1,16}) len (?P<size>\d{1,9}) type (?P<type>\d{1,4}) "
    r"flags 0x(?P<flags>[0-9a-f]{1,4}) name (?P<name>.*)"
    r"|BPF_EVENT type (?P<kind>\d{1,4}), flags \d+, id (?P<id>\d{1,9})|LOST lost (?P<lost>\d{1,18}))$"
)


def pad(name: bytes) -> bytes:
    """End a name as records do: with zeros, up to a multiple of 8 bytes."""
    return name + bytes(8 - len(name) % 8)


def read_script(lines: Iterable[str]) -> Recording:
    """Read the text of `perf script --show-bpf-events`; other lines are passed over. 20 us a line.

    Some versions of perf print 0 for all times and processes: then events are in the order of lines. `read_data` reads
    what they recorded.
    """
    records = Records()
    for line in lines:
        found = LINE.match(line.rstrip())
        if not found:
            continue
        ns = int(found["seconds"]) * 10**9 + int(found["part"].ljust(9, "0"))
        who = struct.pack("<QQQ", int(found["pid"]), ns, int(found["cpu"] or 0))
        if found["at"]:
            symbol = SYMBOL.pack(int(found["at"], 16), int(found["size"]), int(found["type"]), int(found["flags"], 16))
            what, body = KSYMBOL, symbol + pad(found["name"].encode())
        elif found["id"]:
            what, body = BPF_EVENT, PROGRAM.pack(int(found["kind"]), 0, int(found["id"]), bytes(8))
        else:
            what, body = LOST, struct.pack("<QQ", 0, int(found["lost"]))
        records.add(what, body + who, [LISTENS])
    return Recording(tuple(records.take(last=True)), records.lost, None)


def count_heard(root: Path = source.ROOT) -> int:
    """Open a listener and close it; return how many CPUs it heard."""
    with Listener(PAGE):
        return len(online_cpus(root))


SOURCE: Final = source.Source(
    "events", "code that comes and goes, one by one", "CAP_PERFMON", "0.1 ms a CPU to open, 40 us an event", count_heard
)
