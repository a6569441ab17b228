"""run_cli: ``execmem run``: machine code from a file or as hex digits, placed and called in a process of its own.

    CODE --read_code--> bytes --child: Domain.place, function--> result --pipe--> printed
                                      |
                                      a crash: the reporter of faults tells which block, the parent how it ended

The child keeps a mistake in the code from taking the command with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import execmem
from execmem.demo import MODES, to_count
from execmem.draw import tell_bytes, tell_time

if TYPE_CHECKING or find_spec("execmem._core"):  # without it there is still --help
    from execmem.errors import ExecmemError, InvalidArgumentError
    from execmem.function import parse_signature

USAGE: Final = 2
SIGNALLED: Final = 128  # what shells add to the number of the signal
COMMENT: Final = re.compile(r"[#;][^\n]*|//[^\n]*")
BETWEEN: Final = re.compile(r"0[xX](?=[0-9a-fA-F])|\\x|[\s,:_]+")
HEX: Final = frozenset("0123456789abcdefABCDEF")
FLOATS: Final = ("f32", "f64")
F32_MAX: Final = 3.4028235677973366e38  # from here on a number rounds to infinity
TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}
FAILED: Final = "error"  # key of a message of the child
WORD_BITS: Final = 64
CODE_MAX: Final = 64 << 20  # bytes of a file


class UsageError(Exception):
    """What was asked for cannot be meant; the exit code is 2."""


# ---- the command line ----


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem run``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "execmem run [options] CODE --sig SIGNATURE [ARG ...]"
    parser.epilog = (
        "types: i8 to i64, u8 to u64, f32, f64, bool, ptr, and void for no result. An\n"
        "ARG of type ptr is an address, null, text:... (its bytes and a zero) or hex:...\n"
        "(those bytes). Hex digits may have spaces, 0x, commas, and comments after # or ;\n"
        "between them.\n"
        "examples:\n"
        "  execmem run 488d0437c3 --sig 'i64(i64,i64)' 35 7    lea rax, [rdi + rsi]; ret\n"
        "  execmem run f.bin --sig 'f64(f64)' 0.5    objcopy -O binary -j .text f.o f.bin\n"
        "  echo c3 | execmem run - --sig 'void()' --repeat 1000\n"
        "exit code: 0 it returned, 1 it could not be placed, 2 wrong usage; 130 Ctrl-C;\n"
        "128 + N: signal N ended it, and stderr tells where; N: the code called exit(N)"
    )
    # As Python 3.13 has it: -1e3 and -0x10 are numbers too, and no options.
    parser._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # noqa: SLF001
    parser.add_argument("words", nargs="*", metavar="CODE", help="a file, hex digits, or - for standard input")
    parser.add_argument(
        "--sig", nargs="+", required=True, metavar=("SIGNATURE", "ARG"), help="such as 'i64(i64,ptr)', and arguments"
    )
    parser.add_argument(
        "--format", choices=("auto", "raw", "hex"), default="auto", help="of a file (auto: hex if all of it is)"
    )
    parser.add_argument("--mode", choices=MODES, help="write mode (the first that works here)")
    parser.add_argument("--repeat", type=to_count, default=1, metavar="N", help="calls, and the time of one (1)")
    parser.add_argument("--json", action="store_true", help="print the result and the rest as JSON")


def run(options: argparse.Namespace) -> int:
    """Place and call; print the result."""
    try:
        result, parameters = parse_signature(options.sig[0])
        word, *words = [*options.words, *options.sig[1:]] or [""]
        arguments = to_arguments(options.sig[0], parameters, words)
        code = read_code(word, options.format)
    except (UsageError, InvalidArgumentError) as error:
        print(f"execmem run: {error}", file=sys.stderr)
        return USAGE
    told, status = call_apart(code, options, arguments)
    if FAILED in told:
        print(f"execmem run: {told[FAILED]}", file=sys.stderr)
        return 1
    if not told:
        return tell_end(status)
    if options.json:
        print(json.dumps(told, indent=2))
        return 0
    if result != "void":
        print(told["result"])
    if options.repeat > 1:
        seconds = float(str(told["seconds"])) / options.repeat
        print(f"{options.repeat:,} calls of {tell_time(seconds)} each, the way from Python into them included")
    return 0


# ---- the code ----


def read_code(word: str, form: str) -> bytes:
    """Return machine code of a file, of standard input, or of hex digits that are given."""
    if not word:
        message = "CODE is missing: a file, hex digits, or - for standard input"
        raise UsageError(message)
    if word == "-":
        if sys.stdin is None:  # closed by who called
            message = "standard input is closed: there is no code in it"
            raise UsageError(message)
        return decode(read_bounded(sys.stdin.buffer, "standard input"), "standard input", form)
    try:
        is_file = Path(word).exists()
    except (OSError, ValueError):  # too long for a path: many digits
        is_file = False
    if is_file:
        try:
            with Path(word).open("rb") as file:
                return decode(read_bounded(file, word), word, form)
        except OSError as error:
            text = f"{word} cannot be read: {error.strerror}"
            raise ExecmemError(text) from None
    try:
        return to_bytes(word, "CODE")
    except UsageError as error:
        message = f"there is no file {word!r}, and it is no code in hex digits: {error}"
        raise UsageError(message) from None


def read_bounded(file: BinaryIO, where: str) -> bytes:
    """Return all of a file that is not larger than code is: some, as /dev/zero, have no end."""
    data = file.read(CODE_MAX + 1)
    if len(data) > CODE_MAX:
        message = f"{where} has more than {tell_bytes(CODE_MAX)}: that is no code to try"
        raise UsageError(message)
    return data


def decode(data: bytes, where: str, form: str) -> bytes:
    """Return the machine code in a file, which may be hex digits."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    is_hex = bool(text) and not set(BETWEEN.sub("", COMMENT.sub("", text))) - HEX
    if form == "hex" and not text and data:
        message = f"{where} is no text of hex digits"
        raise UsageError(message)
    code = to_bytes(text, where) if form == "hex" or (form == "auto" and is_hex) else data
    if not code:
        message = f"{where} is empty: there is no code in it"
        raise UsageError(message)
    return code


def to_bytes(text: str, where: str) -> bytes:
    r"""Return what hex digits mean.

    >>> to_bytes("0x48, 0x8d 04 37\n c3 # ret", "CODE").hex()
    '488d0437c3'
    """
    plain = BETWEEN.sub("", COMMENT.sub("", text))
    for char in plain:
        if char not in HEX:
            message = f"{where}: {char!r} is no hex digit (write bytes such as 48 8d 04 37 c3)"
            raise UsageError(message)
    if len(plain) % 2:
        message = f"{where}: {len(plain)} hex digits, and a byte has two"
        raise UsageError(message)
    if not plain:
        message = f"{where}: there is no code in it"
        raise UsageError(message)
    return bytes.fromhex(plain)


# ---- arguments ----


def to_arguments(signature: str, parameters: tuple[str, ...], words: list[str]) -> list[object]:
    """Return the arguments of a call."""
    if len(words) != len(parameters):
        message = f"{signature} takes {len(parameters)} argument{'s' * (len(parameters) != 1)}, {len(words)} given"
        raise UsageError(message)
    pairs = enumerate(zip(parameters, words, strict=True), 1)
    return [to_value(kind, word, f"argument {number}") for number, (kind, word) in pairs]


def to_value(kind: str, word: str, where: str) -> object:
    """Return what a word means as a type.

    >>> to_value("i8", "-0x80", "argument 1"), to_value("f64", "1e3", ""), to_value("bool", "true", "")
    (-128, 1000.0, True)
    """
    if kind in FLOATS:
        return to_float(kind, word, where)
    if kind == "ptr":
        return to_pointed(word, where)
    if kind == "bool":
        if word.lower() not in TRUTHS:
            message = f"{where}: {word!r} is no bool: true, false, 1 or 0"
            raise UsageError(message)
        return TRUTHS[word.lower()]
    bits = int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind[0] == "i" else (0, (1 << bits) - 1)
    return to_integer(word, low, high, f"{where}, of type {kind}")


def to_integer(word: str, low: int, high: int, where: str) -> int:
    """Return a whole number within bounds; 0x, 0o and 0b are understood."""
    try:
        value = int(word, 0)
    except ValueError:
        message = f"{where}: {word!r} is no whole number (42, -7, 0x2a)"
        raise UsageError(message) from None
    if not low <= value <= high:
        message = f"{where}: {word} is not within {low} and {high}"
        raise UsageError(message)
    return value


def to_float(kind: str, word: str, where: str) -> float:
    """Return a number of a width; one that becomes infinite only there is refused."""
    try:
        value = float(word)
    except ValueError:
        message = f"{where}: {word!r} is no number (0.5, -1e3, inf)"
        raise UsageError(message) from None
    most = F32_MAX if kind == "f32" else math.inf
    if (math.isinf(value) and "inf" not in word.lower()) or (math.isfinite(value) and abs(value) >= most):
        message = f"{where}: {word} is too large for {kind}"
        raise UsageError(message)
    return value


def to_pointed(word: str, where: str) -> object:
    """Return an address, or a buffer whose address the code gets."""
    if word == "null":
        return None
    kind, colon, rest = word.partition(":")
    if colon and kind == "text":
        return bytearray(os.fsencode(rest) + b"\0")
    if colon and kind == "hex":
        return bytearray(to_bytes(rest, where))
    if colon or not word[:1].isdecimal():
        message = f"{where}: {word!r} is no ptr: an address, null, text:... or hex:..."
        raise UsageError(message)
    return to_integer(word, 0, (1 << WORD_BITS) - 1, f"{where}, of type ptr")


# ---- the call ----


def call_apart(code: bytes, options: argparse.Namespace, arguments: list[object]) -> tuple[dict[str, object], int]:
    """Place and call the code in a child; return its message, empty when it ended before, and its wait status."""
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Other threads are numpy's, asleep; the child uses none of what they might have held.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait for the code to return
            told = call(code, options, arguments)
        except BaseException as error:  # noqa: BLE001 - the parent tells it; nothing of the parent's may run on here
            told = {FAILED: f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {}, status


def call(code: bytes, options: argparse.Namespace, arguments: list[object]) -> dict[str, object]:
    """Place the code and call it, in the child; what is refused is a message."""
    try:
        execmem.report_faults()
        domain = execmem.Domain("run", write_mode=options.mode)
        block = domain.place(code, name="code")
        function = block.function(options.sig[0])
        start = time.perf_counter()
        for _ in range(options.repeat - 1):
            function(*arguments)
        result = function(*arguments)
        seconds = time.perf_counter() - start
    except ExecmemError as error:
        return {FAILED: str(error)}
    kind, _ = parse_signature(options.sig[0])
    return {
        "result": tell_result(kind, result),
        "type": kind,
        "address": block.address,
        "size": len(code),
        "mode": domain.write_mode,
        "calls": options.repeat,
        "seconds": seconds,
    }


def tell_result(kind: str, result: object) -> object:
    """Return a result as it is printed, and as JSON has it: a pointer in hex, what no JSON number is as text."""
    if kind == "ptr" and isinstance(result, int):
        return hex(result)
    if isinstance(result, float) and not math.isfinite(result):
        return str(result)
    return result


def tell_end(status: int) -> int:
    """Tell how the code ended its process, and return the exit code that says so."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        text = f"{name} ended the code before it returned; exit code {SIGNALLED + number}"
        code = SIGNALLED + number
    else:
        code = os.WEXITSTATUS(status)
        text = f"the code ended its process, and did not return; exit code {code}"
    print(f"execmem run: {text}", file=sys.stderr)
    return code
