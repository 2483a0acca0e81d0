"""Properties of the random views for all sizes, types and layouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ssl_lightning.ops.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    kernel_size,
    solarise,
)
from ssl_lightning.ops.views import Strengths, check_scale, crop_resize, draw_crops, draw_views, make_views
from tests.ops._drawn import ALL, SEEDS, close, drawn, generator, pictures, unchanged

FINE = (torch.float32, torch.float64)
EVERYTHING = Strengths((0.1, 1.0), grey=0.5, blur=0.5, solarise=0.5)
LUMA_GAP = 1e-4  # torchvision weighs red by 0.2989 in a grey value, not by 0.299


def uniform(count: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator(seed))


def one_by_one(images: Tensor, change: Callable[[Tensor, float], Tensor], values: Tensor) -> Tensor:
    each = [change(image, value) for image, value in zip(images, values.tolist(), strict=True)]
    return torch.stack(each) if each else images.clone()


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=ALL), st.none() | st.integers(1, 14), SEEDS)
def test_crop_resize(images: Tensor, side: int | None, seed: int) -> None:
    count, _, height, width = images.shape
    boxes = draw_crops(count, height, width, (0.1, 1.0), generator(seed))
    assert boxes.shape == (count, 4)
    top, left, h, w = boxes.unbind(1)
    for begin, length, whole in ((top, h, height), (left, w, width)):
        assert ((begin >= 0) & (length >= 1) & (begin + length <= whole)).all()
    mirrored = uniform(count, 0, 1, seed) < 0.5
    with unchanged(images):
        found = crop_resize(images, boxes, mirrored, side)
    assert found.dtype == (torch.float64 if images.dtype == torch.float64 else torch.float32)
    assert found.is_contiguous()
    values = images.to(found.dtype) / (255 if images.dtype == torch.uint8 else 1)
    size = [side or height, side or width]
    assert found.shape == (*images.shape[:2], *size)
    for row, image in enumerate(values):
        expected = tv.resized_crop(image, *boxes[row].tolist(), size, InterpolationMode.BILINEAR, False)
        close(found[row], tv.hflip(expected) if mirrored[row] else expected, torch.float32)


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=FINE, channels=(3, 3)), SEEDS)
def test_changes_of_colour(images: Tensor, seed: int) -> None:
    factors, turns = uniform(len(images), 0, 2, seed), uniform(len(images), -0.5, 0.5, seed)
    with unchanged(images):
        found = {
            tv.adjust_brightness: adjust_brightness(images, factors),
            tv.adjust_contrast: adjust_contrast(images, factors),
            tv.adjust_saturation: adjust_saturation(images, factors),
        }
        turned = adjust_hue(images, turns)
    for change, views in found.items():
        expected = one_by_one(images, change, factors)
        assert views.dtype == images.dtype
        assert ((views - expected).abs() <= 1.1 * LUMA_GAP).all()
    expected = one_by_one(images, tv.adjust_hue, turns)
    close(turned, expected, torch.float32)
    ones = torch.ones(len(images))
    for change in (adjust_brightness, adjust_contrast, adjust_saturation):
        assert torch.equal(change(images, ones), images)
    close(adjust_hue(images, 0 * turns), images, torch.float32)


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=FINE, size=(6, 14)), st.sampled_from([3, 5, 9]), SEEDS)
def test_gaussian_blur(images: Tensor, size: int, seed: int) -> None:
    sigma = uniform(len(images), 0.1, 2, seed)
    with unchanged(images):
        found = gaussian_blur(images, sigma, size)
    close(
        found, one_by_one(images, lambda x, s: tv.gaussian_blur(x, [size] * 2, [s] * 2), sigma), torch.float32
    )
    assert torch.equal(gaussian_blur(images, 0 * sigma, size), images)


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=FINE, channels=(3, 3)), SEEDS)
def test_solarise(images: Tensor, seed: int) -> None:
    chosen = uniform(len(images), 0, 1, seed) < 0.5
    with unchanged(images):
        found = solarise(images, chosen)
    for row, image in enumerate(images):
        assert torch.equal(found[row], tv.solarize(image, 0.5) if chosen[row] else image)


@pytest.mark.slow
@drawn()
@given(st.lists(st.floats(-1, 2) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=3))
def test_check_scale(scale: list[float]) -> None:
    if len(scale) == 2 and scale == sorted(scale) and all(0 < area <= 1 for area in scale):
        check_scale("crop_scale", scale)
    else:
        with pytest.raises(ValueError, match=r"task\.crop_scale is \[.*\]; allowed are 0 < smallest"):
            check_scale("crop_scale", scale)


@given(st.integers(1, 500))
def test_kernel_size(size: int) -> None:
    kernel = kernel_size(size)
    assert kernel % 2 == 1
    assert kernel == 3 or abs(kernel - size / 10) <= 1


@pytest.mark.slow
@drawn()
@given(pictures(dtypes=ALL, channels=(3, 3), size=(4, 12)), st.none() | st.integers(2, 9), SEEDS)
def test_make_views(images: Tensor, size: int | None, seed: int) -> None:
    count, _, height, width = images.shape
    draws = draw_views(count, height, width, EVERYTHING, generator(seed))
    with unchanged(images):
        views = make_views(images, draws, size)
    assert views.shape == (count, 3, size or height, size or width)
    assert ((views >= 0) & (views <= 1)).all()
    for row in range(count):  # no image depends on another
        alone = make_views(images[row : row + 1], draws.rows(row, 1), size)
        close(alone, views[row : row + 1], torch.float32)
