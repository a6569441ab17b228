"""cli: what people run. One table names every command; a new one is a line in it.

    execmem demo       real machine code in 2 MB packs, every result checked
    execmem soak       minutes of threads, forks and refused system calls, every result and law checked
    execmem directmap  the kernel's direct map: what it is now, what splits it, and who
    execmem replay     what other allocators would have made of a trace
    execmem lab        what real kernels, booted under QEMU, do to their direct map
    execmem doctor     what works on this machine, and why what does not does not
    execmem map        the packs of a running process: fill, owners, ages, pages
    execmem top        the same, again and again
    execmem export     the same as metrics, for Prometheus
    execmem run        machine code from a file or as hex digits, placed and called
    execmem bench      what code costs on this machine, as ratios, in every write mode and beside others
    execmem completion what a shell needs to complete all this

A command is a module with two functions: `add_arguments` declares its options, `run` runs it and returns the exit code.
Only the one that was asked for is imported, so those that need no compiled core work where it is missing; the others
tell their options there, and why they cannot run.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from execmem import _NO_CORE as NO_CORE
from execmem.draw import clean, tell_version

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

USAGE = 2
CORE = "execmem._core"
INTERRUPTED = 130  # what shells report for SIGINT
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # of the file behind stdout: not our fault


@dataclass(frozen=True)
class Command:
    """A command: its name, one line about it, the module that has `add_arguments` and `run`, its key in GROUPS.

    `core`: to run it needs the compiled core; its options can be told without.
    """

    name: str
    summary: str
    module: str
    group: str
    core: bool = False


GROUPS = {
    "try": "try it",
    "watch": "look into a running process",
    "kernel": "the kernel's direct map",
    "shell": "in the shell",
}
COMMANDS = (
    Command("demo", "place, call and free 100,000 functions of real machine code", "execmem.demo", "try", core=True),
    Command("run", "place machine code and call it", "execmem.run_cli", "try", core=True),
    Command("doctor", "tell what works on this machine, and why what does not", "execmem.doctor", "try", core=True),
    Command(
        "bench", "measure placing, freeing and calling code here, beside others", "execmem.bench_cli", "try", core=True
    ),
    Command(
        "soak", "minutes of threads, forks and refused system calls, all checked", "execmem.soak", "try", core=True
    ),
    Command("map", "show the packs of a running process, or of a saved ledger", "execmem.map_cli", "watch", core=True),
    Command("top", "show the packs of a running process again and again", "execmem.top_cli", "watch", core=True),
    Command("export", "print, write or serve metrics for Prometheus", "execmem.export_cli", "watch"),
    Command("directmap", "show, record and explain the kernel's direct map", "execmem.directmap_cli", "kernel"),
    Command("replay", "tell what other allocators would have made of a trace", "execmem.replay_cli", "kernel"),
    Command(
        "lab", "boot real kernels under QEMU and count what loading code splits", "execmem.directmap.lab_cli", "kernel"
    ),
    Command("completion", "print a script that completes all this in a shell", "execmem.completion", "shell"),
)
EXAMPLES = (
    ("execmem demo", "the whole of it: place, call, compare, free"),
    ("execmem run c3 --sig 'void()'", "the least code there is on x86-64: ret"),
    ("execmem map 4711", "what a process that uses execmem has"),
    ("execmem directmap show", "what loading code did to this machine"),
    ("execmem replay cilium --memory 8G", "what each allocator would make of it"),
)


# ---- the parser ----


def overview() -> str:
    """Return the commands in their groups, a line each."""
    lines = []
    for group, title in GROUPS.items():
        lines += [f"{title}:", *(f"  {one.name:<10} {one.summary}" for one in COMMANDS if one.group == group), ""]
    return "\n".join(lines).rstrip()


def make_parser(chosen: Container[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands in the table; only the options of chosen ones are declared."""
    examples = "\n".join(f"  {line:<34} {what}" for line, what in EXAMPLES)
    parser = argparse.ArgumentParser(
        prog="execmem",
        description=f"Executable memory in 2 MB packs.\n\n{overview()}",
        epilog=f"examples:\n{examples}\nexit code: 0 well, 1 not (stderr tells why), 2 wrong usage, 130 Ctrl-C\n"
        "execmem COMMAND --help tells its options, and has more examples",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="execmem [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"execmem {tell_version()}")
    hidden = argparse.SUPPRESS  # the description has them, in groups
    names = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, help=hidden, prog="execmem")
    for command in COMMANDS:
        told = f"{command.summary[0].upper()}{command.summary[1:]}."
        sub = names.add_parser(command.name, help=command.summary, description=told)
        if command.name in chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def choices_of(parser: argparse.ArgumentParser) -> tuple[str, dict[str, argparse.ArgumentParser]]:
    """Return where a parser stores the command or action that was chosen, and the parser of each; empty without any."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return action.dest, dict(action.choices)
    return "", {}


def parse(words: Sequence[str], chosen: str | None) -> argparse.Namespace:
    """Return the options; what is wrong is told with the usage of the command or action that it was said to."""
    parser = make_parser(() if chosen is None else (chosen,))
    if not words:
        print(f"usage: {parser.usage}\n\n{overview()}\n\nexecmem --help has examples.", file=sys.stderr)
        raise SystemExit(USAGE)
    names = [command.name for command in COMMANDS]
    if chosen is not None and chosen not in names:
        near = difflib.get_close_matches(chosen, [*names, "help"], 1)
        hint = f"did you mean {near[0]!r}?" if near else "execmem --help has them all"
        parser.error(f"there is no command {chosen!r}: {hint}")
    options, extra = parser.parse_known_args(words)
    if extra:
        while (found := choices_of(parser))[1]:
            parser = found[1][getattr(options, found[0])]
        parser.error(f"unrecognized arguments: {' '.join(clean(word) for word in extra)}")
    return options


def check_core(name: str) -> None:
    """Raise ImportError for a command that needs the compiled core where that is missing."""
    if any(command.core for command in COMMANDS if command.name == name) and not importlib.util.find_spec(CORE):
        raise ModuleNotFoundError(NO_CORE, name=CORE)


def is_ours(error: OSError) -> bool:
    """Tell whether an error is one of this package, whose text is for users."""
    errors = sys.modules.get("execmem.errors")  # imported by a command that needs the core
    return errors is not None and isinstance(error, errors.ExecmemError)


def open_closed() -> None:
    """Give stdout and stderr somewhere to write to where who called has closed them: nobody reads."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def drop_output() -> None:
    """Let go of what stdout cannot take, so that the interpreter does not try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 well, 1 not, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_closed()
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    chosen = next((word for word in words if not word.startswith("-")), None)
    code: int = 0
    try:
        try:
            options = parse(words, chosen)
            check_core(options.command)
            code = options.run(options)
        finally:  # --help leaves by SystemExit
            sys.stdout.flush()
    except ImportError as error:
        if importlib.util.find_spec(CORE):
            raise
        known = error.name == CORE or "needs the compiled core" in str(error)
        print(f"execmem {chosen}: it needs the compiled core: {NO_CORE if known else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError as error:
        print(f"execmem {chosen}: there is not enough memory: {clean(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough, as `| head` has
        drop_output()
        return 1
    except OSError as error:
        if not is_ours(error) and error.errno not in FULL:
            raise
        if not code:  # otherwise it is told already
            print(f"{'execmem' if chosen is None else f'execmem {chosen}'}: {clean(str(error))}", file=sys.stderr)
        drop_output()
        return code or 1
    return code
