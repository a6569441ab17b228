"""workload: what a simulation loads and unloads: recorded traces, the lab's workloads, and made-up ones.

A workload is rows of `trace.EVENT` (LOAD and UNLOAD count, other rows are left out), what was done to the memory
before, and marks: names of places between rows, at some of which time passes. Every generator is deterministic by seed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from execmem.directmap.trace import EVENT, Client, Kind, Living

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    Rows = npt.NDArray[np.void]
    Numbers = npt.NDArray[np.int64]


class Mark(NamedTuple):
    """A place in a workload: before which row, its name, and seconds that pass without loads."""

    at: int
    name: str
    seconds: int = 0


@dataclass(frozen=True)
class Ageing:
    """What happened to free memory before: see `Machine.age_movable` and `age_unmovable`."""

    frag: int = 0
    pfrag: int = 0
    keep_mb: int = 0


@dataclass(frozen=True)
class Workload:
    """Rows to replay, what was before them, and places to look at."""

    name: str
    rows: Rows
    ageing: Ageing = Ageing()
    marks: tuple[Mark, ...] = ()
    seed: int = 1
    hog_mb: int = 0  # memory of which a few random pages come and go with every load


def recorded(name: str, rows: Rows) -> Workload:
    """Return the loads and unloads of a recorded trace; an unload of what was loaded before it began is left out.

    Pieces are told apart as `trace.Living` does. A row of UNLOAD gets the size of its LOAD, for that is what goes.
    Linear time.
    """
    keep: list[int] = []
    keys: list[int] = []
    sizes: list[int] = []
    living: Living[int] = Living()
    # As plain numbers: numpy's, compared with a Kind, take ten times as long and swallow a Ctrl-C that comes meanwhile.
    columns = (rows[column].tolist() for column in ("kind", "client", "id", "at", "size"))
    for at, (kind, client, number, address, size) in enumerate(zip(*columns, strict=True)):
        if kind == Kind.LOAD:
            keys.append(len(keep) + 1)
            sizes.append(size)
            living.take(client, number, address, keys[-1])
        elif kind == Kind.UNLOAD and (key := living.give(client, number, address)):
            keys.append(key)
            sizes.append(sizes[key - 1])
        else:
            continue
        keep.append(at)
    chosen = rows[keep]
    chosen["id"], chosen["size"] = keys, sizes
    return Workload(name, chosen)


def _rows(kinds: Numbers, numbers: Numbers, sizes: Numbers, client: Client) -> Rows:
    """Return rows; `sizes` is by number."""
    rows = np.zeros(len(kinds), EVENT)
    rows["kind"] = kinds
    rows["id"] = numbers + 1
    rows["size"] = sizes[numbers]
    rows["client"] = client
    rows["ns"] = np.arange(len(rows), dtype=np.uint64)
    return rows


# ---- the lab's workloads ----

LAB_STEPS: Final = (1, 10, 50, 100, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 20000, 30000, 40000)
CHURN_STEPS: Final = (100, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
MOST: Final = 10_000_000  # of anything that a text says
INSTRUCTION: Final = 4  # bytes of `add rax, 1`
AROUND: Final = 24  # bytes of a program besides those: entry, first move, exit


def _ramp(n: int, rng: np.random.Generator) -> tuple[Numbers, Numbers, list[Mark]]:
    """Load n programs, free a random half, load as many, free all, load all."""
    half = n // 2
    order = rng.permutation(n)
    first, again = np.arange(n), np.arange(n, n + half)
    now = np.concatenate([again, order[half:]])
    last = np.arange(n + half, 2 * n + half)
    parts = ((first, Kind.LOAD), (order[:half], Kind.UNLOAD), (again, Kind.LOAD), (now, Kind.UNLOAD), (last, Kind.LOAD))
    kinds = np.concatenate([np.full(len(part), kind) for part, kind in parts])
    ends = np.cumsum([len(part) for part, _ in parts]).tolist()
    marks = [Mark(step, f"load{step}") for step in LAB_STEPS if step <= n]
    marks += [Mark(ends[0], "loaded"), Mark(ends[1], "half_freed", 1), Mark(ends[2], "half_reloaded")]
    marks += [Mark(ends[3], "all_freed", 2), Mark(ends[4], "all_reloaded"), Mark(ends[4], "end")]
    return kinds, np.concatenate([part for part, _ in parts]), marks


def _churn(live: int, steps: int, rng: np.random.Generator) -> tuple[Numbers, Numbers, list[Mark]]:
    """Keep `live` programs and replace a random one, `steps` times; then free all."""
    slots = rng.integers(0, live, steps)
    now = np.arange(live)
    numbers = np.empty(2 * steps, np.int64)
    for step, slot in enumerate(slots.tolist()):
        numbers[2 * step : 2 * step + 2] = now[slot], live + step
        now[slot] = live + step
    kinds = np.concatenate(
        [np.full(live, Kind.LOAD), np.tile([int(Kind.UNLOAD), int(Kind.LOAD)], steps), np.full(live, Kind.UNLOAD)]
    )
    marks = [Mark(live, "churn0")]
    marks += [Mark(live + 2 * step, f"churn{step}") for step in CHURN_STEPS if step <= steps]
    marks += [Mark(len(kinds), "all_freed", 2), Mark(len(kinds), "end")]
    return kinds, np.concatenate([np.arange(live), numbers, now]), marks


def from_lab(args: str, seed: int = 1) -> Workload:
    """Return the workload that a text of the lab names.

    >>> from_lab("scn=ramp n=100 insns=4-8 pfrag=16 keep=200").ageing
    Ageing(frag=0, pfrag=16, keep_mb=200)
    """
    words = dict(word.partition("=")[::2] for word in args.split())
    known = {"scn", "n", "live", "steps", "insns", "frag", "pfrag", "keep", "hog"}
    if words.keys() - known:
        message = f"{args!r} says {', '.join(sorted(words.keys() - known))}; known words are {', '.join(sorted(known))}"
        raise ValueError(message)

    def number(name: str, *, least: int = 0) -> int:
        text = words.get(name, "" if least else "0")
        if not text.isdecimal() or not text.isascii() or not least <= int(text) <= MOST:
            message = f"{args!r} needs {name}=NUMBER, from {least} to {MOST:,}"
            raise ValueError(message)
        return int(text)

    rng = np.random.default_rng(seed)
    if words.get("scn") == "ramp":
        kinds, numbers, marks = _ramp(number("n", least=1), rng)
    elif words.get("scn") == "churn":
        kinds, numbers, marks = _churn(number("live", least=1), number("steps", least=1), rng)
    else:
        message = f"{args!r} has scn={words.get('scn')}; there are scn=ramp and scn=churn"
        raise ValueError(message)
    span = re.fullmatch(r"([1-9]\d{0,5})-([1-9]\d{0,5})", words.get("insns", "20-219"), re.ASCII)
    if not span or int(span[1]) > int(span[2]):
        message = f"{args!r} needs insns=A-B, with 1 <= A <= B"
        raise ValueError(message)
    sizes = INSTRUCTION * rng.integers(int(span[1]), int(span[2]) + 1, int(numbers.max()) + 1) + AROUND
    ageing = Ageing(number("frag"), number("pfrag"), number("keep"))
    rows = _rows(kinds, numbers, sizes, Client.BPF)
    return Workload(args, rows, ageing, tuple(marks), seed, number("hog"))


# ---- workloads from statistics ----


class Sizes(NamedTuple):
    """Sizes of images: lognormal through a median and a 90th percentile, between two limits. Bytes."""

    median: float
    p90: float
    least: int
    most: int

    def draw(self, count: int, rng: np.random.Generator) -> Numbers:
        """Return so many sizes."""
        sigma = np.log(self.p90 / self.median) / 1.2816  # the 90th percentile of the normal distribution
        drawn = np.exp(rng.normal(np.log(self.median), sigma, count))
        return np.clip(drawn, self.least, self.most).astype(np.int64)


TOOLS: Final = Sizes(213, 876, 64, 3_317)  # libbpf-tools
CILIUM: Final = Sizes(6_600, 40_000, 200, 205_000)
MODULES: Final = Sizes(40_000, 250_000, 4_000, 1_500_000)  # typical of a distribution's, not measured


def tools(count: int = 3_000, seed: int = 1) -> Workload:
    """Start tools of one to twelve small programs; each ends with all of its programs after some others started."""
    rng = np.random.default_rng(seed)
    sizes = TOOLS.draw(count, rng)
    events: list[tuple[float, Kind, int]] = []
    number, now = 0, 0.0
    while number < count:
        programs = min(int(rng.integers(1, 13)), count - number)
        now += 1.0
        end = now + rng.exponential(40.0)
        for program in range(number, number + programs):
            events += [(now, Kind.LOAD, program), (end, Kind.UNLOAD, program)]
        number += programs
    return _ordered("tools", events, sizes, Client.BPF)


def cilium(endpoints: int = 120, rollouts: int = 4, seed: int = 1) -> Workload:
    """Load a dozen large programs an endpoint; each rollout loads those of every endpoint anew, then drops the old."""
    rng = np.random.default_rng(seed)
    each = 12
    sizes = CILIUM.draw(endpoints * each * (rollouts + 1), rng)
    events = []
    for rollout in range(rollouts + 1):
        for endpoint in range(endpoints):
            now = float(rollout * endpoints + endpoint)
            for program in range(each):
                number = (rollout * endpoints + endpoint) * each + program
                events.append((now, Kind.LOAD, number))
                if rollout < rollouts:
                    events.append((now + endpoints + 0.5, Kind.UNLOAD, number))
    return _ordered("Cilium-like", events, sizes, Client.BPF)


def leak(count: int = 75_000, seed: int = 1) -> Workload:
    """Load programs and never unload one: an agent that forgets."""
    rng = np.random.default_rng(seed)
    return _ordered("leak", [(float(at), Kind.LOAD, at) for at in range(count)], TOOLS.draw(count, rng), Client.CLASSIC)


def churn(live: int = 20_000, steps: int = 100_000, seed: int = 1) -> Workload:
    """Keep `live` programs of mixed size and replace a random one, so many times."""
    rng = np.random.default_rng(seed)
    kinds, numbers, marks = _churn(live, steps, rng)
    rows = _rows(kinds, numbers, Sizes(500, 2_000, 64, 32_768).draw(live + steps, rng), Client.BPF)
    rows, end = rows[: live + 2 * steps], live + 2 * steps
    return Workload("churn", rows, marks=tuple(mark for mark in marks if mark.at < end), seed=seed)


def modules(count: int = 300, reloads: int = 600, seed: int = 1) -> Workload:
    """Load modules at boot, then unload and load random ones again."""
    rng = np.random.default_rng(seed)
    kinds, numbers, _ = _churn(count, reloads, rng)
    end = count + 2 * reloads
    return Workload(
        "modules", _rows(kinds, numbers, MODULES.draw(count + reloads, rng), Client.MODULE)[:end], seed=seed
    )


def mixed(parts: Iterable[Workload], name: str = "mixed", seed: int = 1) -> Workload:
    """Return workloads shuffled into each other, each in its own order."""
    rng = np.random.default_rng(seed)
    given, shift, rows = list(parts), 0, []
    for part in given:
        moved = part.rows.copy()
        moved["id"] += shift
        shift = int(moved["id"].max())
        rows.append((np.sort(rng.random(len(moved))), moved))
    order = np.argsort(np.concatenate([when for when, _ in rows]), kind="stable")
    together = np.concatenate([moved for _, moved in rows])[order]
    together["ns"] = np.arange(len(together), dtype=np.uint64)
    return Workload(name, together, seed=seed)


def _ordered(name: str, events: list[tuple[float, Kind, int]], sizes: Numbers, client: Client) -> Workload:
    """Return a workload of events in the order of their times."""
    events.sort(key=lambda event: event[0])
    kinds = np.array([kind for _, kind, _ in events], np.int64)
    numbers = np.array([number for _, _, number in events], np.int64)
    return Workload(name, _rows(kinds, numbers, sizes, client))


GENERATORS: Final[dict[str, Callable[[], Workload]]] = {
    "tools": tools,
    "cilium": cilium,
    "leak": leak,
    "churn": churn,
    "modules": modules,
    "mixed": lambda: mixed([tools(), cilium(), modules()]),
}
