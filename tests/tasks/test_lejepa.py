"""LeJEPA: the loss as used, closed forms, learning."""

from typing import Any

import pytest
import torch
from lightly.loss import LeJEPALoss
from torch import Tensor

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.sigreg import draw_slices
from ssl_lightning.ops.views import draw_views
from ssl_lightning.tasks.lejepa import LeJEPA
from tests.tasks._learning import learn

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make(**options: Any) -> LeJEPA:
    torch.manual_seed(0)
    return LeJEPA(ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, **{"hidden": 32, "embedding": 8} | options)


def colours(count: int) -> Tensor:
    """Images of four coloured squares, `(count, 3, 16, 16)` uint8."""
    values = 255 * torch.rand(count, 3, 2, 2, generator=generator("colours"))
    return values.byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("views", [2, 4])
def test_the_loss_is_that_of_lightly(views: int) -> None:
    task, images = make(views=views, sigreg=0.3, slices=16), colours(12)
    found: list[Tensor] = []
    task.head.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    loss = task.step(images, torch.full((12,), -1), generator(0))["loss"].detach()
    embedded = found[0].unflatten(0, (views, 12))
    stream = generator(0)
    for _ in range(views):  # the slices are drawn after the views
        draw_views(12, 16, 16, task.strengths, stream)
    slices = draw_slices(16, 8, stream)
    lightly = LeJEPALoss(0.3, sigreg_num_vectors=16)
    lightly.sigreg._generate_unit_vectors = lambda *_: slices  # type: ignore[method-assign]
    # all views are global ones, whose mean is the centre
    expected = 0.3 * lightly.sigreg(embedded) + 0.7 * (embedded - embedded.mean(0)).square().mean()
    torch.testing.assert_close(loss, expected)


def test_collapsed_embeddings_have_only_the_distance_from_a_normal_distribution() -> None:
    task = make(slices=16)
    for parameter in task.head.network.layers[-1].parameters():  # type: ignore[union-attr]
        torch.nn.init.zeros_(parameter)
    scores = task.step(colours(6), torch.full((6,), -1), generator(0))
    t = torch.linspace(0, 3, 17)
    integrand = (1 - (-t.square() / 2).exp()).square() * (-t.square() / 2).exp()
    assert scores["invariance"].item() == 0
    assert scores["sigreg"].item() == pytest.approx(6 * 2 * torch.trapezoid(integrand, t).item())
    assert scores["loss"].item() == pytest.approx(0.05 * scores["sigreg"].item())


def test_a_few_images_are_learned_by_heart() -> None:
    task = make(crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0)
    before = task.step(colours(16), torch.full((16,), -1), generator("val"))["loss"].item()
    after = learn(task, colours(16), torch.optim.Adam(task.parameters(), lr=0.01), 100)
    assert after["loss"] < 0.5 * before
    assert after["invariance"] < 0.5  # of 1 - 1 / views for independent normal embeddings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"views": 1}, "task.views is 1 and task.slices 256; allowed: >= 2 and >= 1"),
        ({"sigreg": -0.1}, "task.sigreg is -0.1; allowed are 0 to 1"),
        ({"hidden": 0}, "task.hidden is 0 and task.embedding 8; allowed: >= 1 and >= 1"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)
