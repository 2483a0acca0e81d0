"""Equal results of the batched ops and the loops they are timed against."""

import torch
from torchvision.transforms import functional as tv

from ssl_lightning.bench import ops

PIXELS = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICTURES = [tv.to_pil_image(image) for image in PIXELS]


def test_rotations_are_the_same() -> None:
    batched, one_by_one = (work() for work in ops.rotation(PIXELS, PICTURES))
    copies, _ = batched  # by angle, then by image
    torch.testing.assert_close(copies.unflatten(0, (4, 3)).transpose(0, 1), one_by_one)


def test_lab_is_the_same() -> None:
    batched, one_by_one = (work() for work in ops.lab(PIXELS, PICTURES))
    torch.testing.assert_close(batched, one_by_one.float(), atol=0.02, rtol=1e-3)


def test_tiles_have_the_same_shape_and_statistics() -> None:
    batched, one_by_one = (work() for work in ops.jigsaw(PIXELS, PICTURES))
    assert batched.shape == one_by_one.shape
    for tiles in (batched, one_by_one):
        torch.testing.assert_close(tiles.mean((3, 4)), torch.zeros(tiles.shape[:3]), atol=1e-4, rtol=0)


def test_patches_and_pairs_are_as_many_and_of_the_same_colours() -> None:
    batched, patches = (work() for work in ops.context(PIXELS, PICTURES))
    _, pairs = (work() for work in ops.context_of_pairs(PIXELS, PICTURES))
    assert patches.shape == batched.shape
    assert pairs.shape == (3, 8, 2, *batched.shape[2:])
    for found in (batched, patches, pairs):  # no pixel keeps a component along the removed axis
        std, mean = (torch.tensor(values).view(3, 1, 1) for values in (ops.STD, ops.MEAN))
        red, green, blue = (found * std + mean).unbind(-3)
        torch.testing.assert_close(2 * green, red + blue, atol=1e-5, rtol=0)


def test_views_have_the_same_shape_and_range() -> None:
    for made in (work() for work in ops.views(PIXELS, PICTURES)):
        assert made.shape == PIXELS.shape
        assert made.dtype == torch.float32
        assert 0 <= float(made.min()) < float(made.max()) <= 1
