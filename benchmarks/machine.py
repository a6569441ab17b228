"""Describe the machine, the compilers and the libraries; what cannot be read is "not available"."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import building

PACKAGES = ("libasmjit-dev", "libmimalloc-dev", "libffi-dev", "libtcc-dev")


def read(path: str, default: str = "not available") -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return default


def first_match(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else "not available"


def output_of(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=building.ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "not available"
    return run.stdout.strip()


def memory_available() -> int:
    """Return how many bytes the kernel could give without swapping."""
    return int(first_match(r"^MemAvailable:\s*(\d+)", read("/proc/meminfo"))) * 1024


def describe(compilers: dict[str, str]) -> dict[str, Any]:
    cpu = read("/proc/cpuinfo")
    thp = "/sys/kernel/mm/transparent_hugepage"
    dirty = output_of(
        "git", "status", "--porcelain", "--untracked-files=no", "--", "csrc", "arch", "benchmarks", "execmem"
    )
    return {
        "cpu": first_match(r"^model name\s*:(.*)$", cpu),
        "cpu_family": first_match(r"^cpu family\s*:(.*)$", cpu),
        "cpu_model": first_match(r"^model\s*:(.*)$", cpu),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in cpu,
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "memory_kb": int(first_match(r"^MemTotal:\s*(\d+)", read("/proc/meminfo"))),
        "thp": {name: read(f"{thp}/{name}") for name in ("enabled", "shmem_enabled", "defrag")},
        "compilers": compilers,
        "libc": " ".join(platform.libc_ver()),
        "packages": {name: output_of("dpkg-query", "-W", "-f", "${Version}", name) for name in PACKAGES},
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "commit": output_of("git", "rev-parse", "--verify", "-q", "HEAD"),
        "changed_since_commit": dirty not in {"", "not available"},
    }


def write(out: Path, what: str, note: str, compilers: dict[str, str], results: list[Any], **more: object) -> None:
    """Write the figures of a benchmark, with the machine they are of, for ``run.py --table`` to draw."""
    head = {"schema": 1, "what": what, "note": note, "machine": describe(compilers)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(head | more | {"results": results}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")
