"""watch: the ledgers of another process, or copies of them in files: found, checked, read.

    process --/proc/PID/maps--> memory files "execmem-ledger:NAME" --pread--> header, shards, packs   every time
                                                                          --> maps, records, names    of one pack

Nothing is mapped, written or stopped. Touching a hole through a mapping would allocate it in the watched process's
file, and a file that shrinks would end the reader by SIGBUS; a read does neither. Whatever is read is a claim of
somebody else: offsets, counts and numbers are checked before they are used, and text is for ``draw_packs.printable``.

Cost: three reads of some kB a look, whatever is live; 12 kB and a record of 12 bytes a block for each pack looked into.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import re
import stat
import struct
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn

import numpy as np

from execmem._core import lib
from execmem.errors import ExecmemError
from execmem.ledger import (
    BLOCK_DTYPE,
    EVENT_DTYPE,
    HEADER_DTYPE,
    NAME_DTYPE,
    PACK_DTYPE,
    READINGS,
    RECORD_DTYPE,
    SHARD_DTYPE,
    WORD_MAX,
    pack_blocks,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

VERSION: Final = 3
MAGIC: Final = b"EXECMEM"
FILE_PREFIX: Final = "/memfd:execmem-ledger:"
BITS_BYTES: Final = lib.EXECMEM_PACK_WORDS * 16  # used and head bits of a pack
EXTENTS_BYTES: Final = lib.EXECMEM_PACK_WORDS * 2
GROUP: Final = 64  # chunks whose records lie side by side
MAPS_STRIDE_MAX: Final = 1 << 20  # these bound what a lie makes the reader read
BLOCKS_STRIDE_MAX: Final = 64 << 20
EVENTS_MAX: Final = 1 << 16
CELLS_PER_PAGE: Final = 4096 // lib.EXECMEM_NAME_CELL
NAME_HOPS: Final = lib.EXECMEM_NAME_MAX // lib.EXECMEM_NAME_CELL_TEXT + 1
IN_USE: Final = (lib.EXECMEM_PACK_SMALL, lib.EXECMEM_PACK_FULL, lib.EXECMEM_PACK_SPAN)
MAPPING: Final = re.compile(
    rb"^(?P<span>[0-9a-f]+-[0-9a-f]+) \S+ 0+ \S+ (?P<inode>\d+) +" + re.escape(FILE_PREFIX.encode()) + rb"[^\n]*$",
    re.MULTILINE,
)
COPY_PIECE: Final = 1 << 20
GZIP_MAGIC: Final = b"\x1f\x8b"
UNPACK_PIECE: Final = 1 << 16
UNPACKED_MAX: Final = 1 << 36  # bytes, most of them holes: 32,768 packs


class WatchError(ExecmemError):
    """A process or a file cannot be watched: why, and what would help."""


class EmptyLedgerError(WatchError):
    """A ledger of a process has no header yet: its domain is just being opened."""


# ---- one ledger ----


@dataclass(frozen=True)
class Look:
    """What the counters said at one moment."""

    monotonic_ns: int
    now_ms: int  # as the ledger counts; a copy's clock stands at its last event
    header: np.void
    shards: npt.NDArray[np.void]
    packs: npt.NDArray[np.void]

    def total(self, what: str) -> int:
        """Return the sum of a counter over the shards; they wrap, their sum is right."""
        return int(self.shards[what].sum(dtype=np.uint64)) & WORD_MAX

    @property
    def live_blocks(self) -> int:
        """How many blocks live, retired ones included."""
        return (self.total("allocs") - self.total("frees")) & WORD_MAX

    @property
    def shown(self) -> list[int]:
        """The numbers of the packs that are there, a span's tails left out."""
        return [int(number) for number in np.flatnonzero(np.isin(self.packs["state"], IN_USE))]

    def age_ms(self, born_ms: int) -> int:
        """Return how long ago something was born; a clock that ticks coarsely may be behind it."""
        return max(self.now_ms - born_ms, 0)


class Ledger:
    """One ledger, open for reading; ``where`` names it in errors."""

    def __init__(self, descriptor: int, where: str, *, live: bool) -> None:
        """Take a descriptor, which is closed with the ledger or when the first check fails."""
        self._descriptor = descriptor
        self.where = where
        self.live = live
        self._trusted: bytes = b""
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._refuse("is no file of memory or disk, so no ledger")
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str, where: str, *, live: bool) -> Self:
        """Open a path; OSError as the system has it."""
        # O_NONBLOCK: whoever planted a pipe under the name does not make the reader wait.
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), where, live=live)

    def close(self) -> None:
        """Close; a second time is nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def name(self) -> str:
        """The domain's name, as it was written there."""
        return bytes(self.header["name"]).decode("utf-8", "replace")

    @property
    def domain(self) -> int:
        """The domain's number in its process."""
        return int(self.header["domain"])

    def _refuse(self, why: str) -> NoReturn:
        message = f"{self.where} {why}"
        raise WatchError(message)

    def _read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file; fewer than asked for is an error."""
        parts = []
        while size > 0:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                held = os.fstat(self._descriptor).st_size
                self._refuse(f"is truncated: it ends at byte {held:,}, and {size:,} bytes at {offset:,} are wanted")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_header(self) -> np.void:
        """Return the header; its first reading is checked whole, later ones must have the same layout."""
        size = os.fstat(self._descriptor).st_size
        if size < HEADER_DTYPE.itemsize:
            self._refuse(f"is truncated or no ledger: {size:,} bytes, the header alone has {HEADER_DTYPE.itemsize}")
        raw = self._read(0, HEADER_DTYPE.itemsize)
        header: np.void = np.frombuffer(raw, dtype=HEADER_DTYPE)[0]
        layout = raw[: HEADER_DTYPE.fields["epoch_realtime_ns"][1]] if HEADER_DTYPE.fields else b""
        if layout != self._trusted:
            if self.live and not raw.strip(b"\0"):
                message = f"{self.where} is empty: its domain is just being opened"
                raise EmptyLedgerError(message)
            if self._trusted:
                self._refuse("is damaged: its layout changed while it was read")
            self._check_layout(header, size)
            self._trusted = layout
        for count, most in (("shards", "shards_max"), ("packs_top", "packs_max"), ("names_top", "names_max")):
            if header[count] > header[most]:
                self._refuse(f"is damaged: {count} is {header[count]:,}, which is more than {most}, {header[most]:,}")
        return header

    def _check_layout(self, header: np.void, size: int) -> None:
        """Refuse what is no ledger, of another version, cut off, or lies about where things are."""
        if bytes(header["magic"]) != MAGIC:
            self._refuse('is no ledger of execmem: it does not begin with "EXECMEM"')
        version = int(header["version"])
        if version != VERSION:
            remedy = "update execmem here" if version > VERSION else "look with the execmem that wrote it"
            age = "newer" if version > VERSION else "older"
            self._refuse(f"is a ledger of version {version}, {age} than {VERSION}, which this execmem reads: {remedy}")
        number = {key: int(header[key]) for key in header.dtype.names or () if key not in {"magic", "name", "arch"}}
        if number["header_size"] != HEADER_DTYPE.itemsize:
            self._refuse(f"is damaged: its header says it has {number['header_size']} bytes")
        whole = number["ledger_size"]
        if size < whole:
            self._refuse(f"is truncated: {size:,} of {whole:,} bytes")
        packs, shards, events = number["packs_max"], number["shards_max"], number["events_max"]
        limits = (
            ("packs_max", packs, 1, lib.EXECMEM_WINDOW_PACKS_MAX),
            ("shards_max", shards, 1, lib.EXECMEM_SHARDS_MAX),
            ("events_max", events, 1, EVENTS_MAX),
            ("maps_stride", number["maps_stride"], BITS_BYTES + EXTENTS_BYTES, MAPS_STRIDE_MAX),
            ("extents_at", number["extents_at"], BITS_BYTES, number["maps_stride"] - EXTENTS_BYTES),
            ("blocks_stride", number["blocks_stride"], RECORD_DTYPE.itemsize, BLOCKS_STRIDE_MAX),
        )
        for what, value, least, most in limits:
            if not least <= value <= most:
                self._refuse(f"is damaged: {what} is {value:,}, which is not within {least:,} and {most:,}")
        parts = (
            ("packs", packs * PACK_DTYPE.itemsize),
            ("shards", shards * SHARD_DTYPE.itemsize),
            ("events", shards * events * EVENT_DTYPE.itemsize),
            ("maps", packs * number["maps_stride"]),
            ("blocks", packs * number["blocks_stride"]),
            ("names", number["names_max"] * lib.EXECMEM_NAME_CELL),
        )
        for what, length in parts:
            offset = number[f"{what}_offset"]
            if offset < HEADER_DTYPE.itemsize or offset + length > whole:
                self._refuse(f"is damaged: {what} lie at {offset:,} and need {length:,} bytes of {whole:,}")

    # ---- what every look reads ----

    def look(self) -> Look:
        """Return the counters: three reads, whatever is live."""
        header = self._read_header()
        self.header = header
        shards = self._table(int(header["shards_offset"]), int(header["shards"]), SHARD_DTYPE)
        packs = self._table(int(header["packs_offset"]), int(header["packs_top"]), PACK_DTYPE)
        self._check_packs(packs)
        now = time.monotonic_ns()
        since = (now - int(header["epoch_monotonic_ns"])) // 1_000_000
        return Look(now, max(since, 0) if self.live else self._last_ms(shards, packs), header, shards, packs)

    def _table(self, offset: int, count: int, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        return np.frombuffer(self._read(offset, count * dtype.itemsize), dtype=dtype)

    def _check_packs(self, packs: npt.NDArray[np.void]) -> None:
        """Refuse a pack whose record cannot be true."""
        shown = np.isin(packs["state"], IN_USE)
        span = packs["state"] == lib.EXECMEM_PACK_SPAN
        home = self.header["window"] + np.arange(len(packs), dtype=np.uint64) * np.uint64(lib.EXECMEM_PACK_SIZE)
        lies = (
            ("state", packs["state"] > lib.EXECMEM_PACK_SPAN_TAIL),
            ("kind", packs["kind"] >= lib.EXECMEM_KINDS),
            ("address", shown & (packs["address"] != home)),
            ("usable_chunks", shown & ~span & (packs["usable_chunks"] > lib.EXECMEM_PACK_CHUNKS)),
            ("span_packs", span & (packs["span_packs"] > len(packs))),
            ("usable_chunks", span & (packs["usable_chunks"] > packs["span_packs"] * lib.EXECMEM_PACK_CHUNKS)),
        )
        for what, wrong in lies:
            if wrong.any():
                number = int(np.flatnonzero(wrong)[0])
                self._refuse(f"is damaged: {what} of pack {number} is {int(packs[what][number]):,}")

    def _last_ms(self, shards: npt.NDArray[np.void], packs: npt.NDArray[np.void]) -> int:
        """Return when the last thing happened, as far as a copy tells."""
        latest = int(packs["born_ms"].max(initial=0))
        ring = int(self.header["events_max"])
        for number, written in enumerate(shards["events"].tolist()):
            offset = int(self.header["events_offset"]) + number * ring * EVENT_DTYPE.itemsize
            events = self._table(offset, min(int(written), ring), EVENT_DTYPE)
            latest = max(latest, int(events["time_ms"].max(initial=0)))
        return latest

    # ---- one pack ----

    def _pack_record(self, number: int) -> np.void:
        header = self.header
        if not 0 <= number < header["packs_top"]:
            self._refuse(f"has no pack {number}: its packs are 0 to {int(header['packs_top']) - 1}")
        offset = int(header["packs_offset"]) + number * PACK_DTYPE.itemsize
        record: np.void = self._table(offset, 1, PACK_DTYPE)[0]
        return record

    def _maps(self, number: int, size: int) -> bytes:
        header = self.header
        return self._read(int(header["maps_offset"]) + number * int(header["maps_stride"]), size)

    def used(self, number: int) -> npt.NDArray[np.bool_]:
        """Return a bool a usable chunk of a pack: in use. 8 kB are read, some 30 us."""
        usable = min(int(self._pack_record(number)["usable_chunks"]), lib.EXECMEM_PACK_CHUNKS)
        words = np.frombuffer(self._maps(number, BITS_BYTES), dtype=np.uint8).reshape(-1, 2, 8)
        return np.unpackbits(words[:, 0].reshape(-1), bitorder="little")[:usable].astype(np.bool_)

    def blocks(self, number: int) -> tuple[npt.NDArray[np.void], bool]:
        """Return the live blocks of a pack, by address, and whether they are of one moment; about 0.5 ms.

        They are read again, up to five times, while the counters of the pack's shard move.
        """
        for _ in range(READINGS):
            before = self._moves(number)
            blocks = self._read_pack(number)
            if blocks is not None and before == self._moves(number):
                return blocks, True
        if blocks is None:
            self._refuse(f"is damaged: the blocks of pack {number} lie where none can be")
        return blocks, False

    def _moves(self, number: int) -> bytes:
        """Return what changes when a block of a pack comes or goes."""
        shard = int(self._pack_record(number)["shard"])
        if shard >= self.header["shards_max"]:
            self._refuse(f"is damaged: pack {number} is of shard {shard}")
        record = self._table(int(self.header["shards_offset"]) + shard * SHARD_DTYPE.itemsize, 1, SHARD_DTYPE)[0]
        return bytes(np.array([record[key] for key in ("allocs", "frees", "retired_blocks")]))

    def _read_pack(self, number: int) -> npt.NDArray[np.void] | None:
        """Return the blocks of a pack, read once; None when that cannot be true, or changed under the reader."""
        header = self.header
        extents_at = int(header["extents_at"])
        maps = np.frombuffer(self._maps(number, extents_at + EXTENTS_BYTES), dtype=np.uint8)
        pack = self._pack_record(number)  # after the maps: what is usable only grows
        if pack["state"] not in IN_USE:
            return np.empty(0, dtype=BLOCK_DTYPE)
        words = maps[:BITS_BYTES].reshape(-1, 2, 8)
        heads = np.flatnonzero(np.unpackbits(words[:, 1].reshape(-1), bitorder="little"))
        span = pack["state"] == lib.EXECMEM_PACK_SPAN
        if heads.size and (heads[-1] >= pack["usable_chunks"] or (span and heads[-1] > 0)):
            return None
        extents = maps[extents_at:][:EXTENTS_BYTES].view("<u2").astype(np.int64) * 2
        top = int(extents[heads // GROUP].max(initial=-GROUP)) + GROUP  # no record that is wanted lies beyond
        most = int(header["blocks_stride"]) // RECORD_DTYPE.itemsize
        if top - GROUP >= most:
            return None
        offset = int(header["blocks_offset"]) + number * int(header["blocks_stride"])
        raw = self._read(offset, min(top, most) * RECORD_DTYPE.itemsize)
        raw += bytes(max(top - most, 0) * RECORD_DTYPE.itemsize)
        records = np.frombuffer(raw, dtype=np.uint8)
        blocks = pack_blocks(pack, maps, records, extents_at)
        lies = blocks["size"] > int(pack["usable_chunks"]) * lib.EXECMEM_CHUNK  # wrapped: of a record that moved
        return None if lies.any() else blocks

    # ---- names ----

    def names(self, cells: npt.NDArray[np.uint32]) -> list[str]:
        """Return the names that cells of the heap begin, an empty text for none; about 1 us a name."""
        top = int(self.header["names_top"])
        unique, inverse = np.unique(cells, return_inverse=True)
        parts: list[bytes] = [b""] * len(unique)
        at = unique.astype(np.int64)
        for _ in range(NAME_HOPS):  # bounded: a chain that was overtaken, or lies, may be a circle
            going = np.flatnonzero((at > 0) & (at < top))
            if not going.size:
                break
            records = self._cells(at[going])
            for place, text in zip(going.tolist(), records["text"].tolist(), strict=True):
                parts[place] += text
            at = np.zeros_like(at)
            at[going] = records["next"]
        names = [part.decode("utf-8", "replace") for part in parts]
        return [names[place] for place in inverse.tolist()]

    def _cells(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
        """Return cells of the name heap; each page of it is read once, neighbours together."""
        pages, place = np.unique(numbers // CELLS_PER_PAGE, return_inverse=True)
        start = int(self.header["names_offset"])
        most = int(self.header["names_max"]) * lib.EXECMEM_NAME_CELL
        heap = []
        for run in np.split(pages, np.flatnonzero(np.diff(pages) > 1) + 1):
            first, last = int(run[0]) * 4096, (int(run[-1]) + 1) * 4096
            raw = self._read(start + first, min(last, most) - first)
            heap.append(raw.ljust(last - first, b"\0"))
        table = np.frombuffer(b"".join(heap), dtype=NAME_DTYPE)
        cells: npt.NDArray[np.void] = table[place * CELLS_PER_PAGE + numbers % CELLS_PER_PAGE]
        return cells

    # ---- a copy ----

    def save(self, path: Path) -> tuple[int, bool]:
        """Write a sparse copy; return its bytes of data, and whether it is of one moment.

        It is copied anew, up to five times, while blocks come and go. The file appears whole or not at all; a link
        stays, and what it leads to is replaced.
        """
        path = path.resolve()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as out:
            try:
                for _ in range(READINGS):
                    before = self.look().shards.tobytes()
                    copied = self._copy(out.fileno())
                    steady = before == self.look().shards.tobytes()
                    if steady:
                        break
                Path(out.name).replace(path)
            except BaseException:
                Path(out.name).unlink()
                raise
        return copied, steady

    def _copy(self, out: int) -> int:
        """Copy what is data, not holes, into a file; return how many bytes that is."""
        size = int(self.header["ledger_size"])
        os.ftruncate(out, 0)
        os.ftruncate(out, size)
        copied = end = 0
        while end < size:
            try:
                start = os.lseek(self._descriptor, end, os.SEEK_DATA)
                end = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here on
                    break
                raise
            while start < end:
                piece = self._read(start, min(COPY_PIECE, end - start))
                start += os.pwrite(out, piece, start)
                copied += len(piece)
        return copied


# ---- a process ----


def read_file(pid: int, name: str) -> bytes:
    """Return a file of a process's /proc, or raise with what can be done."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self").exists():
            message = (
                "there is no /proc here, and so no way to other processes; a copy of a ledger can be read (--from)"
            )
        else:
            message = f"there is no process {pid}, or /proc hides it (hidepid): see `ps -e`"
    except PermissionError:
        message = refusal(pid)
    raise WatchError(message) from None


def refusal(pid: int) -> str:
    """Tell who may look at a process that the system does not let us look at."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return f"not permitted to look at process {pid}"
    if not os.geteuid():
        return f"not permitted to look at process {pid}, though you are root: a container or a policy refuses"
    if owner == os.geteuid():
        why = "it is yours, but set not dumpable or in another namespace: root may, with sudo"
    else:
        why = (
            f"it is of user {owner}, or not dumpable, and you are user {os.geteuid()}: its user may, or root, with sudo"
        )
    return f"not permitted to look at process {pid}: {why}"


class Process:
    """A process and its open ledgers, by the numbers of their files."""

    def __init__(self, pid: int) -> None:
        """Find the process's ledgers; a process without is an error."""
        self.pid = pid
        self.ledgers: dict[int, Ledger] = {}
        self._started = self._start()
        command = read_file(pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ")
        self.command = command.decode("utf-8", "replace")
        try:
            maps = self.refresh()
        except BaseException:
            self.close()
            raise
        if self.ledgers:
            return
        if self._start() is None:
            message = f"process {pid} has ended"
        elif b"/execmem/_core" in maps:
            message = (
                f"process {pid} uses execmem, but has no ledger that others can read: no domain is open, or its "
                "books are private memory because memfd_create is refused (`execmem doctor` tells there)"
            )
        else:
            message = (
                f"process {pid} does not use execmem: none of its mappings is a memory file named execmem-ledger:NAME. "
                "A process has one from its first domain on"
            )
        raise WatchError(message)

    def close(self) -> None:
        """Close all ledgers."""
        for ledger in self.ledgers.values():
            ledger.close()
        self.ledgers.clear()

    def _start(self) -> bytes | None:
        """Return when the process started, to know it from a later one of its number; None: it has ended."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] not in {b"Z", b"X"}:
                return fields[19]
        return None

    @property
    def ended(self) -> bool:
        """Whether the process that was opened is no more; 10 us."""
        started = self._start()
        return started is None or started != self._started

    def refresh(self) -> bytes:
        """Open ledgers that are new, close those that are gone; return the process's mappings. Some 0.1 ms."""
        maps = read_file(self.pid, "maps")
        found = {int(match["inode"]): match["span"].decode() for match in MAPPING.finditer(maps)}
        for number in self.ledgers.keys() - found:
            self.ledgers.pop(number).close()
        descriptors: dict[int, str] | None = None
        for number in found.keys() - self.ledgers.keys():
            descriptors = self._descriptors() if descriptors is None else descriptors
            with contextlib.suppress(EmptyLedgerError, FileNotFoundError, ProcessLookupError):
                self.ledgers[number] = self._open(found[number], descriptors.get(number))
        return maps

    def _descriptors(self) -> dict[int, str]:
        """Return the paths of the process's descriptors that are ledgers, by the number of the file."""
        paths = {}
        try:
            links = list(Path(f"/proc/{self.pid}/fd").iterdir())
        except PermissionError:
            raise WatchError(refusal(self.pid)) from None
        for link in links:
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(link.readlink()).startswith(FILE_PREFIX):
                    paths[link.stat().st_ino] = str(link)
        return paths

    def _open(self, span: str, descriptor: str | None) -> Ledger:
        """Open a mapped ledger: through the process's descriptor, or the mapping where that was closed."""
        path = descriptor or f"/proc/{self.pid}/map_files/{span}"
        try:
            return Ledger.open(path, f"the ledger at {span} of process {self.pid}", live=True)
        except PermissionError:
            if descriptor:
                raise WatchError(refusal(self.pid)) from None
            message = (
                f"process {self.pid} closed the descriptor of its ledger, and only root may open the mapping at "
                f"{span}: run this with sudo"
            )
            raise WatchError(message) from None


def open_copy(path: str) -> Ledger:
    """Open a copy of a ledger in a file, which gzip may have packed."""
    where = f"the file {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 2, 0) == GZIP_MAGIC:
            with os.fdopen(descriptor, "rb") as packed:
                descriptor = unpack(packed)
        return Ledger(descriptor, where, live=False)
    except WatchError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"{where} is packed by gzip, and truncated or damaged: {error}"
        raise WatchError(message) from None
    except OSError as error:
        message = f"{where} cannot be read: {error.strerror}"
        raise WatchError(message) from None


def unpack(packed: BinaryIO) -> int:
    """Return a descriptor of a nameless file with what gzip packed, holes as holes; no more than a header says."""
    with tempfile.TemporaryFile() as out, gzip.GzipFile(fileobj=packed) as pieces:
        head = pieces.read(HEADER_DTYPE.itemsize)
        os.pwrite(out.fileno(), head, 0)
        size = len(head)
        whole = 0
        if size == HEADER_DTYPE.itemsize and head.startswith(MAGIC):
            whole = min(int(np.frombuffer(head, dtype=HEADER_DTYPE)[0]["ledger_size"]), UNPACKED_MAX)
        while size < whole and (piece := pieces.read(min(UNPACK_PIECE, whole - size))):
            if piece.count(0) < len(piece):
                os.pwrite(out.fileno(), piece, size)
            size += len(piece)
        os.ftruncate(out.fileno(), size)
        return os.dup(out.fileno())


# ---- its pages ----

SCAN_CALL: Final = 0xC0606610  # PAGEMAP_SCAN, Linux 6.7
SCAN: Final = struct.Struct("<12Q")
SCAN_REGIONS: Final = 512
PAGE_PRESENT, PAGE_HUGE = 1 << 3, 1 << 6
REGION_DTYPE: Final = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
SMAPS_RANGE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ")
SMAPS_HUGE: Final = (b"AnonHugePages:", b"ShmemPmdMapped:", b"FilePmdMapped:")


@dataclass(frozen=True)
class PagesFound:
    """How an address range is mapped now: bytes by 2 MB entries, bytes at all; None: not available, and why."""

    huge_bytes: int | None
    present_bytes: int | None
    source: str  # "pagemap", "smaps" or "ledger"
    why: str | None = None


class Pages:
    """Asks the kernel how packs of a process are mapped: PAGEMAP_SCAN, or smaps where that is not to be had."""

    def __init__(self, pid: int) -> None:
        """Open the page map; what refuses it is told with each answer."""
        self.pid = pid
        self._regions = np.zeros(SCAN_REGIONS, dtype=REGION_DTYPE)
        self._smaps: list[tuple[int, int, int, int]] | None = None
        try:
            self._descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self.refused: str | None = None
        except OSError as error:
            self._descriptor = -1
            self.refused = f"/proc/{pid}/pagemap: {error.strerror}"

    def close(self) -> None:
        """Close the page map."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def refresh(self) -> None:
        """Forget what smaps said."""
        self._smaps = None

    def find(self, address: int, size: int) -> PagesFound:
        """Return how a range is mapped; some 5 us a pack, or the time smaps takes, once."""
        if self._descriptor >= 0:
            try:
                return self._scan(address, size)
            except OSError as error:
                self.refused = f"PAGEMAP_SCAN: {error.strerror} (Linux 6.7 has it)"
                self.close()
        return self._ask_smaps(address, size)

    def _scan(self, address: int, size: int) -> PagesFound:
        """Ask by PAGEMAP_SCAN."""
        start, end, huge, present = address, address + size, 0, 0
        while start < end:
            fields = [SCAN.size, 0, start, end, 0, self._regions.ctypes.data, SCAN_REGIONS, 0]
            call = bytearray(SCAN.pack(*fields, 0, PAGE_PRESENT, 0, PAGE_PRESENT | PAGE_HUGE))
            found = fcntl.ioctl(self._descriptor, SCAN_CALL, call, True)
            for first, last, categories in self._regions[:found].tolist():
                present += last - first
                huge += last - first if categories & PAGE_HUGE else 0
            walked = SCAN.unpack(call)[4]
            if walked <= start:
                raise OSError(errno.EIO, "it makes no progress")
            start = walked
        return PagesFound(huge, present, "pagemap")

    def _ask_smaps(self, address: int, size: int) -> PagesFound:
        """Ask smaps, which adds up what a mapping has: an answer only when all of the mapping is alike."""
        if self._smaps is None:
            try:
                self._smaps = parse_smaps(Path(f"/proc/{self.pid}/smaps").read_bytes())
            except OSError as error:
                why = f"{self.refused or 'no page map'}; /proc/{self.pid}/smaps: {error.strerror}"
                return PagesFound(None, None, "smaps", why)
        for start, end, huge, resident in self._smaps:
            if start <= address and address + size <= end:
                if huge == 0:
                    share = 0 if resident == 0 else size if resident >= end - start else None
                    return PagesFound(0, share, "smaps")
                if huge >= end - start:
                    return PagesFound(size, size, "smaps")
                why = (
                    f"smaps tells only that {huge >> 20} of {(end - start) >> 20} MB around it are huge; {self.refused}"
                )
                return PagesFound(None, None, "smaps", why)
        return PagesFound(None, None, "smaps", f"{self.refused}; no single mapping in smaps holds it")


def parse_smaps(text: bytes) -> list[tuple[int, int, int, int]]:
    r"""Return start, end, bytes mapped by 2 MB entries and resident bytes of each mapping.

    >>> parse_smaps(b"1000-3000 r-xs 0 00:01 7 /x\nRss: 4 kB\nShmemPmdMapped: 0 kB\n")
    [(4096, 12288, 0, 4096)]
    """
    rows: list[list[int]] = []
    for line in text.splitlines():
        if match := SMAPS_RANGE.match(line):
            rows.append([int(match[1], 16), int(match[2], 16), 0, 0])
        elif rows and line.startswith(SMAPS_HUGE):
            rows[-1][2] += int(line.split()[1]) << 10
        elif rows and line.startswith(b"Rss:"):
            rows[-1][3] = int(line.split()[1]) << 10
    return [(row[0], row[1], row[2], row[3]) for row in rows]
