"""replay: one workload through one policy or all of them; what came of it as figures and a table.

`compare` gives a row a policy, `table` the text, `FIGURES` what people compare policies by. `predict` replays a run of
the lab and sets its figures beside the measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from execmem.directmap.model import GIGA, KERNELS, Machine, Size
from execmem.directmap.pages import MOVABLE, PAGE, REGION, Memory
from execmem.directmap.policy import MODULE_PARTS, POLICIES, Policy
from execmem.directmap.trace import Client, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from execmem.directmap.workload import Workload

HOT: Final = 1024
FLIPS: Final = 16  # random pages of a hog that come or go with a replacement; MemFree of the lab's runs shows as many
MB_PAGES: Final = 256


class Host(NamedTuple):
    """Memory of a simulated machine, in pages of 4 KB; `buddyinfo`: the text its free lists begin with.

    With that text `free` is what the kernel has not taken for good at boot: nearly all of `total`.
    """

    free: int
    total: int
    buddyinfo: str = ""


POINTS: Final = 2000  # of a curve, apart from its end


@dataclass
class Result:
    """What a policy made of a workload.

    Regions are 2 MB pages of the direct map. `splits` counts how often one was split, `split_now` those that are split
    at the end, `over_time` pairs of rows that were replayed and splits by then, where they changed, `memory` triples of
    rows, live bytes and held bytes: before any row, at most 2,000 of either with that, and the end. Books are those of
    the moment with most live bytes: `held` bytes of memory for `live` bytes of code, `waste` the difference by cause,
    `tlb` the TLB entries that run `HOT` random images. `least` is the lower bound of regions split: see `lower_bound`.
    """

    policy: str
    workload: str
    splits: int = 0
    splits_1g: int = 0
    joins: int = 0
    split_now: int = 0
    least: int = 0
    over_time: list[tuple[int, int]] = field(default_factory=list)
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    mapped: dict[Size, int] = field(default_factory=dict)
    live: int = 0
    held: int = 0
    waste: dict[str, int] = field(default_factory=dict)
    tlb: int = 0

    @property
    def fragmentation(self) -> float:
        """Bytes held for each live byte, at the peak."""
        return self.held / self.live if self.live else 0.0


def peak(workload: Workload) -> int:
    """Return the row after which most bytes are live. Linear time."""
    signs = np.where(workload.rows["kind"] == Kind.LOAD, 1, -1)
    return int(np.argmax(np.cumsum(signs * workload.rows["size"].astype(np.int64))))


def prepare(workload: Workload, kernel: str, host: Host) -> Machine:
    """Return a machine with aged memory; ValueError where the host cannot be."""
    if not 0 < host.free <= host.total or host.total % REGION:
        message = f"a host of {host.total:,} pages, {host.free:,} of them free, cannot be: whole 2 MB, some of it free"
        raise ValueError(message)
    machine = Machine(KERNELS[kernel], host.free, host.total)
    if host.buddyinfo:
        machine.memory.seed(host.buddyinfo, workload.seed)
    ageing = workload.ageing
    if ageing.frag:
        machine.age_movable(ageing.frag, workload.seed)
    if ageing.pfrag:
        machine.age_unmovable(ageing.pfrag, ageing.keep_mb * MB_PAGES)
    return machine


class Hog:
    """A program that holds memory and lets random pages of it come and go."""

    def __init__(self, memory: Memory, count: int, seed: int) -> None:
        """Begin with none of the `count` pages."""
        self._memory = memory
        self._pages = [-1] * count
        self._rng = np.random.default_rng(seed)

    def step(self) -> None:
        """Flip some pages."""
        if not self._pages:
            return
        for at in self._rng.integers(0, len(self._pages), FLIPS).tolist():
            if self._pages[at] < 0:
                self._pages[at] = self._memory.take(0, MOVABLE)
            else:
                self._memory.give(self._pages[at])
                self._pages[at] = -1


def run(
    workload: Workload, name: str, host: Host, *, kernel: str = "", tell: Callable[[int], object] = lambda _: None
) -> Result:
    """Replay a workload through one policy. Some 10 to 40 us a row.

    The machine has the page allocator of the policy's own kernel, or of `kernel`. `tell` is called a hundred times with
    the rows that are done.
    """
    plan = POLICIES[name]
    machine = prepare(workload, kernel or plan.kernel, host)
    result = Result(name, workload.name, least=lower_bound(workload, machine))
    loads = plan.build(machine)
    hog = Hog(machine.memory, workload.hog_mb * MB_PAGES, workload.seed)
    zero = machine.map.splits[Size.REGION]
    marks = sorted(workload.marks, key=lambda mark: mark.at)
    top, every, each = peak(workload), max(1, len(workload.rows) // 100), -(-len(workload.rows) // POINTS)
    columns = (workload.rows[column].tolist() for column in ("kind", "id", "size", "client"))
    for at, (kind, number, size, client) in enumerate(zip(*columns, strict=True)):
        if at % each == 0:  # before the row: so many have been replayed
            splits = machine.map.splits[Size.REGION] - zero
            if not result.over_time or result.over_time[-1][1] != splits:
                result.over_time.append((at, splits))
            result.memory.append((at, loads.live, loads.held))
        while marks and marks[0].at <= at:
            mark = marks.pop(0)
            machine.memory.settle(mark.seconds)
            result.steps[mark.name] = machine.map.splits[Size.REGION] - zero
        if kind == Kind.LOAD:
            loads.load(number, size, client)
        else:
            loads.unload(number)
            hog.step()
        if at % every == 0:
            tell(at)
        if at == top:
            _look(result, loads, workload.seed)
    for mark in marks:
        machine.memory.settle(mark.seconds)
        result.steps[mark.name] = machine.map.splits[Size.REGION] - zero
    result.splits = machine.map.splits[Size.REGION] - zero
    result.over_time.append((len(workload.rows), result.splits))
    result.memory.append((len(workload.rows), loads.live, loads.held))
    result.splits_1g = machine.map.splits[Size.GIGA]
    result.joins = machine.map.joins[Size.REGION]
    result.split_now = len(machine.map.split)
    result.mapped = machine.map.bytes_by_size()
    return result


def _look(result: Result, loads: Policy, seed: int) -> None:
    """Note the books of this moment."""
    result.live, result.held, result.waste = loads.live, loads.held, loads.waste()
    keys = loads.keys()
    chosen = np.random.default_rng(seed).permutation(len(keys))[:HOT]
    result.tlb = loads.tlb_entries([keys[at] for at in chosen.tolist()])


def lower_bound(workload: Workload, machine: Machine) -> int:
    """Return how many regions any policy splits that neither moves memory nor leaves code writable.

    Code that fills free regions whole splits none of them. What does not fit into these lies in regions that somebody
    else uses too, so each of those is split. One pack fits into what boot mapped with 4 KB pages. Headers and rounding
    are not counted, rodata of modules is.
    """
    rows = workload.rows
    part = np.where(rows["client"] == Client.MODULE, 100 - MODULE_PARTS[2], 100)
    sizes = rows["size"].astype(np.int64) * part // 100
    most = int(np.cumsum(np.where(rows["kind"] == Kind.LOAD, sizes, -sizes)).max(initial=0))
    need = -(-most // PAGE) - (machine.memory.whole_regions() + 1) * REGION
    return max(0, -(-need // REGION))


def compare(workload: Workload, host: Host, names: Iterable[str] = tuple(POLICIES)) -> list[Result]:
    """Replay a workload through each policy."""
    return [run(workload, name, host) for name in names]


COLUMNS: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    ("policy", lambda row: row.policy),
    ("splits", lambda row: f"{row.splits:,}"),
    ("split now", lambda row: f"{row.split_now:,}"),
    ("bound", lambda row: f"{row.least:,}"),
    ("1 GB split", lambda row: f"{row.splits_1g:,}"),
    ("4 KB MB", lambda row: f"{row.mapped[Size.PAGE] >> 20:,}"),
    ("TLB", lambda row: f"{row.tlb:,}"),
    ("live MB", lambda row: f"{row.live / 2**20:.1f}"),
    ("held MB", lambda row: f"{row.held / 2**20:.1f}"),
    ("held/live", lambda row: f"{row.fragmentation:.2f}"),
    ("header KB", lambda row: f"{row.waste['header'] >> 10:,}"),
    ("rounding KB", lambda row: f"{row.waste['rounding'] >> 10:,}"),
    ("free KB", lambda row: f"{row.waste['free'] >> 10:,}"),
)


def table(results: Sequence[Result]) -> str:
    """Return a row a policy as text, columns lined up."""
    cells = [[head for head, _ in COLUMNS], *([tell(row) for _, tell in COLUMNS] for row in results)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


class Figure(NamedTuple):
    """A figure that people compare policies by; `unit` of what `take` gives is 1 as it is shown."""

    name: str
    words: str
    take: Callable[[Result], float]
    unit: int = 1
    digits: int = 0

    def tell(self, value: float) -> str:
        """Return a value as it is shown."""
        return f"{value / self.unit:,.{self.digits}f}"

    def tell_change(self, change: float) -> str:
        """Return the difference between two values, with its sign; "=" when nothing of it would be seen."""
        told = f"{change / self.unit:+,.{self.digits}f}"
        return told if told.strip("+-0.,") else "="


MB: Final = 1 << 20
FIGURES: Final = (
    Figure("splits", "regions split", lambda row: row.splits),
    Figure("split_now", "split at the end", lambda row: row.split_now),
    Figure("least", "no policy below", lambda row: row.least),
    Figure("splits_1g", "1 GB pages split", lambda row: row.splits_1g),
    Figure("mapped_4k", "4 KB mapped, MB", lambda row: row.mapped[Size.PAGE], MB),
    Figure("tlb", "TLB entries", lambda row: row.tlb),
    Figure("live", "code live, MB", lambda row: row.live, MB, 1),
    Figure("held", "held, MB", lambda row: row.held, MB, 1),
    Figure("fragmentation", "held / live", lambda row: row.fragmentation, 1, 2),
    Figure("header", "headers, KB", lambda row: row.waste["header"], 1 << 10),
    Figure("rounding", "rounding, KB", lambda row: row.waste["rounding"], 1 << 10),
    Figure("free", "free in packs, KB", lambda row: row.waste["free"], 1 << 10),
)
GIVEN: Final = frozenset({"least", "live"})  # by the workload and the host: no policy changes them


def differ(row: Result, base: Result) -> dict[str, float]:
    """Return by how much the figures of one policy are above those of another; below 0 is better."""
    return {one.name: one.take(row) - one.take(base) for one in FIGURES if one.name not in GIVEN}


# ---- model against lab ----

LAB_POLICY: Final = {
    "5.10": "page each, 5.10",
    "6.1": "prog_pack, 6.1",
    "6.12": "execmem, 6.12",
    "7.2": "ROX cache, 7.2",
}


class Prediction(NamedTuple):
    """Regions split at one step of a run of the lab."""

    series: str
    mem: str
    args: str
    step: str
    measured: int
    predicted: int

    @property
    def near(self) -> bool:
        """Within one region or a fifth, whichever is larger."""
        return abs(self.measured - self.predicted) <= max(1.0, 0.2 * self.measured)


def lab_runs(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the rows of the lab by run; each begins with the step "boot"."""
    runs: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if row["step"] == "boot":
            runs.append([])
        runs[-1].append(row)
    return runs


def regions_split(row: Mapping[str, Any], boot: Mapping[str, Any]) -> int:
    """Return the regions split since boot: the kernel's counter, or the change of DirectMap4k where it has none."""
    if row["split2m"] >= 0:
        return int(row["split2m"]) - int(boot["split2m"])
    return round((int(row["dm4k_kB"]) - int(boot["dm4k_kB"])) / 2048)


def predict(measured: Sequence[Mapping[str, Any]], workload: Workload) -> list[Prediction]:
    """Replay a run of the lab from what it had free at boot; return its steps after ageing."""
    boot = measured[0]
    total = {"1G": GIGA, "4G": 4 * GIGA}[boot["mem"]]
    result = run(workload, LAB_POLICY[boot["series"]], Host(boot["memfree_kB"] // 4, total))
    return [
        Prediction(
            boot["series"],
            boot["mem"],
            boot["args"],
            row["step"],
            regions_split(row, boot),
            result.steps.get(row["step"], 0),
        )
        for row in measured[1:]
    ]
