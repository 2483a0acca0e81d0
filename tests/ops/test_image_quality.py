"""Errors of restored images against loops and torchmetrics."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.image_quality import masked_mse, psnr
from ssl_lightning.ops.masks import block_masks


def test_only_pixels_of_the_mask_count() -> None:
    images, originals = torch.rand(2, 4, 3, 9, 9)
    mask = block_masks(4, 9, 4, generator(0))
    for image, found in enumerate(masked_mse(images, originals, mask).tolist()):
        errors = [
            float(images[image, c, y, x] - originals[image, c, y, x]) ** 2
            for c in range(3)
            for y, x in mask[image, 0].nonzero().tolist()
        ]
        assert found == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_psnr_is_that_of_torchmetrics() -> None:
    images, originals = torch.rand(2, 4, 3, 9, 9)
    found = psnr(masked_mse(images, originals, torch.ones(4, 1, 9, 9)))
    expected = peak_signal_noise_ratio(images, originals, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(found, expected)
