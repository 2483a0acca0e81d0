"""Published facts of the real Fashion-MNIST, if it is in the cache."""

from __future__ import annotations

import pytest
import torch

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data.fashion_mnist import FashionMNIST

PRESENT = (cache_root(None) / "fashion_mnist").is_dir()


@pytest.mark.skipif(not PRESENT, reason="Fashion-MNIST is not in the cache")
def test_the_real_images_are_those_that_are_known() -> None:
    data = FashionMNIST()
    data.setup()
    train = data.downstream("train").source
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert (len(train), len(data.downstream("test").source)) == (60_000, 10_000)
    pixels = train.images.flatten().double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((0.2860, 0.3530), abs=1e-4)
    assert torch.bincount(train.labels).tolist() == [6000] * 10
