"""SimCLR: the loss as used, learning, the panel."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssl_lightning.artifacts.results import read_results
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.views import draw_views, make_views
from ssl_lightning.tasks.simclr import SimCLR
from tests.tasks._learning import learn, seen_by
from tests.test_user_loop import run_job

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make(channels: int = 3, **options: Any) -> SimCLR:
    torch.manual_seed(0)
    spec = ImageSpec(channels, 16, (0.5,) * channels, (0.2,) * channels) if channels != 3 else SPEC
    backbone = ConvNet(in_channels=channels, widths=(8, 16), strides=(2, 2))
    return SimCLR(backbone, spec, **{"hidden": 32, "embedding": 8} | options)


def pictures(count: int, channels: int = 3) -> Tensor:
    shape = (count, channels, 16, 16)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator("pictures"))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_that_of_lightly_on_normalised_views(temperature: float) -> None:
    task, images = make(temperature=temperature), pictures(6)
    seen, embedded = seen_by(task.backbone), []
    task.head.register_forward_hook(lambda module, inputs, output: embedded.append(output.detach()))
    scores = task.step(images, torch.full((6,), -1), generator(3))
    stream = generator(3)
    views = torch.cat([make_views(images, draw_views(6, 16, 16, task.strengths, stream)) for _ in "ab"])
    normal = (views - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], normal)
    torch.testing.assert_close(scores["loss"].detach(), NTXentLoss(temperature)(*embedded[0].chunk(2)))


def test_a_few_images_are_learned_by_heart() -> None:
    colours = torch.rand(16, 3, 2, 2, generator=generator("colours"))  # noise has nothing to recognise
    images = (255 * colours).byte().repeat_interleave(8, 2).repeat_interleave(8, 3)
    task = make(crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0, temperature=0.1)
    found = learn(task, images, torch.optim.Adam(task.parameters(), lr=0.01), 100)
    assert found["acc"] >= 0.9
    assert found["loss"] < 0.5 * math.log(31)  # of equal embeddings


def test_the_panel_shows_both_views_and_which_ones_find_each_other() -> None:
    task, images = make().eval(), pictures(5) / 255
    with torch.no_grad():
        panel = task.panel(images)
        first, second = task.embed(panel.images[:, 1:].transpose(0, 1))
    assert panel.images.shape == (5, 3, 3, 16, 16)
    assert torch.equal(panel.images[:, 0], images)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
    for row in range(5):
        assert panel.captions[row] == ["", "", f"cosine {cosines[row, row]:.2f}"]
        assert panel.right[row] == [None, None, int(cosines[row].argmax()) == row]


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int) -> None:
    if channels == 4:
        with pytest.raises(ValueError, match=r"4 channels, whose colours are unknown; set task.saturation=0"):
            make(4)
    options = {"saturation": 0.0, "hue": 0.0, "grey": 0.0} if channels == 4 else {}
    scores = make(channels, **options).step(pictures(4, channels), torch.full((4,), -1), generator(0))
    assert torch.isfinite(scores["loss"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "task.temperature is 0.0; it must be above 0"),
        ({"hidden": 0}, "task.hidden is 0 and task.embedding 8; allowed: >= 1 and >= 1"),
        ({"crop_scale": [0.5, 0.1]}, r"crop_scale is \[0.5, 0.1\]"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "kind"), [(10.0, "collapsed"), (0.01, "not compared")])
def test_the_health_line_and_the_verdict_name_a_collapse(
    lr: float, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["task=simclr", "data.num_train=272", "callbacks.collapse.images=16", "trainer=cpu"]
    run_job(tmp_path / "run", [*options, "trainer.precision=32-true", "optimizer=sgd", f"optimizer.lr={lr}"])
    verdict = read_results(tmp_path / "run/results.json").run.verdict
    assert verdict is not None
    assert verdict.kind == kind
    assert ("hardly differ between images" in verdict.text) == (kind == "collapsed")
    assert ("Try a lower optimizer.lr" in verdict.text) == (kind == "collapsed")
    lines = [text for text in caplog.messages if "have collapsed" in text]
    assert len(lines) == (3 if kind == "collapsed" else 0)  # one in each epoch
