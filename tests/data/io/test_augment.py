"""Augmentation against loops over single pixels and images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView, flip, pad_crop


def images(batch: int = 9, height: int = 6, width: int = 5, channels: int = 3) -> torch.Tensor:
    shape = (batch, height, width, channels)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize(("mode", "numpy_mode"), [("reflect", "reflect"), ("zero", "constant")])
def test_pad_crop_equals_padding_and_slicing_one_by_one(mode, numpy_mode):
    x = images()
    every = torch.cartesian_prod(torch.arange(0, 7, 3), torch.arange(0, 7, 3))  # corners and middle
    got = pad_crop(x, every, 3, mode)
    for image, (top, left), result in zip(x.numpy(), every.tolist(), got.numpy(), strict=True):
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode=numpy_mode)
        np.testing.assert_array_equal(result, padded[top : top + 6, left : left + 5])
    assert got.dtype == torch.uint8


def test_flip_mirrors_only_the_marked():
    x, mask = images(3), torch.tensor([True, False, True])
    got = flip(x, mask)
    for image, mirrored, result in zip(x.numpy(), mask.tolist(), got.numpy(), strict=True):
        np.testing.assert_array_equal(result, image[:, ::-1] if mirrored else image)


def test_crop_flip_draws_its_whole_range_from_the_generator_alone():
    augment = CropFlip(padding=2, flip=True)
    offsets, mirrored = augment.draw(500, torch.Generator().manual_seed(1))
    assert offsets.unique().tolist() == [0, 1, 2, 3, 4]
    assert 200 < mirrored.sum() < 300
    torch.manual_seed(5)
    again, _ = augment.draw(500, torch.Generator().manual_seed(1))
    assert torch.equal(offsets, again)
    x = images()
    assert torch.equal(CropFlip(0, flip=False).apply(x, offsets[:9], mirrored[:9]), x)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="crop_padding is -1"):
        CropFlip(-1, flip=False)
    with pytest.raises(ValueError, match="allowed are reflect, zero"):
        CropFlip(1, flip=False, mode="edge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"crop_scale is \[0.5, 0.2\]"):
        TrainView(8, (0.5, 0.2))
    with pytest.raises(ValueError, match="crop_ratio is 0"):
        EvalView(8, 0)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (400, 10), (10, 400), (1, 1)])
def test_train_view_cuts_inside_the_picture(width, height):
    view = TrainView(8, (0.2, 0.6))
    for seed in range(50):
        left, top, right, bottom = view.box(width, height, torch.Generator().manual_seed(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if (width, height) == (60, 40):
            assert 0.17 < (right - left) * (bottom - top) / 2400 < 0.64  # rounding to pixels
            assert 0.68 < (right - left) / (bottom - top) < 1.45


def test_views_give_the_size_and_depend_on_the_seed_only():
    picture = Image.fromarray(images(1, 40, 60)[0].numpy())
    view = TrainView(16, (0.1, 0.5))
    first = [np.asarray(view(picture, torch.Generator().manual_seed(s))) for s in (1, 1, 2)]
    assert first[0].shape == (16, 16, 3)
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()


def test_eval_view_is_the_central_square():
    array = np.zeros((10, 20, 3), np.uint8)
    array[2:8, 7:13] = 255  # the central 6 x 6
    got = np.asarray(EvalView(6, 0.6)(Image.fromarray(array)))
    np.testing.assert_array_equal(got, np.full((6, 6, 3), 255))
