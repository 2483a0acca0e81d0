"""MAE: the loss as used against a loop, what the encoder sees, learning, the panel."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.ops.positions import positions
from ssl_lightning.ops.tokens import draw_masking
from ssl_lightning.tasks.mae import MAE
from tests.tasks._learning import learn, seen_by

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LABELS = torch.full((6,), -1)


def make(spec: ImageSpec = SPEC, **options: Any) -> MAE:
    torch.manual_seed(0)
    backbone = create_small_vit(in_channels=spec.channels, width=16, depth=2, heads=2, stages=2)
    return MAE(backbone, spec, **{"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2} | options)


def pictures(count: int = 6, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 16, 16, generator=generator("pictures"))


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_that_of_a_loop_over_hidden_patches(normalised: bool) -> None:
    task, images = make(normalise_targets=normalised), pictures()
    answers: list[Tensor] = []
    task.decoder.register_forward_hook(lambda module, inputs, output: answers.append(output.detach()))
    scores = task.step(images, LABELS, generator(3))
    keep = draw_masking(6, 16, 4, generator(3)).keep
    x = (images - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    errors, constants = [], []
    for image in range(6):
        for token in range(16):
            if token in keep[image].tolist():
                continue
            row, column = 4 * (token // 4), 4 * (token % 4)
            patch = x[image, :, row : row + 4, column : column + 4].flatten()
            if normalised:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((answers[0][image, token] - patch).square().mean())
            constants.append(patch.square().mean())
    assert len(errors) == 6 * 12
    torch.testing.assert_close(scores["loss"].detach(), torch.stack(errors).mean())
    torch.testing.assert_close(scores["constant_loss"], torch.stack(constants).mean())
    if normalised:  # of 48 numbers with the unbiased variance
        assert scores["constant_loss"].item() == pytest.approx(47 / 48, rel=1e-3)


def test_hidden_patches_reach_neither_the_encoder_nor_the_answer() -> None:
    task, images = make().eval(), pictures()
    keep, restore, hidden = draw_masking(6, 16, 4, generator(0))
    tokens = seen_by(task.backbone.blocks)
    answer = task.predict(images, keep, restore)
    assert tokens[0].shape == (6, 4, 16)
    whole = task.backbone.patch_embed(images).flatten(1, 2) + positions(4, 4, 16).flatten(0, 1)
    for image in range(6):
        for place, token in enumerate(keep[image].tolist()):
            torch.testing.assert_close(tokens[0][image, place], whole[image, token])
    cells = hidden.view(6, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = torch.where(cells, torch.rand(images.shape), images)
    assert torch.equal(task.predict(changed, keep, restore), answer)
    assert not torch.equal(task.predict(torch.where(cells, images, 0.0), keep, restore), answer)


def test_with_all_tokens_in_any_order_the_backbone_is_the_one_that_is_probed() -> None:
    backbone, images = make().backbone.eval(), pictures()
    order = torch.rand(6, 16, generator=generator("order")).argsort(1)
    tokens = backbone(images, order)[-1]
    maps = backbone(images)[-1].flatten(2).mT
    torch.testing.assert_close(tokens, maps.take_along_dim(order[..., None], 1))


def test_a_few_images_are_learned_by_heart() -> None:
    task = make(decoder_width=32, decoder_depth=2)
    stripes = torch.linspace(0, 6 * math.pi, 16)[None, None, :, None] + torch.arange(4.0)[:, None, None, None]
    images = (0.5 + 0.4 * stripes.sin()).expand(4, 3, 16, 16)
    found = learn(task, images, torch.optim.Adam(task.parameters(), lr=0.01), 200)
    assert found["loss"] < 0.25 * found["constant_loss"], found


@pytest.mark.parametrize("normalised", [True, False])
def test_the_panel_shows_masked_reconstructed_and_original(normalised: bool) -> None:
    task, images = make(normalise_targets=normalised).eval(), pictures()
    with torch.no_grad():
        panel = task.panel(images)
    masked, filled, original = panel.images.unbind(1)
    assert (panel.columns, panel.watched) == (["masked", "reconstruction", "original"], 1)
    assert torch.equal(original, images)
    hidden = (masked == 0.5).all(1, keepdim=True)
    assert hidden.float().mean() == 0.75
    keep = ~hidden.expand_as(images)
    assert torch.equal(filled[keep], images[keep])
    assert torch.equal(masked[keep], images[keep])
    assert panel.captions[0][1].endswith("dB where hidden")


@torch.no_grad()
def test_a_perfect_answer_is_the_original_in_the_panel() -> None:
    task, images = make().eval(), pictures()
    target = task.targets(task.normalise(images))[0]
    task.predict = lambda x, keep, restore: target  # type: ignore[method-assign]
    torch.testing.assert_close(task.panel(images).images[:, 1], images)
    assert task.step(images, LABELS, generator(0))["loss"] == 0


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    task = make(ImageSpec(channels, 16, (0.5,) * channels, (0.2,) * channels))
    assert torch.isfinite(task.step(pictures(6, channels), LABELS, generator(0))["loss"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask_ratio": 1.0}, "task.mask_ratio is 1.0; allowed are above 0 to below 1"),
        ({"mask_ratio": 0.95}, "task.mask_ratio is 0.95, which hides all 16 tokens"),
        ({"decoder_width": 10}, "task.decoder_width is 10, .* multiple of 4 and of the heads"),
        ({"decoder_depth": 0}, "decoder_depth 0 .*at least 1"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_other_backbones_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the backbone is ConvNet; use backbone=vit_tiny_small_images"):
        MAE(ConvNet(widths=(4, 4), strides=(2, 2)), SPEC)
    with pytest.raises(ValueError, match=r"the backbone is Sequential; use"):
        MAE(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), SPEC)
    with pytest.raises(ValueError, match=r"is 18 px, which patches of 4 px .* set data.image_size=20"):
        make(ImageSpec(3, 18, (0.5,) * 3, (0.2,) * 3))
