"""Published facts of the real CIFAR-10, if it is in the cache."""

from __future__ import annotations

import pytest
import torch

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data.cifar10 import CIFAR10

PRESENT = (cache_root(None) / "cifar10").is_dir()


@pytest.mark.skipif(not PRESENT, reason="CIFAR-10 is not in the cache")
def test_the_real_images_are_those_that_are_known() -> None:
    data = CIFAR10()
    data.setup()
    train = data.downstream("train").source
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert (len(train), len(data.downstream("test").source)) == (50_000, 10_000)
    pixels = train.images.flatten(0, 2)
    mean = pixels.double().mean(0) / 255
    assert mean.tolist() == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
    assert (pixels.double().std(0) / 255).tolist() == pytest.approx([0.24703, 0.24349, 0.26159], abs=1e-5)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
