"""What it costs to watch a process, and what it costs the process.

200 pictures of `execmem top` in a row, five times, tell what one costs; `execmem map` is run once. Then a child with a
million blocks frees and allocates random ones, in batches, as fast as it can, while `execmem top` is stopped and let go
on by turns: the child's CPU time of a cycle is compared between the turns, and as a control between turns without it.

    python benchmarks/watching.py [--blocks 1000000] [--turns 60] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine

NOTE = (
    "Medians over turns. Cycles are CPU time of the watched process's thread; control and alone are the same, without "
    "a watcher; median_of_ratios is to alone."
)
CHILD = """
import sys, time
import numpy as np
import execmem
from execmem.demo import draw_sizes

count, batch = int(sys.argv[1]), 1000
rng = np.random.default_rng(1)
sizes = draw_sizes("libbpf-tools", count, rng).astype(np.uint64)
live = execmem.execmem_alloc_many(sizes)
print("ready", flush=True)
for line in sys.stdin:
    end, cycles, start = time.perf_counter() + float(line), 0, time.perf_counter()
    spent = 0.0
    while time.perf_counter() < end:
        which = rng.choice(count, batch, replace=False)
        addresses = live[which]
        begin = time.thread_time()
        execmem.execmem_free_many(addresses)
        live[which] = execmem.execmem_alloc_many(sizes[which])
        spent += time.thread_time() - begin
        cycles += batch
    print(spent / cycles * 1e9, flush=True)
"""
TURN = 0.5  # seconds
TURNS = ("watched", "alone", "control")  # the last two are the same


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_execmem(*arguments: str) -> tuple[float, float]:
    """Return CPU and wall seconds of a command, starting Python included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "execmem", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


def cost_pictures(pid: str) -> float:
    """Return the CPU seconds of a picture: of 201 less those of one, which has the start of Python in it."""
    one, many = (run_execmem("top", pid, "--every", "0", "--count", str(count))[0] for count in (1, 201))
    return (many - one) / 200


def take_turns(child: subprocess.Popen[str], turns: int) -> dict[str, list[float]]:
    """Return the child's ns a cycle in turns with a watcher at 2 Hz, and with one that is stopped."""
    assert child.stdin
    assert child.stdout
    command = [sys.executable, "-m", "execmem", "top", str(child.pid), "--every", "0.5"]
    cycles: dict[str, list[float]] = {name: [] for name in TURNS}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as top:
        time.sleep(2)
        for turn in range(len(TURNS) * turns):
            name = TURNS[turn % len(TURNS)]
            top.send_signal(signal.SIGCONT if name == "watched" else signal.SIGSTOP)
            print(TURN, file=child.stdin, flush=True)
            cycles[name].append(float(child.stdout.readline()))
        top.send_signal(signal.SIGCONT)
        start, used = time.perf_counter(), cpu_seconds(top.pid)
        time.sleep(10)
        cycles["top_share"] = [(cpu_seconds(top.pid) - used) / (time.perf_counter() - start)]
        top.kill()
    return cycles


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("--turns: quartiles need at least 2")
    command = [sys.executable, "-c", CHILD, str(options.blocks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        pid = str(child.pid)
        pictures = statistics.median(cost_pictures(pid) for _ in range(5))
        map_cpu, map_wall = run_execmem("map", pid, "--interval", "0")
        cycles = take_turns(child, options.turns)
        child.kill()
    report = {
        "blocks": options.blocks,
        "ms_cpu_of_a_picture": pictures * 1e3,
        "share_of_a_core_at_2_hz": cycles["top_share"][0],
        "seconds_cpu_of_map": map_cpu,
        "seconds_of_map": map_wall,
        "ns_a_cycle": {name: statistics.median(cycles[name]) for name in TURNS},
        "quartiles": {name: statistics.quantiles(cycles[name], n=4) for name in TURNS},
        "median_of_ratios": {
            name: statistics.median(one / alone for one, alone in zip(cycles[name], cycles["alone"], strict=True))
            for name in ("watched", "control")
        },
    }
    print(json.dumps(report, indent=1))
    if options.out:
        machine.write(options.out, "watching", NOTE, {}, [report])


if __name__ == "__main__":
    main()
