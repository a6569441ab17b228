"""How long does a cycle take, for every peer and from Python? Run by ``make bench``; nothing here asserts a time.

A C peer runs in the harness's driver, one process each, which is told on a pipe to run a round of many cycles; the
pipe adds some 20 us to a round of milliseconds. ``run.py`` measures the same with the peers' rounds interleaved, which
is what published figures come from; this suite gives pytest-benchmark's comparison and history.
"""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING

import building
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from execmem import Domain

PEERS = ["execmem-alias", "execmem-syscall", "asmjit", "progpack", "page", "mimalloc-twin", "glibc", "floor"]
LIVES = [1_000, 100_000]
ROUNDS = 7
CYCLES = 10_000  # in a round, the same for every peer, so that pytest-benchmark's table compares like with like
SMALL = bytes(range(64))
CODE = SMALL * 13  # 832 bytes, near the mean of the lognormal mix


@functools.cache
def harness() -> building.Harness:
    return building.build()


@functools.cache
def peers_built() -> set[str]:
    rows = building.driver_lines([str(harness().driver), "--list"])
    return {str(row["peer"]) for row in rows if "peer" in row}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("live", LIVES)
def test_cycle(benchmark: BenchmarkFixture, peer: str, live: int) -> None:
    if peer not in peers_built():
        pytest.skip(str(harness().missing))
    try:
        bench = building.Bench(harness(), peer, "lognormal", live)
    except RuntimeError as error:
        pytest.skip(f"{peer}: {error}")
    ns: list[float] = []
    benchmark.group = f"{CYCLES:,} cycles, lognormal, {live:,} live"
    benchmark.pedantic(  # type: ignore[no-untyped-call]  # pytest-benchmark leaves it so
        lambda: ns.append(bench.run()), setup=lambda: bench.draw(CYCLES), rounds=ROUNDS, warmup_rounds=1
    )
    benchmark.extra_info.update(peer=peer, live=live, cpu_ns_per_cycle=statistics.median(ns[1:] or ns) / CYCLES)
    assert bench.wrong() == 0
    bench.close()


# ---- the Python layer ----


@pytest.fixture(params=["alias", "syscall"])
def domain(request: pytest.FixtureRequest) -> Iterator[Domain]:
    execmem = pytest.importorskip("execmem", reason="the extension is not built", exc_type=ImportError)
    with execmem.Domain("bench", write_mode=request.param) as opened:
        opened.place(CODE * 100)  # the pack's birth is not what is measured
        yield opened


def measure(benchmark: BenchmarkFixture, group: str, call: Callable[[], object]) -> None:
    benchmark.group = group
    benchmark(call)


def test_place_and_free_64_bytes(benchmark: BenchmarkFixture, domain: Domain) -> None:
    measure(benchmark, "Python: place + free, 64 bytes", lambda: domain.place(SMALL).free())


def test_place_and_free_832_bytes(benchmark: BenchmarkFixture, domain: Domain) -> None:
    measure(benchmark, "Python: place + free, 832 bytes", lambda: domain.place(CODE).free())


def test_place_many_and_free(benchmark: BenchmarkFixture, domain: Domain) -> None:
    codes = [SMALL] * 1000
    measure(benchmark, "Python: place_many + free, 1,000 of 64 bytes", lambda: domain.place_many(codes).free())


def test_three_calls(benchmark: BenchmarkFixture) -> None:
    execmem = pytest.importorskip("execmem", reason="the extension is not built", exc_type=ImportError)

    def cycle() -> None:
        address = execmem.execmem_alloc(len(SMALL))
        execmem.execmem_fill(address, SMALL)
        execmem.execmem_free(address)

    keep = execmem.execmem_alloc(len(SMALL))
    measure(benchmark, "Python: execmem_alloc + fill + free, 64 bytes", cycle)
    execmem.execmem_free(keep)


def test_place_many_arrays(benchmark: BenchmarkFixture) -> None:
    execmem = pytest.importorskip("execmem", reason="the extension is not built", exc_type=ImportError)
    data = np.frombuffer(SMALL * 10_000, dtype=np.uint8)
    offsets = np.arange(10_001, dtype=np.uint64) * len(SMALL)

    def cycle() -> None:
        execmem.execmem_free_many(execmem.execmem_place_many(data, offsets))

    measure(benchmark, "Python: execmem_place_many + free_many, 10,000 of 64 bytes", cycle)
