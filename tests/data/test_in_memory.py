"""CIFAR-10 and Fashion-MNIST, from small caches in the real format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.fashion_mnist import FashionMNIST
from ssl_lightning.data.io.sources import ArraySource

SETS = [(CIFAR10, 32, 3, "airplane"), (FashionMNIST, 28, 1, "t-shirt/top")]


def cache(root: Path, name: str, size: int, channels: int) -> str:
    folder = root / name
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        np.save(
            folder / f"{split}_images.npy", random.integers(0, 256, (count, size, size, channels), np.uint8)
        )
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 10)
    return str(root)


@pytest.mark.parametrize(("kind", "size", "channels", "first"), SETS)
def test_pretraining_and_probes_share_the_training_images(
    kind: type[InMemory], size: int, channels: int, first: str, tmp_path: Path
) -> None:
    root = cache(tmp_path, kind.name, size, channels)
    data = kind(root=root, heldout=20, batch_size=8)
    data.prepare_data()  # finds the cache; without it, the download would fail
    data.setup()
    assert (data.spec.image_size, data.spec.channels, data.spec.num_classes) == (size, channels, 10)
    assert data.spec.pretrain_labels
    assert data.spec.class_names is not None
    assert data.spec.class_names[0] == first
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, channels, size, size)
    assert labels.min() >= 0
    stored = torch.from_numpy(np.load(f"{root}/{kind.name}/test_images.npy")).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([x for x, _ in data.downstream("test")]), stored)


def test_another_image_size_is_made_once(tmp_path: Path) -> None:
    data = CIFAR10(root=cache(tmp_path, "cifar10", 32, 3), heldout=20, batch_size=8, image_size=48)
    assert data.train_sample(2).shape == (2, 3, 48, 48)
    assert data.spec.image_size == 48


def test_a_size_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    data = CIFAR10(root=cache(tmp_path, "cifar10", 32, 3), heldout=20, image_size=10_000_000)
    with pytest.raises(ValueError, match=r"80 such images take 24,000,000 GB, and .*allowed is half of that"):
        data.setup()


@pytest.mark.gpu
def test_batches_of_images_on_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    root = cache(tmp_path, "cifar10", 32, 3)
    options = {"root": root, "heldout": 20, "batch_size": 8, "crop_padding": 4}
    plain, resident = (CIFAR10(**options, device_resident=wanted) for wanted in (False, "auto"))
    resident.place(torch.device("cuda"))
    for split in ("train", "test"):
        for (images, labels), (placed, others) in zip(
            plain.downstream(split), resident.downstream(split), strict=True
        ):
            assert placed.is_cuda
            assert torch.equal(images, placed.cpu())
            assert torch.equal(labels, others)
    for (images, _), (placed, _) in zip(plain.train_dataloader(), resident.train_dataloader(), strict=True):
        assert torch.equal(images, placed.cpu())  # the same crops and mirroring
    assert resident.train_sample(4).is_cpu


def test_a_gpu_without_room_for_the_images_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CIFAR10(root=cache(tmp_path, "cifar10", 32, 3), heldout=20, batch_size=8, device_resident=True)
    needed = 80 * 32 * 32 * 3  # shared training images count once
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * needed - 1, 10**12))
    with pytest.raises(ValueError, match=r"data.device_resident is true: the images take .* allowed is half"):
        data.place(torch.device("cuda"))
    moved = []
    monkeypatch.setattr(ArraySource, "place", lambda source, device: moved.append((len(source), device.type)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * needed, 10**12))
    data.place(torch.device("cuda"))
    assert moved == [(60, "cuda"), (20, "cuda")]
    data.device_resident = "auto"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * needed - 10, 10**12))
    data.place(torch.device("cuda"))
    assert len(moved) == 2  # a little more than a tenth
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * needed + 10, 10**12))
    data.place(torch.device("cuda"))
    assert len(moved) == 4
    moved.clear()
    data.place(torch.device("cpu"))
    assert moved == []
