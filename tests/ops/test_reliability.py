"""Calibration against torchmetrics and scikit-learn; corruptions against loops over images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torchmetrics.classification import MulticlassCalibrationError
from torchvision.transforms.v2 import functional as vision

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.calibration import BINS, expected_calibration_error, negative_log_likelihood
from ssl_lightning.ops.corruptions import CORRUPTIONS, corrupt


def scored(n: int = 300, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    stream = generator("calibration")
    scores = 3 * torch.randn(n, classes, generator=stream)
    labels = torch.distributions.Categorical(logits=scores / 2).probs.multinomial(1, generator=stream)
    return scores, labels[:, 0]


def test_calibration_is_that_of_other_libraries() -> None:
    scores, labels = scored()
    expected = MulticlassCalibrationError(4, n_bins=BINS, norm="l1")(scores.softmax(1), labels)
    assert float(expected_calibration_error(scores, labels)) == pytest.approx(float(expected), abs=1e-6)
    assert 0.05 < expected < 0.5
    likelihood = log_loss(labels.numpy(), scores.double().softmax(1).numpy())
    assert float(negative_log_likelihood(scores, labels)) == pytest.approx(likelihood)


def test_certain_answers_are_calibrated_if_right_and_off_by_one_if_wrong() -> None:
    labels = torch.tensor([0, 1, 2])
    certain = 1000 * torch.eye(3)
    assert expected_calibration_error(certain, labels) == 0
    assert expected_calibration_error(certain, labels.roll(1)) == 1


def photographs(n: int = 5, height: int = 17, width: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=generator("photographs")).byte()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_every_batch(name: str) -> None:
    images = photographs(height=33, width=32)
    found = corrupt(images, name)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert not torch.equal(found, images)
    assert torch.equal(found, torch.cat([corrupt(image[None], name) for image in images]))


def test_corruptions_are_what_they_say() -> None:
    images = photographs()
    x = images.numpy() / 255
    assert np.array_equal(corrupt(images, "brightness").numpy(), np.rint(255 * np.clip(x + 0.15, 0, 1)))
    mean = x.mean((2, 3), keepdims=True)
    off = corrupt(images, "contrast").numpy() - 255 * (mean + 0.4 * (x - mean))
    assert np.abs(off).max() < 0.501
    blurred = vision.gaussian_blur(images, [3, 3], [0.24, 0.24])
    assert (corrupt(images, "gaussian_blur").int() - blurred.int()).abs().max() <= 1
    for image, found in zip(x, corrupt(images, "pixelate").numpy(), strict=True):
        for top in range(0, 17, 2):
            for left in range(0, 12, 2):
                cell = (slice(None), slice(top, top + 2), slice(left, left + 2))
                expected = 255 * image[cell].mean((1, 2), keepdims=True)
                assert np.abs(found[cell] - expected).max() < 0.501


def test_noise_has_its_deviation_and_is_another_for_each_image() -> None:
    images = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] += torch.arange(8, dtype=torch.uint8)
    noise = corrupt(images, "gaussian_noise").float() / 255 - images.float() / 255
    assert float(noise.std()) == pytest.approx(0.08, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    between = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert float(between.abs().max()) < 0.05
