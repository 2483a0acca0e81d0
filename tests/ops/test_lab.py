"""Lab against scikit-image in float64, and against published values."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from ssl_lightning.ops.lab import lab_to_rgb, rgb_to_lab

# sRGB under D65: (R, G, B) in 0..255 -> (L, a, b), as in colour charts and converters
PUBLISHED = {
    (255, 255, 255): (100.00, 0.00, 0.00),
    (0, 0, 0): (0.00, 0.00, 0.00),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (128, 128, 128): (53.59, 0.00, 0.00),
}


def colours() -> torch.Tensor:
    """Make a grid over the RGB cube, `(1, 3, 17, 289)`."""
    shade = torch.linspace(0, 1, 17)
    return torch.stack(torch.meshgrid(shade, shade, shade, indexing="ij")).view(1, 3, 17, 289)


def test_published_values() -> None:
    rgb = torch.tensor(list(PUBLISHED), dtype=torch.float32).T[None, :, :, None] / 255
    expected = torch.tensor(list(PUBLISHED.values()))
    torch.testing.assert_close(rgb_to_lab(rgb)[0, ..., 0].T, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-3)])
def test_values_are_those_of_scikit_image(dtype: torch.dtype, tolerance: float) -> None:
    rgb = colours().to(dtype)
    lab = rgb_to_lab(rgb)
    assert lab.dtype == dtype
    expected = rgb2lab(rgb[0].double().permute(1, 2, 0).numpy())
    np.testing.assert_allclose(lab[0].permute(1, 2, 0).numpy(), expected, atol=tolerance)
    back = lab2rgb(expected)
    np.testing.assert_allclose(lab_to_rgb(lab)[0].permute(1, 2, 0).numpy(), back, atol=tolerance / 10)


@pytest.mark.parametrize(
    "order", [torch.contiguous_format, torch.channels_last], ids=["dense", "channels last"]
)
def test_bytes_are_read_as_floats_are(order: torch.memory_format) -> None:
    shades = torch.arange(256, dtype=torch.uint8)
    rgb = (
        torch.stack([shades, shades.flip(0), shades.roll(77)])
        .view(1, 3, 16, 16)
        .contiguous(memory_format=order)
    )
    lab = rgb_to_lab(rgb)
    assert lab.dtype == torch.float32
    torch.testing.assert_close(lab, rgb_to_lab(rgb.float() / 255), atol=2e-4, rtol=0)
    expected = rgb2lab(rgb[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(lab[0].permute(1, 2, 0).numpy(), expected, atol=5e-4)


def test_both_sides_of_the_two_kinks_are_those_of_scikit_image() -> None:
    shade = torch.cat([torch.linspace(lo, lo + 2e-4, 101, dtype=torch.float64) for lo in (0.0403, 0.0949)])
    lab = rgb_to_lab(shade.expand(3, 1, -1))
    np.testing.assert_allclose(
        lab.permute(1, 2, 0).numpy(), rgb2lab(shade.expand(1, 3, -1)[0].T[None].numpy()), atol=5e-4
    )


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    rgb = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for images in (rgb, rgb.float() / 255):
        torch.testing.assert_close(rgb_to_lab(images.cuda()).cpu(), rgb_to_lab(images), atol=5e-4, rtol=0)


def test_the_round_trip() -> None:
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(colours())), colours(), atol=2e-5, rtol=0)


def test_colours_out_of_the_gamut_are_clipped() -> None:
    rgb = lab_to_rgb(torch.tensor([50.0, 120.0, -120.0]).view(1, 3, 1, 1))
    assert rgb.min() >= 0
    assert rgb.max() <= 1


def test_autocast_does_not_reach_it() -> None:
    images = torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        lab = rgb_to_lab(images)
        rgb = lab_to_rgb(lab)
    assert torch.equal(lab, rgb_to_lab(images))
    assert torch.equal(rgb, lab_to_rgb(lab))
    assert rgb_to_lab(images.bfloat16()).dtype == torch.float32
