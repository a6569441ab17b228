"""convert: traces out of what other tools write, and into what other tools read.

    bpftool -j prog show     two snapshots      programs that came and went between them
    /tmp/perf-PID.map        text               what a runtime compiled, without times
    jit-PID.dump             binary             the same with times, and with moves
    /proc/PID/fd/N           a domain's ledger  blocks a process placed and freed, the last 4,096 of each shard
    trace.csv, .parquet      from rows          columns with texts in their places
    trace.json               from rows          events for ui.perfetto.dev and chrome://tracing

Importers give events, for ``Writer.add``. What is damaged is a ``TraceError`` that tells where; a file that ends in the
middle of a record, as one that is being written does, gives what is whole.
"""

from __future__ import annotations

import csv
import heapq
import importlib
import itertools
import json
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from execmem.directmap.trace import TEXT_MAX, Client, Event, Kind, Living, Texts, TraceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

U32: Final = (1 << 32) - 1
U64: Final = (1 << 64) - 1

# ---- bpftool ----


def parse_programs(text: str) -> dict[tuple[int, str, int], dict[str, Any]]:
    """Return the programs of `bpftool -j prog show`; a number may be used again, tag and time tell programs apart."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"not what `bpftool -j prog show` prints: {error}"
        raise TraceError(message) from error
    if isinstance(found, dict) and "error" in found:
        message = f"bpftool failed: {str(found['error'])[:200]}; it wants to run as root"
        raise TraceError(message)
    if not isinstance(found, list):
        message = "not what `bpftool -j prog show` prints: no list of programs"
        raise TraceError(message)
    programs = {}
    for place, one in enumerate(found):
        lawful = isinstance(one, dict) and all(
            type(one.get(key, 0)) is int and 0 <= one.get(key, 0) <= U32 for key in ("id", "bytes_jited", "uid")
        )
        if not lawful or "id" not in one:
            message = f"program {place} of the list has no lawful id, bytes_jited or uid: {str(one)[:200]}"
            raise TraceError(message)
        programs[one["id"], str(one.get("tag", "")), str(one.get("loaded_at", ""))] = one
    return programs  # type: ignore[return-value]


def read_bpftool(before: str, after: str, *, ns: int) -> list[Event]:
    """Return what came and went between two outputs of ``bpftool -j prog show``, the later taken at `ns`.

    The size is that of the machine code, 0 for a program that is interpreted. The owner is the first process that holds
    it, where bpftool knows, else the user.

    >>> read_bpftool("[]", '[{"id": 7, "name": "cls_main", "bytes_jited": 213, "uid": 0}]', ns=5)[0].owner
    'uid 0'
    """
    old, new = parse_programs(before), parse_programs(after)

    def tell(kind: Kind, one: Mapping[str, Any]) -> Event:
        pids = one.get("pids")
        holders = [each for each in pids if isinstance(each, dict)] if isinstance(pids, list) else []
        owner = f"pid {holders[0].get('pid')} {holders[0].get('comm')}" if holders else f"uid {one.get('uid', 0)}"
        name = str(one.get("name") or f"bpf_prog_{one.get('tag', '')}")
        return Event(kind, ns, 0, one.get("bytes_jited", 0), one["id"], Client.BPF, owner, name)

    gone = [tell(Kind.UNLOAD, old[key]) for key in sorted(old.keys() - new.keys())]
    return gone + [tell(Kind.LOAD, new[key]) for key in sorted(new.keys() - old.keys())]


# ---- perf map ----

MAP_LINE: Final = re.compile(rb"(?:0x)?([0-9a-f]{1,16})[ \t]+(?:0x)?([0-9a-f]{1,8})[ \t]+(.+)", re.IGNORECASE)
LINE_MAX: Final = 1 << 16


def read_perf_map(path: str | os.PathLike[str], *, ns: int = 0) -> Iterator[Event]:
    """Give what a /tmp/perf-PID.map lists; it has no times: all get `ns`. About 3 us a line.

    A line for an address that was there before says that other code is there now.
    """
    found = re.search(r"perf-(\d+)\.map$", os.fspath(path))
    owner = f"pid {found[1]}" if found else ""
    placed: dict[int, Event] = {}
    with Path(path).open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_MAX), b""), 1):
            if not line.endswith(b"\n") and len(line) < LINE_MAX:
                return  # it is being written
            match = MAP_LINE.fullmatch(line.rstrip(b"\r\n"))
            if not match:
                message = f"{os.fspath(path)}:{number}: not `ADDRESS SIZE NAME` with hexadecimal numbers: {line[:80]!r}"
                raise TraceError(message)
            at, size = int(match[1], 16), int(match[2], 16)
            if at in placed:
                yield placed[at]._replace(kind=Kind.UNLOAD)
            name = match[3].decode("utf-8", "backslashreplace")
            event = Event(Kind.LOAD, ns, at, size, number, Client.OTHER, owner, name)
            placed[at] = event
            yield event


# ---- jitdump: tools/perf/Documentation/jitdump-specification.txt of Linux ----

JIT_MAGIC: Final = 0x4A695444  # as its writer's CPU stores it
JIT_HEADER: Final = "IIIIIIQQ"  # magic, version, size, machine, pad, pid, time, flags
JIT_RECORD: Final = "IIQ"  # id, size with this, time
JIT_LOAD: Final = "IIQQQQ"  # pid, tid, where it is written, where it runs, size, number
JIT_MOVE: Final = "IIQQQQQ"  # pid, tid, where it is written, from, to, size, number
CODE_LOAD, CODE_MOVE, CODE_CLOSE = 0, 1, 3
ARCH_TIMES: Final = 1  # flag: times are the CPU's own, not CLOCK_MONOTONIC


def read_jitdump(path: str | os.PathLike[str]) -> Iterator[Event]:
    """Give what a jitdump file tells, of either byte order; a move is an unload and a load. About 10 us a record.

    Times that are not CLOCK_MONOTONIC (a flag of the file says so) become 0. The code itself is passed over.
    """
    with Path(path).open("rb") as file:
        where = os.fspath(path)
        size = os.fstat(file.fileno()).st_size
        head = file.read(struct.calcsize("<" + JIT_HEADER))
        order = next((order for order in "<>" if head[:4] == struct.pack(order + "I", JIT_MAGIC)), None)
        if order is None or len(head) < struct.calcsize("<" + JIT_HEADER):
            message = f"{where}: no jitdump: it does not begin with a header of one"
            raise TraceError(message)
        _, version, at, _, _, _, _, flags = struct.unpack(order + JIT_HEADER, head)
        if version != 1 or at < len(head):
            message = f"{where}: jitdump of version {version} with a header of {at} bytes; version 1 is known"
            raise TraceError(message)
        names: dict[int, str] = {}
        fixed = struct.Struct(order + JIT_RECORD)
        while at + fixed.size <= size:
            file.seek(at)
            what, length, ns = fixed.unpack(file.read(fixed.size))
            if length < fixed.size:
                message = f"{where}: a record at byte {at} has {length} bytes, at least {fixed.size} are needed"
                raise TraceError(message)
            if what == CODE_CLOSE or at + length > size:
                return
            body = file.read(min(length - fixed.size, struct.calcsize(order + JIT_MOVE) + TEXT_MAX))
            events = read_record(order, what, body, names)
            if events is None:
                message = f"{where}: the record at byte {at} ends before its fields do, or its code is larger than 4 GB"
                raise TraceError(message)
            yield from (event._replace(ns=0 if flags & ARCH_TIMES else ns) for event in events)
            at += length


def read_record(order: str, what: int, body: bytes, names: dict[int, str]) -> list[Event] | None:
    """Return the events of one record, None for one that cannot be; `names` keeps those of code, for its moves."""
    if what not in {CODE_LOAD, CODE_MOVE}:
        return []  # lines of source and unwinding information
    form = struct.Struct(order + (JIT_LOAD if what == CODE_LOAD else JIT_MOVE))
    if len(body) < form.size:
        return None
    pid, tid, _, *addresses, size, number = form.unpack_from(body)
    if size > U32:
        return None
    if what == CODE_LOAD:
        names[number] = body[form.size :].partition(b"\0")[0].decode("utf-8", "backslashreplace")
    owner, name = f"pid {pid} thread {tid}", names.get(number, "")
    load = Event(Kind.LOAD, 0, addresses[-1], size, number & U32, Client.OTHER, owner, name)
    return [load] if what == CODE_LOAD else [load._replace(kind=Kind.UNLOAD, at=addresses[0]), load]


# ---- our own ledger: docs/ledger.md ----

LEDGER_VERSION: Final = 3
LEDGER_HEADER: Final = np.dtype(
    {
        "names": [
            *("magic", "version", "shards_offset", "events_offset", "events_max", "epoch_monotonic_ns", "pid"),
            *("name", "shards"),
        ],
        "formats": ["S8", "<u4", "<u8", "<u8", "<u4", "<u8", "<u4", "S64", "<u4"],
        "offsets": [0, 8, 40, 48, 112, 136, 152, 168, 296],
        "itemsize": 304,
    }
)
LEDGER_SHARD: Final = np.dtype({"names": ["events"], "formats": ["<u8"], "offsets": [56], "itemsize": 128})
LEDGER_EVENT: Final = np.dtype(
    [("address", "<u8"), ("size", "<u4"), ("time_ms", "<u4"), ("op", "<u4"), ("sequence", "<u4")]
)
LEDGER_OPS: Final = {1: Kind.LOAD, 2: Kind.UNLOAD}  # the others say nothing of code that comes and goes
LEDGER_MAX: Final = 64 << 20  # bytes of events; a domain has 100 kB a shard


def find_ledgers(pid: int, root: str = "/") -> list[Path]:
    """Return the ledgers of a process: a file a domain. Who may look into its /proc/PID/fd may read them."""
    return sorted(
        path
        for path in Path(root, "proc", str(pid), "fd").iterdir()
        if path.is_symlink() and str(path.readlink()).startswith("/memfd:execmem-ledger:")
    )


def read_ledger(path: str | os.PathLike[str]) -> list[Event]:
    """Return what the rings of a ledger hold, oldest first: blocks placed (LOAD) and freed (UNLOAD). 2 us an event.

    Numbers begin at 1 for each reading; a block that was placed before the ring's oldest event has number 0.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header, events = read_rings(fd, os.fspath(path))
    finally:
        os.close(fd)
    owner, name = f"pid {header['pid']}", header["name"].decode("utf-8", "backslashreplace")
    epoch = int(header["epoch_monotonic_ns"])
    numbers: dict[int, int] = {}
    result: list[Event] = []
    for at, size, ms, op, _ in events.tolist():
        if op not in LEDGER_OPS:
            continue
        if op == 1:
            numbers[at] = len(result) + 1
        number = numbers.get(at, 0)
        result.append(Event(LEDGER_OPS[op], epoch + ms * 1_000_000, at, size, number, Client.OTHER, owner, name))
    return result


def read_rings(fd: int, where: str) -> tuple[np.void, npt.NDArray[np.void]]:
    """Return the header of a ledger and the events of its rings, by time."""

    def fetch(dtype: np.dtype[np.void], at: int, count: int) -> npt.NDArray[np.void]:
        raw = os.pread(fd, count * dtype.itemsize, at) if 0 <= at <= U64 >> 1 and count <= LEDGER_MAX // 24 else b""
        if len(raw) < count * dtype.itemsize:
            message = f"{where}: the ledger ends before what its header says is in it"
            raise TraceError(message)
        return np.frombuffer(raw, dtype=dtype, count=count)

    size = LEDGER_HEADER.itemsize
    if len(os.pread(fd, size, 0)) < size or (header := fetch(LEDGER_HEADER, 0, 1)[0])["magic"] != b"EXECMEM":
        message = f"{where}: no ledger of execmem: it does not begin with EXECMEM"
        raise TraceError(message)
    if header["version"] != LEDGER_VERSION:
        message = f"{where}: ledger of version {header['version']}; version {LEDGER_VERSION} is known"
        raise TraceError(message)
    length, shards = int(header["events_max"]), int(header["shards"])
    if not 0 < length * max(shards, 1) * LEDGER_EVENT.itemsize <= LEDGER_MAX:
        message = f"{where}: {shards} rings of {length} events cannot be: the ledger is damaged"
        raise TraceError(message)
    offset, books = int(header["events_offset"]), int(header["shards_offset"])
    rings = []
    for shard in range(shards):
        before = int(fetch(LEDGER_SHARD, books, shards)[shard]["events"])
        ring = fetch(LEDGER_EVENT, offset + shard * length * LEDGER_EVENT.itemsize, length)
        after = int(fetch(LEDGER_SHARD, books, shards)[shard]["events"])
        if not before <= after <= U64 >> 1:
            message = f"{where}: a ring with {before} events, then {after}: the ledger is damaged"
            raise TraceError(message)
        # Those that were counted before the copy, and whose places were not written again by its end.
        numbers = np.arange(max(after - length + 1, 0), max(before, after - length + 1, 0))
        ring = ring[numbers % length]
        rings.append(ring[ring["sequence"] == (numbers & U32)])
    events = np.concatenate(rings) if rings else np.empty(0, dtype=LEDGER_EVENT)
    # A batch has the time of its start: within a ring the order of writing is kept, times only grow.
    times = [np.maximum.accumulate(ring["time_ms"]) for ring in rings]
    return header, events[np.argsort(np.concatenate(times), kind="stable")] if rings else events


# ---- for other tools ----


def columns(rows: npt.NDArray[np.void]) -> dict[str, npt.NDArray[Any]]:
    """Return rows as columns, texts and words in the place of numbers; TEXT rows are left out. About 0.3 us a row."""
    texts = Texts(rows)
    rows = rows[rows["kind"] != Kind.TEXT]
    found: dict[str, npt.NDArray[Any]] = {key: np.ascontiguousarray(rows[key]) for key in ("ns", "at", "size", "id")}
    kinds = np.array([kind.name.lower() for kind in Kind], dtype=object)
    clients = np.array([client.name.lower() for client in Client], dtype=object)
    found["kind"] = kinds[rows["kind"]]
    found["client"] = clients[np.where(rows["client"] < len(clients), rows["client"], 0)]
    found["owner"], found["name"] = texts.take(rows["owner"]), texts.take(rows["name"])
    return found


def write_csv(rows: npt.NDArray[np.void], file: TextIO) -> None:
    """Write rows as CSV with a line of names; about 2 us a row."""
    found = columns(rows)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(found)
    writer.writerows(zip(*(column.tolist() for column in found.values()), strict=True))


def write_parquet(rows: npt.NDArray[np.void], path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Write rows as a Parquet file, the header of their trace as its metadata; ``pyarrow`` must be installed."""
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        message = "Parquet is not available: pyarrow is not installed; python -m pip install 'execmem[parquet]'"
        raise ImportError(message) from error
    found = columns(rows)
    words = ("kind", "client", "owner", "name")
    made = {
        key: arrow.array(column, arrow.string()).dictionary_encode() if key in words else arrow.array(column)
        for key, column in found.items()
    }
    table = arrow.table(made).replace_schema_metadata({"execmem": json.dumps(header)})
    parquet.write_table(table, os.fspath(path))


# ---- trace events: "Trace Event Format" of Chrome's trace-viewer, which Perfetto reads too ----

CHUNK: Final = 1 << 15  # rows that are text at once
MACHINE: Final = 1  # the process of counters, splits and joins; code of client n is of process MACHINE + 1 + n
NOT_KNOWN: Final = "not known"
CHANGES: Final = {Kind.SPLIT: "split", Kind.JOIN: "join"}  # each a thread
THREADS: Final = 1000  # plus the kind: apart from first threads, which have the number of their process
PROCESSES: Final = ("direct map", "code", "BPF", "classic BPF", "BPF trampolines", "modules", "other code")


class Lanes:
    """Slices of code that lives, each on a lane of its client: the first that is free, so that there are few.

    A viewer makes a track of each lane and name. Pieces are told apart as `trace.Living` does.
    """

    def __init__(self) -> None:
        """Begin with nothing alive."""
        self._living: Living[tuple[int, str]] = Living()
        self._free: dict[int, list[int]] = {}
        self._made: dict[int, int] = {}
        self._unseen = 0

    def take(self, client: int, number: int, at: int, name: str) -> int:
        """Return the lane of a piece that came."""
        free = self._free.setdefault(client, [])
        if free:
            lane = heapq.heappop(free)
        else:
            lane = self._made[client] = self._made.get(client, 0) + 1
        self._living.take(client, number, at, (lane, name))
        return lane

    def give(self, client: int, number: int, at: int) -> tuple[int, str] | None:
        """Return the lane and name of a piece that goes, None where nobody saw it come."""
        found = self._living.give(client, number, at)
        if found:
            heapq.heappush(self._free[client], found[0])
        return found

    def unseen(self) -> int:
        """Return a lane of its own, for a piece that went and that nobody saw come."""
        self._unseen += 1
        return -self._unseen

    def rest(self) -> Iterator[tuple[int, int, str]]:
        """Give client, lane and name of what lives at the end."""
        return ((client, lane, name) for client, (lane, name) in self._living.rest())


def to_us(ns: int) -> str:
    """Return nanoseconds as microseconds with all their digits.

    >>> to_us(1_234_567), to_us(5)
    ('1234.567', '0.005')
    """
    return f"{ns // 1000}.{ns % 1000:03d}"


def trace_events(rows: npt.NDArray[np.void], start: int) -> Iterator[str]:
    """Give each event as a line of JSON. Code of before the start begins at 0, what lives at the end is ended there."""
    texts = Texts(rows)
    rows = rows[rows["kind"] != Kind.TEXT]
    rows = rows[np.argsort(rows["ns"], kind="stable")]
    lanes = Lanes()
    end = 0
    for begin in range(0, len(rows), CHUNK):
        part = rows[begin : begin + CHUNK]
        names = [json.dumps(text) for text in texts.take(part["name"]).tolist()]
        owners = [json.dumps(text or NOT_KNOWN) for text in texts.take(part["owner"]).tolist()]
        for (ns, at, size, number, _, _, kind, client), name, owner in zip(part.tolist(), names, owners, strict=True):
            end = max(ns - start, 0)
            ts = to_us(end)
            if kind == Kind.SAMPLE:
                yield f'{{"ph":"C","pid":{MACHINE},"tid":{MACHINE},"ts":{ts},"name":{name},"args":{{"value":{at}}}}}'
                continue
            place = f'"{at:#x}"' if at else f'"{NOT_KNOWN}"'
            if kind in CHANGES:
                yield (
                    f'{{"ph":"i","s":"t","pid":{MACHINE},"tid":{THREADS + kind},"ts":{ts},"cat":"direct map",'
                    f'"name":"{CHANGES[kind]}","args":{{"owner":{owner},"why":{name},"count":{number},"size":{size},'
                    f'"offset":{place}}}}}'
                )
                continue
            label = name if name != '""' else '"(no name)"'
            args = f'"size":{size},"address":{place},"owner":{owner},"id":{number}'
            if kind == Kind.LOAD:
                yield slice_edge("b", (client, lanes.take(client, number, at, label)), ts, label, args)
            elif gone := lanes.give(client, number, at):
                yield slice_edge("e", (client, gone[0]), ts, gone[1])
            else:
                lane = lanes.unseen()
                yield slice_edge("b", (client, lane), to_us(0), label, args)
                yield slice_edge("e", (client, lane), ts, label)
    for client, lane, name in lanes.rest():
        yield slice_edge("e", (client, lane), to_us(end), name, '"end":"of the trace: it lives on"')


def slice_edge(phase: str, where: tuple[int, int], ts: str, name: str, args: str = "") -> str:
    """Return the begin or the end of a slice; both have equal category, id and name, by which viewers pair them."""
    client, lane = where
    pid = MACHINE + 1 + client
    return (
        f'{{"ph":"{phase}","cat":"code","id":"{client}.{lane}","pid":{pid},"tid":{pid},"ts":{ts},"name":{name},'
        f'"args":{{{args}}}}}'
    )


def name_tracks(clients: list[int]) -> Iterator[str]:
    """Give the events that name processes and threads: the machine's, and one for each client."""
    pids = [MACHINE, *(MACHINE + 1 + client for client in clients)]
    named: list[tuple[str, int, int, dict[str, Any]]]
    named = [("process_name", pid, pid, {"name": word_of(pid)}) for pid in pids]
    named += [("process_sort_index", pid, pid, {"sort_index": pid}) for pid in pids]
    named += [("thread_name", MACHINE, THREADS + kind, {"name": f"{word}s"}) for kind, word in CHANGES.items()]
    for name, pid, tid, args in named:
        yield json.dumps({"ph": "M", "pid": pid, "tid": tid, "ts": 0, "name": name, "args": args})


def word_of(pid: int) -> str:
    """Return what a process is called.

    >>> word_of(MACHINE), word_of(MACHINE + 1 + Client.BPF), word_of(MACHINE + 1 + 200)
    ('direct map', 'BPF', 'code: client 200')
    """
    place = pid - MACHINE
    return PROCESSES[place] if place < len(PROCESSES) else f"code: client {place - 1}"


def write_perfetto(rows: npt.NDArray[np.void], header: Mapping[str, Any], file: TextIO) -> None:
    """Write rows as trace events, which ui.perfetto.dev and chrome://tracing open; about 5 us and 150 bytes a row.

    Beside the rows, memory is for some thousands of events and for the code that lives at one time.
    """
    code = (rows["kind"] == Kind.LOAD) | (rows["kind"] == Kind.UNLOAD)
    about = {"machine": header["machine"], "kernel": header["kernel"], "start_realtime_ns": header["start_realtime_ns"]}
    # No displayTimeUnit: some releases of Perfetto take "ns" for the unit of ts, which is always microseconds.
    file.write(f'{{"otherData":{json.dumps(about)},"traceEvents":[\n')
    comma = ""
    for line in itertools.chain(
        name_tracks(np.unique(rows["client"][code]).tolist()), trace_events(rows, header["start_ns"])
    ):
        file.write(comma + line)
        comma = ",\n"
    file.write("\n]}\n")
