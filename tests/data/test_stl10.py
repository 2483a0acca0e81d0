"""STL-10, from a small cache in the real format."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_lightning.data.stl10 import STL10


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "stl10"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("unlabeled", 30), ("train", 20), ("test", 10)):
        np.save(folder / f"{split}_images.npy", random.integers(0, 256, (count, 96, 96, 3), np.uint8))
        if split != "unlabeled":
            np.save(folder / f"{split}_labels.npy", np.arange(count) % 10)
    return str(tmp_path)


def test_all_unlabelled_images_pretrain_and_labelled_ones_are_held_out(root):
    data = STL10(root=root, heldout=10, batch_size=10)
    data.prepare_data()
    data.setup()
    assert not data.spec.pretrain_labels
    assert data.spec.num_classes == 10
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert batches[0][0].shape == (10, 3, 96, 96)
    assert all((y == -1).all() for _, y in batches)
    sizes = {split: sum(len(y) for _, y in data.downstream(split)) for split in ("train", "heldout", "test")}
    assert sizes == {"train": 10, "heldout": 10, "test": 10}
    assert sum(len(x) for x, _ in data.val_dataloader()) == 10
