"""Packs: views against decoded files; interrupted, torn, shared and oversized packs."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from ssl_lightning.core import progress
from ssl_lightning.data.io import packed
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.packed import (
    CacheSpaceError,
    PackedSource,
    is_complete_pack,
    make_pack,
    shrunk_size,
)
from ssl_lightning.data.io.sources import FileSource

COUNT = 12


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Write noise of several kinds: long, square, smaller than a view, palette, grey, rotated by EXIF."""
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    found = []
    for number in range(COUNT):
        height, width = [(20, 30), (41, 17), (6, 5), (24, 24)][number % 4]
        image = Image.fromarray(random.integers(64, 192, (height, width, 3), np.uint8))  # cannot overshoot
        exif = Image.Exif()
        if number in (1, 5):
            exif[0x0112] = 6  # stored on its left side
        if number == 3:
            image = image.convert("L")
        if number == 7:
            image = image.convert("P")
        found.append(folder / f"{number}.png")
        image.save(found[-1], exif=exif)
    return found


def options(channels: int = 3, workers: int = 0) -> dict[str, Any]:
    return {
        "channels": channels,
        "train_view": TrainView(8, (0.2, 1.0)),
        "eval_view": EvalView(8, 0.875),
        "max_pixels": 10_000,
        "num_workers": workers,
    }


def source(paths: list[Path], side: int = 100, channels: int = 3, workers: int = 0) -> PackedSource:
    folder = paths[0].parents[1] / "packed"
    return PackedSource(
        paths, torch.arange(len(paths)), folder=folder, side=side, **options(channels, workers)
    )


def epochs(images: FileSource, augment: bool, count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = BatchLoader(images, torch.arange(len(images)), 4, seed=3, shuffle=augment, augment=augment)
    return [batch for _ in range(count) for batch in loader]


def same(a: list, b: list) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def pack_of(images: list[Path], side: int = 100, channels: int = 3, max_pixels: int = 10_000) -> Path:
    folder = images[0].parents[1] / "packed"
    return make_pack(images, folder, channels=channels, side=side, max_pixels=max_pixels)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Record the names of all files decoded for a pack."""
    seen, real = [], packed.decode

    def counting(path, *pixels):
        seen.append(Path(path).name)
        return real(path, *pixels)

    monkeypatch.setattr(packed, "decode", counting)
    return seen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("side", [24, 1000])  # 24 is the largest shorter side of the pictures
def test_views_of_pictures_that_keep_their_size_are_those_of_the_files(paths, channels, augment, side):
    direct = FileSource(paths, torch.arange(COUNT), **options(channels))
    expected = epochs(direct, augment)
    assert same(epochs(source(paths, side, channels), augment), expected)
    assert not same(epochs(source(paths, 10, channels), augment), expected)


@pytest.mark.parametrize("augment", [True, False])
def test_workers_map_the_pack_themselves_and_change_no_pixel(paths, augment):
    expected = epochs(source(paths, 10), augment)
    assert same(epochs(source(paths, 10, workers=2), augment), expected)


def test_larger_pictures_are_resized_once_by_their_shorter_side(paths):
    images = source(paths, 10)
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            image.load()
        if number in (1, 5):
            image = image.transpose(Image.Transpose.ROTATE_270)
        image = image.convert("RGB")
        width, height = image.size
        stored = images.picture(number).permute(1, 2, 0).numpy()
        if min(width, height) > 10:
            size = (10, round(10 * height / width)) if width < height else (round(10 * width / height), 10)
            image = image.resize(size, Image.Resampling.BICUBIC)
            assert stored.shape == (*image.size[::-1], 3)
            assert np.abs(stored.astype(int) - np.asarray(image)).max() <= 1, path.name
        else:
            assert np.array_equal(stored, np.asarray(image)), path.name


def test_the_shorter_side_is_exact_and_smaller_pictures_are_left_alone():
    for width in range(1, 400, 7):
        for height in range(1, 400, 11):
            size = shrunk_size(width, height, 97)
            assert size == (width, height) if min(width, height) <= 97 else min(size) == 97
            assert abs(size[0] / size[1] * height / width - 1) < 0.006 or size == (width, height)


def test_what_goes_to_a_worker_holds_no_pixels(tmp_path):
    path = tmp_path / "images" / "large.png"
    path.parent.mkdir()
    Image.new("RGB", (90, 90)).save(path)
    images = source([path])
    expected = images.view(0, None)  # the pack is mapped by now
    sent = pickle.dumps(images)
    assert images.pack.stat().st_size > 90 * 90 * 3
    assert len(sent) < 3000
    assert torch.equal(pickle.loads(sent).view(0, None), expected)


def test_a_pack_is_made_once_for_the_same_files_and_pixels(paths, decoded, monkeypatch):
    first = pack_of(paths)
    assert sorted(decoded) == sorted(path.name for path in paths)
    assert pack_of(paths) == first
    monkeypatch.chdir(first.parent)
    assert pack_of([Path("..", "images", path.name) for path in paths]).resolve() == first
    assert len(decoded) == COUNT
    others = [
        pack_of(paths[:-1]),
        pack_of(paths[::-1]),
        pack_of(paths, side=10),
        pack_of(paths, channels=1),
        pack_of(paths, max_pixels=100),
    ]
    stat = paths[4].stat()
    os.utime(paths[4], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    others.append(pack_of(paths))
    with paths[4].open("ab") as file:
        file.write(b"x")
    os.utime(paths[4], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    others.append(pack_of(paths))
    assert len({first, *others}) == 8
    assert names(first.parent) == sorted(path.name for path in (first, *others))


def test_a_file_that_cannot_be_decoded_is_named_then_and_when_its_turn_comes(paths, capsys):
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    images, direct = source(paths), FileSource(paths, None, **options())
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 of {COUNT} pictures cannot be decoded" in said
    assert "2.png" in said
    assert torch.equal(images.view(1, None), direct.view(1, None))
    for each in (images, direct):
        with pytest.raises(RuntimeError, match=r"2\.png cannot be read: .*data\.verify"):
            each.view(2, None)


def test_pictures_that_cannot_wait_are_not_decoded_far_ahead(paths, monkeypatch):
    threads, started = packed.default_workers(), []

    def work(item):
        started.append(item)
        return item

    for place, item in enumerate(packed.map_in_order(work, range(1000), threads)):
        assert item == place
        time.sleep(0.0005)  # slower than the threads
        assert len(started) <= place + 2 * threads + 1


@pytest.mark.parametrize("left", [0, 10, 500, -1])
def test_a_torn_pack_is_detected_and_replaced(paths, left):
    whole = pack_of(paths).read_bytes()
    pack = pack_of(paths)
    os.truncate(pack, left if left >= 0 else len(whole) + left)
    assert not is_complete_pack(pack)
    assert pack_of(paths) == pack
    assert pack.read_bytes() == whole


def build_slowly(images: list[Path], started: Any, marks: Path, delay: float) -> None:
    real = packed.decode

    def slow(path, *pixels):
        if Path(path).name == "6.png":
            started.set()
            time.sleep(delay)
            with marks.open("a") as file:
                file.write("x")
        return real(path, *pixels)

    packed.decode = slow  # type: ignore[assignment]  # in this process only
    pack_of(images)


def test_what_a_killed_process_left_is_no_pack_and_is_removed(paths, tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=build_slowly, args=(paths, started, tmp_path / "marks", 60))
    process.start()
    assert started.wait(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    folder = tmp_path / "packed"
    (left,) = names(folder)
    assert left.endswith(".bin.tmp")
    being_written = folder / ".abc.bin.tmp"
    being_written.write_text("of another process")
    with FileLock(folder / ".abc.bin.lock"):
        pack = pack_of(paths[:3])  # a pack of other files cleans up too, without files in use
    assert names(folder) == sorted([being_written.name, pack.name])
    again = pack_of(paths)
    assert names(folder) == sorted([again.name, pack.name])
    direct = FileSource(paths, torch.arange(COUNT), **options())
    assert same(epochs(source(paths), augment=True), epochs(direct, augment=True))


def test_two_processes_make_a_pack_once(paths, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (paths, context.Event(), tmp_path / "marks", 2)  # until the other process reaches the lock
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "marks").read_text() == "x"
    assert len(names(tmp_path / "packed")) == 1


def test_a_disk_that_is_too_small_is_refused_before_anything_is_decoded(paths, decoded, monkeypatch):
    pixels = sum(3 * width * height for width, height in (Image.open(path).size for path in paths))
    for free, fits in ((pixels - 1, False), (pixels, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if fits:
            assert is_complete_pack(pack_of(paths))
            continue
        with pytest.raises(CacheSpaceError, match=r"MB in .*packed.*data\.root.*data\.cache=false"):
            pack_of(paths)
        assert not decoded
        assert names(paths[0].parents[1] / "packed") == []


def test_a_disk_that_becomes_full_is_the_same_error_and_nothing_is_left(paths, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheSpaceError, match=r"data\.cache=false"):
        pack_of(paths)
    assert names(paths[0].parents[1] / "packed") == []


def test_the_size_of_a_long_list_is_told_from_some_headers(paths):
    for side in (10, 100):
        exact = packed._expected_bytes(paths, 3, side)
        assert exact == sum(
            path_size[0] * path_size[1] * 3
            for path_size in (shrunk_size(*Image.open(path).size, side) for path in paths)
        )
        assert packed._expected_bytes(paths * 1000, 3, side) == pytest.approx(1000 * exact, rel=0.3)


def test_progress_is_told_now_and_then(paths, monkeypatch, capsys):
    told = []
    one, held = packed.map_in_order, threading.Event()

    def slowly(work, items, threads):
        for place, item in enumerate(one(work, items, threads)):
            assert place != 3 or held.wait(60)  # until a line came
            yield item

    monkeypatch.setattr(packed, "map_in_order", slowly)
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    with progress.shown_by(lambda line: (told.append(line), "decode: 3 of" in line and held.set())):
        pack_of(paths)
    assert any(line.startswith(f"data.cache: decode: 3 of {COUNT} pictures, ") for line in told)
    lines = capsys.readouterr().err.splitlines()
    assert f"decoding {COUNT} pictures into" in lines[0]
    assert "ready after" in lines[-1]
