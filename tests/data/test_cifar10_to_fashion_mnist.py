"""Pretraining on one set and probing on another, from small caches in the real format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.data._pair import InMemoryPair
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.cifar10_to_fashion_mnist import CIFAR10ToFashionMNIST
from ssl_lightning.data.fashion_mnist import FashionMNIST
from ssl_lightning.data.io.pixels import with_channels


@pytest.fixture
def root(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    for name, size, channels in (("cifar10", 32, 3), ("fashion_mnist", 28, 1)):
        (tmp_path / name).mkdir()
        for split, count in (("train", 60), ("test", 20)):
            images = random.integers(0, 256, (count, size, size, channels), np.uint8)
            np.save(tmp_path / name / f"{split}_images.npy", images)
            np.save(tmp_path / name / f"{split}_labels.npy", np.arange(count) % 10)
    return str(tmp_path)


def test_photographs_to_pretrain_on_and_clothes_to_probe_on(root: str) -> None:
    data = CIFAR10ToFashionMNIST(root=root, heldout=20, batch_size=8, flip=False)
    data.prepare_data()
    data.setup()
    assert (data.spec.channels, data.spec.image_size) == (3, 32)
    assert data.spec.class_names == FashionMNIST.class_names
    assert not data.spec.pretrain_labels
    assert data.pretrain_images == 60  # no CIFAR-10 image is held out, since probes do not use them
    photographs = torch.from_numpy(np.load(f"{root}/cifar10/train_images.npy")).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([x for x, _ in data.unlabelled()]), photographs)
    images, labels = next(iter(data.downstream("test", 20)))
    assert images.shape == (20, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])  # three equal channels
    assert labels.tolist() == [i % 10 for i in range(20)]
    clothes = np.load(f"{root}/fashion_mnist/test_images.npy")[..., 0]
    assert abs(float(images.float().mean()) - clothes.mean()) < 2


def test_a_pair_is_two_names(root: str) -> None:
    class Reversed(InMemoryPair):
        name = "reversed"
        pretrain_on = FashionMNIST
        probe_on = CIFAR10

    data = Reversed(root=root, heldout=20, batch_size=8)
    data.setup()
    assert (data.spec.channels, data.spec.image_size) == (1, 28)
    assert data.spec.class_names == CIFAR10.class_names
    assert next(iter(data.downstream("heldout")))[0].shape == (20, 1, 28, 28)


def test_channels() -> None:
    colours = torch.tensor([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], dtype=torch.uint8)
    assert with_channels(colours, 1).flatten().tolist() == [76, 150, 29, 255]
    grey = torch.arange(4, dtype=torch.uint8).view(1, 2, 2, 1)
    assert torch.equal(with_channels(grey, 3), torch.cat([grey] * 3, 3))
    assert with_channels(grey, 1) is grey
