"""Work that may take long is watched: its name, and a count that reaches its total."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_lightning.callbacks.progress import ProgressBar
from ssl_lightning.core import progress
from ssl_lightning.data.fake import Fake
from ssl_lightning.data.io import download
from ssl_lightning.data.io.annotations import check_masks
from ssl_lightning.data.io.folders import good_images
from ssl_lightning.data.io.packed import make_pack
from ssl_lightning.data.io.scan import scan
from ssl_lightning.data.objects.image_data import ImageData
from ssl_lightning.data.pack.__main__ import main as pack
from ssl_lightning.features.prepare import recalibrated
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes.attentive import AttentiveProbe
from ssl_lightning.probes.embedding import EmbeddingProbe
from ssl_lightning.probes.finetune import FineTuneProbe
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.probes.lowshot import LowShotProbe
from ssl_lightning.probes.nonlinear import NonLinearProbe
from ssl_lightning.probes.svm import SVMProbe
from ssl_lightning.run.probe_call import probe
from tests.probes import test_detection, test_segmentation

SPLITS = ("train", "heldout", "test")


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> list[progress.Work]:
    """Return the list of all watched work, in the order of its start."""
    seen: list[progress.Work] = []

    class Noted(progress.Work):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append(self)

    monkeypatch.setattr(progress, "Work", Noted)
    return seen


def counts(works: list[progress.Work]) -> list[str]:
    """Return name, count and unit of all work that is counted; all of it must be complete."""
    counted = [work for work in works if work.total is not None]
    assert all(work.done == work.total for work in counted)
    return [f"{work.what}: {work.total} {work.unit}" for work in counted]


def names(works: list[progress.Work]) -> list[str]:
    return [work.what for work in works]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 5 pictures with a mask for each."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        for kind, shape in (("images", (40, 40, 3)), ("masks", (40, 40))):
            path = root / kind / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full(shape, number, np.uint8)).save(path)
    return root


def backbone() -> nn.Module:
    """Return a network of 4 stages."""
    return ConvNet(widths=(8, 8, 8, 8), strides=(2, 2, 2, 2))


def test_feature_probes(works: list[progress.Work]) -> None:
    data = Fake(num_train=96, heldout=32, num_test=32, image_size=32)
    data.eval_batch_size = 32
    probes = {
        "linear": LinearProbe(max_iter=3),
        "knn": KNNProbe(ks=[1]),
        "svm": SVMProbe(costs=[1.0], max_iter=3),
        "lowshot": LowShotProbe(ks=[1], draws=2, max_iter=3),
    }
    probe(backbone(), data, probes=probes, device="cpu", progress=False)
    assert counts(works) == [
        *(f"encode {split}: {batches} batches" for split, batches in zip(SPLITS, (2, 1, 1), strict=True)),
        "fit: 4 stages", "vote: 512 queries", "fit: 4 stages", "fit: 4 stages",
    ]  # fmt: skip
    assert [name for name in names(works) if name.startswith("probe")] == [
        "probes on backbone", *(f"probe {name} on backbone" for name in probes)
    ]  # fmt: skip


def test_probes_that_read_or_train_the_backbone(works: list[progress.Work], tmp_path: Path) -> None:
    data = Fake(num_train=24, heldout=8, num_test=8, image_size=32, batch_size=8)
    probes = {
        "nonlinear": NonLinearProbe(epochs=2, batch_size=8),
        "attentive": AttentiveProbe(epochs=3, stages=[4]),
        "finetune": FineTuneProbe(fractions=[1.0], epochs=1, min_steps=1, batch_size=8),
        "embedding": EmbeddingProbe(),
    }
    probe(backbone(), data, probes=probes, device="cpu", progress=False, folder=tmp_path)
    found = counts(works)
    assert found[:3] == [f"encode maps of {split}: 1 batches" for split in SPLITS]
    assert "train: 2 epochs" in found
    assert "train on stage4: 3 epochs" in found
    assert "train on 100 % of the labels: 2 steps" in found
    assert found[-3:] == ["test on heldout: 1 batches", "test on test: 1 batches", "encode images: 1 batches"]


@pytest.mark.parametrize("cached", [True, False])
def test_masks(works: list[progress.Work], tmp_path: Path, cached: bool) -> None:
    options = {} if cached else {"cache_gb": 0.0}
    test_segmentation.run(test_segmentation.splits(), tmp_path, steps=4, evals=1, **options)
    encoded = ["encode train: 3 batches", "encode heldout: 1 batches"]
    assert counts(works) == [
        *["read images: 2 batches"] * 3,
        *(encoded if cached else ["measure features: 3 batches"]),
        "train: 4 steps",
        "test on heldout: 1 batches",
        "test on test: 2 batches",
    ]


def test_boxes(works: list[progress.Work], tmp_path: Path) -> None:
    test_detection.run(test_detection.splits(), tmp_path)
    assert counts(works) == [
        *["read images: 2 batches"] * 3,
        "measure features: 2 batches",
        "train: 3 steps",
        "test on heldout: 1 batches",
        "test on test: 1 batches",
    ]
    assert names(works).count("average precision") == 2


def test_recalibration(works: list[progress.Work]) -> None:
    def same(images: Tensor) -> Tensor:
        return images

    recalibrated(nn.BatchNorm2d(3), same, torch.zeros(20, 3, 4, 4, dtype=torch.uint8), batch_size=8)
    assert counts(works) == ["recalibrate batch norm: 3 batches"]


def test_checks_of_files(works: list[progress.Work], folder: Path, tmp_path: Path) -> None:
    images, masks = scan(folder / "images"), scan(folder / "masks")
    good_images(folder / "images", images, max_pixels=10**6, max_bad=0, cache=tmp_path)
    check_masks(list(map(Path, images)), list(map(Path, masks)), 5, (), num_workers=2)
    assert names(works)[:2] == [f"list {folder / kind}" for kind in ("images", "masks")]
    assert counts(works) == [
        f"look for changes in {folder / 'images'}: 5 files",
        f"check {folder / 'images'}: 5 images",
        "read image sizes: 5 files",
        "check masks: 5 files",
    ]


def test_decoding_into_the_cache(works: list[progress.Work], folder: Path, tmp_path: Path) -> None:
    make_pack(scan(folder / "images"), tmp_path / "packed", channels=3, side=20, max_pixels=10**6)
    assert counts(works) == ["data.cache: look for changes: 5 files", "data.cache: decode: 5 pictures"]


def test_packing_and_its_check(works: list[progress.Work], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert pack([str(folder / "images"), str(out), "--samples-per-shard", "2"]) == 0
    assert pack([str(out), "--check"]) == 0
    assert counts(works) == [f"pack into {out}: 5 images", f"check {out}: 3 shards"]


def test_reading_a_dataset(works: list[progress.Work]) -> None:
    draws = np.random.default_rng(0)
    items = [(draws.integers(0, 256, (8, 8, 3), np.uint8), number % 2) for number in range(12)]
    ImageData(items, labelled_train=items, test=items[:4], image_size=8, batch_size=4).setup()
    assert counts(works) == ["read labelled_train: 12 images", "read test: 4 images"]  # one list is read once


def test_downloads_without_a_terminal(works: list[progress.Work], tmp_path: Path) -> None:
    with download._progress("photos: mirror", tmp_path, size=5_000_000):
        (tmp_path / "archive").write_bytes(bytes(3_000_000))
        end = time.monotonic() + 60
        while works[0].done < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert [f"{work.what}: {work.done} of {work.total} {work.unit}" for work in works] == [
        "photos: mirror: 3 of 5 MB"
    ]


def test_the_first_batch_and_validation() -> None:
    trainer: Any = SimpleNamespace(
        callbacks=[], is_global_zero=True, num_val_batches=[3], sanity_checking=False, callback_metrics={},
        current_epoch=0,
    )  # fmt: skip
    task: Any = SimpleNamespace(scores={})
    bar = ProgressBar()

    def running() -> list[str]:
        return [f"{work.what} {work.done} of {work.total}" for work in progress._running]

    bar.on_train_start(trainer, task)
    assert running() == ["first batch 0 of None"]
    bar.on_train_batch_end(trainer, task, None, None, 0)
    assert running() == []
    bar.on_validation_start(trainer, task)
    for number in range(2):
        bar.on_validation_batch_end(trainer, task, None, None, number)
    assert running() == ["validation 2 of 3"]
    bar.on_validation_end(trainer, task)
    bar.on_train_start(trainer, task)
    bar.on_exception(trainer, task, ValueError())
    assert running() == []
