"""PIRL: the loss as used, its closed form, tiles in any order, learning, the panel."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._views import BatchPlace
from ssl_lightning.tasks.pirl import PIRL
from tests.tasks._learning import learn, seen_by
from tests.tasks.test_byol import colours, outputs

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
UNCHANGED: dict[str, Any] = {"crop_scale": [1.0, 1.0], "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def make(**options: Any) -> PIRL:
    torch.manual_seed(0)
    return PIRL(ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, **{"hidden": 16, "embedding": 8} | options)


def score(task: PIRL, images: Tensor) -> dict[str, Tensor]:
    return task.step(images, torch.full((len(images),), -1), generator(3))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_weighs_tiles_and_view_against_the_keys(weight: float) -> None:
    task, images = make(tiles_weight=weight, temperature=0.2), colours(6)
    views, tiles = outputs(task.head), outputs(task.join)
    scores = score(task, images)
    key, query = F.normalize(views[0].view(2, 6, 8), dim=2)
    tile = F.normalize(tiles[0], dim=1)
    losses = []
    for found in (tile, query):  # the negatives of an image are the keys of the others
        similar = (found @ key.T / 0.2).exp()
        losses.append(-(similar.diagonal() / similar.sum(1)).log().mean())
    torch.testing.assert_close(scores["tiles_loss"].detach(), losses[0])
    torch.testing.assert_close(scores["view_loss"].detach(), losses[1])
    torch.testing.assert_close(scores["loss"].detach(), weight * losses[0] + (1 - weight) * losses[1])
    nearest = (tile @ key.T).argmax(1) == torch.arange(6)
    assert scores["acc"].item() == pytest.approx(nearest.float().mean().item())


def test_equal_images_cost_the_logarithm_of_their_number() -> None:
    scores = score(make(**UNCHANGED), colours(1).expand(5, -1, -1, -1).contiguous())
    assert scores["view_loss"].item() == pytest.approx(math.log(5), rel=1e-5)


def test_the_backbone_sees_two_views_and_the_tiles_of_a_third() -> None:
    task, images = make(**UNCHANGED), colours(6)
    seen = seen_by(task.backbone)
    score(task, images)
    assert [x.shape for x in seen] == [(12, 3, 16, 16), (6 * 9, 3, 4, 4)]
    assert task.views_per_image == 2 + 9
    normal = (images / 255 - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], torch.cat([normal, normal]))
    for number, tile in enumerate(seen[1]):  # each lies somewhere in its image
        windows = normal[number // 9].unfold(1, 4, 1).unfold(2, 4, 1)  # (3, 13, 13, 4, 4)
        differences = (windows - tile[:, None, None]).abs().amax((0, 3, 4))
        assert differences.min() < 1e-5


def test_the_tiles_are_joined_in_their_order() -> None:
    task, tiles = make().eval(), torch.rand(2, 9, 3, 4, 4)
    order = torch.stack([torch.randperm(9, generator=generator(n)) for n in range(2)])
    sorted_tiles = torch.stack([image[row] for image, row in zip(tiles, order, strict=True)])
    in_place = torch.arange(9).expand(2, -1)
    with torch.no_grad():
        found, expected = task.embed_tiles(tiles, order), task.embed_tiles(sorted_tiles, in_place)
        other = task.embed_tiles(tiles, in_place)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, other, atol=1e-3)


def test_every_image_has_an_order_and_places_of_its_own() -> None:
    task = make(**UNCHANGED)
    images = torch.rand(1, 3, 16, 16, generator=generator("noise")).expand(64, -1, -1, -1).contiguous()
    _, tiles, order = task.make_inputs(images, BatchPlace((64,), 0), generator(0))
    assert torch.equal(order.sort(1).values, torch.arange(9).expand(64, -1))
    assert len(order.unique(dim=0)) > 60
    assert len(tiles[:, 0].flatten(1).unique(dim=0)) > 5  # of 3 x 3 places
    # every process takes its rows of the same draws
    part = task.make_inputs(images[40:], BatchPlace((40, 24), 1), generator(0))
    torch.testing.assert_close(part[1], tiles[40:])
    assert torch.equal(part[2], order[40:])


def test_tiles_leave_the_statistics_of_views_alone() -> None:
    task, images = make(), colours(6)
    views_only = make(tiles_weight=0.0)
    views_only.embed_tiles = lambda tiles, order: views_only.join(torch.zeros(6, 9, 16))  # type: ignore[method-assign]
    score(task, images), score(views_only, images)
    for name, value in task.backbone.named_buffers():
        assert torch.equal(value, dict(views_only.backbone.named_buffers())[name]), name
    norms = [module for module in task.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    own = dict(task.tile_statistics.named_buffers())
    assert not torch.allclose(own["0_running_mean"], norms[0].running_mean)  # type: ignore[arg-type]


def test_a_few_images_are_learned_by_heart() -> None:
    task = make(crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0, temperature=0.1)
    found = learn(task, colours(16), torch.optim.Adam(task.parameters(), lr=0.003), 200)
    assert found["acc"] >= 0.9  # tiles in new places and orders find their image, of 1/16 by chance
    assert found["loss"] < 0.5 * math.log(16)


def test_the_panel_shows_which_tiles_find_their_image() -> None:
    task, images = make().eval(), colours(5) / 255
    with torch.no_grad():
        panel = task.panel(images)
        key = F.normalize(task.embed(panel.images[None, :, 1])[0], dim=1)
        _, tiles, order = task.make_inputs(images, BatchPlace((5,), 0), generator("panel"))
        cosines = F.normalize(task.embed_tiles(tiles, order), dim=1) @ key.T
    assert panel.images.shape == (5, 3, 3, 16, 16)
    assert torch.equal(panel.images[:, 0], images)
    for row in range(5):
        assert panel.captions[row] == ["", "", f"cosine {cosines[row, row]:.2f}"]
        assert panel.right[row] == [None, None, int(cosines[row].argmax()) == row]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tiles_weight": 1.5}, "task.tiles_weight is 1.5; allowed are 0 to 1, a share of the loss"),
        ({"temperature": 0.0}, "task.temperature is 0.0; it must be above 0"),
        ({"grid": 1}, "task.grid is 1; allowed are 2 to 16 tiles along an edge"),
        ({"grid": 8}, "the tiles are 2 px .*needs at least 4 px"),
        ({"hidden": 0}, "task.hidden is 0 and task.embedding 8; allowed: >= 1 and >= 1"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)
