"""Inpainting: the backbone's input, the loss, learning to fill holes, the panel."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import striped
from ssl_lightning.networks.alexnet import AlexNet
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.srresnet import SRResNet
from ssl_lightning.tasks.inpainting import Inpainting
from tests.tasks._learning import learn, needs_cifar10, photographs

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LABELS = torch.full((8,), -1)


def make(spec: ImageSpec = SPEC, **options: Any) -> Inpainting:
    torch.manual_seed(0)
    backbone = ConvNet(widths=(8, 16), strides=(2, 2), in_channels=spec.channels)
    return Inpainting(backbone, spec, **{"discriminator_width": 8, "decoder_width": 16} | options)


def statistics(spec: ImageSpec = SPEC) -> tuple[Tensor, Tensor]:
    return torch.tensor(spec.mean).view(1, -1, 1, 1), torch.tensor(spec.std).view(1, -1, 1, 1)


@pytest.mark.parametrize("mask", ["center", "square", "blocks", "region"])
def test_the_loss_by_looking_at_every_pixel(mask: str) -> None:
    task = make(mask=mask, hole=12, overlap=2, adversarial_weight=0.25)
    images = torch.rand(3, 3, 32, 32)
    mean, std = statistics()
    made = torch.randn(3, 3, 32, 32)
    task.restore = lambda corrupted: made  # type: ignore[method-assign]
    attempt = task.attempt(images, generator(0))
    removed = task.draw_mask(3, generator(0))
    real, errors = (images - mean) / std, []
    for image in range(3):
        total, weights = 0.0, 0.0
        for y in range(32):
            for x in range(32):
                near = removed[image, 0, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                weight = 1.0 if removed[image, 0, y, x] else 10.0 * bool(near.any())
                total += weight * float((made - real)[image, :, y, x].square().mean())
                weights += weight
        errors.append(total / weights)
    assert attempt.scores["loss"].item() == pytest.approx(0.75 * np.mean(errors), rel=1e-4)
    inside = removed.expand(3, 3, 32, 32)
    pixels = (made * std + mean).clamp(0, 1)
    error = [float((pixels - images)[i][inside[i]].square().mean()) for i in range(3)]
    plain = [float((mean - images)[i][inside[i]].square().mean()) for i in range(3)]
    assert attempt.scores["hole_mse"].item() == pytest.approx(np.mean(error), rel=1e-4)
    assert attempt.scores["hole_psnr"].item() == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-4)
    assert attempt.scores["mean_fill_psnr"].item() == pytest.approx(np.mean(-10 * np.log10(plain)), rel=1e-4)


@pytest.mark.parametrize("mask", ["center", "square", "blocks", "region"])
def test_the_backbone_does_not_see_what_is_removed(mask: str) -> None:
    task = make(mask=mask).eval()
    images = torch.rand(4, 3, 32, 32)
    removed = task.draw_mask(4, generator(0))
    other = torch.where(removed, torch.rand(4, 3, 32, 32), images)
    seen: list[Tensor] = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    losses = [task.step(x, LABELS, generator(0))["loss"] for x in (images, other)]
    assert torch.equal(*seen)
    assert losses[0] != losses[1]
    assert (seen[0] * removed).abs().max() < 1e-6  # the mean colour, normalised
    visible = (images - statistics()[0]) / statistics()[1]
    torch.testing.assert_close(seen[0] * ~removed, visible * ~removed)


def test_the_discriminator_is_shown_the_filling() -> None:
    images, made = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    real = (images - statistics()[0]) / statistics()[1]
    for mask, sees in product(("center", "square", "blocks", "region"), (None, "image", "filling")):
        task = make(mask=mask, hole=10, discriminator_sees=sees)
        task.restore = lambda corrupted: made  # type: ignore[method-assign]
        attempt = task.attempt(images, generator(0))
        removed = task.draw_mask(2, generator(0)).expand(2, 3, 32, 32)
        if mask == "center" and sees != "image":
            assert torch.equal(attempt.fake.flatten(), made[removed])
            torch.testing.assert_close(attempt.real.flatten(), real[removed])
            assert attempt.fake.shape == (2, 3, 10, 10)
        elif sees == "filling":
            assert torch.equal(attempt.fake[removed], made[removed])
            torch.testing.assert_close(attempt.real[removed], real[removed])
            assert not attempt.fake[~removed].any()
            assert not attempt.real[~removed].any()
        else:
            assert torch.equal(attempt.fake[removed], made[removed])
            torch.testing.assert_close(attempt.fake[~removed], real[~removed])
            torch.testing.assert_close(attempt.real, real)
    assert make(mask="center").discriminator.feature_info.reduction() == [2, 4]
    assert make(mask="region").discriminator.feature_info.reduction() == [2, 4, 8]
    whole = make(mask="center", discriminator_sees="image")
    assert whole.discriminator.feature_info.reduction() == [2, 4, 8]


def test_no_mask_makes_an_autoencoder() -> None:
    task = make(mask="none", adversarial_weight=0.25)
    images, made = torch.rand(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    seen: list[Tensor] = []

    def restore(corrupted: Tensor) -> Tensor:
        seen.append(corrupted)
        return made

    task.restore = restore  # type: ignore[method-assign]
    attempt = task.attempt(images, generator(0))
    real = (images - statistics()[0]) / statistics()[1]
    torch.testing.assert_close(seen[0], real)
    torch.testing.assert_close(attempt.scores["loss"], 0.75 * (made - real).square().mean())
    torch.testing.assert_close(attempt.real, real)
    assert torch.equal(attempt.fake, made)
    error = ((made * statistics()[1] + statistics()[0]).clamp(0, 1) - images).square().mean()
    torch.testing.assert_close(attempt.scores["hole_mse"], error)
    assert torch.equal(task.panel(images).images[:, 0], images)


def test_hole_and_overlap_are_those_of_the_paper_at_its_size() -> None:
    task = make(ImageSpec(3, 128, SPEC.mean, SPEC.std))
    assert (task.hole, task.overlap, task.overlap_weight) == (64, 4, 10)
    assert (make().hole, make().overlap) == (16, 1)


@pytest.mark.parametrize("backbone", [AlexNet(), SRResNet(blocks=1, num_stages=1, width=4)])
def test_any_backbone_fits(backbone: nn.Module) -> None:
    task = Inpainting(backbone, ImageSpec(3, 32, SPEC.mean, SPEC.std))
    attempt = task.attempt(torch.rand(4, 3, 32, 32), generator(0))
    assert attempt.fake.shape == (4, 3, 32, 32)
    attempt.scores["loss"].backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_grey_images_are_filled_too() -> None:
    task = make(ImageSpec(1, 28, (0.5,), (0.2,)))
    assert task.step(torch.rand(8, 1, 28, 28), LABELS, generator(0))["loss"].isfinite()


def test_equal_streams_give_equal_steps() -> None:
    images = torch.rand(8, 3, 32, 32)
    first, again, other = (
        make(mask="region").step(images, LABELS, generator("step", number))["loss"].item()
        for number in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("mask", ["center", "region"])
def test_24_images_are_filled(mask: str) -> None:
    images = striped(24, 4, 3, 32, "inpainting")[0].permute(0, 3, 1, 2) / 255
    task = make(mask=mask, adversarial_weight=0)
    found = learn(task, images, torch.optim.Adam(task.parameters(), lr=3e-3), 60)
    assert found["hole_psnr"] > found["mean_fill_psnr"] + 3


@pytest.mark.slow
@needs_cifar10
def test_48_photographs_are_filled() -> None:
    task = make(adversarial_weight=0)
    found = learn(task, photographs(48), torch.optim.Adam(task.parameters(), lr=3e-3), 300)
    assert found["hole_psnr"] > found["mean_fill_psnr"] + 4


def test_the_panel_shows_the_hole_and_its_filling() -> None:
    task = make(mask="blocks").eval()
    images = torch.rand(3, 3, 32, 32)
    panel = task.panel(images)
    assert panel.images.shape == (3, 3, 3, 32, 32)
    assert panel.columns == ["corrupted", "restored", "original"]
    assert torch.equal(panel.images[:, 2], images)
    removed = panel.images[:, 0] != images
    removed = removed.any(1, keepdim=True).expand_as(images)
    assert torch.equal(panel.images[:, 1][~removed], images[~removed])
    for row in range(3):
        error = (panel.images[row, 1] - images[row])[removed[row]].square().mean().item()
        assert panel.captions[row][1] == f"{-10 * np.log10(error):.1f} dB in the hole"
    assert torch.equal(task.panel(images).images, panel.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "centre"}, "task.mask is 'centre'; allowed are center, square, blocks, region, none"),
        (
            {"mask": "none", "hole": 8},
            "which removes nothing; task.hole is 8 and task.overlap None, and both",
        ),
        ({"hole": 32}, r"task.hole is 32 px; allowed are 1 to 31.*data.image_size=32"),
        ({"hole": 40}, "task.hole is 40 px"),
        ({"hole": 0}, "task.hole is 0 px; allowed are 1"),
        ({"hole": 1, "mask": "blocks"}, "task.hole is 1 px; allowed are 2"),
        ({"overlap": 9}, r"task.overlap is 9 px; allowed are 0 to 8.*task.hole=16"),
        ({"overlap": -1}, "task.overlap is -1 px"),
        ({"overlap_weight": -1}, "task.overlap_weight is -1"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_backbone_whose_maps_are_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="48 x 48 cells"):
        Inpainting(SRResNet(blocks=1, num_stages=1, width=4), ImageSpec(3, 48, SPEC.mean, SPEC.std))
