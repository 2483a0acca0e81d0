"""Faults while data sets and packs enter the cache, and two processes that request the same one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults._data import Archive, pack, paint, served
from tests.faults._harness import (
    DENSE_S,
    Command,
    Moment,
    State,
    Tally,
    contents,
    draw,
    finish,
    moments_of,
    start,
    survive,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    with served() as archive:
        yield archive


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def fetched(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Moment], State]:
    folder = tmp_path_factory.mktemp("fetched")
    return moments_of(archive.fetch(folder / "cache"), folder, folder / "cache"), contents(folder / "cache")


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Moment], State]:
    folder = tmp_path_factory.mktemp("packed")
    return moments_of(pack(images, folder / "cache"), folder, folder / "cache"), contents(folder / "cache")


@pytest.mark.parametrize("trial", range(6))
@pytest.mark.parametrize("phase", ["download", "unpacking"])
def test_a_struck_download_is_complete_after_the_next(
    archive: Archive, fetched: tuple, tally: Tally, phase: str, trial: int, tmp_path: Path
) -> None:
    moments, expected = fetched
    own = [m for m in moments if (m.file.endswith("archive.tar.gz")) == (phase == "download")]
    fault = draw(phase, trial, own, None if phase == "download" else DENSE_S)
    strike(tally, phase, trial, archive.fetch(tmp_path / "cache"), tmp_path, fault, expected)


@pytest.mark.parametrize("trial", range(6))
def test_a_struck_pack_is_complete_after_the_next(
    images: Path, packed: tuple, tally: Tally, trial: int, tmp_path: Path
) -> None:
    moments, expected = packed
    fault = draw("packing", trial, moments)
    strike(tally, "packing", trial, pack(images, tmp_path / "cache"), tmp_path, fault, expected)


def strike(
    tally: Tally, phase: str, trial: int, command: Command, tmp_path: Path, fault: dict, expected: State
) -> None:
    cache = tmp_path / "cache"
    survive(tally, phase, trial, command, tmp_path, cache, fault, lambda: contents(cache), expected)


def test_two_at_once_download_once(archive: Archive, fetched: tuple, tmp_path: Path) -> None:
    before = len(archive.sent)
    both = [start(archive.fetch(tmp_path / "cache"), tmp_path) for _ in range(2)]
    assert [status for status, _ in map(finish, both)] == [0, 0]
    assert len(archive.sent) - before == 1
    assert contents(tmp_path / "cache") == fetched[1]


def test_two_at_once_pack_once(images: Path, packed: tuple, tmp_path: Path) -> None:
    both = [start(pack(images, tmp_path / "cache"), tmp_path) for _ in range(2)]
    (first, output), (second, too) = map(finish, both)
    assert (first, second) == (0, 0)
    assert (output + too).count("decoding 40 pictures") == 1
    assert contents(tmp_path / "cache") == packed[1]
