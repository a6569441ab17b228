"""Debian's kernels: packages of every kind of damage, a mirror that serves well and badly, and what the cache holds."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import lzma
import random
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from execmem import cli
from execmem.directmap import kernels
from execmem.directmap.kernels import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RELEASE = "6.1.0-56-cloud-amd64"
IMAGE = b"MZ a kernel" * 100
NOISE = random.Random(1).randbytes(30_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXECMEM_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- packages ----


def make_ar(*members: tuple[str, bytes]) -> bytes:
    whole = b"!<arch>\n"
    for name, content in members:
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        whole += b"\n" * (len(content) % 2)
    return whole


def make_tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def make_deb(release: str = RELEASE, *, path: str = "./boot/vmlinuz-{}", image: bytes = IMAGE) -> bytes:
    files = {f"./boot/config-{release}": b"CONFIG_X86=y\n", path.format(release): image}
    return make_ar(
        ("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", lzma.compress(make_tar(files)))
    )


@pytest.mark.parametrize(
    ("name", "squeeze"), [("data.tar.xz", lzma.compress), ("data.tar.gz", gzip.compress), ("data.tar", bytes)]
)
@pytest.mark.parametrize("path", ["./boot/vmlinuz-{}", "boot/vmlinuz-{}", "./usr/lib/modules/{}/vmlinuz"])
def test_a_package_is_unpacked(name: str, squeeze: Callable[[bytes], bytes], path: str) -> None:
    tar = make_tar({"./usr/share/doc/vmlinuz-notes": b"no", path.format(RELEASE): IMAGE})
    assert kernels.unpack(make_ar(("debian-binary", b"2.0\n"), (name, squeeze(tar))), "x.deb") == (RELEASE, IMAGE)


def test_a_package_compressed_with_zstd_is_unpacked() -> None:
    zstd = shutil.which("zstd")
    tar = make_tar({f"./boot/vmlinuz-{RELEASE}": IMAGE})
    if not zstd:
        pytest.skip("the program zstd, which makes the package, is missing")
    packed = subprocess.run([zstd, "-c"], input=tar, capture_output=True, check=True).stdout
    assert kernels.unpack(make_ar(("data.tar.zst", packed)), "x.deb") == (RELEASE, IMAGE)
    with pytest.raises(LabError, match=r"x\.deb.* damaged"):
        kernels.unpack(make_ar(("data.tar.zst", packed[:-9])), "x.deb")


def test_zstd_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("compression"):
        pytest.skip("this Python reads zstd itself")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LabError, match=r"zstd, which needs Python 3\.14 or the program zstd"):
        kernels.unpack(make_ar(("data.tar.zst", b"")), "x.deb")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (b"", "is not a Debian package"),
        (b"<html>sign in</html>", "is not a Debian package"),
        (make_ar(("debian-binary", b"2.0\n")), "has no data.tar"),
        (make_deb()[:-7], "cut off or damaged at byte"),
        (make_deb()[:90], "cut off or damaged at byte 72"),
        (make_ar(("data.tar.xz", lzma.compress(make_tar({"./boot/vmlinuz-1": NOISE}))[:-2000])), "cannot be unpacked"),
        (make_ar(("data.tar.xz", b"neither")), "cannot be unpacked"),
        (make_ar(("data.tar", make_tar({"./boot/config": b""}))), "has no kernel image"),
    ],
)
def test_a_damaged_package_is_refused(package: bytes, words: str) -> None:
    with pytest.raises(LabError, match=rf"x\.deb.*{words}"):
        kernels.unpack(package, "x.deb")


# ---- the cache ----


def test_the_cache_lies_where_the_user_wants(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert kernels.cache() == cache
    monkeypatch.delenv("EXECMEM_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert kernels.cache() == Path("/somewhere/execmem/lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/me")
    assert kernels.cache() == Path("/home/me/.cache/execmem/lab")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RuntimeError("no home")])
def test_a_cache_that_may_not_be_looked_into_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse() -> Path:
        raise error

    monkeypatch.setattr(kernels, "cache", refuse)
    with pytest.raises(LabError, match=r"cannot be looked for.*EXECMEM_LAB_CACHE"):
        kernels.cached()


def test_kernels_are_found_by_series_release_age_and_path(cache: Path) -> None:
    for release in (
        "6.1.0-9-cloud-amd64",
        "6.1.0-56-cloud-amd64",
        "5.10.0-32-cloud-amd64",
        "6.12.107+deb13-cloud-amd64",
    ):
        kernels.keep(make_deb(release), "x.deb")
    assert [kernel.series for kernel in kernels.cached()] == ["5.10", "6.1", "6.1", "6.12"]
    assert kernels.find("6.1").release == "6.1.0-56-cloud-amd64"
    assert kernels.find("6.1.0-9-cloud-amd64").release == "6.1.0-9-cloud-amd64"
    assert kernels.find("newest").series == "6.12"
    image = cache / "kernels" / RELEASE / "vmlinuz"
    assert kernels.find("6.1").image == image
    assert image.read_bytes() == IMAGE
    named = cache / f"vmlinuz-{RELEASE}"
    shutil.copy(image, named)
    assert kernels.find(str(named)) == kernels.Kernel(named, RELEASE)
    assert kernels.find(str(image)).release == ""


def test_a_kernel_that_is_missing_is_told(cache: Path) -> None:
    with pytest.raises(LabError, match=r"6\.1 is not in .*nothing; execmem lab fetch 6\.1 downloads it"):
        kernels.find("6.1")
    kernels.keep(make_deb(), "x.deb")
    with pytest.raises(LabError, match=rf"which has {RELEASE}; execmem lab fetch 6\.12"):
        kernels.find("6.12")
    with pytest.raises(LabError, match="no kernel image /nowhere/vmlinuz"):
        kernels.find("/nowhere/vmlinuz")
    (cache / "kernels" / RELEASE / "kernel.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError, match=r"kernel\.json is not what the lab wrote .*; remove "):
        kernels.find("6.1")


def test_a_kernel_is_kept_anew_and_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.keep(make_deb(image=b"old"), "x.deb")
    kept = kernels.keep(make_deb(), "y.deb", "6.1.192-2")
    assert kernels.cached() == [kept]
    assert (kept.image.read_bytes(), kept.url, kept.version) == (IMAGE, "y.deb", "6.1.192-2")
    assert left(cache) == [f"kernels/{RELEASE}/kernel.json", f"kernels/{RELEASE}/vmlinuz"]

    def refuse(_: Path, __: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(LabError, match="No space left on device; EXECMEM_LAB_CACHE names another folder"):
        kernels.keep(make_deb("6.1.0-57-cloud-amd64"), "x.deb")
    assert len(left(cache)) == 2


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("old", encoding="utf-8")

    def begin() -> None:
        with kernels.replacing(path) as new:
            new.write_text("ne", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert path.read_text(encoding="utf-8") == "old"
    with kernels.replacing(path) as new:
        new.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert left(tmp_path) == ["rows"]


# ---- a mirror ----


class Mirror(http.server.ThreadingHTTPServer):
    """Serves files from a mapping; what is asked for is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: str | None = None  # the end of a path that is not sent whole
        self.url = f"http://127.0.0.1:{self.server_address[1]}/debian"

    def offer(self, suite: str, *packages: tuple[str, str, bytes]) -> None:
        texts = ["Package: zlib1g\nVersion: 1:1.3\nSHA256: 00"]
        for name, version, content in packages:
            path = f"pool/{name}_{version}_amd64.deb"
            self.files[f"/debian/{path}"] = content
            digest = hashlib.sha256(content).hexdigest()
            texts.append(f"Package: {name}\nVersion: {version}\nTag: a::b,\n c::d\nFilename: {path}\nSHA256: {digest}")
        index = lzma.compress(("\n\n".join(texts) + "\n").encode())
        sums = f" {hashlib.sha256(index).hexdigest()} {len(index)} {kernels.INDEX}\n"
        self.files[f"/debian/dists/{suite}/{kernels.INDEX}"] = index
        release = (
            f"Suite: {suite}\nMD5Sum:\n {'0' * 64} 1 {kernels.INDEX}\nSHA256:\n {'1' * 64} 1 main/source/x\n{sums}"
        )
        self.files[f"/debian/dists/{suite}/InRelease"] = release.encode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Mirror)
        self.server.asked.append(self.path)
        if self.path.startswith("/broken"):
            self.send_error(503)
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = self.server.cut and self.path.endswith(self.server.cut)
        self.wfile.write(content[:-1] if cut else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.offer(
            "bookworm",
            ("linux-image-6.1.0-9-cloud-amd64", "6.1.9-1", make_deb("6.1.0-9-cloud-amd64")),
            (f"linux-image-{RELEASE}", "6.1.192-2", make_deb()),
            (f"linux-image-{RELEASE}-unsigned", "6.1.192-2", b"not this one"),
            (f"linux-image-{RELEASE}-dbg", "6.1.192-2", b"nor that"),
            ("linux-image-6.1.0-99-amd64", "6.1.999-1", b"nor one for other machines"),
        )
        server.offer(
            "sid",
            ("linux-image-7.2.13+deb14-cloud-amd64", "7.2.13-1", b"has no image"),
            (
                "linux-binary-7.2.13+deb14-cloud-amd64",
                "7.2.13-1",
                make_deb("7.2.13+deb14-cloud-amd64", path="./usr/lib/modules/{}/vmlinuz"),
            ),
        )
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ignore(_url: str, _done: int, _whole: int) -> None:
    pass


def test_the_newest_kernel_of_a_series_is_fetched_once(mirror: Mirror, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    kernel, new = kernels.fetch("6.1", lambda *told: seen.append(told), mirror.url + "/")
    assert (kernel.release, kernel.version, new) == (RELEASE, "6.1.192-2", True)
    assert kernel.url == f"{mirror.url}/pool/linux-image-{RELEASE}_6.1.192-2_amd64.deb"
    assert kernel.image.read_bytes() == IMAGE
    assert seen[-1] == (kernel.url, len(make_deb()), len(make_deb()))
    mirror.asked.clear()
    assert kernels.fetch("6.1", ignore, mirror.url) == (kernel, False)
    assert mirror.asked == ["/debian/dists/bookworm/InRelease", f"/debian/dists/bookworm/{kernels.INDEX}"]
    assert len(left(cache)) == 2


@pytest.mark.parametrize("series", ["newest", "7.2"])
def test_the_newest_kernel_of_all_comes_in_a_package_of_another_name(mirror: Mirror, series: str) -> None:
    kernel, _ = kernels.fetch(series, ignore, mirror.url)
    assert (kernel.release, kernel.image.read_bytes()) == ("7.2.13+deb14-cloud-amd64", IMAGE)


def test_a_folder_that_cannot_be_written_is_told_before_the_download(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EXECMEM_LAB_CACHE", str(tmp_path / "file" / "lab"))
    with pytest.raises(LabError, match=r"the kernel cannot be kept in .*; EXECMEM_LAB_CACHE names another folder"):
        kernels.fetch("6.1", ignore, mirror.url)
    assert not [path for path in mirror.asked if path.endswith(".deb")]


def test_a_suite_that_moved_is_found_in_the_archive(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MIRROR", mirror.url.replace("/debian", "/moved"))
    monkeypatch.setattr(kernels, "OLD_MIRROR", mirror.url)
    assert kernels.fetch("6.1", ignore)[0].release == RELEASE
    with pytest.raises(LabError, match=r"no mirror has Debian's trixie: asked .*/moved and .*/debian"):
        kernels.fetch("6.12", ignore)


def test_a_series_that_debian_does_not_have_is_told(mirror: Mirror) -> None:
    with pytest.raises(
        LabError, match=r"sid has no kernel 4\.19 .*has 7\.2\.13\+deb14.*known: 5\.10, 6\.1, 6\.12, newest"
    ):
        kernels.fetch("4.19", ignore, mirror.url)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("package", "its archive says .*: it is damaged or not what it claims"),
        ("index", "its archive says .*: it is damaged or not what it claims"),
        ("sums", "is no mirror of Debian for x86-64"),
        ("gone", "the mirror is being renewed"),
        ("cut", "the mirror sent .* bytes; try again|cannot be fetched: "),
    ],
)
def test_a_bad_mirror_is_told_and_leaves_nothing(mirror: Mirror, cache: Path, harm: str, words: str) -> None:
    package = f"/debian/pool/linux-image-{RELEASE}_6.1.192-2_amd64.deb"
    index, release = f"/debian/dists/bookworm/{kernels.INDEX}", "/debian/dists/bookworm/InRelease"
    if harm == "package":
        mirror.files[package] = make_deb(image=b"another")
    elif harm == "index":
        mirror.files[index] = lzma.compress(b"Package: linux-image-6.1.0-56-cloud-amd64\n")
    elif harm == "sums":
        mirror.files[release] = b"Suite: bookworm\n"
    elif harm == "gone":
        del mirror.files[package]
    else:
        mirror.cut = ".deb"
    with pytest.raises(LabError, match=words):
        kernels.fetch("6.1", ignore, mirror.url)
    assert left(cache) == []


def test_no_network_is_told(mirror: Mirror) -> None:
    with pytest.raises(LabError, match=r"the mirror answers 503 .*--mirror"):
        kernels.fetch("6.1", ignore, mirror.url.replace("/debian", "/broken"))
    with pytest.raises(LabError, match=r"cannot be fetched: .*http_proxy.*--mirror.*--deb"):
        kernels.fetch("6.1", ignore, "http://127.0.0.1:1")
    with pytest.raises(LabError, match="begins with https:// or http://"):
        kernels.fetch("6.1", ignore, "file:///etc")


def test_a_download_that_is_interrupted_leaves_nothing(mirror: Mirror, cache: Path) -> None:
    def interrupt(url: str, _done: int, _whole: int) -> None:
        if url.endswith(".deb"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernels.fetch("6.1", interrupt, mirror.url)
    assert left(cache) == []


# ---- the command line ----


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["lab", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_kernels_are_fetched_and_listed_by_command(capsys: pytest.CaptureFixture[str], mirror: Mirror) -> None:
    code, out, err = run(capsys, "fetch", "6.1", "newest", "--mirror", mirror.url)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["6.1", RELEASE, "6.1.192-2", "fetched"],
        ["7.2", "7.2.13+deb14-cloud-amd64", "7.2.13-1", "fetched"],
    ]
    assert err.count("fetching ") == 6
    code, out, err = run(capsys, "fetch", "6.1", "--mirror", mirror.url, "--quiet", "--json")
    assert (code, json.loads(out)["release"], err) == (0, RELEASE, "")
    code, out, _ = run(capsys, "list", "--json")
    assert [json.loads(line)["series"] for line in out.splitlines()] == ["6.1", "7.2"]
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "not there: 5.10, 6.12; execmem lab fetch 5.10 6.12 downloads them" in out
    assert "scn=churn live=1000 steps=10000" in out


def test_a_package_that_is_here_needs_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / f"linux-image-{RELEASE}_6.1.192-2_amd64.deb"
    path.write_bytes(make_deb())
    code, out, _ = run(capsys, "fetch", "--deb", str(path))
    assert (code, out.split()) == (0, ["6.1", RELEASE, "6.1.192-2", "unpacked"])
    code, _, err = run(capsys, "fetch", "--deb", str(tmp_path / "none.deb"))
    assert code == 1
    assert "none.deb cannot be read" in err


def test_nothing_is_fetched_unasked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        message = "the network was used"
        raise AssertionError(message)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert run(capsys, "fetch")[0] == 1
    assert "name what to fetch: 5.10, 6.1, 6.12, newest, all" in run(capsys, "fetch")[2]
    code, _, err = run(capsys, "run", "--kernel", "6.1")
    assert code == 1
    assert "execmem lab fetch 6.1 downloads it" in err
    assert run(capsys, "list")[0] == 0


@pytest.mark.parametrize("release", ["../../victim", ".", "..", "6.1/../x", "6.1/x", ".hidden", "-x", "6.1\nx"])
def test_a_package_cannot_choose_its_folder(tmp_path: Path, cache: Path, release: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis").write_text("years of work", encoding="utf-8")
    for path in ("./boot/vmlinuz-{}", "./usr/lib/modules/{}/vmlinuz"):
        with pytest.raises(LabError, match="has no kernel image"):
            kernels.keep(make_deb(release, path=path), "evil.deb")
    assert (victim / "thesis").read_text(encoding="utf-8") == "years of work"
    assert not list(cache.rglob("vmlinuz"))


def test_a_mirror_that_sends_another_kernel_is_told(mirror: Mirror, cache: Path) -> None:
    mirror.offer("bookworm", (f"linux-image-{RELEASE}", "6.1.192-2", make_deb("9.9.0-1-cloud-amd64")))
    with pytest.raises(LabError, match=r"9\.9\.0-1-cloud-amd64, not one of 6\.1"):
        kernels.fetch("6.1", ignore, mirror.url)
    assert kernels.cached() == []
    assert not list(cache.rglob("vmlinuz"))


def test_a_mirror_with_a_broken_index_is_told(mirror: Mirror) -> None:
    path = f"/debian/dists/bookworm/{kernels.INDEX}"
    whole = mirror.files[path]
    mirror.files[path] = whole[:-9]
    release = "/debian/dists/bookworm/InRelease"
    old, new = (hashlib.sha256(content).hexdigest().encode() for content in (whole, whole[:-9]))
    mirror.files[release] = mirror.files[release].replace(old, new)
    with pytest.raises(LabError, match="cannot be unpacked"):
        kernels.fetch("6.1", ignore, mirror.url)


def test_no_series_is_not_asked_for(mirror: Mirror) -> None:
    with pytest.raises(LabError, match="'nonsense' is no series"):
        kernels.fetch("nonsense", ignore, mirror.url)
    assert mirror.asked == []


def test_a_cache_that_others_wrote_is_told(cache: Path) -> None:
    (cache / "kernels" / "x").mkdir(parents=True)
    (cache / "kernels" / "x" / "kernel.json").write_text('{"release": 5}', encoding="utf-8")
    with pytest.raises(LabError, match="is not what the lab wrote"):
        kernels.cached()
