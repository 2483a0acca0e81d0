"""CIFAR-10 and Fashion-MNIST from small caches in the real format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.fashion_mnist import FashionMNIST

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
    data.prepare_data()  # finds the cache, or would fail without a network
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
    with pytest.raises(ValueError, match=r"80 such images take 24,000,000 GB .*allowed is half"):
        data.setup()
