"""Samples of flat, equal and grey images."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from ssl_lightning.data.io.contents import check_contents, flat_images, grey_images

NOISE = torch.randint(256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def said(images: Tensor) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_contents(images)
    return [str(warning.message) for warning in caught]


def test_ordinary_images_have_nothing_to_say() -> None:
    assert said(NOISE) == said(NOISE[:1]) == said(NOISE[:, :1]) == []


def test_equal_pixels_teach_nothing() -> None:
    with pytest.raises(ValueError, match=r"all pixels of 5 sampled .* the value \[7, 7, 7\].*value_range"):
        check_contents(torch.full((5, 3, 8, 8), 7))


def test_pictures_of_one_colour_are_counted() -> None:
    images = NOISE.clone()
    images[:1] = NOISE[:1, :, :1, :1]
    assert said(images) == []  # one of twenty
    images[:3] = NOISE[:3, :, :1, :1]
    (line,) = said(images)
    assert line.startswith("3 of 20 sampled pretraining images have one colour each")
    assert flat_images(images).tolist() == [True] * 3 + [False] * 17


def test_copies_are_counted() -> None:
    (line,) = said(NOISE[[0, 1, 2] * 4])
    assert line.startswith("only 3 of 12 sampled pretraining images are different")


def test_grey_images_may_have_the_noise_of_a_compression() -> None:
    grey = NOISE[:, :1].expand(-1, 3, -1, -1).clone()
    assert grey_images(grey).all()
    noisy = grey.clone()
    noisy[:, 0] = (noisy[:, 0].int() + 1).clamp(max=255).byte()
    assert grey_images(noisy).all()
    assert not grey_images(NOISE).any()
