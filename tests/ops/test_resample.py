"""Resampling against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.ops.resample import resize_bicubic


@pytest.mark.parametrize(("size", "wanted"), [(32, 8), (32, 16), (8, 32), (48, 12), (21, 32), (33, 11)])
def test_resizing_is_pillows(size: int, wanted: int) -> None:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = resize_bicubic(images, wanted)
    assert found.shape == (2, 3, wanted, wanted)
    for image in range(2):
        for channel in range(3):
            plane = Image.fromarray(images[image, channel].numpy(), mode="F")
            expected = np.asarray(plane.resize((wanted, wanted), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(found[image, channel].numpy(), expected, atol=2e-6)


def test_autocast_does_not_round_pixels() -> None:
    images = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_bicubic(images, 4)
    assert found.dtype == torch.float32
    assert torch.equal(found, resize_bicubic(images, 4))
