"""cli: what people run. One table names every command; a new one is a line in it.

    execmem demo       real machine code in 2 MB packs, every result checked
    execmem soak       minutes of threads, forks and refused system calls, every result and law checked
    execmem directmap  the kernel's direct map: what it is now, what splits it, and who
    execmem replay     what other allocators would have made of a trace
    execmem lab        what real kernels, booted under QEMU, do to their direct map
    execmem doctor     what works on this machine, and why what does not does not
    execmem map        the packs of a running process: fill, owners, ages, pages
    execmem top        the same, again and again
    execmem run        machine code from a file or as hex digits, placed and called
    execmem bench      what code costs on this machine, as ratios, in every write mode and beside others

A command is a module with two functions: `add_arguments` declares its options, `run` runs it and returns the exit code.
Only the one that was asked for is imported, so those that need no compiled core work where it is missing.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from execmem.draw import tell_version

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130  # what shells report for SIGINT


@dataclass(frozen=True)
class Command:
    """A command: its name, one line about it, and the module that has `add_arguments` and `run`."""

    name: str
    summary: str
    module: str


COMMANDS = (
    Command("demo", "place, call and free 100,000 functions of real machine code", "execmem.demo"),
    Command(
        "soak", "work for minutes with threads, forks and refused system calls, and see that all holds", "execmem.soak"
    ),
    Command("directmap", "show, record and explain the kernel's direct map", "execmem.directmap_cli"),
    Command("replay", "tell what other allocators would have made of a trace", "execmem.replay_cli"),
    Command(
        "lab",
        "boot real kernels under QEMU and see what loading code does to their direct map",
        "execmem.directmap.lab_cli",
    ),
    Command("doctor", "tell what works on this machine, and why what does not", "execmem.doctor"),
    Command("map", "show the packs of a running process, or of a saved ledger", "execmem.map_cli"),
    Command("top", "show the packs of a running process again and again", "execmem.top_cli"),
    Command(
        "export", "print, write or serve metrics of the machine and of processes, for Prometheus", "execmem.export_cli"
    ),
    Command("run", "place machine code and call it", "execmem.run_cli"),
    Command("bench", "measure what placing, freeing and calling code costs here, beside others", "execmem.bench_cli"),
)


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser of all commands in the table; only the chosen one's options are declared."""
    parser = argparse.ArgumentParser(prog="execmem", description="Executable memory in 2 MB packs.")
    parser.add_argument("--version", action="version", version=f"execmem {tell_version()}")
    names = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = names.add_parser(command.name, help=command.summary, description=f"{command.summary.capitalize()}.")
        if command.name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def is_ours(error: OSError) -> bool:
    """Tell whether an error is one of this package, whose text is for users."""
    errors = sys.modules.get("execmem.errors")  # imported by a command that needs the core
    return errors is not None and isinstance(error, errors.ExecmemError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 well, 1 not, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by who called: nobody reads
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process runs
    chosen = next((word for word in words if not word.startswith("-")), None)
    try:
        options = make_parser(chosen).parse_args(words)
        code: int = options.run(options)
        sys.stdout.flush()
    except ImportError as error:
        if importlib.util.find_spec("execmem._core"):
            raise
        print(f"execmem {chosen}: it needs the compiled core: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if not is_ours(error) and error.errno != errno.ENOSPC:
            raise
        print(f"execmem {chosen}: {error}", file=sys.stderr)
        return 1
    return code
