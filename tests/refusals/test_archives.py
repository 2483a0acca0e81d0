"""Refusals of malicious archives, one table for all formats: tar, npm, and Debian."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.data.io import cifar10
from ssl_lightning.data.io.download import unpack, unpack_deb

LIMIT = 10_000  # bytes
Member = tuple[str, Any]


def file(name: str, size: int = 3) -> Member:
    return name, size


def special(name: str, kind: bytes, target: str = "") -> Member:
    return name, (kind, target)


ATTACKS: dict[str, tuple[list[Member], str]] = {
    "a name that leads up": ([file("../owned")], "outside the destination"),
    "a name that leads up from within": ([file("a/../../owned")], "outside the destination"),
    "an absolute name that leads up": ([file("/../../../owned")], "outside the destination"),
    "a link that leads up": ([special("a", tarfile.SYMTYPE, ".."), file("a/owned")], "outside the dest"),
    "an absolute link": ([special("a", tarfile.SYMTYPE, "/tmp"), file("a/owned")], "absolute path"),
    "a link through a link": (
        [special("a/b", tarfile.SYMTYPE, "."), special("c", tarfile.SYMTYPE, "a/b/../.."), file("c/owned")],
        "outside the destination",
    ),
    "a hard link to a file outside": ([special("a", tarfile.LNKTYPE, "../victim")], "outside the dest"),
    "a hard link to a file of the system": ([special("a", tarfile.LNKTYPE, "/etc/passwd")], "absolute path"),
    "a device": ([special("a", tarfile.CHRTYPE)], "special file"),
    "a disk": ([special("a", tarfile.BLKTYPE)], "special file"),
    "a pipe": ([special("a", tarfile.FIFOTYPE)], "special file"),
    "one name twice": ([file("a"), file("A")], "holds 'A' twice"),
    "a bomb": ([file("zeros", 5_000_000)], "exceeds the limit of 10,000 bytes"),
    "many files of nothing": ([file(f"{n}", 0) for n in range(100)], "exceeds the limit of 10,000 bytes"),
}  # fmt: skip


def tar_of(members: list[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, int):
                info.size = content
                tar.addfile(info, io.BytesIO(bytes(content)))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return out.getvalue()


def deb_of(data: bytes) -> bytes:
    """Write a Debian package by hand: an `ar` archive of three files."""
    control = gzip.compress(tar_of([]))
    parts = {"debian-binary": b"2.0\n", "control.tar.gz": control, "data.tar.xz": lzma.compress(data)}
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


def by_npm(path: Path, into: Path) -> None:
    """Decode with the package's own decoder, whose limit suits CIFAR-10."""
    limit, cifar10.MAX_BYTES = cifar10.MAX_BYTES, LIMIT
    try:
        cifar10.decode_npm(path)
    finally:
        cifar10.MAX_BYTES = limit


WAYS: dict[str, tuple[Callable[[bytes], bytes], Callable[[Path, Path], None]]] = {
    "tar": (bytes, lambda path, into: unpack(path, into, LIMIT)),
    "tar.gz": (gzip.compress, lambda path, into: unpack(path, into, LIMIT)),
    "tar.bz2": (bz2.compress, lambda path, into: unpack(path, into, LIMIT)),
    "deb": (deb_of, lambda path, into: unpack_deb(path, into, LIMIT)),
    "npm": (gzip.compress, by_npm),
}


FEW = ["tar", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[1:])]


@pytest.mark.parametrize("way", FEW)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_archive_is_refused(name: str, way: str, tmp_path: Path) -> None:
    members, answer = ATTACKS[name]
    pack, unpack_it = WAYS[way]
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "victim").write_text("as it was")
    (inside / "archive").write_bytes(pack(tar_of(members)))
    with pytest.raises(ValueError, match=f"archive cannot be unpacked: .*({answer})"):
        unpack_it(inside / "archive", inside / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "victim"]
    assert (tmp_path / "victim").read_text() == "as it was"
    written = sum(
        path.lstat().st_size for path in inside.rglob("*") if path.name != "archive" and path.is_file()
    )
    assert written <= LIMIT
    assert not os.path.lexists("/owned")
    assert not os.path.lexists("/tmp/owned")


@pytest.mark.parametrize("way", ["tar", "tar.gz", "tar.bz2", "deb"])
def test_a_good_archive_is_unpacked(way: str, tmp_path: Path) -> None:
    pack, unpack_it = WAYS[way]
    data = pack(
        tar_of([("usr", (tarfile.DIRTYPE, "")), file("usr/a", 5), special("b", tarfile.SYMTYPE, "usr/a")])
    )
    (tmp_path / "archive").write_bytes(data)
    unpack_it(tmp_path / "archive", tmp_path / "out")
    assert (tmp_path / "out/usr/a").read_bytes() == (tmp_path / "out/b").read_bytes() == bytes(5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tar.gz", "deb"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6])
def test_a_cut_archive_is_refused(way: str, part: float, tmp_path: Path) -> None:
    pack, unpack_it = WAYS[way]
    data = pack(tar_of([file("a", 3000)]))
    (tmp_path / "archive").write_bytes(data[: int(part * len(data))])
    with pytest.raises(ValueError, match="archive cannot be unpacked: "):
        unpack_it(tmp_path / "archive", tmp_path / "out")
