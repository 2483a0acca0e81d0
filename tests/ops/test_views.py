"""Random views against torchvision, image by image with the same parameters."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.augment import TrainView
from ssl_lightning.ops.photometric import kernel_size
from ssl_lightning.ops.views import Draws, Strengths, draw_crops, draw_views, make_views

EVERYTHING = Strengths((0.08, 1.0), 0.5, 0.8, 0.4, 0.4, 0.4, 0.2, grey=0.2, blur=0.5, solarise=0.3)
NOTHING = Strengths((1.0, 1.0), 0, 0, 0, 0, 0, 0, 0, 0, 0)
LUMA_GAP = 1e-4  # torchvision weighs red by 0.2989 in a grey value, not by 0.299


def pictures(count: int, size: int = 24, channels: int = 3) -> Tensor:
    """Smooth colourful pictures `(count, channels, size, size)` uint8."""
    coarse = torch.rand(count, channels, 5, 5, generator=generator("pictures"))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth * 255).round().byte()


def by_torchvision(image: Tensor, draws: Draws, row: int, side: int | None = None) -> Tensor:
    """Make the view of one image `(C, H, W)` uint8 by the functions of torchvision."""
    size = [side or image.shape[1], side or image.shape[2]]
    top, left, height, width = draws.boxes[row].tolist()
    x = image.float() / 255
    x = tv.resized_crop(x, top, left, height, width, size, InterpolationMode.BILINEAR, antialias=False)
    x = tv.hflip(x) if draws.mirrored[row] else x
    for values, change in (
        (draws.brightness, tv.adjust_brightness),
        (draws.contrast, tv.adjust_contrast),
        (draws.saturation, tv.adjust_saturation),
        (draws.hue, tv.adjust_hue),
    ):
        x = x if values is None else change(x, float(values[row]))
    if draws.colourless is not None and draws.colourless[row]:
        x = tv.rgb_to_grayscale(x, 3)
    if draws.sigma is not None and draws.sigma[row] > 0:
        kernel = kernel_size(size[1])
        x = tv.gaussian_blur(x, [kernel, kernel], [float(draws.sigma[row])] * 2)
    return tv.solarize(x, 0.5) if draws.solarised is not None and draws.solarised[row] else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [None, 18, 56])
def test_views_are_those_of_torchvision(size: int | None, channels_last: bool) -> None:
    images = pictures(64, 40)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    draws = draw_views(64, 40, 40, EVERYTHING, generator("draws"))
    views = make_views(images, draws, size)
    assert (views.dtype, views.is_contiguous()) == (torch.float32, True)
    # solarising doubles no distance, but a value near 0.5 may fall on either side
    near = 4 * LUMA_GAP
    for row, image in enumerate(images):
        expected = by_torchvision(image, draws, row, size)
        apart = (views[row] - expected).abs()
        if draws.solarised is not None and draws.solarised[row]:
            apart = torch.minimum(apart, (views[row] - (1 - expected)).abs())
        assert apart.max() < near, row
    counts = [draws.mirrored, draws.colourless, draws.solarised]
    for chosen in counts:  # the draws cover both cases
        assert chosen is not None
        assert 0 < int(chosen.sum()) < 64


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (96, 48)])
def test_crops_are_those_of_the_loader_for_the_same_random_numbers(size: tuple[int, int]) -> None:
    height, width = size
    for scale in ((0.08, 1.0), (0.3, 0.5), (0.9, 1.0), (1.0, 1.0)):
        view = TrainView(32, scale)
        for seed in range(100):
            (box,) = draw_crops(1, height, width, scale, generator(seed)).tolist()
            left, top, right, bottom = view.box(width, height, generator(seed))
            assert box == [top, left, bottom - top, right - left]


def test_nothing_changes_without_strengths() -> None:
    images = pictures(4)
    draws = draw_views(4, 24, 24, NOTHING, generator(0))
    assert draws.boxes.tolist() == [[0, 0, 24, 24]] * 4
    torch.testing.assert_close(make_views(images, draws), images / 255, rtol=0, atol=1e-5)


def test_images_that_are_not_chosen_keep_their_colours() -> None:
    images = pictures(200)
    options = Strengths((1.0, 1.0), flip=0, jitter=0.5, grey=0.3, blur=0.3, solarise=0.2)
    draws = draw_views(200, 24, 24, options, generator(1))
    plain = make_views(images, Draws(draws.boxes, draws.mirrored))
    same = (make_views(images, draws) - plain).abs().amax((1, 2, 3)) < 1e-5
    assert draws.brightness is not None and draws.sigma is not None  # noqa: PT018
    assert draws.colourless is not None and draws.solarised is not None  # noqa: PT018
    kept = (draws.brightness == 1) & ~draws.colourless & (draws.sigma == 0) & ~draws.solarised
    assert torch.equal(same, kept)
    assert 20 < int(kept.sum()) < 80


def test_draws_have_the_given_distribution() -> None:
    draws = draw_views(20_000, 32, 32, EVERYTHING, generator(2))
    assert draws.brightness is not None and draws.hue is not None and draws.sigma is not None  # noqa: PT018
    assert draws.colourless is not None and draws.solarised is not None  # noqa: PT018
    shares = {
        0.5: [draws.mirrored, draws.sigma > 0], 0.8: [draws.brightness != 1, draws.hue != 0],
        0.2: [draws.colourless], 0.3: [draws.solarised],
    }  # fmt: skip
    for share, found in shares.items():
        for chosen in found:
            assert float(chosen.double().mean()) == pytest.approx(share, abs=0.02)  # over 5 deviations
    jittered = draws.brightness[draws.brightness != 1]
    assert 0.6 <= float(jittered.min()) < 0.61
    assert 1.39 < float(jittered.max()) <= 1.4
    assert float(draws.hue.abs().max()) <= 0.2
    area = (draws.boxes[:, 2] * draws.boxes[:, 3]) / 32**2
    assert 0.06 < float(area.min()) < 0.1
    assert float(area.max()) <= 1


def test_a_part_of_the_draws_is_the_same_as_in_the_whole_batch() -> None:
    images = pictures(10)
    draws = draw_views(10, 24, 24, EVERYTHING, generator(3))
    whole = make_views(images, draws)
    parts = [make_views(images[first : first + 5], draws.rows(first, 5)) for first in (0, 5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


def test_a_strength_of_0_leaves_the_other_draws_alone() -> None:
    full, plain = (
        draw_views(8, 24, 24, strengths, generator(4)) for strengths in (EVERYTHING, Strengths(hue=0.0))
    )
    assert plain.hue is None
    assert torch.equal(plain.brightness, full.brightness)  # type: ignore[arg-type]
    assert torch.equal(plain.mirrored, full.mirrored)


def test_grey_images_have_no_colours_to_change_and_other_channels_are_refused() -> None:
    grey = EVERYTHING.for_channels(1)
    draws = draw_views(16, 24, 24, grey, generator(5))
    assert draws.saturation is draws.hue is draws.colourless is None
    images = pictures(16, channels=1)
    views = make_views(images, draws)
    for row, image in enumerate(images):
        expected = by_torchvision(image, draws, row)
        apart = torch.minimum((views[row] - expected).abs(), (views[row] - 1 + expected).abs())
        assert apart.max() < 1e-5
    with pytest.raises(ValueError, match=r"4 channels, whose colours are unknown; set task.saturation=0"):
        EVERYTHING.for_channels(4)
    four = Strengths(saturation=0, hue=0, grey=0).for_channels(4)
    draws = draw_views(4, 24, 24, four, generator(6))
    assert make_views(pictures(4, channels=4), draws).shape == (4, 4, 24, 24)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale is \[0.5, 0.2\]; allowed are 0 < smallest"),
        ({"crop_scale": (0.5,)}, r"crop_scale is \[0.5\]; allowed are 0 < smallest"),
        ({"hue": 0.6}, "hue is 0.6; allowed are 0"),
        ({"flip": 1.5}, "flip is 1.5; allowed are probabilities"),
        ({"solarise": -0.1}, "solarise is -0.1; allowed are probabilities"),
        ({"contrast": -1.0}, "contrast is -1.0; allowed are 0"),
    ],
)
def test_wrong_strengths_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strengths(**given)  # type: ignore[arg-type]
