"""Describe the compiled core to cffi: what is declared, what is compiled, with which flags.

The declarations are cut out of ``execmem.h`` between its two marks, so nothing is declared twice. setup.py reads
``ffibuilder`` from here and runs from the root of the source tree, which all paths are relative to.

Environment of the build:

EXECMEM_DEBUG=1
    Turn the core's asserts on.
EXECMEM_SANITIZE=address,undefined
    Build under these sanitizers of the compiler; their runtime must be preloaded into Python (``make asan`` does).
EXECMEM_WERROR=0
    Let a compiler newer than this source warn about it.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CORE = ("csrc/*.c", "arch/*.c", "arch/*/*.c", "csrc/*.S", "arch/*/*.S")
HEADERS = ("csrc/*.h", "arch/*.h", "arch/*/*.h")

# What cffi generates is not ours to keep free of warnings: it ignores parameters and leaves fields of its tables out.
PREAMBLE = """
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include "execmem.h"
#include "pyblock.h"
"""

# Of pyblock.h, what Python calls through cffi.
BATCHES = """
int pyblock_alloc_many(execmem_domain *domain, int kind, size_t count, const uint64_t *sizes, size_t align,
                       const char *names, uint64_t *out, char *live);
int pyblock_place_many(execmem_domain *domain, int kind, size_t count, const void *src, const uint64_t *offsets,
                       size_t align, const char *names, uint64_t *out, char *live);
"""

# The oldest interpreter that a wheel serves. Free-threaded ones have no stable interface before 3.15, as setup.py says.
STABLE = None if sysconfig.get_config_var("Py_GIL_DISABLED") else "0x030A0000"


def declarations(header: str) -> str:
    """Return the part of ``execmem.h`` that both C and cffi read."""
    begin, end = "/* cdef: begin */", "/* cdef: end */"
    if header.count(begin) != 1 or header.count(end) != 1:
        message = f"execmem.h needs exactly one {begin} and one {end}"
        raise ValueError(message)
    return header.partition(begin)[2].partition(end)[0]


def files(*patterns: str) -> list[str]:
    """Return the files that match, sorted, relative to the root of the source tree."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def compile_flags() -> list[str]:
    """Return the compiler's flags; the environment above may change them."""
    flags = ["-std=c11", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wundef", "-Wshadow"]
    if os.environ.get("EXECMEM_WERROR", "1") != "0":
        flags.append("-Werror")
    sanitizers = os.environ.get("EXECMEM_SANITIZE", "")
    if sanitizers:
        flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]
    else:
        flags.append("-O2")
    if platform.machine() == "x86_64":
        flags.append("-mpopcnt")  # arch/arch.c refuses the CPUs before 2008 that lack it
    return flags


def link_flags() -> list[str]:
    """Return the linker's flags."""
    sanitizers = os.environ.get("EXECMEM_SANITIZE", "")
    return ["-pthread", *([f"-fsanitize={sanitizers}"] if sanitizers else [])]


def macros() -> list[tuple[str, str | None]]:
    """Return what the preprocessor is told."""
    debug = os.environ.get("EXECMEM_DEBUG", "0") not in {"", "0"}
    return [
        ("_GNU_SOURCE", None),
        *([("Py_LIMITED_API", STABLE)] if STABLE else []),
        *([("EM_DEBUG", "1")] if debug else []),
    ]


ffibuilder = FFI()
ffibuilder.cdef(declarations((ROOT / "csrc" / "execmem.h").read_text(encoding="utf-8")))
ffibuilder.cdef(BATCHES)
ffibuilder.set_source(
    "execmem._core",
    PREAMBLE,
    sources=files(*CORE),
    depends=files(*HEADERS),
    include_dirs=["csrc", "arch"],
    define_macros=macros(),
    extra_compile_args=compile_flags(),
    extra_link_args=link_flags(),
)
