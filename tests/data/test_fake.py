"""Generated images: fixed, in range, with learnable classes and orientation."""

from __future__ import annotations

import torch

from ssl_lightning.data.fake import Fake, striped


def test_images_are_the_same_every_time_and_differ_between_splits():
    first, labels = striped(12, 3, 3, 16, "train")
    torch.manual_seed(1)
    again, _ = striped(12, 3, 3, 16, "train")
    assert torch.equal(first, again)
    assert not torch.equal(first, striped(12, 3, 3, 16, "test")[0])
    assert first.shape == (12, 16, 16, 3)
    assert first.dtype == torch.uint8
    assert labels.bincount().tolist() == [4, 4, 4]


def test_class_and_orientation_can_be_seen():
    images, labels = striped(400, 2, 1, 16, "train")
    x = images[..., 0].float()
    assert (x[:, :4].mean((1, 2)) > x[:, -4:].mean((1, 2))).float().mean() > 0.9  # light from above
    across, down = x.diff(dim=2).abs().mean((1, 2)), x.diff(dim=1).abs().mean((1, 2))
    guess = (down > across).long()  # stripes that change along x are class 0
    assert (guess == labels).float().mean() > 0.9


def test_keys_set_the_sizes():
    data = Fake(num_train=30, num_test=9, num_classes=3, channels=1, image_size=8, heldout=6, batch_size=24)
    (images, labels), *more = data.train_dataloader()
    assert images.shape == (24, 1, 8, 8)
    assert not more
    assert labels.bincount().tolist() == [8, 8, 8]
    assert sum(len(y) for _, y in data.downstream("test")) == 9
    data.setup()
    assert data.spec.class_names == ("stripes0", "stripes60", "stripes120")
