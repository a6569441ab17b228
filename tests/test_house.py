"""The rules of the house, as far as a program can hold them.

A rule takes the source tree as a mapping from path to text and returns complaints in words. Each is run on this tree,
where it must find nothing, and on the small bad trees further down, where it must find something.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest

Tree = Mapping[str, str]
Rule = Callable[[Tree], list[str]]

ROOT: Final = Path(__file__).resolve().parent.parent
CORE: Final = ("csrc/", "arch/")
MADE: Final = re.compile(r"build|dist|\.venv|\.git|__pycache__|\..*_cache|\.hypothesis|\.benchmarks|.*\.egg-info")
TEXT: Final = re.compile(r"\.(c|h|cpp|S|py|pyi|md|toml|json|jsonl|txt|in)$|(^|/)(Makefile|LICENSE|run|\.[a-z-]+)$")
FILE_LINES: Final = 900
FUNCTION_LINES: Final = 70


def read_tree(root: Path) -> dict[str, str]:
    """Return the text files below a directory, what is made by building and running left out."""
    tree: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        if MADE.fullmatch(path.name):
            continue
        if path.is_dir():
            tree |= {f"{path.name}/{name}": text for name, text in read_tree(path).items()}
        elif TEXT.search(path.name):
            tree[path.name] = path.read_text(encoding="utf-8")
    return tree


def pick(tree: Tree, *ends: str, under: tuple[str, ...] = ("",)) -> Iterator[tuple[str, str]]:
    """Give the files whose names end in one of `ends`, in one of the folders."""
    return ((path, text) for path, text in tree.items() if path.endswith(ends) and path.startswith(under))


# ---- reading C and Python ----

C_NOISE: Final = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
C_PLUS_PLUS: Final = re.compile(r"^#ifdef __cplusplus\n.*?^#endif", re.DOTALL | re.MULTILINE)
C_DIRECTIVE: Final = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
C_ATTRIBUTE: Final = re.compile(r"__attribute__\s*\(\(.*?\)\)|__asm__\s*\([^)]*\)")
C_NAME: Final = re.compile(r"(\w+)\s*\(")
INCLUDE: Final = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)', re.MULTILINE)


def blank(match: re.Match[str]) -> str:
    """Return as many lines as were matched, with nothing on them."""
    return " " + "\n" * match[0].count("\n")


def strip_c(text: str) -> str:
    """Return C without comments, texts and directives, each line where it was."""
    text = C_PLUS_PLUS.sub(blank, C_NOISE.sub(blank, text))
    return C_ATTRIBUTE.sub(blank, C_DIRECTIVE.sub(blank, text))


def includes(text: str) -> list[tuple[str, bool]]:
    """Return what a C file includes, and whether each is of this house."""
    return [(name, mark == '"') for mark, name in INCLUDE.findall(text)]


@dataclass(frozen=True)
class Piece:
    """A declaration at file level: what stands before its brace or semicolon, and the lines it takes."""

    head: str
    first: int
    last: int
    body: bool

    @property
    def name(self) -> str:
        """Return the name before the first parenthesis, or nothing."""
        found = C_NAME.search(self.head)
        return found[1] if found and "=" not in self.head[: found.start()] else ""

    @property
    def function(self) -> bool:
        """Tell whether a function is defined here."""
        return self.body and self.head.endswith(")") and bool(self.name)

    @property
    def static(self) -> bool:
        """Tell whether no other file sees it."""
        return self.head.startswith("static")


def pieces(text: str) -> list[Piece]:
    """Return what is declared and defined at the level of a C file."""
    stripped = strip_c(text)
    found: list[Piece] = []
    depth = start = brace = 0
    for at, char in enumerate(stripped):
        if char == "{":
            brace = at if depth == 0 else brace
            depth += 1
            continue
        depth -= char == "}"
        body = char == "}" and depth == 0
        head = stripped[start : brace if body else at].strip()
        # A structure and an initialised table go on to their semicolon; a function ends with its brace.
        if (body and head.endswith(")")) or (char == ";" and depth == 0):
            first = stripped.count("\n", 0, len(stripped) - len(stripped[start:].lstrip())) + 1
            found.append(Piece(" ".join(head.split()), first, stripped.count("\n", 0, at) + 1, body))
            start = at + 1
    return found


def c_calls(text: str, names: str) -> Iterator[tuple[int, str]]:
    """Give line and name of each call of a plain function (no member, no longer name) among `names`."""
    for number, line in enumerate(strip_c(text).split("\n"), 1):
        for match in re.finditer(rf"(?<![\w.>])({names})\s*\(", line):
            yield number, match[1]


# ---- the rules ----

SYSTEM_CALLS: Final = (
    "mmap|munmap|mprotect|mremap|madvise|msync|mlock|memfd_create|pwritev?|preadv?|ioctl|syscall|open|openat|creat|close|"
    "read|write|readv|writev|lseek|ftruncate|fallocate|fstat|stat|prctl|getrandom|getpid|gettid|kill|tgkill|raise|"
    "sigaction|sigaltstack|process_vm_readv|signal|fork|vfork|execve|pipe2?|socket|fopen|fdopen|opendir|clock_gettime|nanosleep|sysconf|getrlimit|"
    "setrlimit|pthread_atfork|pthread_create|pthread_kill|membarrier"
)
SYSTEM_HEADERS: Final = re.compile(
    r"sys/.*|linux/.*|asm/.*|unistd\.h|fcntl\.h|signal\.h|sched\.h|dirent\.h|pthread\.h|ucontext\.h"
)


SYSTEM_FILES: Final = (
    "csrc/sys_linux.c",
    "csrc/sys_fault.c",
    "csrc/sys_host.c",
    "csrc/sys_keys.c",
    "csrc/sys_seal.c",
    "csrc/sys_stop.c",
    "csrc/sys_trap.c",
)


def system_calls_in_their_files(tree: Tree) -> list[str]:
    """Only the files of sys make system calls (law 3)."""
    complaints = []
    for path, text in pick(tree, ".c", ".h", under=CORE):
        if path in SYSTEM_FILES:
            continue
        complaints += [
            f"{path}:{line}: {name}() belongs in one of {', '.join(SYSTEM_FILES)}, behind sys.h"
            for line, name in c_calls(text, SYSTEM_CALLS)
        ]
        complaints += [
            f"{path} includes <{name}>; only {' and '.join(SYSTEM_FILES)} speak to the system"
            for name, ours in includes(text)
            if not ours and SYSTEM_HEADERS.fullmatch(name)
        ]
    return complaints


# Lowest first. A file may include what stands on a lower floor and, on its own floor, what stands to its left.
C_FLOORS: Final = (
    ("execmem.h", "base", "sys", "error"),
    ("arch", "room", "map", "pack", "park", "index", "ledger", "grave", "grace"),
    ("poke", "live"),
    ("domain", "report", "supply", "quarantine", "fork", "seal", "stats"),
    ("block",),
    ("batch", "execmem", "site", "retire"),
    ("pyblock",),
    ("patch", "hook", "object", "function", "bpf"),
)
C_PLACES: Final = {name: place for place, name in enumerate(name for floor in C_FLOORS for name in floor)}
PURE: Final = {  # these hold no state of their own and call nobody: each with all that it may include of ours
    "csrc/pack": {"execmem.h", "base.h", "arch.h", "pack.h"},
    "csrc/park": {"execmem.h", "base.h", "arch.h", "park.h"},
    "csrc/index": {"execmem.h", "base.h", "arch.h", "pack.h", "index.h"},
    "arch/": {"execmem.h", "base.h", "arch.h", "room.h"},
}


def floor_name(file: str) -> str:
    """Return the name under which C_FLOORS has a file."""
    name = PurePosixPath(file).name
    stem = name.rsplit(".", 1)[0]
    if name == "execmem.h":
        return name
    if stem.startswith("sys_"):
        return "sys"
    return "room" if file.startswith("arch/") and file.count("/") > 1 else stem


def includes_point_down(tree: Tree) -> list[str]:
    """A file includes only what lies below it (law 7)."""
    complaints = []
    for path, text in pick(tree, ".c", ".h", under=CORE):
        own = floor_name(path)
        if own not in C_PLACES:
            complaints.append(f"{path} is on no floor: give it one in ARCHITECTURE.md and in C_FLOORS")
            continue
        for name, ours in includes(text):
            other = floor_name(name)
            if ours and other not in C_PLACES:
                complaints.append(f"{path} includes {name}, which is on no floor")
            elif ours and other != own and C_PLACES[other] >= C_PLACES[own]:
                complaints.append(f"{path} includes {name}, which lies above or beside it")
    return complaints


def bookkeeping_is_pure(tree: Tree) -> list[str]:
    """Bookkeeping and encoders hold no state, no lock and no system call (law 4)."""
    complaints = []
    for start, allowed in PURE.items():
        for path, text in pick(tree, ".c", ".h", under=(start,)):
            complaints += [
                f"{path} includes {name}, but it is pure: {', '.join(sorted(allowed))} only"
                for name, ours in includes(text)
                if ours and name not in allowed
            ]
            complaints += [
                f"{path}:{piece.first}: a pure file has no variables: {piece.head[:60]}"
                for piece in pieces(text)
                if not piece.function
                and re.match(
                    r"(static |_Thread_local |extern )*(struct |unsigned )?\w+[\s*]+\w+(\[.*\])?( = ?.*)?$", piece.head
                )
                and not re.search(r"\b(const|typedef|enum|return)\b", piece.head)
                and not re.match(r"(struct|union) \w+( \{.*)?$", piece.head)
            ]
    return complaints


# Lowest first. A module may import what stands before it. "execmem" is the front page.
MODULES: Final = (
    *("directmap.__init__", "directmap.trace", "directmap.source", "directmap.region", "directmap.perf"),
    *("directmap.convert", "directmap.record", "directmap.history", "directmap.pages", "directmap.model"),
    *("directmap.policy", "directmap.workload", "directmap.replay", "directmap.kernels"),
    *("directmap.live", "directmap.lab", "directmap.lab_cli"),
    *("draw", "screen", "draw_directmap", "draw_svg", "page", "draw_html", "draw_svg_replay", "draw_html_replay"),
    *("picture", "_core", "errors", "ledger", "memory", "retire", "hardening", "site", "function"),
    *("watch", "survey", "draw_packs", "draw_svg_packs", "draw_html_packs", "notebook"),
    *("occupancy", "draw_occupancy", "draw_html_occupancy", "domain", "patch", "object", "execmem"),
    *("export", "export_packs", "demo_code", "demo", "bench_loops", "bench_crew", "soak", "doctor"),
    *("tui", "directmap_tui", "directmap_watch", "directmap_cli", "replay_cli"),
    *("map_cli", "top_tui", "top_cli", "run_cli", "export_cli", "bench_cli", "cli", "completion", "__main__"),
)


def modules_imported(text: str, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Give line and name of each module of this package that a module imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "execmem":
            names = [f"execmem.{alias.name}" if alias.name in known else "execmem" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "execmem.directmap":
            names = [f"execmem.directmap.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in names:
            if name == "execmem" or name.startswith(("execmem.", ".")):
                yield node.lineno, name.removeprefix("execmem.")


def imports_point_down(tree: Tree) -> list[str]:
    """A Python module imports only modules below it (law 7)."""
    complaints = []
    known = frozenset(MODULES)
    for path, text in pick(tree, ".py", under=("execmem/",)):
        own = path.removeprefix("execmem/").removesuffix(".py").replace("/", ".")
        own = "execmem" if own == "__init__" else own
        if own not in known:
            complaints.append(f"{path} is on no floor: give it one in ARCHITECTURE.md and in MODULES")
            continue
        for line, name in modules_imported(text, known):
            if name not in known:
                complaints.append(f"{path}:{line}: imports {name}, which is on no floor (import by full name)")
            elif MODULES.index(name) >= MODULES.index(own):
                complaints.append(f"{path}:{line}: imports {name}, which lies above it")
    return complaints


BANNER: Final = re.compile(r"/\* ---- (.+?) ---- \*/")


def rooms_have_one_shape(tree: Tree) -> list[str]:
    """Every arch/<cpu>/ has the same files with the same banners in the same order."""
    rooms: dict[str, dict[str, list[str]]] = {}
    for path, text in pick(tree, "", under=("arch/",)):
        if path.count("/") > 1:
            room, file = path.removeprefix("arch/").split("/", 1)
            rooms.setdefault(room, {})[file] = BANNER.findall(text)
    if not rooms:
        return ["arch/ has no rooms"]
    model = max(rooms, key=lambda room: len(rooms[room]))
    complaints = []
    for room, files in rooms.items():
        complaints += [f"arch/{room}/ lacks {file}, which arch/{model}/ has" for file in rooms[model].keys() - files]
        complaints += [f"arch/{room}/{file} is not in arch/{model}/" for file in files.keys() - rooms[model]]
        complaints += [
            f"arch/{room}/{file} has banners {banners}, arch/{model}/{file} has {rooms[model][file]}"
            for file, banners in files.items()
            if file in rooms[model] and banners != rooms[model][file]
        ]
    return complaints


def architecture_names_every_file(tree: Tree) -> list[str]:
    """ARCHITECTURE.md names each file of csrc/, arch/ and execmem/; `map.[ch]` names two."""
    page = tree.get("ARCHITECTURE.md", "")
    page = re.sub(r"(\w+)\.\[ch\]", r"\1.c \1.h", page)
    names = set(re.findall(r"[\w.]*\w", page))
    return [
        f"ARCHITECTURE.md does not name {path}"
        for path, _ in pick(tree, ".c", ".h", ".S", ".py", ".pyi", under=(*CORE, "execmem/"))
        if not {PurePosixPath(path).name, *PurePosixPath(path).parts[1:-1]} <= names
    ]


def files_are_short(tree: Tree) -> list[str]:
    """A file of code has at most 900 lines."""
    return [
        f"{path} has {text.count(chr(10))} lines, the budget is {FILE_LINES}: two things live in it"
        for path, text in pick(tree, ".c", ".h", ".cpp", ".S", ".py")
        if text.count("\n") > FILE_LINES
    ]


def python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Give name, first line and length of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, last = node.lineno, node.end_lineno or node.lineno
            told = node.body[0] if ast.get_docstring(node) is not None else None
            lines = (told.end_lineno or told.lineno) - told.lineno + 1 if told else 0
            yield node.name, first, last - first + 1 - lines


def functions_are_short(tree: Tree) -> list[str]:
    """A function has at most 70 lines, a Python docstring not counted."""
    found = [
        (path, piece.name, piece.first, piece.last - piece.first + 1)
        for path, text in pick(tree, ".c", ".h")
        for piece in pieces(text)
        if piece.function
    ]
    found += [(path, *function) for path, text in pick(tree, ".py") for function in python_functions(text)]
    return [
        f"{path}:{line}: {name} has {length} lines, the budget is {FUNCTION_LINES}"
        for path, name, line, length in found
        if length > FUNCTION_LINES
    ]


LEFT_OVER: Final = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
MACHINE: Final = "/wo" + "rk/"


def nothing_is_left_for_later(tree: Tree) -> list[str]:
    """No file holds a note that stands for work not done."""
    return [
        f"{path}:{number}: {line.strip()[:80]}"
        for path, text in tree.items()
        for number, line in enumerate(text.split("\n"), 1)
        if LEFT_OVER.search(line)
    ]


def no_file_names_a_machine(tree: Tree) -> list[str]:
    """No file names a directory of the machine it was written on."""
    return [f"{path} names {MACHINE}..., which no user has" for path, text in tree.items() if MACHINE in text]


def no_c_file_includes_another(tree: Tree) -> list[str]:
    """Headers are included, never .c files."""
    return [
        f"{path} includes {name}: declare it in a header"
        for path, text in pick(tree, ".c", ".h", ".cpp")
        for name, _ in includes(text)
        if name.endswith((".c", ".cpp"))
    ]


def conditions_stay_in_their_files(tree: Tree) -> list[str]:
    """#if lives in sys_*.c, arch/*/poke.c and arch.c, the chooser: all else is a value of struct em_arch."""
    return [
        f"{path}: {line.strip()}: put it in the room's table, in sys_*.c or in arch.c"
        for path, text in pick(tree, ".c", under=CORE)
        if not re.fullmatch(r"csrc/sys_\w+\.c|arch/\w+/poke\.c|arch/arch\.c", path)
        for line in re.findall(r"^[ \t]*#[ \t]*if.*", text, re.MULTILINE)
    ]


def writable_and_executable_never_meet(tree: Tree) -> list[str]:
    """No line asks for a view that is writable and executable (law 1)."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in pick(tree, ".c", ".h", under=CORE)
        for number, line in enumerate(strip_c(text).split("\n"), 1)
        if re.search(r"(PROT|EM)_WRITE\s*\|\s*(PROT|EM)_EXEC|(PROT|EM)_EXEC\s*\|\s*(PROT|EM)_WRITE", line)
        and not re.search(r"em_always|em_assert", line)
    ]


def only_poke_opens_doors(tree: Tree) -> list[str]:
    """Nobody but poke and live asks for the writable view."""
    return [
        f"{path}:{line}: {name}() is for poke.c and live.c: write through em_poke_*"
        for path, text in pick(tree, ".c", under=CORE)
        if path not in {"csrc/poke.c", "csrc/live.c", "csrc/map.c"}
        for line, name in c_calls(text, "em_map_open_door|em_map_close_door")
    ]


CDEF: Final = re.compile(r"/\* cdef: begin \*/(.*)/\* cdef: end \*/", re.DOTALL)


def public_names_say_so(tree: Tree) -> list[str]:
    """Every name that execmem.h gives to the world begins with execmem_ or EXECMEM_."""
    door = CDEF.search(tree.get("csrc/execmem.h", ""))
    if not door:
        return ["csrc/execmem.h has no declarations between its marks"]
    stripped = strip_c(door[1])
    names = [piece.name for piece in pieces(door[1]) if piece.name and "{" not in piece.head]
    names += re.findall(r"\b(?:struct|enum|union)\s+(\w+)", stripped)
    for body in re.findall(r"\benum\s+\w+\s*\{(.*?)\}", stripped, re.DOTALL):
        names += re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", body.strip())
    names += re.findall(r"\btypedef\b[^;{]*(?:\{[^}]*\})?\s*\b(\w+)\s*;", stripped)
    return [f"execmem.h declares {name}" for name in names if not re.match(r"execmem_\w|EXECMEM_\w", name)]


def names_show_their_reach(tree: Tree) -> list[str]:
    """em_<file>_x goes between files and is declared in <file>.h, execmem_x in execmem.h; all else is static."""
    declared = {path: {piece.name for piece in pieces(text)} for path, text in pick(tree, ".h", under=CORE)}
    everyone = declared.get("csrc/base.h", set())
    complaints = []
    for path, text in pick(tree, ".c", under=CORE):
        parts = PurePosixPath(path).parts
        cpu = parts[1] if len(parts) > 2 else ""
        name = cpu or floor_name(path)
        header = f"arch/{cpu}/room.h" if cpu else f"{parts[0]}/{name}.h"
        known = declared.get(header, set()) | (declared.get("arch/arch.h", set()) if cpu else set())
        for piece in pieces(text):
            if not piece.function or piece.static or piece.name in everyone:
                continue
            if piece.name.startswith("execmem_"):
                if piece.name not in declared.get("csrc/execmem.h", set()):
                    complaints.append(f"{path}:{piece.first}: {piece.name} is not declared in execmem.h")
            elif not piece.name.startswith(f"em_{name}_"):
                complaints.append(f"{path}:{piece.first}: {piece.name} is neither static nor named em_{name}_...")
            elif piece.name not in known:
                complaints.append(f"{path}:{piece.first}: {piece.name} is not declared in {header}")
    return complaints


# ---- the README ----

CODE_FENCE: Final = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FIGURE: Final = r"(\d[\d,]*(?:\.\d+)?)"
MARKED: Final = re.compile(FIGURE + r"[^\d\n<|]{0,20}<!-- bench:([\w./-]+):(.+?)(?:\*([\d.eE-]+))? -->")
UNMARKED: Final = re.compile(FIGURE + r"(?: ?(?:ns|us|µs|ms|GB/s|MB/s)\b|x\b| times\b)(?! *<!-- bench:)")


def look_up(value: Any, key: str) -> float:
    """Return the number at a key such as `results/peer=alias,live=1000/median` or `results/0/median`."""
    for part in key.split("/"):
        if isinstance(value, list) and "=" in part:
            wanted = dict(pair.split("=", 1) for pair in part.split(","))
            rows = [row for row in value if all(str(row.get(name)) == text for name, text in wanted.items())]
            if len(rows) != 1:
                message = f"{len(rows)} rows are {part}"
                raise LookupError(message)
            value = rows[0]
        else:
            value = value[int(part)] if isinstance(value, list) else value[part]
    return float(value)


def numbers_were_measured(tree: Tree) -> list[str]:
    """Every measured number of the README is found in benchmarks/results/, to the digits shown."""
    page = CODE_FENCE.sub(blank, tree.get("README.md", ""))
    complaints = [
        f'README.md: "{match[0]}" has no <!-- bench:FILE:KEY --> after it' for match in UNMARKED.finditer(page)
    ]
    for shown, file, key, factor in MARKED.findall(page):
        digits = len(shown.partition(".")[2])
        try:
            measured = look_up(json.loads(tree[f"benchmarks/results/{file}"]), key) * float(factor or 1)
        except (LookupError, ValueError, TypeError) as error:
            complaints.append(f"README.md: {shown}: nothing at {key} of benchmarks/results/{file} ({error!r})")
            continue
        if f"{measured:,.{digits}f}".replace(",", "") != shown.replace(",", ""):
            complaints.append(f"README.md says {shown}, benchmarks/results/{file} has {measured:.6g} at {key}")
    return complaints


def readme_commands_are_run(tree: Tree) -> list[str]:
    """The README's two commands are those that .ci/run runs."""
    commands = re.findall(r'^(demo|tests)="(.*)"$', tree.get(".ci/run", ""), re.MULTILINE)
    if [name for name, _ in commands] != ["demo", "tests"]:
        return ['.ci/run needs a line demo="..." and a line tests="..."']
    fences = "\n".join(CODE_FENCE.findall(tree.get("README.md", "")))
    return [
        f"README.md does not give the command of .ci/run: {command}" for _, command in commands if command not in fences
    ]


def changes_are_told(tree: Tree) -> list[str]:
    """CHANGELOG.md has a place for what is not released yet."""
    return [] if "\n## [Unreleased]\n" in tree.get("CHANGELOG.md", "") else ["CHANGELOG.md has no ## [Unreleased]"]


# ---- this tree, and trees that break one rule each ----

DOOR = "/* cdef: begin */\n{}\n/* cdef: end */\n"
LONG_C = "int f(void)\n{\n" + "\tg();\n" * 70 + "}\n"
LONG_PYTHON = "def f():\n" + "    g()\n" * 70
CI = 'demo="a && b"\ntests="c && d"\n'

BAD: Final[tuple[tuple[Rule, dict[str, str], str], ...]] = (
    (system_calls_in_their_files, {"csrc/map.c": "int f(void)\n{\n\treturn mmap(0, 1);\n}\n"}, "map.c:3: mmap"),
    (system_calls_in_their_files, {"arch/x86_64/poke.c": "void f(void) { syscall (1); }"}, "syscall() belongs"),
    (system_calls_in_their_files, {"csrc/poke.c": "#include <sys/mman.h>\n"}, "<sys/mman.h>"),
    (system_calls_in_their_files, {"csrc/sys_new.c": "void f(void) { sigaction(1); }"}, "sys_new.c:1: sigaction"),
    (includes_point_down, {"csrc/map.c": '#include "domain.h"\n'}, "map.c includes domain.h"),
    (includes_point_down, {"csrc/pack.h": '#include "index.h"\n'}, "above or beside"),
    (includes_point_down, {"csrc/new.c": ""}, "on no floor"),
    (includes_point_down, {"csrc/map.c": '#include "new.h"\n'}, "new.h, which is on no floor"),
    (bookkeeping_is_pure, {"csrc/pack.c": '#include "sys.h"\n'}, "it is pure"),
    (bookkeeping_is_pure, {"arch/x86_64/insn.c": '#include "map.h"\n'}, "it is pure"),
    (bookkeeping_is_pure, {"csrc/index.c": "static int count;\n"}, "no variables: static int count"),
    (bookkeeping_is_pure, {"csrc/pack.c": "static struct em_pack last[4] = {0};\n"}, "no variables"),
    (imports_point_down, {"execmem/errors.py": "from execmem.domain import Block\n"}, "lies above"),
    (imports_point_down, {"execmem/memory.py": "def f():\n    import execmem\n"}, "memory.py:2: imports execmem"),
    (imports_point_down, {"execmem/ledger.py": "from execmem import domain\n"}, "imports domain"),
    (imports_point_down, {"execmem/memory.py": "from . import errors\n"}, "full name"),
    (imports_point_down, {"execmem/new.py": ""}, "on no floor"),
    (imports_point_down, {"execmem/directmap/trace.py": "from execmem.directmap import record\n"}, "lies above"),
    (rooms_have_one_shape, {"arch/a/x.c": "", "arch/a/y.c": "", "arch/b/x.c": ""}, "arch/b/ lacks y.c"),
    (rooms_have_one_shape, {"arch/a/x.c": "", "arch/b/y.c": ""}, "is not in"),
    (
        rooms_have_one_shape,
        {
            "arch/a/x.c": "/* ---- one ---- */ /* ---- two ---- */",
            "arch/b/x.c": "/* ---- two ---- */ /* ---- one ---- */",
        },
        "has banners",
    ),
    (rooms_have_one_shape, {}, "no rooms"),
    (
        architecture_names_every_file,
        {"ARCHITECTURE.md": "`map.[ch]`", "csrc/map.c": "", "csrc/bitmap.c": ""},
        "bitmap.c",
    ),
    (architecture_names_every_file, {"ARCHITECTURE.md": "`insn.c` of x86_64/", "arch/none/insn.c": ""}, "none/insn.c"),
    (files_are_short, {"csrc/x.c": "\n" * 901}, "901 lines"),
    (functions_are_short, {"csrc/x.c": LONG_C}, "csrc/x.c:1: f has 73 lines"),
    (functions_are_short, {"execmem/x.py": LONG_PYTHON}, "execmem/x.py:1: f has 71 lines"),
    (nothing_is_left_for_later, {"docs/a.md": "one\nTO" + "DO: two\n"}, "docs/a.md:2"),
    (no_file_names_a_machine, {"Makefile": f"cd {MACHINE}x\n"}, "Makefile"),
    (no_c_file_includes_another, {"tests/c/test_a.c": '#include "../../csrc/pack.c"\n'}, "pack.c"),
    (conditions_stay_in_their_files, {"csrc/domain.c": "#ifdef __x86_64__\n#endif\n"}, "__x86_64__"),
    (writable_and_executable_never_meet, {"csrc/map.c": "f(PROT_READ | PROT_WRITE | PROT_EXEC);"}, "map.c:1"),
    (writable_and_executable_never_meet, {"csrc/sys_linux.c": "f(EM_EXEC | EM_WRITE);"}, "sys_linux.c:1"),
    (only_poke_opens_doors, {"csrc/domain.c": "void f(void)\n{\n\tem_map_open_door(m);\n}\n"}, "domain.c:3"),
    (public_names_say_so, {"csrc/execmem.h": DOOR.format("int em_pack_take(int x);")}, "em_pack_take"),
    (public_names_say_so, {"csrc/execmem.h": DOOR.format("enum execmem_a { EXECMEM_B = 1, C };")}, "declares C"),
    (public_names_say_so, {"csrc/execmem.h": DOOR.format("typedef struct execmem_a { int x; } a_t;")}, "a_t"),
    (public_names_say_so, {"csrc/execmem.h": DOOR.format("struct other;")}, "other"),
    (public_names_say_so, {}, "between its marks"),
    (names_show_their_reach, {"csrc/map.c": "int grow(int x)\n{\n}\n"}, "grow is neither static"),
    (names_show_their_reach, {"csrc/map.c": "int em_pack_x(void)\n{\n}\n"}, "nor named em_map_"),
    (
        names_show_their_reach,
        {"csrc/map.c": "int em_map_x(void)\n{\n}\n", "csrc/map.h": ""},
        "not declared in csrc/map.h",
    ),
    (names_show_their_reach, {"csrc/execmem.c": "int execmem_x(void)\n{\n}\n"}, "not declared in execmem.h"),
    (names_show_their_reach, {"arch/none/poke.c": "int em_x86_64_flush(void)\n{\n}\n"}, "nor named em_none_"),
    (numbers_were_measured, {"README.md": "It takes 73 ns a call."}, "73 ns"),
    (numbers_were_measured, {"README.md": "12.5x faster"}, "12.5x"),
    (numbers_were_measured, {"README.md": "73 ns <!-- bench:a.json:x -->"}, "nothing at x"),
    (
        numbers_were_measured,
        {"README.md": "73 ns <!-- bench:a.json:x/0 -->", "benchmarks/results/a.json": '{"x": [74]}'},
        "README.md says 73",
    ),
    (
        numbers_were_measured,
        {"README.md": "7 us <!-- bench:a.json:p=b -->", "benchmarks/results/a.json": '[{"p": "c"}]'},
        "0 rows are p=b",
    ),
    (readme_commands_are_run, {".ci/run": CI, "README.md": "```sh\na && b\n```\nc && d\n"}, "c && d"),
    (readme_commands_are_run, {"README.md": ""}, "needs a line"),
    (changes_are_told, {"CHANGELOG.md": "## 0.1.0\n"}, "Unreleased"),
)

GOOD: Final[tuple[tuple[Rule, dict[str, str]], ...]] = (
    (system_calls_in_their_files, {"csrc/sys_linux.c": "#include <unistd.h>\nint f(void) { return read(0, 0, 0); }"}),
    (
        system_calls_in_their_files,
        {"csrc/map.c": "/* mmap() */ int f(x) { return em_sys_write(1) + x->open(2) + t.read(3); }"},
    ),
    (
        bookkeeping_is_pure,
        {"csrc/pack.h": "struct em_pack {\n\tint *x;\n};\nstatic const int a[] = {1};\nenum { A = 1 };\n"},
    ),
    (
        bookkeeping_is_pure,
        {"csrc/pack.c": "static int f(int *a)\n{\n\tstruct em_pack p = {0};\n\treturn a[0] = 1;\n}\n"},
    ),
    (imports_point_down, {"execmem/directmap/record.py": "from execmem.directmap import trace\n"}),
    (imports_point_down, {"execmem/cli.py": "import execmem\nfrom execmem import demo\nimport execmem.draw\n"}),
    (
        architecture_names_every_file,
        {"ARCHITECTURE.md": "map.[ch], none: insn.c", "csrc/map.h": "", "arch/none/insn.c": ""},
    ),
    (
        functions_are_short,
        {"x.c": LONG_C.replace("\tg();\n", "", 3) * 3, "x.py": 'def f():\n    """A.' + "\n" * 90 + '"""\n'},
    ),
    (public_names_say_so, {"csrc/execmem.h": DOOR.format("typedef struct execmem_a { int (*x)(int y); } execmem_a;")}),
    (
        names_show_their_reach,
        {"csrc/map.c": "int em_map_x(void)\n{\n}\n", "csrc/map.h": "int em_map_x(void) __attribute__((cold));"},
    ),
    (
        numbers_were_measured,
        {
            "README.md": "| 1,234.5 us <!-- bench:a.json:r/p=b,n=2/t*0.001 --> | 2 MB | `x86` |\n```\n9 ns\n```\n",
            "benchmarks/results/a.json": '{"r": [{"p": "b", "n": 1, "t": 7}, {"p": "b", "n": 2, "t": 1234512}]}',
        },
    ),
)

RULES: Final = tuple(dict.fromkeys(rule for rule, _, _ in BAD))


@pytest.fixture(scope="module")
def tree() -> Tree:
    return read_tree(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_tree_keeps_the_rule(rule: Rule, tree: Tree) -> None:
    complaints = rule(tree)
    assert not complaints, "\n".join([rule.__doc__ or "", *complaints])


@pytest.mark.parametrize(("rule", "bad", "words"), BAD, ids=[f"{rule.__name__}-{words}" for rule, _, words in BAD])
def test_a_rule_finds_what_breaks_it(rule: Rule, bad: Tree, words: str) -> None:
    assert any(words in complaint for complaint in rule(bad)), rule(bad)


@pytest.mark.parametrize(("rule", "good"), GOOD, ids=[rule.__name__ for rule, _ in GOOD])
def test_a_rule_leaves_what_keeps_it(rule: Rule, good: Tree) -> None:
    assert rule(good) == []


def test_every_rule_is_known_to_be_able_to_fail(tree: Tree) -> None:
    written = {
        node.name
        for node in ast.parse(tree["tests/test_house.py"]).body
        if isinstance(node, ast.FunctionDef) and [arg.arg for arg in node.args.args] == ["tree"] and node.returns
        if ast.unparse(node.returns) == "list[str]"
    }
    assert written == {rule.__name__ for rule in RULES}


def test_the_tree_is_read() -> None:
    tree = read_tree(ROOT)
    assert {"csrc/execmem.h", "arch/x86_64/insn.c", "execmem/memory.py", "Makefile", ".ci/run"} <= tree.keys()
