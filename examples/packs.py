"""Make ``packs.ledger.gz``, a copy of the books of a domain in which there is much to see: for pictures and tests.

    python examples/packs.py examples/packs.ledger.gz
    execmem map --from examples/packs.ledger.gz --svg docs/packs.svg

Seven owners place code for seconds, as an expression compiler, a template engine and their like do: small functions
that live long, small ones that come and go, large kernels, tables. Pauses are as real as all else, but afterwards the
times in the copy are spread over 30 hours, so that there are all ages: nobody waits a day for a picture.
"""

from __future__ import annotations

import gzip
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

import execmem
from execmem.ledger import EVENT_DTYPE, HEADER_DTYPE, PACK_DTYPE, RECORD_DTYPE, SHARD_DTYPE
from execmem.watch import Process

if TYPE_CHECKING:
    import numpy.typing as npt

SEED: Final = 2026
HOURS: Final = 30
TURNS: Final = 12
PAUSE: Final = 0.25  # seconds a turn
TEMPLATES_LEFT: Final = 0.2
OWNERS: Final = (  # name, bytes of a block, blocks a turn, share that stays
    ("expr", (90, 900), 320, 0.5),
    ("numba", (600, 9_000), 36, 0.8),
    ("template", (200, 3_500), 90, 0.6),
    ("regex", (120, 1_500), 50, 0.6),
    ("udf", (64, 400), 60, 0.5),
)


class Workload:
    """Blocks that come and go, the same ones every time."""

    def __init__(self) -> None:
        """Open a domain with room for 9 packs."""
        self.random = random.Random(SEED)  # noqa: S311 - the same every time is the point
        self.domain = execmem.Domain("compilers", window="18M", limit="24M")
        self.held: list[execmem.Block] = []
        self.made = 0

    def place(self, owner: str, size: int, kind: str = "text") -> execmem.Block:
        """Place one block of an owner."""
        self.made += 1
        return self.domain.place(self.random.randbytes(size), name=f"{owner}:{self.made:x}", kind=kind)

    def turn(self) -> None:
        """Let every owner place blocks, and give up some of all that there are."""
        for owner, (least, most), count, stays in OWNERS:
            for _ in range(count):
                block = self.place(owner, self.random.randint(least, most))
                if self.random.random() < stays:
                    self.held.append(block)
        for block in self.random.sample(self.held, len(self.held) // 20):
            self.held.remove(block)
        self.held.append(self.place("numba", self.random.randint(1, 6) << 10, "rodata"))

    def empty_a_pack(self) -> None:
        """Fill a pack with large kernels and give up nearly all of them."""
        kernels = [self.place("kernel", self.random.randint(40, 90) << 10) for _ in range(90)]
        packs = [kernel.pack for kernel in kernels]
        most = max(set(packs), key=packs.count)
        inside = [kernel for kernel in kernels if kernel.pack == most]
        self.held += [kernel for kernel in kernels if kernel.pack != most][:6] + inside[::11]

    def run(self) -> None:
        """Do it all."""
        for turn in range(TURNS):
            self.turn()
            if turn == TURNS // 3:
                self.empty_a_pack()
            if turn == TURNS // 2:
                self.held.append(self.place("model", 3 << 20))
            time.sleep(PAUSE)

    def finish(self) -> None:
        """Give up most templates, replace some blocks, and place the newest ones."""
        self.held = [
            block for block in self.held if "template" not in block.name or self.random.random() < TEMPLATES_LEFT
        ]
        for block in self.random.sample(self.held, 12):
            block.retire()
            self.held.remove(block)
        for _ in range(40):
            self.held.append(self.place("expr", self.random.randint(90, 200)))


def spread(times: npt.NDArray[np.uint32], now: int) -> npt.NDArray[np.uint32]:
    """Return times up to now as times up to so many hours: the newest stay new, the oldest are a day old."""
    ages = np.maximum(now - times.astype(np.int64), 0) / max(now, 1)
    end = HOURS * 3_600_000
    return (end - ages**5 * end).astype(np.uint32)


def spread_copy(raw: bytearray, now: int) -> None:
    """Spread all times of a copy."""
    header = np.frombuffer(raw, HEADER_DTYPE, 1)[0]
    packs = np.frombuffer(raw, PACK_DTYPE, int(header["packs_top"]), int(header["packs_offset"]))
    packs["born_ms"] = spread(packs["born_ms"], now)
    shards = np.frombuffer(raw, SHARD_DTYPE, int(header["shards"]), int(header["shards_offset"]))
    for number in range(len(shards)):
        offset = int(header["events_offset"]) + number * int(header["events_max"]) * EVENT_DTYPE.itemsize
        events = np.frombuffer(raw, EVENT_DTYPE, int(header["events_max"]), offset)
        events["time_ms"] = np.where(events["op"] > 0, spread(events["time_ms"], now), 0)
    for number in range(len(packs)):
        offset = int(header["blocks_offset"]) + number * int(header["blocks_stride"])
        records = np.frombuffer(raw, RECORD_DTYPE, int(header["blocks_stride"]) // RECORD_DTYPE.itemsize, offset)
        records["born_ms"] = np.where(records["name"] > 0, spread(records["born_ms"], now), 0)


def main() -> int:
    """Make the copy."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - one argument
        print(f"usage: python {sys.argv[0]} OUT.ledger.gz", file=sys.stderr)
        return 2
    work = Workload()
    work.run()
    with execmem.online(), tempfile.TemporaryDirectory() as folder:  # who is online may be inside what is retired
        work.finish()
        process, copy = Process(os.getpid()), Path(folder) / "copy"
        ledger = next(found for found in process.ledgers.values() if found.domain == work.domain.number)
        now = ledger.look().now_ms
        ledger.save(copy)
        raw = bytearray(copy.read_bytes())
        process.close()
    spread_copy(raw, now)
    Path(sys.argv[1]).write_bytes(gzip.compress(bytes(raw), 9, mtime=0))
    print(f"{sys.argv[1]}: {len(raw):,} bytes, packed {Path(sys.argv[1]).stat().st_size:,}; {work.domain}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
