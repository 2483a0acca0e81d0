"""Rotations against a naive loop over pixels."""

import pytest
import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.rotation import rotate_four, rotate_one


def turn_by_hand(image: Tensor) -> Tensor:
    """Rotate `(C, H, H)` by 90 degrees counter-clockwise, pixel by pixel."""
    size = image.shape[1]
    turned = torch.empty_like(image)
    for row in range(size):
        for column in range(size):
            turned[:, size - 1 - column, row] = image[:, row, column]
    return turned


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_four_copies_against_a_loop(dtype: torch.dtype) -> None:
    images = torch.randint(256, (3, 2, 5, 5), generator=generator(0)).to(dtype)
    copies, classes = rotate_four(images)
    expected = list(images)
    for turns in range(4):
        for index in range(3):
            assert torch.equal(copies[turns * 3 + index], expected[index])
            assert classes[turns * 3 + index] == turns
        expected = [turn_by_hand(image) for image in expected]


def test_one_copy_is_the_copy_of_its_class() -> None:
    images = torch.rand(64, 1, 4, 4, generator=generator(1))
    rotated, classes = rotate_one(images, generator(2))
    copies, _ = rotate_four(images)
    assert torch.equal(rotated, copies.unflatten(0, (4, 64))[classes, torch.arange(64)])
    assert classes.unique().tolist() == [0, 1, 2, 3]


def test_one_copy_follows_the_stream() -> None:
    images = torch.rand(64, 1, 4, 4)
    again = [rotate_one(images, generator("stream", n))[1] for n in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    images = torch.rand(2, 3, 6, 6).contiguous(memory_format=memory_format)
    assert rotate_four(images)[0].is_contiguous(memory_format=memory_format)


def test_oblong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\).*square"):
        rotate_four(torch.zeros(1, 3, 4, 5))
