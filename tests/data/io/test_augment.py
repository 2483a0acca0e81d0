"""Augmentation against loops over single pixels and images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView, crop_flip, resize


def images(batch: int = 9, height: int = 6, width: int = 5, channels: int = 3) -> torch.Tensor:
    shape = (batch, height, width, channels)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize(
    ("mode", "numpy_mode", "padding"),
    [("reflect", "reflect", 3), ("zero", "constant", 3), ("zero", "constant", 30)],
)
def test_crop_flip_equals_padding_slicing_and_mirroring_one_by_one(mode, numpy_mode, padding):
    x = images()
    ends = torch.arange(0, 2 * padding + 1, padding)
    every = torch.cartesian_prod(ends, ends)  # corners and centre
    indices, mirrored = torch.tensor([3, 8, 0, 1, 3, 2, 7, 5, 4]), torch.arange(9) % 2 == 0
    got = crop_flip(x, indices, every, mirrored, padding, mode)
    for number, (top, left), turn, result in zip(
        indices.tolist(), every.tolist(), mirrored.tolist(), got.numpy(), strict=True
    ):
        padded = np.pad(x[number].numpy(), ((padding, padding), (padding, padding), (0, 0)), mode=numpy_mode)
        crop = padded[top : top + 6, left : left + 5]
        np.testing.assert_array_equal(result, crop[:, ::-1] if turn else crop)
    assert got.dtype == torch.uint8


def test_crop_flip_draws_its_whole_range_from_the_generator_alone():
    augment = CropFlip(padding=2, flip=True)
    offsets, mirrored = augment.draw(500, torch.Generator().manual_seed(1))
    assert offsets.unique().tolist() == [0, 1, 2, 3, 4]
    assert 200 < mirrored.sum() < 300
    torch.manual_seed(5)
    again, _ = augment.draw(500, torch.Generator().manual_seed(1))
    assert torch.equal(offsets, again)
    x = images()
    assert torch.equal(CropFlip(0, flip=False).gather(x, torch.arange(9), offsets[:9] * 0, mirrored[:9]), x)


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
    picture = images(1, 40, 60)[0].permute(2, 0, 1)
    view = TrainView(16, (0.1, 0.5))
    first = [view(picture, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert first[0].shape == (3, 16, 16)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_half_of_the_views_are_mirrored_and_nothing_else_is_done_to_them():
    picture = images(1, 40, 60)[0].permute(2, 0, 1)
    mirrored = 0
    for seed in range(40):
        plain, flipped = (
            TrainView(16, (0.1, 0.5), flip)(picture, torch.Generator().manual_seed(seed))
            for flip in (False, True)
        )
        if not torch.equal(plain, flipped):
            assert torch.equal(plain, flipped.flip(2))
            mirrored += 1
    assert 10 < mirrored < 30


def test_eval_view_is_the_central_square():
    picture = torch.zeros(3, 10, 20, dtype=torch.uint8)
    picture[:, 2:8, 7:13] = 255  # the central 6 x 6
    assert torch.equal(EvalView(6, 0.6)(picture), torch.full((3, 6, 6), 255, dtype=torch.uint8))
    assert EvalView(6, 0.01)(picture).shape == (3, 6, 6)  # at least one pixel


def keys_weights(given: int, wanted: int) -> np.ndarray:
    """Return the weights (output, input) of antialiased bicubic resampling (Keys 1981, a = -0.5)."""
    scale = given / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    x = np.abs(np.arange(given) + 0.5 - centres[:, None]) / support
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("layout", ["of a larger picture", "dense"])
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(("height", "width"), [(375, 299), (100, 180), (64, 224)])
def test_resizing_is_within_one_grey_level_of_float64_and_of_pillow(height, width, size, layout):
    larger = images(1, height + 9, width + 5)[0].permute(2, 0, 1)
    larger = larger // 2 + 64  # noise, the worst case, with a range that cannot overshoot
    picture = larger[:, 3 : 3 + height, 2 : 2 + width]
    picture = picture.contiguous() if layout == "dense" else picture
    got = resize(picture, size, size).numpy()
    exact = keys_weights(height, size) @ picture.double().numpy() @ keys_weights(width, size).T
    assert np.abs(got - exact).max() <= 1.1  # rounded twice
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    pillow = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(got.astype(int) - pillow).max() <= 1


def test_what_overshoots_is_clipped_after_the_rows_and_after_the_columns():
    picture = images(1, 375, 299)[0].permute(2, 0, 1).contiguous()
    rows = (picture.double().numpy() @ keys_weights(299, 224).T).clip(0, 255)
    exact = (keys_weights(375, 224) @ rows).clip(0, 255)
    assert np.abs(resize(picture, 224, 224).numpy() - exact).max() <= 1.1


def test_grey_pictures_are_resized_as_colours_are():
    picture = images(1, 50, 70, 1)[0].permute(2, 0, 1)
    grey, colours = resize(picture, 20, 31), resize(picture.expand(3, -1, -1).contiguous(), 20, 31)
    assert (grey.int() - colours.int()).abs().max() <= 1
