"""Run static programs under a Debian kernel on an emulated CPU, for what this machine's CPU lacks.

The machine is QEMU's, without acceleration. It boots the kernel of a Debian package, which is downloaded and unpacked
into ``build/emulate/`` but never installed, and an archive of files in memory: ``init.c`` as /init and the programs in
/tests. What they print comes over the serial line. It fails when a program fails, when the machine ends without
saying how they all ended, and when that takes too long.

Kernels for the CPU of this machine come from where its system takes its packages. Those for other CPUs come from
Debian 13, by lists of packages of their own in ``build/emulate/``: apt fetches them and checks Debian's signature, and
the system's own lists stay as they are.

With --turns the two CPUs of the machine take turns instead of running side by side: so it must be where one of them
stores to code that the other runs. QEMU forgets the old code's translation, then stores; when the other CPU translates
it anew between both, old code stays until somebody stores there again, whatever the program does to synchronise.

usage: emulate.py [--cpu x86_64] [--turns] [--set NAME=value]... [--timeout SECONDS] INIT PROGRAM...

EXECMEM_EMULATE_KERNEL_<cpu>, such as EXECMEM_EMULATE_KERNEL_riscv64, names a kernel image to use instead of Debian's.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "emulate"
END: Final = re.compile(r"^== end: (\d+) run, (\d+) failed$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """What QEMU emulates, and the kernel for it."""

    command: tuple[str, ...]
    needs: str  # Debian package of the emulator
    console: str
    kernel: str  # Debian package that depends on the newest kernel
    architecture: str  # as Debian calls it
    words: str = ""  # for the kernel's command line


MACHINES: Final = {
    "x86_64": Machine(
        ("qemu-system-x86_64", "-M", "q35", "-cpu", "max"),
        "qemu-system-x86",
        "ttyS0",
        "linux-image-cloud-amd64",
        "amd64",
    ),
    "aarch64": Machine(
        # Pointers are signed in QEMU's own way, not in the one of the manual, which takes half of the time there is.
        ("qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"),
        "qemu-system-arm",
        "ttyAMA0",
        "linux-image-cloud-arm64",
        "arm64",
    ),
    "riscv64": Machine(
        ("qemu-system-riscv64", "-M", "virt", "-cpu", "rv64"),
        "qemu-system-misc",
        "ttyS0",
        "linux-image-riscv64",
        "riscv64",
        "no4lvl",  # tables of three levels, as most of these CPUs have: addresses of 38 bits, and half of QEMU's time
    ),
}
OTHER_SOURCE: Final = "http://deb.debian.org/debian trixie main"
OTHER_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
EVERY_MACHINE: Final = (
    *("-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-no-reboot"),
    *("-display", "none", "-serial", "stdio"),
)


def fail(message: str) -> SystemExit:
    """Return the end of this program with a line that says why."""
    return SystemExit(f"emulate: {message}")


def read_command(*command: str, cwd: Path | None = None) -> str:
    """Return what a program printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{' '.join(command)} failed: {done.stderr.strip()}"
        raise fail(message)
    return done.stdout


# ---- the kernel ----


def other_packages(architecture: str) -> list[str]:
    """Return the options with which apt knows Debian's packages for another CPU, after asking for their list."""
    home = BUILD / f"apt-{architecture}"
    for folder in ("lists/partial", "archives/partial"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    (home / "sources.list").write_text(f"deb [signed-by={OTHER_KEYS}] {OTHER_SOURCE}\n", encoding="utf-8")
    places = {
        "Dir::Etc::sourcelist": home / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": home / "lists",
        "Dir::State::status": home / "status",
        "Dir::Cache": home,
        "Dir::Cache::archives": home / "archives",
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    options = [f"--option={name}={value}" for name, value in places.items()]
    read_command("apt-get", *options, "update", "-q")
    return options


def unpack_boot(package: Path, folder: Path) -> None:
    """Unpack /boot of a package, without the modules."""
    give, take = ["dpkg-deb", "--fsys-tarfile", str(package)], ["tar", "-x", "-C", str(folder), "./boot"]
    files = subprocess.run(give, capture_output=True, check=False).stdout
    subprocess.run(take, input=files, check=True)


def find_kernel(cpu: str, machine: Machine) -> Path:
    """Return the kernel's image, downloaded and unpacked when it is not there yet."""
    given = os.environ.get(f"EXECMEM_EMULATE_KERNEL_{cpu}")
    if given:
        return Path(given)
    folder = BUILD / machine.kernel
    images = sorted(folder.glob("boot/vmlinu*"))
    if images:
        return images[-1]
    folder.mkdir(parents=True, exist_ok=True)
    own = read_command("dpkg", "--print-architecture").strip() == machine.architecture
    options = [] if own else other_packages(machine.architecture)
    newest = re.search(r"Depends: (linux-image-\S+)", read_command("apt-cache", *options, "depends", machine.kernel))
    if not newest:
        advice = f"run apt-get update, or set EXECMEM_EMULATE_KERNEL_{cpu}"
        message = f"apt knows no kernel of the name {machine.kernel}; {advice}"
        raise fail(message)
    read_command("apt-get", *options, "download", "-q", newest[1], cwd=folder)
    (folder / "all").mkdir(exist_ok=True)
    for package in folder.glob("*.deb"):
        unpack_boot(package, folder / "all")
        package.unlink()
    (folder / "all" / "boot").rename(folder / "boot")  # last: what is there is whole
    shutil.rmtree(folder / "all")
    return next(folder.glob("boot/vmlinu*"))


# ---- the files in memory: an archive in cpio's "newc" form, which Linux unpacks at boot ----


def archive_entry(name: str, mode: int, content: bytes) -> bytes:
    """Return one file or directory of the archive."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return header + b"\0" * (-len(header) % 4) + content + b"\0" * (-len(content) % 4)


def make_archive(init: Path, programs: list[Path]) -> bytes:
    """Return the archive, compressed."""
    entries = [archive_entry("init", 0o100755, init.read_bytes()), archive_entry("tests", 0o040755, b"")]
    entries += [archive_entry(f"tests/{path.name}", 0o100755, path.read_bytes()) for path in programs]
    return gzip.compress(b"".join([*entries, archive_entry("TRAILER!!!", 0, b"")]), compresslevel=1)


# ---- running ----


def run_machine(command: list[str], seconds: float) -> str:
    """Print what the machine prints as it does, and return it."""
    lines = []
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=pipe, text=True, errors="replace") as run:
        clock = threading.Timer(seconds, run.kill)
        clock.start()
        for line in run.stdout or ():
            lines.append(line.rstrip("\r\n"))
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
        in_time = clock.is_alive()
        clock.cancel()
    if not in_time:
        message = f"the machine did not end within {seconds:.0f} s"
        raise fail(message)
    return "\n".join(lines)


def main() -> None:
    """Boot the machine and look at how its programs ended."""
    parser = argparse.ArgumentParser(description="Run static programs on an emulated CPU.")
    parser.add_argument("--cpu", choices=MACHINES, default="x86_64")
    parser.add_argument("--turns", action="store_true", help="one CPU of the machine at a time")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=value", help="for the programs")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    parser.add_argument("init", type=Path)
    parser.add_argument("programs", type=Path, nargs="+")
    options = parser.parse_args()
    machine = MACHINES[options.cpu]
    if not shutil.which(machine.command[0]):
        message = f"{machine.command[0]} is missing; on Debian: apt install {machine.needs}"
        raise fail(message)
    kernel = find_kernel(options.cpu, machine)
    archive = BUILD / f"{options.cpu}.cpio.gz"
    archive.write_bytes(make_archive(options.init, options.programs))
    words = [f"console={machine.console}", "quiet", "panic=-1", machine.words, *options.set]
    files = ["-kernel", str(kernel), "-initrd", str(archive), "-append", " ".join(words)]
    threads = ["-accel", "tcg,thread=single" if options.turns else "tcg"]
    printed = run_machine([*machine.command, *threads, *EVERY_MACHINE, *files], options.timeout)
    end = END.search(printed)
    if not end:
        message = "the machine ended before its programs did"
        raise fail(message)
    if end[2] != "0" or int(end[1]) != len(options.programs):
        message = f"{end[2]} of {len(options.programs)} programs failed, {end[1]} were run"
        raise fail(message)


if __name__ == "__main__":
    main()
