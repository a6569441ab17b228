"""completion: ``execmem completion``: a script that makes a shell complete commands, options, files and processes.

    the table of commands --every module's add_arguments--> one parser --shtab--> a script for bash, zsh or tcsh

What an argument is is told by its metavar: FILE, OUT and TRACE are files, PID a process that uses execmem.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from execmem import cli

SHELLS: Final = ("bash", "zsh", "tcsh")
NO_SHTAB: Final = "execmem completion: it needs shtab: pip install 'execmem[completion]'"
FILES: Final = frozenset({"FILE", "OUT", "TRACE", "CODE"})
# Memory files of execmem among the mappings that this user may read: other processes cannot be watched anyway.
LIST_PIDS: Final = "grep -ls '/memfd:execmem' /proc/[0-9]*/maps 2>/dev/null | cut -d/ -f3"
PREAMBLE: Final = {
    "bash": f'_execmem_pids() {{ compgen -W "$({LIST_PIDS})" -- "$1"; }}',
    "zsh": f'_execmem_pids() {{ local -a pids; pids=(${{(f)"$({LIST_PIDS})"}}); compadd -a pids; }}',
    "tcsh": "",
}
PIDS: Final = {"bash": "_execmem_pids", "zsh": "_execmem_pids", "tcsh": ""}  # tcsh would need a / in its pattern


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem completion``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem completion bash > ~/.local/share/bash-completion/completions/execmem\n"
        "  execmem completion zsh > ~/.zfunc/_execmem   ~/.zfunc in fpath before compinit\n"
        "  execmem completion tcsh > ~/.execmem.tcsh     to be sourced in ~/.tcshrc\n"
        "exit code: 0 printed, 2 wrong usage; 1 shtab is not installed:\n"
        "pip install 'execmem[completion]'"
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script to print")


def mark(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which arguments are files and which are processes, here and in all actions below."""
    import shtab  # noqa: PLC0415 - an extra, which few need

    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "PID":
            action.complete = PIDS  # type: ignore[attr-defined]
        elif action.help == argparse.SUPPRESS:
            action.help = None  # the list of commands, which --help shows elsewhere
    for sub in cli.choices_of(parser)[1].values():
        mark(sub)


def run(options: argparse.Namespace) -> int:
    """Print the script for a shell."""
    try:
        import shtab  # noqa: PLC0415 - an extra, which few need
    except ImportError:
        print(NO_SHTAB, file=sys.stderr)
        return 1
    parser = cli.make_parser([command.name for command in cli.COMMANDS])
    mark(parser)
    print(shtab.complete(parser, options.shell, preamble=PREAMBLE[options.shell]))
    return 0
