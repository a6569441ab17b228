"""Turn the figures of ``results/`` into tables, goals and comparisons. Pure: nothing here reads, runs or prints."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = dict[str, Any]
Data = Mapping[
    str, Mapping[str, Any]
]  # by a file's name, "cycle" for cycle.json: what it holds, {} where there is none yet

ALIAS, SYSCALL = "execmem-alias", "execmem-syscall"
MIX = "lognormal"
LIVES = (1_000, 10_000, 100_000, 1_000_000)
TITLES = {
    ALIAS: "execmem, mode `alias`",
    SYSCALL: "execmem, mode `syscall`",
    "execmem-procmem": "execmem, mode `procmem`",
    "execmem-flip": "execmem, mode `flip`",
    "execmem-alias-quarantine": "execmem, mode `alias`, 1 MB in quarantine",
    "execmem-alias-gap": "execmem, mode `alias`, random gaps up to 2 KB",
    "asmjit": "AsmJit JitAllocator, default",
    "asmjit-plain": "AsmJit, default, no traps",
    "asmjit-dual": "AsmJit, dual mapping",
    "asmjit-dual-pools": "AsmJit, dual mapping and several pools",
    "progpack": "`bpf_prog_pack`'s algorithm",
    "page": "a page each, filled with traps",
    "mmap": "mmap and mprotect each",
    "tcc": "libtcc, compiling an empty function",
    "libffi": "libffi closures, of one size",
    "mimalloc-twin": "mimalloc over the same pages, checks nothing",
    "mimalloc": "mimalloc, not executable",
    "glibc": "glibc malloc, not executable",
    "floor": "floor: touching the same bytes",
    "floor-apart": "floor, bytes at random places",
}
# Those that hand out executable memory as a product or an algorithm in use; mimalloc-twin is a bound, and told apart.
RIVALS = ("asmjit", "asmjit-plain", "asmjit-dual", "asmjit-dual-pools", "progpack", "page", "mmap", "tcc", "libffi")
SHORT = (ALIAS, SYSCALL, "asmjit", "asmjit-dual-pools", "progpack", "page", "mimalloc-twin", "glibc", "floor")

# ---- looking up ----


def results(data: Data, section: str = "results") -> list[Row]:
    """Return the rows of the cycle file that hold a figure."""
    return [row for row in data.get("cycle", {}).get(section, []) if "ns" in row]


def find(rows: Iterable[Row], **keys: object) -> Row:
    """Return the first row with these values, or an empty one."""
    return next((row for row in rows if all(row.get(key) == value for key, value in keys.items())), {})


def cycle(data: Data, peer: str, live: int, mix: str = MIX) -> Row:
    return find(results(data), peer=peer, mix=mix, live=live)


def quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def python(data: Data, what: str) -> float | None:
    return find(data.get("python", {}).get("results", []), what=what).get("ns")


def speedup(data: Data, peer: str, live: int) -> float | None:
    """Return how many times longer a peer's cycle takes than that of mode alias."""
    return quotient(cycle(data, peer, live).get("ns"), cycle(data, ALIAS, live).get("ns"))


def best_rival(data: Data, live: int) -> str | None:
    """Return the fastest executable peer other than execmem at a population."""
    found = {peer: ns for peer in RIVALS if (ns := cycle(data, peer, live).get("ns"))}
    return min(found, key=lambda peer: found[peer]) if found else None


def throughput(data: Data, peer: str, live: int, mode: str) -> float | None:
    """Return the throughput of two threads, as a multiple of that of one."""
    rows = [row for row in results(data, "threads") if row["peer"] == peer and row["live"] == live]
    one, two = find(rows, mode="one").get("ns"), find(rows, mode=mode).get("ns")
    return quotient(2 * one if one else None, two)


# ---- tables ----


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return lines of a Markdown table."""
    titles = list(head)
    return [f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rows)]


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def marked(value: float | None, file: str, key: str) -> str:
    """Return nanoseconds with the mark that says where the figure is found."""
    return "-" if value is None else f"{value:,.0f} ns <!-- bench:{file}:{key} -->"


def populations(data: Data) -> list[int]:
    return sorted({row["live"] for row in results(data) if row["mix"] == MIX})


def table_cycle(data: Data) -> list[str]:
    """Draw ns a cycle of some peers, every figure with its mark, for the README."""
    lives = populations(data)
    rows = []
    for peer in SHORT:
        keys = [f"results/peer={peer},mix={MIX},live={live}/ns" for live in lives]
        values = [cycle(data, peer, live).get("ns") for live in lives]
        if any(values):
            rows.append([TITLES[peer], *(marked(v, "cycle.json", k) for v, k in zip(values, keys, strict=True))])
    return grid(["live blocks", *(f"{live:,}" for live in lives)], rows)


def table_peers(data: Data) -> list[str]:
    """Draw ns a cycle of every peer, and what it holds."""
    lives, rows = populations(data), []
    for peer, title in TITLES.items():
        found = [cycle(data, peer, live) for live in lives]
        if any(found):
            held = cycle(data, peer, 100_000).get("resident_per_live")
            last = next(row for row in reversed(found) if row)
            share = number(last["huge_share"] * 100, " %")
            times = [number(row.get("ns"), " ns") for row in found]
            rows.append([title, *times, number(held, "", 2), str(last["vmas"]), share])
    return grid(
        [
            "lognormal sizes, live blocks",
            *(f"{live:,}" for live in lives),
            "resident/live at 100,000",
            "mappings",
            "on 2 MB pages",
        ],
        rows,
    )


def table_mixes(data: Data) -> list[str]:
    """Draw ns a cycle at 100,000 live for every mix."""
    live = 100_000
    mixes = list(dict.fromkeys(row["mix"] for row in results(data) if row["mix"] != MIX))
    rows = []
    for peer, title in TITLES.items():
        found = [cycle(data, peer, live, mix) for mix in mixes]
        if any(found):
            rows.append([title, *(number(row.get("ns"), " ns") for row in found)])
    held = [cycle(data, ALIAS, live, mix).get("resident_per_live") for mix in mixes]
    rows.append(["resident/live of mode `alias`", *(number(value, "", 2) for value in held)])
    return grid([f"{live:,} live", *mixes], rows)


def table_operations(data: Data) -> list[str]:
    """Draw single operations at 100,000 live."""
    live, rows = 100_000, []
    for peer, title in TITLES.items():
        row = cycle(data, peer, live)
        if not any(key in row for key in ("batch_alloc_ns", "batch_place_ns")):
            continue
        times = [number(row.get(f"batch_{op}_ns"), " ns") for op in ("alloc", "write", "place", "free")]
        op = "alloc" if "alloc_p50_ns" in row else "place"
        tails = [" / ".join(number(row.get(f"{name}_{p}_ns")) for p in ("p50", "p99", "p999")) for name in (op, "free")]
        rows.append([title, *times, f"{tails[0]}{'' if op == 'alloc' else ' (place)'}", tails[1]])
    head = [
        f"{live:,} live",
        "alloc",
        "write",
        "alloc + write",
        "free",
        "alloc p50 / p99 / p99.9, ns",
        "free, the same",
    ]
    return grid(head, rows)


def table_loads(data: Data) -> list[str]:
    """Draw the other workloads at 100,000 live."""
    live, rows = 100_000, []
    for peer, title in TITLES.items():
        row = cycle(data, peer, live)
        if not any(key in row for key in ("ramp_ns", "burst_ns", "call_ns")):
            continue
        packs = number(quotient(row.get("new_pack_ns"), 1000), " us")
        free = number(quotient(row.get("largest_free"), 1024), " KB") if "largest_free" in row else "not told"
        cells = [number(row.get(f"{what}_ns"), " ns") for what in ("ramp", "drain", "burst", "call")]
        rows.append([title, *cells, number(row.get("burst_resident_per_live"), "", 2), packs, free])
    head = [f"{live:,} live", "ramp up", "drain", "bursts", "a random call", "resident/live after bursts"]
    return grid([*head, "a new pack", "largest free run"], rows)


def table_threads(data: Data) -> list[str]:
    """Draw two threads against one, each with its own population."""
    lives = sorted({row["live"] for row in results(data, "threads")})
    rows = []
    for peer, title in TITLES.items():
        cells = []
        for live in lives:
            own, cross = (throughput(data, peer, live, mode) for mode in ("own", "cross"))
            cells.append("-" if own is None else f"{number(own, 'x', 2)} / {number(cross, 'x', 2)}")
        beside = find(results(data, "threads"), peer=peer, live=10_000, mode="beside")
        if set(cells) != {"-"}:
            tail = number(quotient(beside.get("place_p999_ns"), 1000), " us", 1)
            rows.append([title, *cells, tail, number(beside.get("places_over_100_us"))])
    heads = [f"{live:,} live: own / handed over" for live in lives]
    return grid(["throughput of two threads", *heads, "place p99.9 beside a grower", "places over 100 us"], rows)


def table_python(data: Data) -> list[str]:
    rows = data.get("python", {}).get("results", [])
    base = python(data, "place + free, alias")
    cells = [[r["what"], number(r["ns"], " ns"), number(quotient(r["ns"], base), "x", 2)] for r in rows]
    return grid(["from Python, 64 bytes of code", "a block", "times place + free, alias"], cells)


def fork_rows(data: Data) -> list[Row]:
    return list(data.get("forks", {}).get("results", []))


def fork_lives(data: Data) -> list[int]:
    return sorted({row["live"] for row in fork_rows(data)})


def fork_cell(data: Data, live: int, subject: str, figure: str, plain: str) -> str:
    """Return microseconds, and how many times those of a process with as much plain memory they are."""
    row = find(fork_rows(data), live=live, subject=subject)
    over = quotient(row.get(figure), find(fork_rows(data), live=live, subject=plain).get(figure))
    return number(row.get(figure), " us") + ("" if over is None or subject == plain else f" ({over:.2f}x)")


FORK_SUBJECTS = {
    "bare": "a process with next to nothing",
    "plain": "as much anonymous memory, without execmem",
    "syscall": "mode `syscall`",
    "alias": "mode `alias`",
}
FORK_TIMES = {
    "fork_us": "`fork`, until it returns in the parent",
    "child_us": "`fork`, until it returns in the child",
    "fork_exec_us": "`fork` and `execve`, until the program runs",
    "spawn_us": "`posix_spawn`",
}


def table_forks(data: Data) -> list[str]:
    """Draw the time of forks, beside that of a process with as much memory."""
    lives = fork_lives(data)
    rows = [
        [what, title, *(fork_cell(data, live, subject, figure, "plain") for live in lives)]
        for figure, what in FORK_TIMES.items()
        for subject, title in FORK_SUBJECTS.items()
    ]
    return grid(["", "a process that has", *(f"{live:,} blocks" for live in lives)], rows if lives else [])


def beside(row: Row, figure: str, base: str) -> str:
    """Return nanoseconds and how many times another figure of the row they are."""
    return f"{number(row.get(figure), ' ns')} ({number(quotient(row.get(figure), row.get(base)), 'x', 2)})"


def milliseconds(row: Row, figure: str) -> str:
    return number(quotient(row.get(figure), 1000), " ms", 1)


FORK_WORK: Mapping[str, Callable[[Row], str]] = {
    "parent, a cycle before the fork": lambda row: number(row.get("before_ns"), " ns"),
    "parent, a cycle while the child lives": lambda row: beside(row, "during_ns", "before_ns"),
    "parent, giving back, a held block": lambda row: number(row.get("give_back_ns"), " ns"),
    "parent, a cycle after that": lambda row: beside(row, "after_ns", "before_ns"),
    "child, the first block of its own": lambda row: number(row.get("first_place_us"), " us"),
    "child, a cycle of its own blocks": lambda row: number(row.get("child_cycle_ns"), " ns"),
    "all freed beside a child: held, of what was used": lambda row: number(
        quotient(row.get("held_bytes"), row.get("used_bytes")), "x", 2
    ),
    "from the child's end until nothing is held": lambda row: milliseconds(row, "until_free_us"),
    "of that, in the one call that gives back": lambda row: milliseconds(row, "longest_us"),
}


def table_fork_work(data: Data) -> list[str]:
    """Draw what work costs round a fork, and what is held."""
    lives, modes = fork_lives(data), ("syscall", "alias")
    found = {(live, mode): find(fork_rows(data), live=live, subject=mode) for live in lives for mode in modes}
    rows = [[what, *(draw(row) for row in found.values())] for what, draw in FORK_WORK.items()]
    return grid(["", *(f"`{mode}`, {live:,} blocks" for live, mode in found)], rows if lives else [])


def hardening_rows(data: Data, case: str) -> list[Row]:
    return [row for row in data.get("hardening", {}).get("results", []) if row["case"] == case]


def table_seal(data: Data) -> list[str]:
    """Draw what opening and sealing a domain take."""
    rows = hardening_rows(data, "seal")
    cells = [
        [f"`{row['mode']}`", f'`"{row["sealed"]}"`', number(row["open_us"], " us"), number(row["seal_us"], " us")]
        for row in rows
    ]
    size = f", {rows[0]['blocks']:,} blocks in {rows[0]['packs']} packs" if rows else ""
    return grid(["write mode", "`sealed`", "opening a domain", f"sealing it{size}"], cells)


def table_wishes(data: Data) -> list[str]:
    """Draw the memory that a quarantine and gaps take, and the cycles of run.py's peers that have them."""
    peers = {"none": ALIAS, "quarantine 1 MB": "execmem-alias-quarantine", "gap 2 KB": "execmem-alias-gap"}
    rows = []
    for row in hardening_rows(data, "memory"):
        peer = peers[row["wish"]]
        times = [(cycle(data, peer, live).get("ns"), cycle(data, ALIAS, live).get("ns")) for live in LIVES[:3]]
        cells = [f"{number(ns, ' ns')} ({number(quotient(ns, base), 'x', 2)})" if ns else "-" for ns, base in times]
        memory = [
            number(quotient(row[key], 1 << 20), " MB", 1) for key in ("used_bytes", "idle_bytes", "resident_bytes")
        ]
        rows.append([row["wish"], *memory, *cells])
    heads = ["used", "idle", "resident", *(f"a cycle at {live:,} live" for live in LIVES[:3])]
    return grid(["mode `alias`", *heads], rows)


def whole(huge: list[int]) -> str:
    """Say whether a pack that was one 2 MB page before all changes is one after them."""
    before, after = huge
    return "was none" if not before else "whole" if after else "split"


def table_poke(data: Data) -> list[str]:
    """Draw what changing one instruction, and a batch of 256, take beside a synchronisation and beside mprotect."""
    rows = [
        [
            f"`{row['mode']}`",
            row["others"],
            row["way"],
            number(row["sync_ns"], " ns"),
            f"{number(row['single_ns'], ' ns')} ({number(row['single_per_sync'], 'x', 2)})",
            f"{number(row['batch_ns'], ' ns')} ({number(row['site_above_three_syncs_ns'], ' ns', 1)})",
            number(row["mprotect_per_single"], "x", 2),
            number(row["mprotect_per_site"], "x", 1),
            f"{whole(row['sites_huge'])}, {whole(row['mprotect_huge'])}",
        ]
        for row in data.get("poke", {}).get("results", [])
    ]
    heads = ["one synchronisation", "one change (times that)", "a batch of 256 (a site, above three of them)"]
    beside = ["mprotect: against one change", "against one of a batch", "2 MB page after it: theirs, mprotect's"]
    return grid(["mode", "other threads", "way", *heads, *beside], rows)


def table_patching(data: Data) -> list[str]:
    """Draw what keys, calls and hooks cost beside code that cannot change."""
    rows = [
        [f"`{row['mode']}`", row["name"], number(row["ns"], " ns", 2), row["against"], number(row["ratio"], "x", 2)]
        for row in data.get("patching", {}).get("results", [])
        if "against" in row
    ]
    return grid(["mode", "what", "takes", "beside", "ratio"], rows)


def table_goals(data: Data) -> list[str]:
    rows = [
        [goal.what, number(goal.value, goal.unit, 2), goal.limit_text, goal.verdict, goal.note] for goal in goals(data)
    ]
    return grid(["figure", "measured", "goal", "holds", ""], rows)


TABLES: Mapping[str, Callable[[Data], list[str]]] = {
    "cycle": table_cycle,
    "peers": table_peers,
    "mixes": table_mixes,
    "operations": table_operations,
    "loads": table_loads,
    "threads": table_threads,
    "python": table_python,
    "forks": table_forks,
    "fork-work": table_fork_work,
    "seal": table_seal,
    "wishes": table_wishes,
    "poke": table_poke,
    "patching": table_patching,
    "goals": table_goals,
}
PLACE = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewrite(text: str, data: Data) -> str:
    """Return a page with its tables drawn anew; KeyError names a table that nobody draws."""
    return PLACE.sub(lambda at: at[1] + "\n".join(["", *TABLES[at[2]](data), "", at[3]]), text)


# ---- goals ----


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure, and what it should be at least, or at most."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False
    unit: str = ""
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Tell whether it is reached; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        """Return it in a word."""
        return {True: "yes", False: "NO", None: "not measured"}[self.holds]

    @property
    def limit_text(self) -> str:
        """Return the goal as text."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}"


FACTORS = {  # at least, against AsmJit's default, the best executable peer, prog_pack; at most, against the floor
    1_000: (4.5, 2.4, 12, 2.4),
    10_000: (10, 4.4, 54, 2.4),
    100_000: (45, 16, 140, 2.0),
    1_000_000: (180, 40, 320, 2.4),
}


def speed_goals(data: Data) -> list[Goal]:
    found = []
    for live, (asmjit, best, progpack, floor) in FACTORS.items():
        rival = best_rival(data, live)
        at = f"cycle at {live:,}"
        over = quotient(cycle(data, ALIAS, live).get("ns"), cycle(data, "floor", live).get("ns"))
        bound = number(speedup(data, "mimalloc-twin", live), "x", 2)
        found += [
            Goal(f"{at} against AsmJit's default", speedup(data, "asmjit", live), asmjit, True, "x"),
            Goal(
                f"{at} against the best executable peer",
                speedup(data, rival, live) if rival else None,
                best,
                True,
                "x",
                f"that is {rival}; mimalloc-twin, which checks nothing: {bound}" if rival else "",
            ),
            Goal(f"{at} against prog_pack's algorithm", speedup(data, "progpack", live), progpack, True, "x"),
            Goal(f"{at} against the floor", over, floor, unit="x"),
        ]
    return found


def memory_goals(data: Data) -> list[Goal]:
    held = cycle(data, ALIAS, 100_000).get("resident_per_live")
    others = {
        row["mix"]: row["resident_per_live"]
        for row in results(data)
        if row["peer"] == ALIAS and row["live"] == 100_000 and row["mix"] != MIX
    }
    worst = max(others, key=lambda mix: others[mix], default="")
    most = cycle(data, ALIAS, 1_000_000)
    huge = quotient(most.get("huge_packs"), most.get("full_packs"))
    return [
        Goal("resident/live at 100,000, lognormal", held, 1.10),
        Goal("resident/live at 100,000, the worst other mix", others.get(worst), 1.15, note=worst),
        Goal("mappings at 1,000,000", most.get("vmas"), 10),
        Goal("full packs that are huge at 1,000,000", None if huge is None else huge * 100, 100, True, " %"),
    ]


def tail_goals(data: Data) -> list[Goal]:
    found = []
    for live in LIVES:
        row = cycle(data, ALIAS, live)
        tail = quotient(row.get("alloc_p999_ns"), row.get("alloc_p50_ns"))
        floor = cycle(data, "floor", live)
        bare = number(quotient(floor.get("place_p999_ns"), floor.get("place_p50_ns")), "x", 0)
        twin = cycle(data, "mimalloc-twin", live)
        other = number(quotient(twin.get("alloc_p999_ns"), twin.get("alloc_p50_ns")), "x", 0)
        note = f"{number(row.get('alloc_p999_ns'))} over {number(row.get('alloc_p50_ns'))} ns" if row else ""
        note += f"; a place of the floor: {bare}, mimalloc-twin: {other}" if row else ""
        found.append(Goal(f"alloc p99.9 / p50 at {live:,}, no new pack", tail, 10, unit="x", note=note))
    row = cycle(data, ALIAS, 100_000)
    worst = number(quotient(row.get("new_pack_worst_ns"), 1000), " us")
    new = quotient(row.get("new_pack_ns"), 1000)
    return [*found, Goal("a new pack's cost to the caller", new, 200, unit=" us", note=f"median; the worst {worst}")]


def thread_goals(data: Data) -> list[Goal]:
    lives = sorted({row["live"] for row in results(data, "threads")}) or [10_000]
    found = []
    for live in lives:
        own, cross = (throughput(data, ALIAS, live, mode) for mode in ("own", "cross"))
        floor = [number(throughput(data, "floor", live, mode), "x", 2) for mode in ("own", "cross")]
        twin = number(throughput(data, "mimalloc-twin", live, "cross"), "x", 2)
        note = f"the floor: {floor[1]}, mimalloc-twin: {twin}"
        found += [
            Goal(f"two threads, own blocks, {live:,} each", own, 1.8, True, "x", f"the floor: {floor[0]}"),
            Goal(f"two threads, the other's blocks, {live:,} each", cross, 1.3, True, "x", note),
        ]
    return [*found, waiting_goal(data, lives)]


def waiting_goal(data: Data, lives: list[int]) -> Goal:
    """Compare long places beside packs being made with those of peers that make none: the machine's own."""
    rows = results(data, "threads")
    most = next((live for live in reversed(lives) if find(rows, peer=ALIAS, live=live, mode="beside")), None)
    shares = {}
    for peer in (ALIAS, "floor", "glibc", "mimalloc", "mimalloc-twin"):
        row = find(rows, peer=peer, live=most, mode="beside")
        share = quotient(row.get("places_over_100_us"), row.get("places"))
        if share is not None:
            shares[peer] = share * 100_000
    own = shares.pop(ALIAS, None)
    row = find(rows, peer=ALIAS, live=most, mode="beside")
    note = (
        f"{number(row.get('places_over_100_us'))} in {number(row.get('places'))}, while "
        f"{number(row.get('pack_events'))} packs came or went; the goal is the worst peer that makes none"
    )
    worst = round(max(shares.values(), default=0), 2)
    return Goal("places over 100 us beside packs being made, of 100,000", own, worst, note=note)


def syscall_goals(data: Data) -> list[Goal]:
    found = []
    for live in LIVES[:3]:
        ns = cycle(data, SYSCALL, live).get("ns")
        found.append(Goal(f"mode syscall, cycle at {live:,}", quotient(ns, 1000), 2.5, unit=" us"))
    for live in (LIVES[0], LIVES[2]):
        row = cycle(data, SYSCALL, live)
        for name, what in (("64", "64 bytes"), ("mix", "lognormal")):
            place, copy = row.get(f"many_{name}_place_ns"), row.get(f"many_{name}_pwrite_ns")
            rest = None if place is None or copy is None else place - copy
            note = "" if rest is None else f"{number(place)} ns; one `pwrite` of all the bytes: {number(copy)} ns"
            found.append(Goal(f"place_many of 1,000, {what}, beside {live:,}", rest, 60, unit=" ns", note=note))
    return found


def python_goals(data: Data) -> list[Goal]:
    base = python(data, "place + free, alias")
    many = {row["what"]: row["ns"] for row in data.get("python", {}).get("results", []) if "place_many" in row["what"]}
    many = {what: ns for what, ns in many.items() if what.startswith("place_many of arrays")}
    listed = python(data, "place_many of a list, alias")
    return [
        Goal("Python: place + free, alias", base, 600, unit=" ns"),
        Goal("Python: place_many of 10,000, arrays", min(many.values(), default=None), 40, unit=" ns"),
        Goal("Python: place_many of 10,000, a list, alias", listed, 40, unit=" ns"),
        Goal("Python: against ctypes", quotient(python(data, "ctypes mmap + mprotect + munmap"), base), 20, True, "x"),
        Goal(
            "Python: against MCJIT's object path",
            quotient(python(data, "llvmlite MCJIT, an object each, never freed"), base),
            40,
            True,
            "x",
            "one engine for all; it frees nothing",
        ),
    ]


def goals(data: Data) -> list[Goal]:
    """Return every goal with its figure."""
    parts = (speed_goals, memory_goals, tail_goals, thread_goals, syscall_goals, python_goals)
    return [goal for part in parts for goal in part(data)]


# ---- comparing with the committed figures ----

CHECK_PEERS = ("asmjit", "progpack", "floor", "glibc")
CHECK_LIVES = LIVES[:3]
CHECK_THREADS = 10_000
TOLERANCE = 1.15


def check_ratios(data: Data) -> dict[str, float]:
    """Return the ratios that must not grow: execmem's time over its peer's, by name."""
    found = {}
    for live in CHECK_LIVES:
        for peer in CHECK_PEERS:
            found[f"cycle at {live:,} / {peer}"] = speedup(data, peer, live)
    ratios = {name: 1 / value for name, value in found.items() if value}
    for mode in ("own", "cross"):
        gain = throughput(data, ALIAS, CHECK_THREADS, mode)
        if gain:
            ratios[f"two threads, {mode} / one"] = 1 / gain
    over = quotient(python(data, "place + free, alias"), python(data, "ctypes mmap + mprotect + munmap"))
    return ratios | ({"Python: place + free / ctypes": over} if over else {})


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio as it was committed and as it is now."""

    what: str
    committed: float
    now: float

    @property
    def worse(self) -> bool:
        """Tell whether it grew by more than is allowed."""
        return self.now > self.committed * TOLERANCE

    def cells(self) -> list[str]:
        """Return a line of the table."""
        change = f"{(self.now / self.committed - 1) * 100:+.0f} %"
        return [self.what, f"{self.committed:.4g}", f"{self.now:.4g}", change, "WORSE" if self.worse else ""]


def compare(committed: Mapping[str, float], runs: Iterable[Mapping[str, float]]) -> list[Change]:
    """Return each committed ratio beside the best that any run found; what no run found is left out."""
    best: dict[str, float] = {}
    for run in runs:
        for what, ratio in run.items():
            best[what] = min(ratio, best.get(what, ratio))
    return [Change(what, ratio, best[what]) for what, ratio in committed.items() if what in best]


def change_table(changes: Iterable[Change]) -> list[str]:
    return grid(["figure", "committed", "now", "change", ""], [change.cells() for change in changes])
