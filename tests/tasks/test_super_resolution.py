"""Super-resolution: degradation and metrics against other libraries, learning, the panel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import striped
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.srresnet import SRResNet
from ssl_lightning.networks.vgg import CONV5_4
from ssl_lightning.tasks.super_resolution import SuperResolution
from tests.tasks._learning import learn, needs_cifar10, photographs

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LABELS = torch.full((8,), -1)


def make(spec: ImageSpec = SPEC, backbone: nn.Module | None = None, **options: Any) -> SuperResolution:
    torch.manual_seed(0)
    backbone = backbone or ConvNet(widths=(16, 32), strides=(1, 2), in_channels=spec.channels)
    return SuperResolution(backbone, spec, **{"discriminator_width": 8} | options)


def small_srresnet() -> SRResNet:
    torch.manual_seed(0)
    return SRResNet(blocks=2, num_stages=2, width=16)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_images_are_degraded_as_pillow_does(scale: int) -> None:
    images = torch.rand(2, 3, 32, 32)
    small, bicubic = make().degrade(images, scale)
    assert small.shape == (2, 3, 32 // scale, 32 // scale)
    for x, source in ((small, images), (bicubic, small)):
        for image in range(2):
            for channel in range(3):
                plane = Image.fromarray(source[image, channel].numpy(), mode="F")
                expected = np.asarray(plane.resize(x.shape[2:], Image.Resampling.BICUBIC)).clip(0, 1)
                np.testing.assert_allclose(x[image, channel].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("input", ["enlarged", "small"])
def test_untrained_it_is_bicubic(input: str) -> None:
    task = make(backbone=small_srresnet(), input=input).eval()
    images = torch.rand(4, 3, 32, 32)
    scores = task.step(images, LABELS, generator(0))
    assert scores["psnr"].item() == pytest.approx(scores["bicubic_psnr"].item(), abs=1e-3)
    assert scores["ssim"].item() == pytest.approx(scores["bicubic_ssim"].item(), abs=1e-4)
    bicubic = task.degrade(images, 4)[1]
    std = torch.tensor(SPEC.std).view(1, 3, 1, 1)
    expected = ((bicubic - images) / std).square().mean().item()
    assert scores["pixel"].item() == scores["loss"].item() == pytest.approx(expected, rel=1e-4)
    mse = (bicubic - images).square().mean((1, 2, 3))
    assert scores["bicubic_psnr"].item() == pytest.approx(float((-10 * mse.log10()).mean()), rel=1e-4)


def test_the_backbone_sees_what_was_chosen() -> None:
    images = torch.rand(2, 3, 32, 32)
    for input, size in (("enlarged", 32), ("small", 8)):
        task = make(backbone=small_srresnet(), input=input)
        seen: list[Tensor] = []
        task.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        attempt = task.attempt(images, generator(0))
        assert seen[0].shape == (2, 3, size, size)
        degraded = task.degrade(images, 4)[input == "enlarged"]
        torch.testing.assert_close(seen[0], task.normalise(degraded))
        assert attempt.fake.shape == attempt.real.shape == (2, 3, 32, 32)
        torch.testing.assert_close(attempt.real, task.normalise(images))


def test_each_image_draws_one_of_several_scales() -> None:
    images = torch.rand(400, 3, 16, 16)
    task = make(ImageSpec(3, 16, SPEC.mean, SPEC.std), scale=[8, 2, 4])
    seen: list[Tensor] = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    enlarged = torch.stack([task.normalise(task.degrade(images, scale)[1]) for scale in (2, 4, 8)])

    def scales_of(x: Tensor) -> Tensor:
        return (enlarged - x).abs().amax((2, 3, 4)).argmin(0)

    task.attempt(images, generator(0))
    drawn = scales_of(seen[0])
    torch.testing.assert_close(seen[0], enlarged[drawn, torch.arange(400)])
    assert (drawn.bincount(minlength=3) / 400 - 1 / 3).abs().max() < 0.1  # 4.2 standard deviations
    task.attempt(images, generator(0))
    assert torch.equal(seen[1], seen[0])
    task.attempt(images, generator(1))
    assert not torch.equal(scales_of(seen[2]), drawn)
    task.eval().attempt(images, generator(0))
    torch.testing.assert_close(seen[3], enlarged[2])


def test_a_list_of_one_scale_is_that_scale() -> None:
    images = torch.rand(4, 3, 32, 32)
    scores = []
    for scale in (8, [8]):
        torch.manual_seed(0)
        scores.append(make(scale=scale).attempt(images, generator(0)).scores["loss"])
    assert torch.equal(*scores)


def test_feature_matching_compares_every_stage() -> None:
    task = make(content="discriminator", content_weight=0.5, discriminator_norm="batch")
    fake = [torch.zeros(2, 4, 8, 8), torch.ones(2, 8, 4, 4)]
    real = [torch.full((2, 4, 8, 8), 2.0), torch.zeros(2, 8, 4, 4)]
    assert task.matching_loss(fake, real)["content"].item() == pytest.approx(0.5 * (4 + 1) / 2)
    assert make(content=None).matching_loss(fake, real) == {}
    attempt = task.attempt(torch.rand(2, 3, 32, 32), generator(0))
    stages = task.discriminator(attempt.real)
    scores = task.generator_scores(attempt.scores["loss"], attempt.real, stages)
    assert scores["content"].item() == pytest.approx(0, abs=1e-6)  # equal maps cost nothing


def test_vgg_is_in_the_loss_and_nowhere_else(tmp_path: Path) -> None:
    from torchvision.models import vgg19

    with torch.device("meta"):
        layers = vgg19(weights=None, init_weights=False).features[:CONV5_4]
    layers.to_empty(device="cpu")
    for p in layers.parameters():
        nn.init.normal_(p, std=0.03)
    torch.save({f"features.{n}": v for n, v in layers.state_dict().items()}, tmp_path / "vgg19.pth")
    task = make(content="vgg", content_weight=2.0, vgg_weights=str(tmp_path / "vgg19.pth"))
    assert task.labels_seen == "those of ImageNet, by VGG19 in the loss"
    assert make(content="discriminator").labels_seen == make(content=None).labels_seen == "none"
    assert task.state_dict().keys() == make().state_dict().keys()
    images = torch.rand(2, 3, 32, 32)
    attempt = task.attempt(images, generator(0))
    made = attempt.fake * task.std + task.mean
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        maps = [layers((x - mean) / std) for x in (made, images)]
    expected = 2 * (maps[0] - maps[1]).square().mean().item()
    assert attempt.scores["loss"] == attempt.scores["pixel"]  # the only loss in the warm-up
    scores = attempt.total_scores()
    assert scores["content"].item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(scores["loss"], scores["pixel"] + scores["content"])
    scores["content"].backward()
    assert task.head.last.weight.grad.any()


def test_without_a_discriminator_there_is_no_feature_matching() -> None:
    task = make(adversarial_weight=0)
    assert task.automatic_optimization
    assert list(task.branches()) == ["backbone"]
    assert task.step(torch.rand(2, 3, 32, 32), LABELS, generator(0)).keys() == {"loss", "pixel"}


@pytest.mark.parametrize("input", ["enlarged", "small"])
def test_12_images_become_sharper_than_bicubic(input: str) -> None:
    images = striped(12, 4, 3, 32, "super-resolution")[0].permute(0, 3, 1, 2) / 255
    backbone = small_srresnet() if input == "small" else None
    task = make(backbone=backbone, input=input, adversarial_weight=0)
    found = learn(task, images, torch.optim.Adam(task.parameters(), lr=3e-3), 30)
    assert found["psnr"] > found["bicubic_psnr"] + 1
    assert found["ssim"] > found["bicubic_ssim"]


@pytest.mark.slow
@needs_cifar10
def test_48_photographs_become_sharper_than_bicubic() -> None:
    task = make(adversarial_weight=0)
    found = learn(task, photographs(48), torch.optim.Adam(task.parameters(), lr=3e-3), 200)
    assert found["psnr"] > found["bicubic_psnr"] + 1


def test_the_panel_shows_every_step() -> None:
    task = make().eval()
    images = torch.rand(3, 3, 32, 32)
    panel = task.panel(images)
    assert panel.images.shape == (3, 4, 3, 32, 32)
    assert panel.columns == ["input", "bicubic", "output", "original"]
    small, bicubic = task.degrade(images, 4)
    assert torch.equal(panel.images[:, 0, :, ::4, ::4], small)
    assert torch.equal(panel.images[:, 0, :, 3::4, 2::4], small)
    assert torch.equal(panel.images[:, 1], bicubic)
    assert torch.equal(panel.images[:, 3], images)
    for row in range(3):
        for column in (1, 2):
            error = (panel.images[row, column] - images[row]).square().mean().item()
            assert panel.captions[row][column] == f"{-10 * np.log10(error):.1f} dB"


def test_grey_images_become_sharper_too() -> None:
    task = make(ImageSpec(1, 28, (0.5,), (0.2,))).eval()
    assert task.step(torch.rand(8, 1, 28, 28), LABELS, generator(0))["loss"].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3}, "task.scale is 3; allowed are 2, 4 and 8, or a list of some of them"),
        ({"scale": []}, r"task.scale is \[\]; allowed"),
        ({"scale": [2, 2]}, r"task.scale is \[2, 2\]; allowed"),
        ({"scale": "4"}, "task.scale is 4; allowed"),
        (
            {"scale": [2, 4], "input": "small"},
            r"task.scale is \[2, 4\]; task.input=small takes one, as task.scale=4",
        ),
        ({"input": "large"}, "task.input is 'large'; allowed are enlarged, small"),
        ({"input": "small"}, "1/2 of its input"),
        ({"content": "pixels"}, "task.content is 'pixels'"),
        ({"content_weight": -1}, "task.content_weight -1"),
        ({"content": "vgg", "vgg_weights": "/nowhere"}, "task.vgg_weights is /nowhere, which is not there"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_scale_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.scale is 4.*data.image_size=30; set .* to 28 or 32"):
        make(ImageSpec(3, 30, SPEC.mean, SPEC.std))
    make(ImageSpec(3, 30, SPEC.mean, SPEC.std), scale=2)
    with pytest.raises(ValueError, match="needs 16 px"):
        make(ImageSpec(3, 8, SPEC.mean, SPEC.std), content="vgg")
