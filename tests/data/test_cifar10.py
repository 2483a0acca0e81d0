"""CIFAR-10 from a small cache in the real one's format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_lightning.data.cifar10 import CIFAR10


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        np.save(folder / f"{split}_images.npy", random.integers(0, 256, (count, 32, 32, 3), np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 10)
    return str(tmp_path)


def test_pretraining_and_probes_share_the_training_images(root):
    data = CIFAR10(root=root, heldout=20, batch_size=8)
    data.prepare_data()  # finds the cache, or would fail without a network
    data.setup()
    assert (data.spec.image_size, data.spec.channels, data.spec.num_classes) == (32, 3, 10)
    assert data.spec.pretrain_labels
    assert data.spec.class_names is not None
    assert data.spec.class_names[0] == "airplane"
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 32, 32)
    assert labels.min() >= 0
    stored = torch.from_numpy(np.load(f"{root}/cifar10/test_images.npy")).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([x for x, _ in data.downstream("test")]), stored)


def test_another_image_size_is_made_once(root):
    data = CIFAR10(root=root, heldout=20, batch_size=8, image_size=48)
    assert data.train_sample(2).shape == (2, 3, 48, 48)
    assert data.spec.image_size == 48
