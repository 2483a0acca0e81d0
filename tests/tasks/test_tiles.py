"""Jigsaw and context prediction on tokens: no place leaks, tiles attend to each other, learning."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.tasks.context_prediction import ContextPrediction
from ssl_lightning.tasks.jigsaw import Jigsaw
from tests.tasks._learning import learn, seen_by

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
KINDS: dict[str, Any] = {"jigsaw": Jigsaw, "context_prediction": ContextPrediction}


def make(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    backbone = create_small_vit(width=24, depth=2, heads=2, stages=1)
    return KINDS[kind](backbone, SPEC, **{"on": "tokens", "embedding": 32, "hidden": 64} | options)


def pictures(count: int) -> Tensor:
    """Smooth pictures `(count, 3, 32, 32)`, in which each place looks different."""
    blobs = torch.rand(count, 3, 5, 5, generator=generator("tokens"))
    return F.interpolate(blobs, (32, 32), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nothing_tells_the_place_of_a_tile(kind: str) -> None:
    task, tiles = make(kind).eval(), torch.rand(2, 9, 3, 8, 8)
    order = torch.randperm(9, generator=generator("order"))
    torch.testing.assert_close(task.encode(tiles[:, order]), task.encode(tiles)[:, order])


@pytest.mark.parametrize(("on", "same"), [("tiles", True), ("tokens", False)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_only_on_tokens_a_tile_depends_on_the_others_of_its_image(kind: str, on: str, same: bool) -> None:
    task, tiles = make(kind, on=on).eval(), torch.rand(2, 9, 3, 8, 8)
    before = task.encode(tiles)
    tiles[0, 0] += 1
    after = task.encode(tiles)
    torch.testing.assert_close(after[1], before[1])
    assert torch.allclose(after[0, 1:], before[0, 1:], atol=1e-6) == same
    assert not torch.allclose(after[0, 0], before[0, 0], atol=1e-3)


def test_context_prediction_shows_only_the_two_patches_of_a_pair() -> None:
    task = make("context_prediction", pairs_per_image=3).eval()
    backbone = seen_by(task.backbone)
    patches = torch.rand(2, 4, 3, 8, 8)
    found = task.score(patches)
    assert task.views_per_image == 6
    assert [len(x) for x in backbone] == [12]
    for image in range(2):
        for number in range(3):
            pair = patches[image, [0, number + 1]][None]
            torch.testing.assert_close(task.head(task.encode(pair))[0], found[3 * image + number])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_64_images_are_solved(kind: str) -> None:
    task = make(kind)
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.005)
    assert learn(task, pictures(64), optimizer, 200)["acc"] >= 0.9  # new gaps, orders and places


@pytest.mark.parametrize("network", [ConvNet(widths=(8,), strides=(2,)), create_timm("test_vit")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_without_such_tokens_is_refused(kind: str, network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"only SmallViT supports.*; use backbone=vit_tiny_small_images or"):
        KINDS[kind](network, SPEC, on="tokens")
    with pytest.raises(ValueError, match=r"task.on is 'token'; allowed are tiles and tokens"):
        KINDS[kind](network, SPEC, on="token")
