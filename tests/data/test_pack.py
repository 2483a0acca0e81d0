"""Packer: shards read by another library, resuming, and errors."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ssl_lightning.data.io.shard_index import ShardError, check_shards, read_index
from ssl_lightning.data.pack import writer
from ssl_lightning.data.pack.__main__ import main

SUFFIXES = (".jpg", ".png", ".JPEG", ".webp")


def tree(root: Path, count: int = 12, seed: int = 0, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    random = np.random.default_rng(seed)
    for number in range(count):
        path = root / classes[number % len(classes)] / f"{number:02}.of.{count}{SUFFIXES[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9 + number, 14, 3), np.uint8)).save(path)
    return root


def pack(images: Path, out: Path, *options: str) -> int:
    return main([str(images), str(out), "--samples-per-shard", "5", *options])


def content(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def test_webdataset_reads_the_same_keys_bytes_and_labels(tmp_path, capsys):
    wds = pytest.importorskip("webdataset")
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    assert pack(images, out, "--labels") == 0
    assert "12 images of 2 classes in 3 shards" in capsys.readouterr().out
    shards = sorted(str(path) for path in out.glob("*.tar"))
    seen = list(wds.WebDataset(shards, shardshuffle=False))
    index = read_index(out)
    assert (len(seen), len(index.table), index.class_names) == (12, 12, ("ant", "bee"))
    assert len({sample["__key__"] for sample in seen}) == 12
    for sample, row in zip(seen, index.table, strict=True):
        file = images / index.name(row)
        suffix = file.suffix.lower().removeprefix(".")
        assert set(sample) == {"__key__", "__url__", "__local_path__", suffix, "cls"}
        assert sample[suffix] == file.read_bytes()
        assert ("ant", "bee")[int(sample["cls"])] == ("ant", "bee")[row["label"]] == file.parent.name
        assert sample["__url__"] == str(index.shards[row["shard"]])
        start = int(row["offset"])
        stored = index.shards[row["shard"]].read_bytes()[start : start + int(row["size"])]
        assert stored == file.read_bytes()
    assert sorted(index.name(row) for row in index.table) == sorted(
        path.relative_to(images).as_posix() for path in images.rglob("*.*")
    )


@pytest.mark.slow
def test_order_labels_and_sizes_follow_the_options(tmp_path):
    images = tree(tmp_path / "images")
    names = {}
    for key, options in {"0": [], "again": [], "1": ["--seed", "1"], "kept": ["--keep-order"]}.items():
        assert pack(images, tmp_path / key, *options) == 0
        index = read_index(tmp_path / key)
        names[key] = [index.name(row) for row in index.table]
        assert index.class_names is None
        assert set(index.table["label"]) == {-1}
        with tarfile.open(tmp_path / key / "shard-000000.tar") as tar:
            assert [member.name.rpartition(".")[2] == "cls" for member in tar] == [False] * 5
    assert names["kept"] == sorted(names["kept"])
    assert names["0"] == names["again"]
    assert content(tmp_path / "0") == content(tmp_path / "again")
    assert names["kept"] != names["0"] != names["1"]
    assert sorted(names["0"]) == sorted(names["1"]) == names["kept"]
    assert main([str(images), str(tmp_path / "small"), "--megabytes", "0.004", "--labels"]) == 0
    sizes = read_index(tmp_path / "small").shard_bytes
    assert len(sizes) > 3
    assert max(sizes) <= 10_240  # tar files are padded to this size


def test_bad_images_are_named_and_left_out_until_there_are_too_many(tmp_path, capsys):
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    torn = images / "ant" / "00.of.12.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    os.mkfifo(images / "bee" / "pipe.png")
    assert pack(images, out) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "cannot be decoded; allowed is a fraction max-bad 0.01 of 13" in said
    assert not (out / "index.json").exists()
    assert pack(images, out, "--max-bad", "0.2", "--labels") == 0  # other settings start over
    output = capsys.readouterr()
    assert "2 left out" in output.out
    assert "00.of.12.jpg: " in output.err
    assert "pipe.png: not a plain file" in output.err
    assert json.loads((out / "index.json").read_bytes())["skipped"] == 2
    assert len(read_index(out).table) == 11
    assert pack(images, tmp_path / "other", "--max-pixels", "100", "--max-bad", "0.9") == 1
    assert "max_pixels 100" in capsys.readouterr().err


def test_a_class_without_a_good_image_and_images_without_a_class_are_refused(tmp_path, capsys):
    images = tree(tmp_path / "images")
    (images / "cow").mkdir()
    (images / "cow" / "1.png").write_bytes(b"no image")
    assert pack(images, tmp_path / "out", "--labels", "--max-bad", "0.2") == 1
    assert "no image of class cow can be decoded" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.json").exists()
    shutil.copy(images / "bee" / "01.of.12.png", images)
    assert pack(images, tmp_path / "out", "--labels") == 1
    assert "have no label" in capsys.readouterr().err


def die_in_second_shard(images: Path, out: Path) -> None:
    real = writer._read_good

    def deadly(path: Path, max_pixels: int):
        if (out / "shard-000000.tar").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, max_pixels)

    writer._read_good = deadly  # type: ignore[assignment]  # in this process only
    pack(images, out)


def test_a_killed_pack_is_incomplete_and_resumes(tmp_path, capsys, monkeypatch):
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    assert pack(images, tmp_path / "undisturbed") == 0
    process = multiprocessing.get_context("fork").Process(target=die_in_second_shard, args=(images, out))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert ".shard-000000.json" in content(out)
    with pytest.raises(FileNotFoundError, match="packing did not finish"):
        read_index(out)
    packed = (out / "shard-000000.tar").stat().st_mtime_ns
    (out / ".shard-000001.tar.7.tmp").write_text("half a shard")
    assert pack(images, out) == 0
    assert "packing resumes, 1 of 3 shards are done" in capsys.readouterr().err
    assert (out / "shard-000000.tar").stat().st_mtime_ns == packed
    assert content(out) == content(tmp_path / "undisturbed")
    before = content(out)
    assert pack(images, out) == 0
    assert "already holds these images" in capsys.readouterr().err
    assert content(out) == before


@pytest.mark.slow
def test_other_images_or_settings_start_over_and_foreign_folders_are_left_alone(tmp_path, capsys):
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=die_in_second_shard, args=(images, out))
    process.start()
    process.join(30)
    tree(images, 14, seed=1)
    assert pack(images, out) == 0
    assert "packing starts over" in capsys.readouterr().err
    assert pack(images, tmp_path / "undisturbed") == 0
    assert content(out) == content(tmp_path / "undisturbed")
    before = content(out)
    assert pack(images, out, "--labels") == 1
    assert "holds shards of other images or settings" in capsys.readouterr().err
    assert content(out) == before
    before = content(images / "ant")
    assert pack(images, images / "ant") == 1
    assert "holds other files, such as 00.of.12.jpg" in capsys.readouterr().err
    assert content(images / "ant") == before


def test_a_full_disk_is_one_error_and_the_same_command_resumes(tmp_path, capsys, monkeypatch):
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    assert pack(images, tmp_path / "undisturbed") == 0

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert pack(images, out) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "no space is left on the disk of" in said
    assert "Run the same command again to resume" in said
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        assert pack(images, out) == 1
    assert "the shards need about 0.0 GB more" in capsys.readouterr().err
    assert pack(images, out) == 0
    assert content(out) == content(tmp_path / "undisturbed")


def test_two_packers_and_impossible_values_are_refused(tmp_path, capsys):
    images, out = tree(tmp_path / "images"), tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert pack(images, out) == 1
    assert "another process is packing into" in capsys.readouterr().err
    for options, message in (
        ([str(images)], "name the folder of the images and the folder of the shards"),
        ([str(tmp_path / "gone"), str(out)], "gone does not exist"),
        ([str(images), str(out), "--megabytes", "0"], "must be at least 1"),
        ([str(images), str(out), "--max-bad", "1"], "max-bad is 1.0"),
        ([str(images), str(images / "ant" / "00.of.12.jpg")], "File exists"),
        ([str(images), "--check"], "has no index.json"),
    ):
        assert main(options) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said


def test_check_finds_a_changed_byte(tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(tree(tmp_path / "images"), out) == 0
    assert main([str(out), "--check"]) == 0
    assert "is complete" in capsys.readouterr().out
    shard = out / "shard-000001.tar"
    changed = bytearray(shard.read_bytes())
    changed[700] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(ShardError, match=r"shard-000001\.tar differs from"):
        check_shards(out)
    assert main([str(out), "--check"]) == 1
    assert "error: " in capsys.readouterr().err
