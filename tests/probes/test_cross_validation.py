"""Cross-validated figures: against one run for each fold, by hand, and on labels that mean nothing."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record, best_stage, check_figures
from ssl_lightning.core import progress
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.fake import Fake
from ssl_lightning.features.encode import Features, encode
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes._accuracy import records_of
from ssl_lightning.probes._cross_validation import fold_features, merge_folds, run_folds, whole_features
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.attentive import AttentiveProbe
from ssl_lightning.probes.base import BaseProbe
from ssl_lightning.probes.embedding import EmbeddingProbe
from ssl_lightning.probes.finetune import FineTuneProbe
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.probes.lowshot import LowShotProbe
from ssl_lightning.probes.nonlinear import NonLinearProbe
from ssl_lightning.probes.svm import SVMProbe


class Untested(Fake):
    """Labelled images without a test split."""

    def load(self) -> Pairing:
        pairing = super().load()
        return Pairing(pairing.pretrain, pairing.train, None, pairing.class_names, pairing.overlap)


@pytest.fixture(scope="module")
def data() -> Untested:
    found = Untested(num_train=63, num_classes=3, heldout=12, image_size=16, batch_size=8)
    found.setup()
    return found


def probed(data: Fake, probe: BaseProbe, folder: Path, **how: Any) -> list[Record]:
    torch.manual_seed(0)
    return run_probes(
        {"backbone": ConvNet(widths=[4, 4], strides=[2, 2])},
        lambda x: x,
        {"it": probe},
        {split: data.downstream(split) for split in ("train", "heldout", "test")},
        class_names=("a", "b", "c"),
        folder=folder,
        data=data,
        make_trainer=quiet_trainer,
        **how,
    )[0]


def quiet_trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, **options)


def right_of(record: Record) -> np.ndarray:
    assert record.answers is not None
    return np.unpackbits(np.frombuffer(record.answers.right, np.uint8), count=record.n)


PROBES = [
    KNNProbe(ks=[3, 5]), KNNProbe(ks=[500]), LinearProbe(), SVMProbe(costs=[1.0]),
    NonLinearProbe(epochs=1, stage=["stage1", "stage2"]),
    AttentiveProbe(epochs=1, batch_size=16),
    FineTuneProbe(fractions=[0.5, 1.0], epochs=1, min_steps=1),
]  # fmt: skip


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
def test_it_is_a_run_for_each_fold(data: Untested, probe: BaseProbe, tmp_path: Path) -> None:
    found = sorted(probed(data, probe, tmp_path), key=setting)
    folds = [sorted(probed(fold, probe, tmp_path), key=setting) for fold in data.test_folds]
    for record, *alike in zip(found, *folds, strict=True):
        check_figures(record, "a stored file has")
        assert (record.n, record.protocol["cross_validated"]) == (63, 5)
        if "stages" in record.protocol:  # the best of each fold
            alike = [
                best_stage([r for r in fold if setting(r)[:-1] == setting(like)[:-1]])
                for fold, like in zip(folds, alike, strict=True)
            ]
            assert [r.stage for r in alike] == record.protocol["stages"]
        assert np.array_equal(right_of(record), np.concatenate([right_of(r) for r in alike]))
        assert record.value == pytest.approx(sum(r.value * r.n for r in alike) / 63)
        assert record.heldout == pytest.approx(sum(r.heldout * r.n for r in alike) / 63)


def setting(record: Record) -> tuple[Any, ...]:
    protocol = record.protocol
    return record.metric, protocol.get("k", 0), protocol.get("fraction", 0), record.stage


def test_every_labelled_image_is_tested_once_by_others(data: Untested) -> None:
    tested = torch.cat([fold.downstream("test").indices for fold in data.test_folds])
    assert tested.sort().values.tolist() == list(range(63))
    assert data.downstream("test").indices.tolist() == list(range(63))
    for fold in data.test_folds:
        splits = [fold.downstream(split).indices.tolist() for split in ("train", "heldout", "test")]
        assert sorted(itertools.chain(*splits)) == list(range(63))
        assert fold.test_folds == []
    assert data.label_counts == {"train": 40, "heldout": 9, "test": 12, "rarest": data.label_counts["rarest"]}
    assert Fake(num_train=63, num_classes=3, heldout=12, image_size=16).test_folds == []


@pytest.mark.parametrize(("images", "classes"), [(10, 2), (12, 2), (18, 2), (24, 2), (15, 3), (63, 3)])
def test_few_images_still_select_in_every_fold(images: int, classes: int) -> None:
    data = Untested(num_train=images, num_classes=classes, heldout=None, image_size=16, batch_size=4)
    data.setup()
    counts = [len(fold.downstream("heldout").indices) for fold in data.test_folds]
    assert min(counts) >= 1
    assert len(data.downstream("heldout").indices) <= max(3, images // 10)
    LinearProbe().check(data.label_counts)


def test_features_are_cut_like_the_images(data: Untested, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone: nn.Module = ConvNet(widths=[4, 4], strides=[2, 2])
    splits = ("train", "heldout")
    whole = encode(backbone, lambda x: x, {split: data.downstream(split) for split in splits}, [1])
    for cut, fold in zip(fold_features(whole), data.test_folds, strict=True):
        loaders = {split: fold.downstream(split) for split in (*splits, "test")}
        direct = encode(backbone, lambda x: x, loaders, [1])
        for split in loaders:
            assert torch.equal(cut.labels[split], direct.labels[split])
            torch.testing.assert_close(cut.get(split, "stage2", 1), direct.get(split, "stage2", 1))


def test_the_classifier_to_store_is_fitted_to_all_images(data: Untested, tmp_path: Path) -> None:
    kept: list[Any] = []
    records = probed(data, LinearProbe(), tmp_path, keep=lambda *each: kept.append(each[-1]))
    (fitted,) = kept
    best = best_stage([r for r in records if r.metric == "top1"])
    assert best is not None
    assert fitted.record.value == best.value
    assert fitted.record.n == 63


def test_low_shot_figures_are_averaged(data: Untested, tmp_path: Path) -> None:
    probe = LowShotProbe(ks=[1, 4], draws=2)
    found = probed(data, probe, tmp_path)
    assert [(r.stage, r.protocol["k_shot"], r.n) for r in found] == [
        ("stage1", 1, 63), ("stage2", 1, 63), ("stage1", 4, 63), ("stage2", 4, 63),
    ]  # fmt: skip
    assert all(isinstance(r.protocol["sd"], float) for r in found)
    for record in found:
        check_figures(record, "a stored file has")

    def shot(record: Record) -> tuple[int, str]:
        return record.protocol["k_shot"], record.stage

    plain = [number for number, record in enumerate(found) if "stages" not in record.protocol]
    folds = [sorted(probed(fold, probe, tmp_path), key=shot) for fold in data.test_folds]
    for number in plain:
        values, protocol = [0.0, 0.0], found[number].protocol
        for record in (fold[number] for fold in folds):
            values = [v + x * record.n / 63 for v, x in zip(values, record.protocol["values"], strict=True)]
        assert protocol["values"] == pytest.approx(values)
        assert found[number].value == pytest.approx(sum(values) / 2)
        assert protocol["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert len(plain) == 2


def test_probes_without_labels_run_once(data: Untested, tmp_path: Path) -> None:
    assert probed(data, EmbeddingProbe(), tmp_path) == []
    with np.load(tmp_path / "embedding.npz") as stored:
        assert len(stored["features"]) == 63


def scored(right: list[int], heldout: float, stage: str, labels: list[int]) -> Record:
    truth = torch.tensor(labels)
    scores = torch.eye(2)[torch.where(torch.tensor(right).bool(), truth, 1 - truth)]
    record = next(r for r in records_of(stage, {"l2": heldout}, (scores, truth), None))
    record.protocol["heldout"] = heldout
    return record


def test_each_fold_chooses_its_stage() -> None:
    labels = [0, 0, 1, 1]
    folds = [
        [scored([1, 1, 0, 0], 0.7, "stage1", labels), scored([1, 0, 0, 0], 0.6, "stage2", labels)],
        [scored([0, 0, 0, 1], 0.6, "stage1", labels), scored([1, 1, 1, 0], 0.8, "stage2", labels)],
        [scored([1, 1, 1, 1], 0.5, "stage1", labels), scored([1, 0, 1, 0], 0.9, "stage2", labels)],
    ]
    first, second = merge_folds(folds)
    assert (first.stage, first.value, first.heldout) == ("stage1", pytest.approx(7 / 12), pytest.approx(0.6))
    assert second.stage == "stage2"  # chosen by two of three folds
    assert second.protocol["stages"] == ["stage1", "stage2", "stage2"]
    assert right_of(second).tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0]
    assert second.heldout == pytest.approx((0.7 + 0.8 + 0.9) / 3)
    assert best_stage([first, second]) == second
    assert second.protocol["l2"] == [0.7, 0.8, 0.9]
    assert "stages" not in first.protocol


def test_balanced_accuracy_is_that_of_all_images() -> None:
    sizes = (9, 3)
    labels = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(sizes))
    scores = [torch.rand(12, 2, generator=generator("balanced", fold)) for fold in range(5)]
    _, balanced = merge_folds([records_of("stage1", {}, (each, labels), (each, labels)) for each in scores])
    _, expected = records_of("stage1", {}, (torch.cat(scores), labels.repeat(5)), None)
    assert balanced.value == pytest.approx(expected.value)
    assert balanced.standard_error == pytest.approx(expected.standard_error)
    assert balanced.protocol["majority"] == expected.protocol["majority"]


@pytest.mark.parametrize(("sizes", "unequal"), [((20, 11), True), ((33, 20), True), ((33, 23), False)])
def test_all_folds_have_the_metrics_of_all_labels(sizes: tuple[int, int], unequal: bool) -> None:
    """Alone, some folds of the first two have classes of 4 and 3 or 6 and 4 images, which count as equal."""
    stream = generator("unequal", *sizes)
    every = torch.repeat_interleave(torch.tensor([0, 1]), torch.tensor(sizes))
    every = every[torch.randperm(len(every), generator=stream)]
    labels = {"train": every[6:], "heldout": every[:6]}
    pooled = {
        split: {("stage1", (1, 1)): torch.randn(len(y), 64, generator=stream)} for split, y in labels.items()
    }
    features = Features(labels, ("stage1",), {("stage1", 1): (1, 1)}, pooled, 1.0, 1.0)
    probe = LinearProbe(pool=1)
    run = partial(probe.run, num_classes=2)
    records = run_folds(probe, run, fold_features(features), whole_features(features), every)
    assert [r.metric for r in records] == (["top1", "balanced"] if unequal else ["top1"])
    assert {r.n for r in records} == {len(every)}
    assert probe.fitted is not None
    assert probe.fitted.record == records[-1]  # and not its accuracy on the images that it was fitted to


def test_labels_that_mean_nothing_give_chance() -> None:
    """The best of six stages would be above chance if one stage were chosen for all folds together."""
    nested, chosen = [], []
    for draw in range(30):
        stream = generator("nothing", draw)
        names = tuple(f"stage{n}" for n in range(1, 7))
        labels: dict[str, Tensor] = {
            split: torch.arange(n) % 2 for split, n in (("train", 54), ("heldout", 6))
        }
        pooled = {
            split: {(name, (1, 1)): torch.randn(len(y), 8, generator=stream) for name in names}
            for split, y in labels.items()
        }
        features = Features(labels, names, {(name, 1): (1, 1) for name in names}, pooled, 1.0, 1.0)
        folds = [KNNProbe(ks=[3]).run(part, num_classes=2) for part in fold_features(features)]
        best = best_stage(merge_folds(folds))
        assert best is not None
        nested.append(best.value)
        plain = [np.mean([fold[place].value for fold in folds]) for place in range(6)]
        heldout = [np.mean([fold[place].heldout or 0 for fold in folds]) for place in range(6)]
        chosen.append(plain[int(np.argmax(heldout))])
    error = float(np.std(nested)) / np.sqrt(30)
    assert abs(np.mean(nested) - 0.5) < 3 * error
    assert np.mean(chosen) > 0.5 + 3 * error


def test_progress_names_the_fold() -> None:
    seen: list[list[str]] = []

    def run(fold: int) -> list[Record]:
        seen.append([work.what for work in progress._running])
        return []

    run_folds(LinearProbe(), run, [0, 1, 2], 3, torch.tensor([0, 1]))
    assert seen == [["fold 1 of 3"], ["fold 2 of 3"], ["fold 3 of 3"]]
