"""Reliability of the linear probe: its records, by hand, with and without a test split."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_lightning.artifacts.records import Record, best_stage
from ssl_lightning.data.fake import Fake
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.calibration import expected_calibration_error, negative_log_likelihood
from ssl_lightning.ops.corruptions import corrupt
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.linear import LinearProbe
from tests.probes.test_cross_validation import Untested

MEASURED = ["ece", "nll", "top1_pixelate", "top1_contrast"]


def probed(data: Fake, probe: LinearProbe, folder: Path, kept: list) -> tuple[torch.nn.Module, list[Record]]:
    data.setup()
    torch.manual_seed(0)
    backbone = ConvNet(widths=[4, 4], strides=[2, 2])
    records, _ = run_probes(
        {"backbone": backbone},
        lambda x: x,
        {"linear": probe},
        {split: data.downstream(split) for split in ("train", "heldout", "test")},
        class_names=("a", "b", "c"),
        folder=folder,
        data=data,
        keep=lambda *each: kept.append(each[-1]),
    )
    return backbone, records


@pytest.mark.parametrize("kind", [Fake, Untested])
def test_the_stored_classifier_has_these_figures(kind: type[Fake], tmp_path: Path) -> None:
    data = kind(num_train=63, num_test=40, num_classes=3, heldout=12, image_size=16, batch_size=8)
    kept: list = []
    probe = LinearProbe(calibration=True, corruptions=["pixelate", "contrast"])
    backbone, records = probed(data, probe, tmp_path, kept)
    found = {record.metric: record for record in records if record.metric in MEASURED}
    best = best_stage([record for record in records if record.metric == "top1"])
    assert best is not None
    assert list(found) == MEASURED
    assert {(r.stage, r.heldout, r.n) for r in found.values()} == {(best.stage, None, best.n)}
    assert found["top1_contrast"].standard_error is not None
    if kind is Untested:  # each fold has its own classifier
        assert best.protocol["cross_validated"] == 5
        return
    state = kept[0].weights

    def scores(change) -> tuple[Tensor, Tensor]:
        parts, labels = [], []
        for images, of_images in data.downstream("test"):
            with torch.inference_mode():
                stages = backbone.eval()(change(images).float() / 255)
            maps = stages[int(best.stage[-1]) - 1]
            parts.append(torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1))
            labels.append(of_images)
        x = (torch.cat(parts) - state["head.shift"]) * state["head.scale"]
        return x @ state["head.linear.weight"].T + state["head.linear.bias"], torch.cat(labels)

    clean = scores(lambda images: images)
    assert found["ece"].value == pytest.approx(float(expected_calibration_error(*clean)), abs=1e-4)
    assert found["nll"].value == pytest.approx(float(negative_log_likelihood(*clean)), rel=1e-4)
    for name in ("pixelate", "contrast"):
        logits, labels = scores(lambda images, name=name: corrupt(images, name))
        right = (logits.argmax(1) == labels).float().mean()
        assert found[f"top1_{name}"].value == pytest.approx(float(right), abs=1.5 / 40)  # a near tie may flip


def test_other_figures_stay_as_they_are(tmp_path: Path) -> None:
    def figures(probe: LinearProbe) -> list[Record]:
        data = Fake(num_train=63, num_test=40, num_classes=3, heldout=12, image_size=16, batch_size=8)
        return [r for r in probed(data, probe, tmp_path, [])[1] if r.metric not in MEASURED]

    more = LinearProbe(calibration=True, corruptions=["pixelate", "contrast"])
    assert figures(LinearProbe()) == figures(more)


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(ValueError, match="corruptions has fog; allowed are gaussian_noise, gaussian_blur, "):
        LinearProbe(corruptions=["fog"])
