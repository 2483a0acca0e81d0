"""Barlow Twins: the loss as used, closed forms, learning."""

from typing import Any

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.barlow_twins import BarlowTwins
from tests.tasks._learning import learn

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make(**options: Any) -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(
        ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, **{"hidden": 32, "embedding": 8} | options
    )


def colours(count: int) -> Tensor:
    """Images of four coloured squares, `(count, 3, 16, 16)` uint8."""
    values = 255 * torch.rand(count, 3, 2, 2, generator=generator("colours"))
    return values.byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


def embeddings(task: BarlowTwins) -> list[Tensor]:
    """Return a list to which each step appends its embeddings of all views."""
    found: list[Tensor] = []
    task.head.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    return found


def test_the_loss_is_that_of_the_correlation_matrix_of_both_views() -> None:
    task = make(off_diagonal=0.02)
    found = embeddings(task)
    loss = task.step(colours(12), torch.full((12,), -1), generator(0))["loss"].detach()
    first, second = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in found[0].chunk(2))
    matrix = first.T @ second / 12
    squares = (matrix - torch.eye(8)).square()
    expected = squares.diagonal().sum() + 0.02 * (squares.sum() - squares.diagonal().sum())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, BarlowTwinsLoss(0.02)(*found[0].chunk(2)))


def test_collapsed_embeddings_cost_one_each() -> None:
    task = make()
    for layer in task.head.network.layers:  # type: ignore[union-attr]
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.weight)
    loss = task.step(colours(6), torch.full((6,), -1), generator(0))["loss"]
    assert loss.item() == pytest.approx(8)


def test_a_few_images_are_learned_by_heart() -> None:
    task = make(crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0)
    before = task.step(colours(16), torch.full((16,), -1), generator("val"))["loss"].item()
    after = learn(task, colours(16), torch.optim.Adam(task.parameters(), lr=0.01), 100)["loss"]
    assert after < 0.3 * before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"off_diagonal": -1.0}, "task.off_diagonal is -1.0; allowed are 0 and above"),
        ({"embedding": 1}, "task.hidden is 32 and task.embedding 1; allowed: >= 1 and >= 2"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)
