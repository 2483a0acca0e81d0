"""VICReg: the loss as used, closed forms, learning."""

from typing import Any

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.vicreg import VICReg
from tests.tasks._learning import learn

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make(**options: Any) -> VICReg:
    torch.manual_seed(0)
    return VICReg(ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, **{"hidden": 32, "embedding": 8} | options)


def colours(count: int) -> Tensor:
    """Images of four coloured squares, `(count, 3, 16, 16)` uint8."""
    values = 255 * torch.rand(count, 3, 2, 2, generator=generator("colours"))
    return values.byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


def embeddings(task: VICReg) -> list[Tensor]:
    """Return a list to which each step appends its embeddings of all views."""
    found: list[Tensor] = []
    task.head.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    return found


def test_the_loss_is_that_of_lightly() -> None:
    task = make(invariance=10.0, variance=5.0, covariance=2.0)
    found = embeddings(task)
    scores = task.step(colours(12), torch.full((12,), -1), generator(0))
    expected = VICRegLoss(10.0, 5.0, 2.0)(*found[0].chunk(2))
    torch.testing.assert_close(scores["loss"].detach(), expected)
    first, second = found[0].chunk(2)
    torch.testing.assert_close(scores["invariance"].detach(), (first - second).square().mean())


def test_collapsed_embeddings_have_only_the_variance_term() -> None:
    task = make()
    for layer in task.head.network.layers:  # type: ignore[union-attr]
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.weight)
    scores = task.step(colours(6), torch.full((6,), -1), generator(0))
    assert scores["invariance"].item() == 0
    assert scores["covariance"].item() == pytest.approx(0, abs=1e-9)
    assert scores["loss"].item() == pytest.approx(25 * (1 - 0.0001**0.5))


def test_a_few_images_are_learned_by_heart() -> None:
    task = make(crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0)
    before = task.step(colours(16), torch.full((16,), -1), generator("val"))["loss"].item()
    after = learn(task, colours(16), torch.optim.Adam(task.parameters(), lr=0.01), 100)["loss"]
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variance": -1.0}, "task.variance is -1.0; allowed are 0 and above"),
        ({"hidden": 0}, "task.hidden is 0 and task.embedding 8; allowed: >= 1 and >= 2"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)
