"""RankMe probe: ranks and slope of every stage on unlabelled images against numpy, without labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.data.fake import Fake
from ssl_lightning.data.folder import Folder
from ssl_lightning.ops.rank import lidar
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.rankme import RankMeProbe


class Backbone(nn.Module):
    """The mean colour, and one feature of it."""

    def forward(self, x: Tensor) -> list[Tensor]:
        colour = x.mean((2, 3), keepdim=True)
        return [colour, colour.mean(1, keepdim=True)]


def ranks(data: Any, **options: Any) -> list[dict]:
    probes = {"rankme": RankMeProbe(**options)}
    loaders = {"train": data.downstream("train")} if data.has_downstream else {}
    return run_probes(
        {"backbone": Backbone()}, lambda x: x, probes, loaders, class_names=(), folder=Path(), data=data
    )[0]


def test_the_rank_is_numpys_of_all_pretraining_images() -> None:
    data = Fake(num_train=40, heldout=8, batch_size=4)
    records = ranks(data)
    assert not [r for r in records if r.metric == "lidar"]  # the data do not augment
    records = [r for r in records if r.metric == "rankme"]
    images = torch.cat([x for x, _ in data.unlabelled()]).double() / 255
    values = np.linalg.svd(images.mean((2, 3)).numpy(), compute_uv=False)
    share = values / values.sum()
    assert records[0].value == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=1e-4)
    assert [(r.stage, r.metric, r.split, r.n) for r in records] == [
        ("stage1", "rankme", "pretrain", 32),
        ("stage2", "rankme", "pretrain", 32),
    ]
    assert records[1].value == 1.0
    assert records[0].protocol["largest_possible"] == 3


def test_alpha_req_is_the_slope_of_the_covariance() -> None:
    data = Fake(num_train=40, heldout=8, batch_size=4)
    (record,) = [r for r in ranks(data) if r.metric == "alpha_req"]  # a stage of one feature has no slope
    colours = (torch.cat([x for x, _ in data.unlabelled()]).double() / 255).mean((2, 3)).numpy()
    values, number = np.linalg.eigvalsh(np.cov(colours.T))[::-1], np.arange(1, 4)
    slope, _ = np.polyfit(np.log(number), np.log(values), 1, w=number**-0.5)  # it squares its weights
    assert record.value == pytest.approx(-slope, rel=1e-3)
    assert (record.stage, record.split, record.n) == ("stage1", "pretrain", 32)


class LeftHalf(nn.Module):
    """The mean colour of the left half, which a flip changes."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[..., : x.shape[3] // 2].mean((2, 3), keepdim=True)]


def test_lidar_compares_views_by_the_training_augmentation() -> None:
    found = []
    for seed in (0, 1):
        data = Fake(num_train=40, heldout=8, batch_size=4, crop_padding=4, flip=True, seed=seed)
        probes = {"rankme": RankMeProbe(lidar_images=20, lidar_views=5)}
        records, _ = run_probes(
            {"backbone": LeftHalf()}, lambda x: x, probes, {}, class_names=(), folder=Path(), data=data
        )
        found.append(next(r for r in records if r.metric == "lidar"))
    record = found[0]
    assert found[1] == record  # the same views in runs of other seeds
    views = [
        torch.cat([x for x, _ in data.augmented(20, f"view {number}")]).double() / 255
        for number in range(1, 6)
    ]
    assert all(not torch.equal(views[0], each) for each in views[1:])
    features = torch.stack([each[..., :16].mean((2, 3)) for each in views], 1)  # (20, 5, 3)
    assert record.value == pytest.approx(float(lidar(features)), rel=1e-3)
    assert 1 < record.value <= record.protocol["largest_possible"] == 3
    assert (record.n, record.protocol["views"]) == (20, 5)
    assert record.protocol["view"] == "training augmentation"


def test_without_augmentation_a_line_says_that_there_is_no_lidar(caplog: pytest.LogCaptureFixture) -> None:
    ranks(Fake(num_train=40, heldout=8, batch_size=4))
    assert "no LiDAR: the data do not augment training images" in caplog.text
    caplog.clear()
    ranks(Fake(num_train=40, heldout=8, batch_size=4), lidar_views=0)
    assert not caplog.text


def test_fewer_images_are_a_fixed_draw() -> None:
    found = [ranks(Fake(num_train=80, heldout=8, batch_size=4, seed=seed), images=20) for seed in (0, 1)]
    assert found[0] == found[1]
    assert found[0][0].n == 20


def test_images_without_labels_are_enough(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(12):
        picture = np.full((9, 9, 3), (20 * number, 255 - 20 * number, 128), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number:02}.png")
    data = Folder(
        pretrain_dir=str(tmp_path), root=str(tmp_path / "cache"), image_size=8, batch_size=2, heldout=2
    )
    data.num_workers = 0
    data.setup()
    assert data.label_counts == {}
    assert 1 < ranks(data)[0].value < 3


@pytest.mark.parametrize(
    "options", [{"images": 1}, {"pool": 0}, {"lidar_images": 1}, {"lidar_views": 1}, {"lidar_views": -1}]
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"probe\.rankme\."):
        RankMeProbe(**options)
