"""bench_crew: the processes of ``execmem bench``, one a peer, and what each of them measures.

    Crew --fork--> Child --a line of JSON--> Subject.open, round, round, ..., finish

A process of its own, so that no peer stands on another's heap, page tables or threads, and a crash of one costs only
its own figures. They are told to work one at a time, on the same CPU. A child ends when its pipe does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import platform
import signal
import time
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import execmem
from execmem import bench_loops
from execmem.bench_loops import BLOCK, OP, PEERS, RETURNS, STEP, PeerError, Population, Script

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem.errors import ExecmemError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from execmem.bench_loops import Peer

AGE_LEAST, AGE_SHARE = 2_000, 4  # replacements before anything is timed; their part of the budget
TOLD_FROM, AGAIN_SHARE = (
    0.1,
    4,
)  # of a population, from which on its time is foretold; placed again if that takes a part
GROW_STEP, AGE_STEP = 500, 200
TRIAL, CYCLES_LEAST, CYCLES_MOST = 200, 20, 200_000
WARM_SHARE, WARM_LEAST = 8, 20
CALLS = 4_000
NS = 1e9


class Subject(Protocol):
    """What a child measures. Each returns what JSON can hold, and raises PeerError when it cannot go on."""

    def open(self) -> dict[str, Any]:
        """Prepare."""

    def round(self) -> dict[str, Any]:
        """Take figures."""

    def finish(self) -> dict[str, Any]:
        """Take the last figures, and look whether all is right."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long things may take: a round in milliseconds, and growing a population in seconds, of CPU time."""

    round_ms: float
    budget: float

    def count(self, ns: float) -> int:
        """Return how many steps of `ns` fill a round."""
        return int(min(max(self.round_ms * 1e6 / max(ns, 1e-3), CYCLES_LEAST), CYCLES_MOST))


# ---- a peer ----


class Cycles:
    """Cycles of one peer at one population."""

    def __init__(self, peer: Peer, script: Script, code: bytes, pace: Pace) -> None:
        """Take the plan; nothing is opened yet."""
        self.peer, self.script, self.code, self.pace = peer, script, code, pace

    def open(self) -> dict[str, Any]:
        """Grow the population, and replace blocks at random until its layout is that of a process of some age."""
        self.it = Population(self.peer, self.script, self.code)
        self.first = self._grow()
        live, aged, start = len(self.it.blocks), 0, time.process_time()
        while aged < max(2 * live, AGE_LEAST) and time.process_time() - start < self.pace.budget / AGE_SHARE:
            aged += self.it.cycle(AGE_STEP).steps
        self.cycles = self.pace.count(self.it.cycle(TRIAL).cpu_ns)
        return {"first_ramp_up_ns": self.first, "aged": aged, "cycles": self.cycles}

    def _grow(self) -> float:
        """Place all blocks; return nanoseconds of a block. PeerError when that would take longer than the budget."""
        it, live = self.it, len(self.it.blocks)
        first = it.grow(GROW_STEP)  # with what is made only once, such as all the memory of the floor
        took = begun = first.cpu_ns * first.steps
        while it.grown < live:
            part = it.grow(GROW_STEP)
            took += part.cpu_ns * part.steps
            need = (took + (took - begun) / (it.grown - first.steps) * (live - it.grown)) / NS
            if need > self.pace.budget and it.grown >= live * TOLD_FROM:
                message = (
                    f"placing {live:,} blocks would take some {need:.1f} s, and a peer has {self.pace.budget:g} s"
                    " (--budget)"
                )
                raise PeerError(message)
        return took / live

    def round(self) -> dict[str, Any]:
        """Warm up, replace blocks, and call some."""
        self.it.cycle(max(self.cycles // WARM_SHARE, WARM_LEAST))
        took = self.it.cycle(self.cycles)
        figures: dict[str, Any] = {"cpu_ns": took.cpu_ns, "wall_ns": took.wall_ns}
        # Only execmem makes CPUs that need it see new code.
        if self.peer.executable and (self.peer.mode or platform.machine() == "x86_64"):
            figures["call_ns"] = self.it.call_blocks(CALLS).cpu_ns
        return figures

    def finish(self) -> dict[str, Any]:
        """Look at every block's bytes, free all, and place all again if that is quickly done."""
        figures: dict[str, Any] = {"wrong_blocks": self.it.verify()}
        figures["drain_ns"] = self.it.drain().cpu_ns
        if self.first * len(self.it.blocks) / NS < self.pace.budget / AGAIN_SHARE:
            figures["ramp_up_ns"] = self._grow()
        return figures


# ---- Python ----

PYTHON_LIVE = 1_000
FROM_C, FROM_PYTHON, MANY = "cycle, from C", "cycle, Domain.place and Block.free", "place_many and free, a block"
CALL, CALL_CTYPES = "call a placed function, void()", "call it through ctypes"
POKE, FLIP = "change an instruction, execmem_poke", "change it between two mprotect"
ROWS = {FROM_C: FROM_C, FROM_PYTHON: FROM_C, MANY: FROM_C, CALL: CALL, CALL_CTYPES: CALL, POKE: POKE, FLIP: POKE}


def change_script() -> tuple[Script, bytes]:
    """Return a population of one block that begins with an instruction, and two that take turns there."""
    size = 5 if platform.machine() == "x86_64" else 4
    nop, jump = execmem.encode("nop", size), execmem.encode("jump", size, STEP, STEP + size)
    source = np.frombuffer(nop + RETURNS[platform.machine()] + bytes(STEP), dtype=np.uint8)[:STEP].copy()
    blocks = np.zeros(1, dtype=BLOCK)
    blocks["size"] = STEP
    return Script(blocks, np.zeros(1, dtype=OP), source, np.zeros(1, dtype=np.uint32)), nop + jump


class FromPython:
    """What a cycle, a call and a change cost, from Python and not, in one write mode."""

    def __init__(self, peer: Peer, script: Script, code: bytes, pace: Pace) -> None:
        """Take the plan; nothing is opened yet."""
        self.peer, self.script, self.code, self.pace = peer, script, code, pace
        self.subjects: dict[str, Callable[[int], float]] = {}
        self.counts: dict[str, int] = {}

    def open(self) -> dict[str, Any]:
        """Prepare each row; those that fail say why."""
        makers = {
            self._open_cycle: (FROM_C,),
            self._open_python: (FROM_PYTHON, MANY),
            self._open_calls: (CALL, CALL_CTYPES),
            self._open_poke: (POKE,),
            self._open_flip: (FLIP,),
        }
        failed = {what: why for maker, names in makers.items() for what, why in self._try(maker, names).items()}
        return {"failed": failed}

    def _try(self, maker: Callable[[], dict[str, Callable[[int], float]]], names: tuple[str, ...]) -> dict[str, str]:
        """Make rows and see how often they fit in a round; return why not, by name."""
        try:
            made = maker()
            self.counts |= {name: max(2, self.pace.count(run(TRIAL))) for name, run in made.items()}
            self.subjects |= made
        except (PeerError, ExecmemError) as error:
            return dict.fromkeys(names, str(error))
        return {}

    def _open_cycle(self) -> dict[str, Callable[[int], float]]:
        self.cycles = Population(self.peer, self.script, self.code)
        self.cycles.grow()
        return {FROM_C: lambda count: self.cycles.cycle(count).cpu_ns}

    def _open_python(self) -> dict[str, Callable[[int], float]]:
        script, domain = self.script, execmem.Domain("bench", write_mode=self.peer.mode)
        whole = script.source.tobytes()

        def bodies(drawn: Any) -> list[bytes]:  # noqa: ANN401 - a structured array
            pairs = zip(drawn["source"].tolist(), drawn["size"].tolist(), strict=True)
            return [whole[at : at + size] for at, size in pairs]

        codes, blocks = bodies(script.blocks), [domain.place(body) for body in bodies(script.blocks)]
        ops = script.ops[:CYCLES_MOST]
        plan = itertools.cycle(list(zip(ops["slot"].tolist(), bodies(ops[: PYTHON_LIVE * 4]), strict=False)))

        def one_by_one(count: int) -> float:
            place, work = domain.place, list(itertools.islice(plan, count))
            start = time.process_time_ns()
            for slot, body in work:
                blocks[slot].free()
                blocks[slot] = place(body)
            return (time.process_time_ns() - start) / count

        def many(count: int) -> float:
            times = -(-count // len(codes))
            start = time.process_time_ns()
            for _ in range(times):
                domain.place_many(codes).free()
            return (time.process_time_ns() - start) / times / len(codes)

        self.domain = domain
        return {FROM_PYTHON: one_by_one, MANY: many}

    def _open_calls(self) -> dict[str, Callable[[int], float]]:
        domain = execmem.Domain("calls", write_mode=self.peer.mode)
        block = domain.place(RETURNS[platform.machine()])
        foreign = ctypes.CFUNCTYPE(None)(int(block))
        function = block.function("void()")  # it holds the block, also for the other
        return {CALL: lambda n: call_often(function, n), CALL_CTYPES: lambda n: call_often(foreign, n)}

    def _open_poke(self) -> dict[str, Callable[[int], float]]:
        return {POKE: self._changer(self.peer)}

    def _open_flip(self) -> dict[str, Callable[[int], float]]:
        return {FLIP: self._changer(next(peer for peer in PEERS if peer.kind == bench_loops.PAGES))}

    def _changer(self, peer: Peer) -> Callable[[int], float]:
        script, changes = change_script()
        it = Population(peer, script, self.code)
        it.grow()
        it.set_changes(changes)
        return lambda count: it.change(count).cpu_ns

    def round(self) -> dict[str, Any]:
        """Take a figure of each row."""
        return {name: run(self.counts[name]) for name, run in self.subjects.items()}

    def finish(self) -> dict[str, Any]:
        """Look at the bytes of the blocks placed from C, and at the laws of the domain."""
        self.domain.check()
        return {"wrong_blocks": self.cycles.verify()}


def call_often(function: Callable[[], object], count: int) -> float:
    """Return the nanoseconds of a call, Python's loop around it included."""
    start = time.process_time_ns()
    for _ in itertools.repeat(None, count):
        function()
    return (time.process_time_ns() - start) / count


# ---- processes ----


class Child:
    """A process that measures a subject, told what to do over a pipe."""

    def __init__(self, name: str, pid: int, ask: int, answer: int) -> None:
        """Take the ends of the pipes."""
        self.name, self.pid = name, pid
        self._ask = os.fdopen(ask, "wb", buffering=0)
        self._answer = os.fdopen(answer, "rb")

    def tell(self, what: str) -> dict[str, Any]:
        """Have the child do something, and return its figures; PeerError when it cannot, or died."""
        with contextlib.suppress(BrokenPipeError):  # what it died of is told below
            self._ask.write(f"{what}\n".encode())
        line = self._answer.readline()
        if not line:
            raise PeerError(self._tell_end())
        told: dict[str, Any] = json.loads(line)
        if "why" in told:
            raise PeerError(told["why"])
        return told

    def _tell_end(self) -> str:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        if os.WIFSIGNALED(status):
            return f"its process died: {signal.strsignal(os.WTERMSIG(status)) or f'signal {os.WTERMSIG(status)}'}"
        return f"its process ended with exit code {os.WEXITSTATUS(status)}"

    def end(self) -> None:
        """End the process, whatever it does."""
        self._ask.close()
        self._answer.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


class Crew:
    """The children of one population; leaving the ``with`` ends them."""

    def __init__(self, cpu: int | None) -> None:
        """Have children work on a CPU; None: on any."""
        self.cpu = cpu
        self.children: list[Child] = []

    def start(self, name: str, subject: Subject) -> Child:
        """Fork a child for a subject; PeerError when the system refuses."""
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        # Python loses a Ctrl-C that comes while it forks: it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with warnings.catch_warnings():
            # Other threads are numpy's, asleep; the child uses none of what they might have held.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                pid = os.fork()
            except OSError as error:
                for end in (asked, ask, answer, answered):
                    os.close(end)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                message = f"the system refuses it a process: {error.strerror}"
                raise PeerError(message) from error
        if pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends its children
                os.close(ask)
                os.close(answer)
                for child in self.children:  # or they would not see their pipes end
                    child._ask.close()  # noqa: SLF001 - its twin in this process
                    child._answer.close()  # noqa: SLF001
                if self.cpu is not None:
                    os.sched_setaffinity(0, {self.cpu})
                serve(subject, asked, answered)
            finally:
                os._exit(0)  # nothing of the parent's may run on here
        os.close(asked)
        os.close(answered)
        child = Child(name, pid, ask, answer)
        self.children.append(child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child

    def __enter__(self) -> Self:
        """Begin with no child."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all children."""
        for child in self.children:
            child.end()


def serve(subject: Subject, asked: int, answered: int) -> None:
    """Do what is asked over one pipe and answer over the other, until it ends."""
    with os.fdopen(asked, "rb") as questions, os.fdopen(answered, "wb", buffering=0) as answers:
        for line in questions:
            try:
                told = {"open": subject.open, "round": subject.round, "finish": subject.finish}[line.decode().strip()]()
            except (PeerError, ExecmemError) as error:
                told = {"why": str(error)}
            except Exception as error:  # noqa: BLE001 - told by the parent
                told = {"why": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(told).encode() + b"\n")
