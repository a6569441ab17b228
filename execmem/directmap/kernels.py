"""kernels: Debian's kernels for x86-64, fetched when asked, unpacked and kept in a cache of this user's.

    <cache>/kernels/<release>/vmlinuz        the image that QEMU boots
    <cache>/kernels/<release>/kernel.json    what it is and where it came from: struct Kernel

A kernel is in the cache whole or not at all: its folder is made under another name and renamed. The cache is
`EXECMEM_LAB_CACHE`, or ``execmem/lab`` in the cache folder of XDG. Nothing is downloaded unless `fetch` is called, and
nothing is installed.

What is downloaded is checked: the archive's InRelease has the SHA-256 of its index of packages, the index that of each
package. Debian's signature on InRelease is not looked at: who that is comes from the certificate of an https mirror.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str, int, int], None]

MIRROR: Final = "https://deb.debian.org/debian"
OLD_MIRROR: Final = "https://archive.debian.org/debian"  # where releases go that Debian no longer serves elsewhere
NEWEST: Final = "newest"
SUITES: Final = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", NEWEST: "sid"}
INDEX: Final = "main/binary-amd64/Packages.xz"
# Until 7.0 a package of the name "image" has the image, since then one of the name "binary".
PACKAGE: Final = re.compile(r"linux-(binary|image)-(\d\S*-cloud-amd64)")
# The release becomes the name of a folder, so it is one: no slash, no dot in front.
RELEASE: Final = r"\d[A-Za-z0-9.+~_-]*"
IMAGE: Final = re.compile(rf"(?:\./)?(?:boot/vmlinuz-({RELEASE})|usr/lib/modules/({RELEASE})/vmlinuz)", re.ASCII)
PIECE: Final = 1 << 18
PATIENCE: Final = 60  # seconds that a mirror may be silent


class LabError(RuntimeError):
    """What the lab needs is missing or went wrong; the text tells the cause and the remedy."""


@dataclass(frozen=True)
class Kernel:
    """A kernel image, what it is and where it came from; texts are empty where that is not known."""

    image: Path
    release: str
    version: str = ""  # of the Debian package
    url: str = ""
    sha256: str = ""  # of the Debian package

    @property
    def series(self) -> str:
        """Return the generation: the first two numbers of the release.

        >>> Kernel(Path("vmlinuz"), "6.12.107+deb13-cloud-amd64").series
        '6.12'
        """
        return ".".join(re.findall(r"\d+", self.release)[:2])


def order(version: str) -> tuple[int, ...]:
    """Return what versions and releases are sorted by: their numbers.

    >>> order("6.1.192-2") > order("6.1.99-1")
    True
    """
    return tuple(int(number) for number in re.findall(r"\d+", version))


# ---- the cache ----


def cache() -> Path:
    """Return the folder that kernels and the lab's program are kept in; it need not be there."""
    given = os.environ.get("EXECMEM_LAB_CACHE")
    if given:
        return Path(given)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "execmem" / "lab"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write a file to; it takes the place of `path` when that went well, and is gone when not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def cached() -> list[Kernel]:
    """Return the kernels of the cache, oldest first. Cost: one small file read for each."""
    found = []
    try:
        paths = list(cache().glob("kernels/*/kernel.json"))
    except (OSError, RuntimeError) as error:  # HOME is that of the user one was before, or there is none
        message = f"kernels cannot be looked for: {error}; EXECMEM_LAB_CACHE names another folder"
        raise LabError(message) from error
    for told in paths:
        try:
            facts = json.loads(told.read_text(encoding="utf-8"))
            kernel = Kernel(**{**facts, "image": told.with_name("vmlinuz")})
            if not all(isinstance(value, str) for value in facts.values()):
                message = "a value is no text"
                raise TypeError(message)  # noqa: TRY301 - told as the others are
        except (ValueError, TypeError, OSError) as error:
            message = f"{told} is not what the lab wrote ({error}); remove {told.parent} and fetch that kernel again"
            raise LabError(message) from error
        found.append(kernel)
    return sorted(found, key=lambda kernel: order(kernel.release))


def find(name: str) -> Kernel:
    """Return the kernel of that series or release, the newest of the cache, or the image at that path."""
    if "/" in name:
        image = Path(name)
        release = re.fullmatch(r"vmlinuz-(\d.*)", image.name)
        if not image.is_file():
            message = f"there is no kernel image {name}"
            raise LabError(message)
        return Kernel(image, release[1] if release else "")
    kernels = cached()
    fits = [kernel for kernel in kernels if name in {kernel.series, kernel.release, NEWEST}]
    if fits:
        return fits[-1]
    there = ", ".join(kernel.release for kernel in kernels) or "nothing"
    remedy = f"execmem lab fetch {name} downloads it" if name in SUITES else f"Debian's series are {', '.join(SUITES)}"
    message = f"kernel {name} is not in {cache()}, which has {there}; {remedy}"
    raise LabError(message)


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Give an empty folder beside those of kernels, which is gone afterwards; a ``LabError`` if none can be made."""
    folder = cache() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new.", dir=folder) as name:
            yield Path(name)
    except OSError as error:
        message = f"the kernel cannot be kept in {folder}: {error}; EXECMEM_LAB_CACHE names another folder"
        raise LabError(message) from error


def keep(package: bytes, url: str, version: str = "", series: str = NEWEST) -> Kernel:
    """Unpack the image of a Debian package into the cache and return it; one of another series is refused."""
    release, image = unpack(package, url)
    folder = cache() / "kernels" / release
    kernel = Kernel(folder / "vmlinuz", release, version, url, hashlib.sha256(package).hexdigest())
    if series not in {NEWEST, kernel.series}:
        message = f"{url} has a kernel {release}, not one of {series}: name another mirror with --mirror"
        raise LabError(message)
    with new_folder() as room:
        made = room / "kernel"
        made.mkdir()
        (made / "vmlinuz").write_bytes(image)
        facts = {name: value for name, value in asdict(kernel).items() if name != "image"}
        (made / "kernel.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return kernel


# ---- Debian packages: an ar archive whose member data.tar.* has the files ----


def members(package: bytes, told: str) -> Iterator[tuple[str, bytes]]:
    """Give name and content of each member of an ar archive."""
    if not package.startswith(b"!<arch>\n"):
        message = f"{told} is not a Debian package"
        raise LabError(message)
    at = 8
    while at < len(package):
        header = package[at : at + 60]
        size = header[48:58].strip()
        if len(header) < 60 or header[58:] != b"`\n" or not size.isdigit() or at + 60 + int(size) > len(package):  # noqa: PLR2004 - the header's length
            message = f"{told} is cut off or damaged at byte {at}; fetch it again"
            raise LabError(message)
        yield header[:16].decode("latin-1").rstrip(" /"), package[at + 60 : at + 60 + int(size)]
        at += 60 + int(size) + int(size) % 2


def expand_zstd(content: bytes, told: str) -> bytes:
    """Return what was compressed with zstd, as the packages of some derivatives of Debian are."""
    if importlib.util.find_spec("compression"):
        zstd = importlib.import_module("compression.zstd")
        try:
            expanded: bytes = zstd.decompress(content)
        except zstd.ZstdError as error:
            message = f"{told} is damaged: {error}"
            raise LabError(message) from error
        return expanded
    program = shutil.which("zstd")
    if not program:
        message = f"{told} is compressed with zstd, which needs Python 3.14 or the program zstd; install one of them"
        raise LabError(message)
    done = subprocess.run([program, "-dc"], input=content, capture_output=True, check=False)  # noqa: S603 - zstd
    if done.returncode:
        message = f"{told} is damaged: {done.stderr.decode(errors='replace').strip()}"
        raise LabError(message)
    return done.stdout


def unpack(package: bytes, told: str) -> tuple[str, bytes]:
    """Return release and image of the kernel in a Debian package. Cost: seconds, and the memory of what it unpacks."""
    data = next(((name, content) for name, content in members(package, told) if name.startswith("data.tar")), None)
    if not data:
        message = f"{told} has no data.tar: it is not a Debian package"
        raise LabError(message)
    name, content = data
    if name.endswith(".zst"):
        content = expand_zstd(content, told)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as files:
            for entry in files:
                found = IMAGE.fullmatch(entry.name)
                image = files.extractfile(entry) if found and entry.isfile() else None
                if found and image:
                    return found[1] or found[2], image.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        message = f"{told}: {name} cannot be unpacked: {error}"
        raise LabError(message) from error
    message = f"{told} has no kernel image; the package of one is linux-image-... or linux-binary-..."
    raise LabError(message)


# ---- the archive ----


def download(url: str, progress: Progress) -> bytes:
    """Return what is at a URL; raises FileNotFoundError when the server has nothing there."""
    if not re.match(r"https?://", url):
        message = f"{url}: a mirror begins with https:// or http://"
        raise LabError(message)
    pieces = []
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - the line above
            told = answer.headers.get("Content-Length") or "0"
            whole = int(told) if told.isdecimal() else 0
            while piece := answer.read(PIECE):
                pieces.append(piece)
                done += len(piece)
                progress(url, done, whole)
            if done < whole:
                message = f"{url}: the mirror sent {done} of {whole} bytes; try again"
                raise LabError(message)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.NOT_FOUND:
            raise FileNotFoundError(url) from error
        message = f"{url}: the mirror answers {error.code} {error.reason}; name another one with --mirror"
        raise LabError(message) from error
    except (OSError, http.client.HTTPException) as error:
        message = (
            f"{url} cannot be fetched: {error}; look at the network and at http_proxy, name another mirror with "
            "--mirror, or bring the package and give it with --deb"
        )
        raise LabError(message) from error
    return b"".join(pieces)


def check(content: bytes, sha256: str, url: str) -> None:
    """Complain when that is not the content its archive says it is."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        message = (
            f"{url} has SHA-256 {found}, its archive says {sha256}: it is damaged or not what it claims; try again"
        )
        raise LabError(message)


def read_index(mirror: str, suite: str, progress: Progress) -> Iterator[dict[str, str]]:
    """Give what a suite's index says of each package that may have a kernel image."""
    folder = f"{mirror}/dists/{suite}"
    release = download(f"{folder}/InRelease", progress).decode("utf-8", "replace")
    sums = release.partition("\nSHA256:\n")[2]
    listed = re.search(rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(INDEX)}$", sums, re.MULTILINE)
    if not listed:
        message = f"{folder}/InRelease lists no {INDEX} with its SHA-256: {mirror} is no mirror of Debian for x86-64"
        raise LabError(message)
    packed = download(f"{folder}/{INDEX}", progress)
    check(packed, listed[1], f"{folder}/{INDEX}")
    try:
        index = lzma.decompress(packed)
    except lzma.LZMAError as error:
        message = f"{folder}/{INDEX} cannot be unpacked: {error}; name another mirror with --mirror"
        raise LabError(message) from error
    for text in index.split(b"\n\n"):
        if text.startswith(b"Package: linux-"):
            fields = dict(line.split(": ", 1) for line in text.decode("utf-8", "replace").split("\n") if ": " in line)
            if PACKAGE.fullmatch(fields["Package"]) and {"Version", "Filename", "SHA256"} <= fields.keys():
                yield fields


def look_up(series: str, mirror: str | None, progress: Progress) -> tuple[str, dict[str, str]]:
    """Return the mirror and the newest package of a series, or of all where it is NEWEST."""
    if series != NEWEST and not re.fullmatch(r"\d+\.\d+", series, re.ASCII):
        message = f"{series!r} is no series of kernels; known: {', '.join(SUITES)}"
        raise LabError(message)
    suite = SUITES.get(series, SUITES[NEWEST])
    mirrors = [mirror.rstrip("/")] if mirror else [MIRROR, OLD_MIRROR]
    for base in mirrors:
        with contextlib.suppress(FileNotFoundError):
            packages = list(read_index(base, suite, progress))
            break
    else:
        message = f"no mirror has Debian's {suite}: asked {' and '.join(mirrors)}; name another one with --mirror"
        raise LabError(message)

    def release(fields: dict[str, str]) -> str:
        return re.sub(PACKAGE, r"\2", fields["Package"])

    fits = [fields for fields in packages if series in {NEWEST, Kernel(Path(), release(fields)).series}]
    if not fits:
        there = ", ".join(sorted(release(fields) for fields in packages)) or "none"
        message = (
            f"Debian's {suite} has no kernel {series} for cloud machines; it has {there}; known: {', '.join(SUITES)}"
        )
        raise LabError(message)
    # Of one kernel both packages may be there, and "binary" has the image then.
    return base, max(fits, key=lambda fields: (order(fields["Version"]), fields["Package"].startswith("linux-binary")))


def fetch(series: str, progress: Progress, mirror: str | None = None) -> tuple[Kernel, bool]:
    """Return the newest kernel of a series, and whether it had to be downloaded. Cost: 10 MB of index, 15 to 35 MB."""
    base, fields = look_up(series, mirror, progress)
    for kernel in cached():
        if kernel.sha256 == fields["SHA256"]:
            return kernel, False
    url = f"{base}/{fields['Filename']}"
    with new_folder():
        pass  # told now if it cannot be, and not after 50 MB
    try:
        package = download(url, progress)
    except FileNotFoundError as error:
        message = f"{url} is in the mirror's index but not there: the mirror is being renewed; try again later"
        raise LabError(message) from error
    check(package, fields["SHA256"], url)
    return keep(package, url, fields["Version"], series), True
