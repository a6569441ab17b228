"""doctor: what works on this machine, and why what does not does not."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import execmem
from execmem.demo import MODE_NOTES
from execmem.directmap import kernels, lab, perf, region, source
from execmem.directmap.kernels import LabError
from execmem.draw import Paint, clean, tell_bytes, tell_version, text_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TRIAL_BLOCK = 256 << 10
TRIAL_BLOCKS = 32  # 8 MB: a few full packs, gone again in milliseconds
HUGE_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
BACKING_NOTES = {
    "memfd": "a memfd",
    "tmpfs": "an unlinked file in memory, for memfd_create is refused",
    "disk": "an unlinked file on a disk, which code is written back to: memfd_create is refused, no tmpfs may be had",
    "private": "private memory",
}
CAPABILITIES: Final = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_CHECKPOINT_RESTORE": 40}
EXTRAS: Final = {  # module: extra, what it is for
    "textual": ("tui", "views with keys: top --tui, directmap watch --tui"),
    "resvg_py": ("png", "pictures as PNG"),
    "pyarrow": ("parquet", "traces as Parquet"),
    "shtab": ("completion", "completion of commands in the shell"),
}
SECTIONS: Final = {  # of findings that are not about the library itself
    "sources": "the kernel's direct map (execmem directmap): what can be read",
    "watching": "other processes (execmem map, execmem top)",
    "lab": "kernels under QEMU (execmem lab)",
    "extras": "extras",
}


@dataclass(frozen=True)
class Finding:
    """One thing doctor looked at; `good` is None for what is only told, `section` one of SECTIONS."""

    topic: str
    text: str
    good: bool | None = None
    section: str = ""


def find_modes(found: execmem.Probe) -> list[Finding]:
    """Tell of every write mode whether it works, and who refused it."""
    findings = []
    for one in found.modes:
        text = one.reason or f"{MODE_NOTES[one.mode]} ({one.backing})"
        findings.append(Finding(f"mode {one.mode}", f"[{one.policy}] {text}" if one.policy else text, one.works))
    return findings


def find_policies(policies: execmem.Policies) -> list[Finding]:
    """Tell what this host has that may refuse, whether it did or not."""

    def tell(value: object, words: str = "{}") -> str:
        return "not available" if value is None else words.format(value)

    def tell_limit(value: int | None) -> str:
        return "none" if value is None else tell_bytes(value)

    flags = {None: "not available", True: "yes", False: "no"}
    limits = f"file size {tell_limit(policies.file_size)}, address space {tell_limit(policies.address_space)}"
    label = f", this process: {policies.label}" if policies.label else ""
    return [
        Finding("PR_SET_MDWE", flags[policies.mdwe]),
        Finding("seccomp", tell(policies.seccomp)),
        Finding("memfd_noexec", tell(policies.memfd_noexec, "vm.memfd_noexec = {}")),
        Finding("SELinux", tell(policies.selinux) + (label if policies.selinux != "off" else "")),
        Finding("AppArmor", flags[policies.apparmor] + (label if policies.apparmor else "")),
        Finding("/proc", "yes" if policies.proc else "no: statistics lack huge pages and mappings"),
        Finding("limits", limits),
    ]


def find_trial() -> list[Finding]:
    """Place 8 MB in a domain of its own and read what the kernel made of it."""
    try:
        with execmem.Domain("doctor") as domain:
            blocks = domain.place_many([b"\0" * TRIAL_BLOCK] * TRIAL_BLOCKS)
            stats = domain.stats()
            del blocks
    except execmem.ExecmemError as error:
        return [Finding("default", f"no domain can be used: {error}", good=False)]
    huge = f"{stats.huge_packs} of {stats.full_packs} full packs are one 2 MB entry"
    if stats.huge_packs is None:
        huge = f"not available without /proc; {stats.collapse_failures} of {stats.full_packs} collapses failed"
    elif stats.huge_packs < stats.full_packs:
        huge += f"; {stats.collapse_failures} collapses failed, the rest works on 4 KB pages"
    return [
        Finding("default", f"write mode {stats.write_mode}", good=True),
        Finding("backing", BACKING_NOTES[stats.backing]),
        Finding("2 MB pages", huge, None if stats.huge_packs is None else 0 < stats.full_packs == stats.huge_packs),
        Finding("trial", f"{tell_bytes(stats.live_bytes)} placed, {tell_bytes(stats.resident_bytes)} resident"),
    ]


def find_sync(found: execmem.Probe) -> Finding:
    """Tell whether other threads can be made to see new code."""
    return Finding(
        "sync", found.sync or "every thread can be made to see new code (membarrier)", good=found.sync is None
    )


def find_settings() -> list[Finding]:
    """Read what the system says about huge pages; a file that is not there is not available."""
    findings = []
    for name in ("enabled", "shmem_enabled"):
        text = "not available"
        with contextlib.suppress(OSError):
            words = (HUGE_SETTINGS / name).read_text(encoding="ascii").split()
            text = next((word.strip("[]") for word in words if word.startswith("[")), text)
        findings.append(Finding(f"thp {name.removesuffix('enabled').strip('_') or 'anon'}", text))
    return findings


# ---- what the commands need ----


def find_sources() -> list[Finding]:
    """Read every source of the direct map once: 0.1 s. For root that loads a program, to walk page tables."""
    findings = []
    for one in (*source.SOURCES, region.SOURCE, perf.SOURCE):
        why = one.missing()
        text = one.tells if why is None else f"{one.tells}: {clean(why.why)}; {clean(why.remedy)}"
        findings.append(Finding(one.name, text, why is None))
    return findings


def held(status: Path) -> set[str]:
    """Return which of CAPABILITIES this process has in effect; none where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("CapEff:"):
                bits = int(line.split()[1], 16)
                return {name for name, number in CAPABILITIES.items() if bits >> number & 1}
    return set()


def find_watching(proc: Path = Path("/proc")) -> list[Finding]:
    """Tell which processes may be looked at: what `map` and `top` read is guarded as for reading by ptrace."""
    if not (proc / "self").exists():
        return [Finding("processes", "there is no /proc, so no way to other processes; mount it", good=False)]
    capabilities = held(proc / "self/status")
    every = "CAP_SYS_PTRACE" in capabilities
    whose = "of all users" if every else f"of user {os.geteuid()} that are dumpable"
    more = "" if every else "; of others too as root, or with CAP_SYS_PTRACE"
    maps = bool(capabilities & {"CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"})
    closed = "of processes that closed the descriptors of their ledgers"
    closed += "" if maps else ": for root, or with CAP_CHECKPOINT_RESTORE"
    try:
        scope = (proc / "sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip()
    except OSError:
        scope = "not available: this kernel has no Yama"
    try:
        mounts = (proc / "self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        mounts = []
    rows = [line.split() for line in mounts]
    hidden = next((row[3] for row in rows if len(row) > 3 and row[1] == "/proc" and "hidepid=" in row[3]), "")  # noqa: PLR2004
    option = next((part for part in hidden.split(",") if part.startswith("hidepid=")), "")
    return [
        Finding("processes", f"{whose}{more}", good=True),
        Finding("closed ledgers", closed, maps),
        Finding("ptrace_scope", f"{scope}; it guards attaching, which map and top do not need"),
        *(
            [Finding("hidepid", f"/proc is mounted with {clean(option)}: others' processes are hidden")]
            if option
            else []
        ),
    ]


def find_lab() -> list[Finding]:
    """Tell whether QEMU, its acceleration and kernels are here. Nothing is started or fetched."""
    try:
        qemu = Finding("QEMU", lab.find_qemu(), good=True)
    except LabError as error:
        qemu = Finding("QEMU", str(error), good=False)
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    missing = "/dev/kvm may not be used" if Path("/dev/kvm").exists() else "there is no /dev/kvm"
    slow = "/dev/kvm can be used" if kvm else f"{missing}: kernels are emulated, a boot takes 7 to 15 s"
    try:
        names = [clean(kernel.release) for kernel in kernels.cached()]
    except (LabError, OSError, RuntimeError) as error:  # the last: this user has no home
        told = Finding("kernels", clean(str(error)), good=False)
    else:
        told = Finding("kernels", ", ".join(names) or "none here yet: execmem lab fetch all", bool(names))
    return [qemu, Finding("KVM", slow, kvm), told]


def find_extras(names: Iterable[str] = tuple(EXTRAS)) -> list[Finding]:
    """Tell which packages that some commands use are installed. They are looked for, not imported."""
    findings = []
    for name in names:
        extra, what = EXTRAS[name]
        here = importlib.util.find_spec(name) is not None
        text = what if here else f"{what}: not installed; python -m pip install 'execmem[{extra}]'"
        findings.append(Finding(name.removesuffix("_py"), text, here))
    return findings


def examine(found: execmem.Probe) -> list[Finding]:
    """Return everything doctor finds. Cost: some 0.2 s, most of them to walk the kernel's page tables."""
    needs = {"sources": find_sources, "watching": find_watching, "lab": find_lab, "extras": find_extras}
    return [
        *examine_library(found),
        *(replace(finding, section=section) for section, find in needs.items() for finding in find()),
    ]


def examine_library(found: execmem.Probe) -> list[Finding]:
    """Return what doctor finds of the library itself. Some ten milliseconds, most of them for the trial."""
    forced = os.environ.get("EXECMEM_WRITE_MODE")
    arch = execmem.arch()
    system = f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}"
    return [
        Finding("execmem", tell_version()),
        Finding("system", system),
        Finding("CPU room", arch if arch != "none" else f"none: {platform.machine()} is not supported", arch != "none"),
        *find_modes(found),
        *([Finding("forced", f"EXECMEM_WRITE_MODE={forced}, for the default domain")] if forced else []),
        *find_trial(),
        find_sync(found),
        *find_policies(found.policies),
        *find_settings(),
    ]


def usable(findings: Sequence[Finding]) -> bool:
    """Tell whether execmem can be used: the trial of a default domain went well. Other things may be missing."""
    return any(finding.topic == "default" and finding.good for finding in findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``execmem doctor``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  execmem doctor                       what works here, a line each\n"
        "  execmem doctor --json | jq -r '.findings[] | select(.good == false) | .text'\n"
        "  EXECMEM_WRITE_MODE=flip execmem doctor\n"
        "exit code: 0 a domain can be opened and used, 1 it cannot, 2 wrong usage"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Print what works here; 0 when a domain can be opened and used."""
    found = execmem.probe()
    findings = examine(found)
    good = usable(findings)
    if options.json:
        rows = [asdict(finding) for finding in findings]
        print(json.dumps({"usable": good, "findings": rows, "probe": found.as_dict()}, indent=2))
        return 0 if good else 1
    paint = Paint.of(sys.stdout)
    width = text_width()
    print(paint.head("execmem doctor"))
    print(paint.rule(width))
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(paint.rule(width))
            print(paint.head(SECTIONS[section]))
        mark = {True: paint.good("yes"), False: paint.bad("no "), None: "   "}[finding.good]
        first, *more = textwrap.wrap(finding.text, width - 19) or [""]
        print(f"{finding.topic:<14} {mark} {first}")
        for line in more:
            print(f"{'':<18} {line}")
    return 0 if good else 1
